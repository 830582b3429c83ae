import { showComparison } from "./compare_view.js";
import { bytes, fill, isDnc, pause, showConnection } from "./page_parts.js";
import { getJson } from "./server.js";
import { showSession } from "./session_view.js";
import { showSessions } from "./sessions_view.js";

const RETRY_MILLISECONDS = 1000;
let leaving = new AbortController();

/** Shows what the address names: a list, a session, or a comparison. */
async function route() {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  const [path, query] = location.hash.replace(/^#/, "").split("?");
  try {
    const session = path.match(/^\/session\/(.+)$/);
    const asked = new URLSearchParams(query);
    const model = await modelWhenThere(session ? decodeURIComponent(session[1]) : asked.get("a") ?? "", signal);
    if (signal.aborted) return;
    document.title = "dnc watch";
    const position = /^\d+$/.test(asked.get("position")) ? Number(asked.get("position")) : null;
    if (session) await showSession(decodeURIComponent(session[1]), position, model, signal);
    else if (path === "/compare") await showComparison(asked, model, signal);
    else await showSessions(model, signal);
  } catch (error) {
    if (signal.aborted) return;
    const find = fill("error-template");
    find("p").textContent = error.message;
  }
}

/** The model of a session, or without one the default model, asked for until a server answers. */
async function modelWhenThere(session, signal) {
  for (;;) {
    try {
      const model = await getJson(`api/model?session=${encodeURIComponent(session)}`, signal);
      document.getElementById("model").textContent = `${model.name} · ${remembers(model)} · ${model.artifact} on ${model.device}`;
      showConnection();
      return model;
    } catch (error) {
      if (!error.lost || signal.aborted) throw error;
      showConnection(error);
      await pause(RETRY_MILLISECONDS, signal);
    }
  }
}

/** What a session of the model keeps, in short. */
function remembers(model) {
  if (isDnc(model)) return `${model.config.nr_cells} slots of ${model.config.cell_size}`;
  const names = model.state.map(({ name }) => name);
  const shown = names.length > 4 ? `${names.slice(0, 3).join(", ")} and ${names.length - 3} more` : names.join(", ");
  return `state of ${bytes(model.state_bytes)}: ${shown}`;
}

addEventListener("hashchange", route);
route();
