import { showChunkBox } from "./chunk_box.js";
import { MemoryMaps } from "./memory_maps.js";
import { ask, fill, pause, showConnection } from "./page_parts.js";
import { frames, getJson, getMemory, post, sessionPath } from "./server.js";

const RECONNECT_MILLISECONDS = 1000;

/** One session: live, or at an earlier position. */
export async function showSession(id, model, signal) {
  const find = fill("session-template");
  find("#session-id").textContent = id;
  find("#compare").href = `#/compare?a=${encodeURIComponent(id)}&b=${encodeURIComponent(id)}`;
  const maps = new MemoryMaps(model.config, find("#maps"));
  const view = new SessionView(id, maps, find, signal);
  chooseLayer(model.config, find, view);
  showChunkBox(find("#chunk"), id, model, maps, signal);
  offerChanges(id, find, view);
  await view.follow();
}

class SessionView {
  constructor(id, maps, find, signal) {
    Object.assign(this, { id, maps, find, signal, layer: 0, live: true, frame: null, arrivals: [], wanted: null });
    this.slider = find("#slider");
    this.slider.addEventListener("input", () => this.lookBack(Number(this.slider.value)));
    find("#live").addEventListener("click", () => this.goLive());
  }

  /** Takes frames for ever; a hidden page takes none. */
  async follow() {
    while (!this.signal.aborted) {
      const watching = new AbortController();
      const stop = () => (this.signal.aborted || document.hidden) && watching.abort();
      this.signal.addEventListener("abort", stop, { once: true });
      document.addEventListener("visibilitychange", stop);
      try {
        await this.#refreshReach();
        for await (const frame of frames(this.id, watching.signal)) {
          if (frame.ended) return showConnection(frame.ended);
          showConnection(frame.lost ?? "");
          if (!frame.lost) this.#receive(frame);
        }
      } catch (error) {
        if (this.signal.aborted) return;
        if (!watching.signal.aborted) showConnection(error.message);
      } finally {
        document.removeEventListener("visibilitychange", stop);
      }
      do await pause(RECONNECT_MILLISECONDS, this.signal);
      while (document.hidden && !this.signal.aborted);
    }
  }

  #receive(frame) {
    const seenBefore = this.frame?.position === frame.position;
    this.frame = frame;
    this.arrivals = [...this.arrivals.filter((at) => at > performance.now() - 2000), performance.now()];
    if (!seenBefore) this.maps.push(frame.arrays, this.layer, { position: frame.position, experience: frame.experience });
    this.slider.max = frame.position;
    if (this.live) this.slider.value = frame.position;
    this.#drawSoon();
  }

  #drawSoon() {
    this.drawing ??= requestAnimationFrame(() => {
      this.drawing = null;
      if (!this.frame) return;
      const set = (selector, text) => (this.find(selector).textContent = text);
      set("#position", this.frame.position);
      set("#experience", this.frame.experience);
      set("#tier", this.frame.tier);
      set("#rate", Math.round(this.arrivals.filter((at) => at > performance.now() - 1000).length));
      if (!this.live) return;
      set("#shown", `${this.frame.position} (now)`);
      this.maps.show(this.frame.arrays, this.layer);
      this.find("#maps").dataset.position = this.frame.position;
    });
  }

  /** How far back the journal reaches. */
  async #refreshReach() {
    const { earliest_position: earliest, position } = await getJson(sessionPath(this.id), this.signal);
    this.slider.max = position;
    this.slider.min = earliest;
    if (this.live) this.slider.value = position;
  }

  /** Shows an earlier position; of many asked for in a row, the last. */
  async lookBack(position) {
    this.#setLive(false);
    const busy = this.wanted !== null;
    this.wanted = position;
    if (busy) return;
    const note = this.find("#past-note");
    while (this.wanted !== null) {
      const asked = this.wanted;
      try {
        const past = await getMemory(this.id, asked, this.signal);
        if (this.live) break;
        this.maps.show(past.arrays, this.layer);
        this.find("#maps").dataset.position = asked;
        this.find("#shown").textContent = `${asked} of ${this.slider.max}`;
        note.textContent = "";
      } catch (error) {
        if (this.signal.aborted) return;
        note.textContent = error.message;
      }
      note.hidden = !note.textContent;
      if (this.wanted === asked) break;
    }
    this.wanted = null;
  }

  goLive() {
    this.#setLive(true);
    this.find("#past-note").hidden = true;
    this.slider.value = this.slider.max;
    this.#drawSoon();
  }

  #setLive(live) {
    this.live = live;
    this.find("#live").setAttribute("aria-pressed", live);
  }

  setLayer(layer) {
    this.layer = layer;
    this.maps.forget();
    if (this.live) this.#drawSoon();
    else this.lookBack(Number(this.slider.value));
  }
}

/** Models of several layers have one memory for all, or one for each; their controllers ask on their own. */
function chooseLayer({ num_layers: layers }, find, view) {
  const select = find("#layer");
  select.append(...Array.from({ length: layers }, (_, layer) => new Option(String(layer + 1), String(layer))));
  find("#layer-label").hidden = layers === 1;
  select.addEventListener("change", () => view.setLayer(Number(select.value)));
}

function offerChanges(id, find, view) {
  const refuse = (error) => {
    find("#past-note").textContent = error.message;
    find("#past-note").hidden = false;
  };
  const reset = async (scope, text) => {
    if ((await ask(`Reset ${id}?`, text, "Reset")) === null) return;
    await post(`${sessionPath(id)}/reset`, { scope }).then(() => view.goLive(), refuse);
  };
  find("#reset").addEventListener("click", () =>
    reset("experience", "Its memory becomes empty; controller state and read vectors stay. Earlier positions can still be looked at."));
  find("#reset-all").addEventListener("click", () =>
    reset("all", "Memory, controller state and read vectors become as new. Earlier positions can still be looked at."));
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
