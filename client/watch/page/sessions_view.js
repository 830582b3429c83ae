import { make } from "./heatmap.js";
import { ask, bytes, fill, isDnc, repeat } from "./page_parts.js";
import { getJson, post } from "./server.js";

const POLL_MILLISECONDS = 1000;
const TREND = "▁▂▃▄▅▆▇";
const TREND_LENGTH = 12;

/** The list of sessions, kept up to date. */
export async function showSessions(model, signal) {
  const find = fill("sessions-template");
  const [body, note, prefix] = [find("#sessions"), find("#sessions-note"), find("#prefix")];
  const activity = new Map(); // id → {position, at, speeds}
  const several = model.names.length > 1;
  const chosen = find("#new-model");
  chosen.replaceChildren(...model.names.map((name) => make("option", { value: name }, name)));
  find("#of-model").hidden = !several;

  find("#new-session").addEventListener("click", async () => {
    const id = await ask("New session", several ? `Of the model ${chosen.value}.` : isDnc(model) ? "It starts with an empty memory." : "It starts in the model's initial state.", "Create", { label: "Id", value: "" });
    if (id === null) return;
    try {
      await post("api/sessions", { id, model: chosen.value });
      location.hash = `#/session/${encodeURIComponent(id)}`;
    } catch (error) {
      note.textContent = error.message;
    }
  });
  const refresh = async () => {
    const { sessions, more } = await getJson(`api/sessions?prefix=${encodeURIComponent(prefix.value)}`, signal);
    sessions.sort((a, b) => b.last_used.localeCompare(a.last_used));
    for (const session of sessions) measure(activity, session);
    const focused = document.activeElement?.closest?.("#sessions a")?.textContent;
    body.replaceChildren(...sessions.map((session) => row(session, activity.get(session.id).speeds, several)));
    for (const link of body.querySelectorAll("a")) if (link.textContent === focused) link.focus();
    note.textContent = more
      ? `Only the first ${sessions.length} by id are shown: narrow them with the first letters of the id.`
      : sessions.length ? "" : prefix.value ? `No session's id begins with ${prefix.value}.` : "No sessions yet: create one here, or let a client open one.";
  };
  prefix.addEventListener("input", () => refresh().catch(() => {}));
  await repeat(POLL_MILLISECONDS, signal, refresh);
}

/** How many timesteps a second the session did lately. */
function measure(activity, session) {
  const now = performance.now();
  const known = activity.get(session.id) ?? { position: session.position, at: now, speeds: [] };
  const seconds = (now - known.at) / 1000;
  if (seconds > 0) known.speeds.push(Math.max(0, session.position - known.position) / seconds);
  known.speeds.splice(0, known.speeds.length - TREND_LENGTH);
  activity.set(session.id, { position: session.position, at: now, speeds: known.speeds });
}

function row(session, speeds, several) {
  const link = make("a", { href: `#/session/${encodeURIComponent(session.id)}` }, session.id);
  const most = Math.max(...speeds, 1e-9);
  const trend = speeds.map((speed) => TREND[Math.round((speed / most) * (TREND.length - 1))]).join("");
  const speed = speeds.at(-1) ?? 0;
  const cell = (text, kind = "") => make("td", kind ? { class: kind } : {}, text);
  const activity = make("td", { class: "number activity" }, `${Math.round(speed)} `, make("span", { "aria-hidden": "true" }, most > 0.5 ? trend : ""));
  return make(
    "tr", {},
    make("td", {}, link, several ? ` ${session.model}` : ""), cell(String(session.position), "number"), cell(String(session.experience), "number"),
    cell(session.tier), cell(bytes(session.state_bytes), "number"), activity,
    cell(new Date(session.last_used).toLocaleString()),
  );
}
