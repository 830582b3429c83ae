import { showComparison } from "./compare_view.js";
import { pause, showConnection } from "./page_parts.js";
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
    const model = await modelWhenThere(signal);
    if (signal.aborted) return;
    const session = path.match(/^\/session\/(.+)$/);
    if (session) await showSession(decodeURIComponent(session[1]), model, signal);
    else if (path === "/compare") await showComparison(new URLSearchParams(query), model, signal);
    else await showSessions(signal);
  } catch (error) {
    if (!signal.aborted) document.getElementById("view").textContent = error.message;
  }
}

/** The model that is served, asked for until a server answers. */
async function modelWhenThere(signal) {
  for (;;) {
    try {
      const model = await getJson("api/model", signal);
      document.getElementById("model").textContent =
        `${model.name} · ${model.config.nr_cells} slots of ${model.config.cell_size} · ${model.artifact} on ${model.device}`;
      showConnection("");
      return model;
    } catch (error) {
      if (!error.lost || signal.aborted) throw error;
      showConnection(error.message);
      await pause(RETRY_MILLISECONDS, signal);
    }
  }
}

addEventListener("hashchange", route);
route();
