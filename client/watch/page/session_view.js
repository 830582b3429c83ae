import { showChunkBox } from "./chunk_box.js";
import { FieldMaps } from "./fields.js";
import { SessionHistory } from "./history.js";
import { MemoryMaps } from "./memory_maps.js";
import { fill, hasDenseMemory, pause, say, showConnection } from "./page_parts.js";
import { frames, getJson, getMemory, linkTo, post, sessionPath } from "./server.js";
import { chooseLayer, chooseSpan, offerChanges } from "./session_bar.js";
import { Timeline } from "./timeline.js";

const RECONNECT_MILLISECONDS = 1000;
const PLAY_MILLISECONDS = 150;

/** One session: live, or at an earlier position. */
export async function showSession(id, position, model, signal) {
  const session = await present(id, signal);
  if (session === null) return showMissing(id);
  const find = fill("session-template");
  document.title = `${id} · dnc watch`;
  find("#session-id").textContent = id;
  find("#compare").href = `#/compare?a=${encodeURIComponent(id)}&b=${encodeURIComponent(id)}`;
  const view = new SessionView(id, session, model, find, signal);
  chooseLayer(hasDenseMemory(model) ? model.config : {}, find, view);
  chooseSpan(find, view);
  showChunkBox(find("#chunk"), id, model, view.timeline, signal);
  offerChanges(id, model, find, view);
  if (position !== null) view.lookBack(position);
  await view.follow();
}

/** The session as the server describes it, asked for until one answers; null if there is none. */
async function present(id, signal) {
  for (;;) {
    try {
      const session = await getJson(sessionPath(id), signal);
      showConnection();
      return session;
    } catch (error) {
      if (signal.aborted) throw error;
      if (error.reason === "SESSION_NOT_FOUND" || error.reason === "SESSION_EXPIRED") return null;
      if (!error.lost) throw error;
      showConnection(error);
      await pause(RECONNECT_MILLISECONDS, signal);
    }
  }
}

function showMissing(id) {
  const find = fill("missing-template");
  showConnection();
  find("#missing-id").textContent = id;
  find("#create").addEventListener("click", async () => {
    try {
      await post("api/sessions", { id });
      dispatchEvent(new HashChangeEvent("hashchange"));
    } catch (error) {
      say(find("#missing-note"), error.message);
    }
  });
}

class SessionView {
  constructor(id, session, model, find, signal) {
    Object.assign(this, { id, find, signal, layer: 0, live: true, frame: null, arrivals: [], wanted: null, earliest: session.earliest_position });
    this.timeline = new Timeline(id, model.durability !== "off", signal);
    this.timeline.listeners.push(() => this.#drawHistorySoon());
    if (hasDenseMemory(model)) {
      this.maps = new MemoryMaps(model, find("#now"), find("#rest"));
    } else {
      this.maps = new FieldMaps(model.state, find("#now"));
      find("#now-title").textContent = "Its state";
      find("#rest").remove();
    }
    this.history = new SessionHistory(model, this.timeline, find("#history"), this.maps.gates, (at, why) => this.lookBack(at, why));
    this.slider = find("#slider");
    this.slider.addEventListener("input", () => (this.stop(), this.lookBack(Number(this.slider.value))));
    find("#live").addEventListener("click", () => (this.stop(), this.goLive()));
    find("#play").addEventListener("click", () => this.play());
    this.#reach(session.position);
  }

  /** Takes frames for ever; a hidden page takes none. */
  async follow() {
    while (!this.signal.aborted) {
      const watching = new AbortController();
      const stop = () => (this.signal.aborted || document.hidden) && watching.abort();
      this.signal.addEventListener("abort", stop, { once: true });
      document.addEventListener("visibilitychange", stop);
      try {
        for await (const frame of frames(this.id, watching.signal)) {
          if (frame.ended) return this.#end(frame.ended);
          showConnection(frame.lost ? { message: frame.lost } : null);
          if (!frame.lost) this.#receive(frame);
        }
      } catch (error) {
        if (this.signal.aborted) return;
        if (!watching.signal.aborted && error.lost) showConnection(error);
        else if (!watching.signal.aborted) this.note(error.message);
      } finally {
        document.removeEventListener("visibilitychange", stop);
      }
      do await pause(RECONNECT_MILLISECONDS, this.signal);
      while (document.hidden && !this.signal.aborted);
    }
  }

  /** The session has gone, the server has not; what was seen stays. */
  #end(why) {
    showConnection();
    this.note(`This session has ended: ${why}`);
    for (const button of this.find(".session-bar").querySelectorAll("button")) button.disabled = true;
  }

