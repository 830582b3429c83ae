// What a DNC remembers, in one picture: which slots hold something, since when, and when they were read.
import { onThemeChange } from "./colours.js";
import { make } from "./heatmap.js";
import { savePng } from "./saving.js";
import { part } from "./server.js";
import { resetsIn } from "./timeline.js";

// A slot is taken for written or read if it gets this share of a weighting.
const LEAST_SHARE = 0.2;
const MOST_LANES = 16;
const LANE = 19;
const SVG = "http://www.w3.org/2000/svg";

function draw(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** The slot with the largest share of each head's weighting at a moment: [{head, slot, share}]. */
export function strongest(moment, name, layer) {
  const { values, shape, full } = part(moment.arrays[name], layer);
  const [heads, slots] = shape;
  const block = Math.ceil(full[1] / slots);
  return Array.from({ length: heads }, (_, head) => {
    const weighting = values.subarray(head * slots, (head + 1) * slots);
    const at = weighting.reduce((best, share, slot) => (share > weighting[best] ? slot : best), 0);
    return { head, slot: at * block, share: weighting[at] };
  }).filter(({ share }) => share >= LEAST_SHARE);
}

/** The latest moment up to a position at which a slot was written, in the same experience; null if none is known. */
export function writeOf(timeline, slot, position, layer) {
  const moments = timeline.before(position);
  const { experience } = moments[0] ?? {};
  return moments.find((moment) => moment.experience === experience && strongest(moment, "write_weights", layer).some((write) => write.slot === slot)) ?? null;
}

/** A lane for each slot in use: a bar while it holds something, a square where it is written, a ring where it is read. */
export class Trace {
  /** onPick(position) where nothing was read; onRead(position, slot) where a slot was. */
  constructor(id, { onPick, onRead }) {
    Object.assign(this, { title: "Slots: written and read", onPick, onRead });
    this.svg = draw("svg", { role: "img", class: "trace" });
    this.names = make("div", { class: "axis rows named" });
    this.summary = make("span", { class: "readout", id: "summary" });
    const save = make("button", { class: "save", "aria-label": `${this.title} as PNG` }, "PNG");
    save.addEventListener("click", () => savePng(this.title, [this]));
    const key = make("span", { class: "key" }, make("i", { class: "written" }), "written ", make("i", { class: "read" }), "read ", make("i", { class: "held" }), "in use");
    this.figure = make(
      "figure", { id }, make("figcaption", {}, make("b", {}, this.title), key, this.summary, make("span", { class: "saves" }, save)),
      make("div", { class: "plot" }, this.names, make("div", { class: "frame" }, this.svg)),
    );
    this.figure.trace = this;
    this.svg.addEventListener("click", (event) => this.#click(event));
    new ResizeObserver(() => this.timeline && this.draw(this.timeline, this.layer)).observe(this.svg.parentElement);
    onThemeChange(() => this.timeline && this.draw(this.timeline, this.layer));
  }

  draw(timeline, layer) {
    Object.assign(this, { timeline, layer });
    const moments = timeline.window();
    this.events = moments.flatMap((moment, place) => !moment ? [] : ["write", "read"].flatMap((kind) =>
      strongest(moment, `${kind}_weights`, layer).map((event) => ({ ...event, kind, place, position: moment.position }))));
    const used = [...new Set(this.events.map(({ slot }) => slot))];
    const lately = [...new Set(this.events.map(({ slot }) => slot).reverse())].slice(0, MOST_LANES);
    this.lanes = used.filter((slot) => lately.includes(slot));
    const width = this.svg.parentElement.clientWidth || 600;
    this.#paint(width, moments);
    this.names.replaceChildren(...this.lanes.map((slot) => make("span", {}, `slot ${slot}`)));
    this.names.style.height = `${this.lanes.length * LANE}px`;
    this.summary.textContent = this.#summary(used.length);
    this.svg.setAttribute("aria-label", `${this.title}. ${this.summary.textContent}`);
  }

  #paint(width, moments) {
    const columns = moments.length;
    const step = width / columns;
    const height = Math.max(1, this.lanes.length) * LANE;
    const style = getComputedStyle(document.documentElement);
    const [write, read, line, quiet] = ["--write", "--read", "--line", "--quiet"].map((name) => style.getPropertyValue(name));
    const x = (place) => (place + 0.5) * step;
    const y = (slot) => (this.lanes.indexOf(slot) + 0.5) * LANE;
    const size = Math.min(LANE - 6, Math.max(4, step - 1));
    const shapes = [];
    for (const slot of this.lanes) {
      shapes.push(draw("line", { x1: 0, x2: width, y1: y(slot), y2: y(slot), stroke: line, "stroke-width": 1 }));
      moments.forEach((moment, place) => {
        const held = moment ? usageOf(moment, slot, this.layer) : 0;
        if (held > 0.05) shapes.push(draw("rect", { x: place * step, y: y(slot) - 4, width: step, height: 8, fill: write, opacity: (0.45 * held).toFixed(2) }));
      });
    }
    for (const place of resetsIn(moments)) shapes.push(draw("line", { x1: place * step, x2: place * step, y1: 0, y2: height, stroke: quiet, "stroke-width": 1.5, "stroke-dasharray": "4 3" }));
    for (const { kind, slot, place, share, head, position } of this.events.filter((event) => this.lanes.includes(event.slot))) {
      const text = draw("title", {});
      text.textContent = `position ${position}: ${kind} head ${head + 1} ${kind === "read" ? "reads" : "writes"} slot ${slot} (${share.toFixed(2)})`;
      shapes.push(kind === "write"
        ? draw("rect", { x: x(place) - size / 2, y: y(slot) - size / 2, width: size, height: size, rx: 1.5, fill: write, opacity: Math.max(0.35, share).toFixed(2) }, text)
        : draw("circle", { cx: x(place), cy: y(slot), r: size / 2, fill: "none", stroke: read, "stroke-width": 2.2, opacity: Math.max(0.45, share).toFixed(2), class: "reading", "data-position": position, "data-slot": slot, "pointer-events": "all" }, text));
    }
    const at = x(this.timeline.columnOf(this.timeline.shown) - this.timeline.first);
    if (this.timeline.shown) shapes.push(draw("line", { x1: at, x2: at, y1: 0, y2: height, stroke: quiet, "stroke-width": 1, class: "now" }));
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.setAttribute("xmlns", SVG);
    this.svg.style.height = `${height}px`;
    this.svg.replaceChildren(...shapes);
  }

  #summary(used) {
    if (!this.events.length) return this.timeline.newest ? "No slot gets a fifth of any weighting here; see the weightings below." : "Nothing was written yet.";
    const until = this.events.filter(({ position }) => position <= this.timeline.shown);
    const last = (kind) => until.findLast((event) => event.kind === kind);
    const [write, read] = [last("write"), last("read")];
    const found = read && writeOf(this.timeline, read.slot, read.position, this.layer);
    const parts = [used > this.lanes.length ? `the last ${this.lanes.length} of ${used} slots` : ""];
    if (write) parts.push(`last written: slot ${write.slot} at ${write.position}`);
    if (read) parts.push(`last read: slot ${read.slot} at ${read.position}${found ? `, written at ${found.position}` : ""}`);
    return parts.filter(Boolean).join(" · ");
  }

  #click(event) {
    const { position, slot } = event.target.dataset;
    if (position) return this.onRead(Number(position), Number(slot));
    const box = this.svg.getBoundingClientRect();
    const place = Math.floor(((event.clientX - box.left) / box.width) * this.timeline.columns);
    const picked = this.timeline.positionAt(place);
    if (picked > 0) this.onPick(picked);
  }

  /** For a picture in a file. */
  async drawOn(width) {
    const [, , drawnWidth, height] = this.svg.getAttribute("viewBox").split(" ").map(Number);
    const copy = this.svg.cloneNode(true);
    copy.setAttribute("width", drawnWidth);
    copy.setAttribute("height", height);
    const image = new Image();
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(new XMLSerializer().serializeToString(copy))}`;
    await image.decode();
    const scaled = Math.round((height * width) / drawnWidth);
    return {
      title: this.title, width, height: scaled, columnLabels: [],
      rowLabels: this.lanes.map((slot, lane) => [`slot ${slot}`, (lane + 0.5) / this.lanes.length]),
      paint: (context, x, y) => context.drawImage(image, x, y, width, scaled),
    };
  }
}

function usageOf(moment, slot, layer) {
  const { values, shape, full } = part(moment.arrays.usage_vector, layer);
  return values[Math.floor(slot / Math.ceil(full[0] / shape[0]))];
}
