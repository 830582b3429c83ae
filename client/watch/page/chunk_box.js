// Sending timesteps from the page: a pattern of bits to a model of the copy task, a table of numbers to any other.
import { make } from "./heatmap.js";
import { pause } from "./page_parts.js";
import { showPatternBox } from "./pattern_box.js";
import { post, sessionPath } from "./server.js";
import { showTableBox } from "./table_box.js";

const SLOW_MILLISECONDS = 120;
const CHUNK_TIMESTEPS = 64;

export function showChunkBox(section, id, model, timeline, signal) {
  // Its inputs are one for each bit, and two that mark the first vector and the end; its outputs one for each bit.
  const copies = model.task === "copy" && model.input_size === model.output_size + 2;
  const box = make("details", { open: "" }, make("summary", {}, copies ? "Type a pattern, ask for it back" : "Send timesteps"));
  section.append(box);
  (copies ? showPatternBox : showTableBox)(box, new Sender(id, signal), model, timeline);
}

/** Sends timesteps: one by one, so that each can be seen, or in chunks. */
class Sender {
  constructor(id, signal) {
    Object.assign(this, { id, signal });
  }

  /** Calls back with each timestep's output, its number and the position after it; forget: resets the experience first. */
  async send(inputs, { slowly = true, forget = false }, onOutput) {
    const length = slowly ? 1 : CHUNK_TIMESTEPS;
    for (let start = 0; start < inputs.length && !this.signal.aborted; start += length) {
      const step = { inputs: inputs.slice(start, start + length), reset_experience: forget && start === 0 };
      const { outputs, position } = await post(`${sessionPath(this.id)}/steps`, step);
      outputs.forEach((output, index) => onOutput(output, start + index, position - outputs.length + index + 1));
      if (slowly) await pause(SLOW_MILLISECONDS, this.signal);
    }
  }
}
