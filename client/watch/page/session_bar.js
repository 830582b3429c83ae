// What can be chosen and changed above a session.
import { ask, isDnc } from "./page_parts.js";
import { post, sessionPath } from "./server.js";
import { SPANS } from "./timeline.js";

/** Models of several layers have one memory for all, or one for each; their controllers ask on their own. */
export function chooseLayer({ num_layers: layers = 1 }, find, view) {
  const select = find("#layer");
  select.append(...Array.from({ length: layers }, (_, layer) => new Option(String(layer + 1), String(layer))));
  find("#layer-label").hidden = layers === 1;
  select.addEventListener("change", () => view.setLayer(Number(select.value)));
}

/** How much of the past is shown at once. */
export function chooseSpan(find, view) {
  const select = find("#span");
  select.append(...SPANS.map((span) => new Option(`${span.toLocaleString("en")} timesteps`, String(span))));
  select.addEventListener("change", () => view.timeline.choose(Number(select.value) || null));
}

/** Resets and forks. */
export function offerChanges(id, model, find, view) {
  const refuse = (error) => view.note(error.message);
  const reset = async (scope, text) => {
    if ((await ask(`Reset ${id}?`, `${text} Earlier positions can still be looked at.`, "Reset")) === null) return;
    await post(`${sessionPath(id)}/reset`, { scope }).then(() => view.goLive(), refuse);
  };
  const experience = model.state.filter((field) => field.experience).map(({ name }) => name);
  find("#reset").hidden = !experience.length;
  find("#reset").addEventListener("click", () => reset("experience", isDnc(model)
    ? "Its memory becomes empty; controller state and read vectors stay."
    : `${experience.join(", ")} ${experience.length > 1 ? "become" : "becomes"} as in a new session; the rest of its state stays.`));
  find("#reset-all").addEventListener("click", () => reset("all", isDnc(model)
    ? "Memory, controller state and read vectors become as new." : "All of its state becomes as in a new session."));
  find("#fork").addEventListener("click", async () => {
    const position = view.live ? null : Number(view.slider.value);
    const suggested = `${id}-fork-${position ?? view.frame?.position ?? 0}`.slice(-128);
    const from = position === null ? "as it is now" : `as it was at position ${position}`;
    const forkId = await ask(`Fork ${id}?`, `The copy begins ${from}, and goes its own way.`, "Fork", { label: "Id of the copy", value: suggested });
    if (forkId === null) return;
    await post(`${sessionPath(id)}/fork`, { id: forkId, position }).then(() => {
      location.hash = `#/compare?a=${encodeURIComponent(id)}&b=${encodeURIComponent(forkId)}`;
    }, refuse);
  });
}
