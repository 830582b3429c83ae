// What came in, what was remembered, and what was answered: below each other, on one axis of time.
import { numbersStrip } from "./fields.js";
import { make } from "./heatmap.js";
import { say } from "./page_parts.js";
import { savePng } from "./saving.js";
import { part } from "./server.js";
import { Strip } from "./timeline.js";
import { Trace, writeOf } from "./trace.js";

/** The strips of one session, into a section. */
export class SessionHistory {
  /** goTo(position, why) shows an earlier position. */
  constructor(model, timeline, section, gates, goTo) {
    Object.assign(this, { timeline, layer: 0, goTo });
    const onPick = (position) => goTo(position, "");
    const numbers = (id, title, spec) => numbersStrip(`${id}-over-time`, title, spec, { values: (moment) => moment.arrays[`@${id}`]?.values, onPick });
    this.inputs = numbers("inputs", "Inputs", model.inputs);
    this.outputs = numbers("outputs", "Outputs", model.outputs);
    this.trace = gates ? new Trace("trace", { onPick, onRead: (position, slot) => this.goToWrite(position, slot) }) : null;
    this.others = gates ? this.#weightings(model.config, gates, onPick) : this.#fields(model.state, onPick);
    const all = [this.inputs, ...(this.trace ? [this.trace, this.outputs, ...this.others] : [...this.others, this.outputs])];
    const save = make("button", { class: "save", id: "history-png", "aria-label": "All that is above each other here as PNG" }, "PNG of all");
    save.addEventListener("click", () => savePng(`What ${timeline.id} remembers`, all));
    this.note = make("p", { class: "note", role: "status", hidden: "" });
    section.append(make("h2", {}, "What it remembers ", save), this.note, ...all.map(({ figure }) => figure));
  }

  #weightings({ read_heads: reads, write_heads: writes }, gates, onPick) {
    const each = (count, name, title, array, pick) => Array.from({ length: count }, (_, head) => new Strip(
      `${name}-${head}`, `${title}${count > 1 ? `, head ${head + 1}` : ""}`,
      { rows: "slot", column: (moment) => row(part(moment.arrays[array], this.layer), head), onPick: pick },
    ));
    return [
      ...each(writes, "write", "Write weighting", "write_weights", onPick),
      ...each(reads, "read", "Read weighting", "read_weights", (position, slot) => this.goToWrite(position, slot)),
      new Strip("usage", "Usage", { rows: "slot", column: (moment) => part(moment.arrays.usage_vector, this.layer).values, onPick }),
      new Strip("gates", "Gates and read modes", {
        rows: "", rowNames: gates.names, height: `${Math.max(6, 1.25 * gates.names.length)}rem`, onPick,
        column: (moment) => gates.of(moment.arrays, this.layer),
      }),
    ];
  }

  #fields(fields, onPick) {
    return fields.map((field) => numbersStrip(`${field.name}-over-time`, field.name, { ...field, shape: [field.parts, ...field.shape] }, {
      values: (moment) => moment.arrays[field.name]?.values, onPick,
    }));
  }

  draw(layer) {
    this.layer = layer;
    for (const strip of [this.inputs, this.outputs, ...this.others]) strip.draw(this.timeline);
    this.trace?.draw(this.timeline, layer);
    say(this.note, this.timeline.note);
  }

  /** From a read to the write that it found. */
  goToWrite(position, slot) {
    const found = writeOf(this.timeline, slot, position, this.layer);
    if (found) this.goTo(found.position, `Slot ${slot}, read at position ${position}, was written at position ${found.position}.`);
    else this.goTo(position, `Slot ${slot} was last written before what is shown: choose a longer span.`);
  }
}

function row({ values, shape }, index) {
  return values.subarray(index * shape.at(-1), (index + 1) * shape.at(-1));
}