  #receive(frame) {
    this.frame = frame;
    this.arrivals = [...this.arrivals.filter((at) => at > performance.now() - 2000), performance.now()];
    if (!this.timeline.keeps) this.timeline.add(frame);
    this.#reach(frame.position);
    this.#drawSoon();
  }

  /** The newest position moved; how far back the journal reaches is asked now and then. */
  async #reach(position) {
    this.slider.min = this.earliest;
    this.slider.max = position;
    if (this.live) this.slider.value = position;
    this.timeline.show(this.live ? position : this.timeline.shown, position, this.earliest);
    if (this.asking || !this.frame) return;
    this.asking = true;
    const { earliest_position: earliest } = await getJson(sessionPath(this.id), this.signal).catch(() => ({}));
    if (earliest !== undefined) this.earliest = earliest;
    await pause(5000, this.signal);
    this.asking = false;
  }

  #drawSoon() {
    this.drawing ??= requestAnimationFrame(() => {
      this.drawing = null;
      if (!this.frame || this.signal.aborted) return;
      const set = (selector, text) => (this.find(selector).textContent = text);
      set("#position", this.frame.position);
      set("#experience", this.frame.experience);
      set("#tier", this.frame.tier);
      set("#rate", Math.round(this.arrivals.filter((at) => at > performance.now() - 1000).length));
      if (this.live) this.#show(this.frame.arrays, this.frame.position, `${this.frame.position} (now)`);
    });
  }

  #show(arrays, position, text) {
    this.maps.show(arrays, this.layer);
    this.find("#maps").dataset.position = position;
    this.find("#shown").textContent = text;
    const view = `/session/${encodeURIComponent(this.id)}${this.live ? "" : `?position=${position}`}`;
    this.find("#link").href = linkTo(view);
    if (location.hash !== `#${view}`) history.replaceState(null, "", `#${view}`);
  }

  #drawHistorySoon() {
    this.drawingHistory ??= requestAnimationFrame(() => {
      this.drawingHistory = null;
      if (!this.signal.aborted) this.history.draw(this.layer);
    });
  }

  /** Shows an earlier position, and says why; of many asked for in a row, the last. */
  async lookBack(position, why = "") {
    this.#setLive(false);
    this.slider.value = position;
    this.timeline.show(position, this.timeline.newest);
    const busy = this.wanted !== null;
    this.wanted = [position, why];
    if (busy) return;
    while (this.wanted !== null) {
      const asked = this.wanted;
      try {
        const past = await getMemory(this.id, asked[0], this.signal);
        if (this.live) break;
        this.#show(past.arrays, asked[0], `${asked[0]} of ${this.slider.max}`);
        this.note(asked[1]);
      } catch (error) {
        if (this.signal.aborted) return;
        this.note(error.message);
      }
      if (this.wanted === asked) break;
    }
    this.wanted = null;
  }

  goLive() {
    this.#setLive(true);
    this.note("");
    this.slider.value = this.slider.max;
    this.timeline.show(this.timeline.newest, this.timeline.newest);
    this.#drawSoon();
  }

  /** Goes through the positions from the one that is shown, or from the window's first, up to the newest. */
  async play() {
    if (this.playing) return this.stop();
    const playing = (this.playing = {});
    this.find("#play").textContent = "Pause";
    let position = this.live ? Math.max(this.earliest, (this.timeline.first - 1) * this.timeline.every) : Number(this.slider.value);
    while (position < this.timeline.newest && this.playing === playing && !this.signal.aborted) {
      position = Math.min(position + this.timeline.every, this.timeline.newest);
      await Promise.all([this.lookBack(position), pause(PLAY_MILLISECONDS, this.signal)]);
    }
    if (this.playing === playing) (this.stop(), this.goLive());
  }

  stop() {
    this.playing = null;
    this.find("#play").textContent = "Play";
  }

  note(text) {
    say(this.find("#past-note"), text);
  }

  #setLive(live) {
    this.live = live;
    this.find("#live").setAttribute("aria-pressed", live);
  }

  setLayer(layer) {
    this.layer = layer;
    this.#drawHistorySoon();
    if (this.live) this.#drawSoon();
    else this.lookBack(Number(this.slider.value));
  }
}
