// Sending timesteps from the page: a pattern of bits for a copy model, numbers for any other.
import { make, short } from "./heatmap.js";
import { pause } from "./page_parts.js";
import { post, sessionPath } from "./server.js";

const LONGEST_PATTERN = 20;
const SLOW_MILLISECONDS = 120;

export function showChunkBox(section, id, model, maps, signal) {
  // The bundled copy model's task: an input for each bit, and two that mark the first vector and the end; an output for
  // each bit.
  const copies = model.input_size === model.output_size + 2;
  (copies ? showPatternBox : showNumbersBox)(section, new Sender(id, signal), model, maps);
}

/** Sends timesteps one by one, so that each can be seen. */
class Sender {
  constructor(id, signal) {
    Object.assign(this, { id, signal });
  }

  /** Calls back with each timestep's output and the position after it; forget: zeroes the memory first. */
  async send(inputs, { slowly = true, forget = false }, onOutput) {
    for (const [timestep, input] of inputs.entries()) {
      const step = { inputs: [input], reset_experience: forget && timestep === 0 };
      const { outputs, position } = await post(`${sessionPath(this.id)}/steps`, step);
      onOutput(outputs[0], timestep, position);
      if (slowly) await pause(SLOW_MILLISECONDS, this.signal);
      if (this.signal.aborted) return;
    }
  }
}

function showPatternBox(section, sender, { output_size: bits, input_size: inputs }, maps) {
  let pattern = Array.from({ length: 5 }, () => Array.from({ length: bits }, () => Math.random() < 0.5));
  const note = make("span", { class: "note", role: "status" });
  const asked = make("div", { class: "pattern", id: "pattern", role: "group", "aria-label": "Pattern: rows are bits, columns are timesteps" });
  const answered = make("div", { class: "pattern", id: "answer", "aria-label": "Answer" });
  const slowly = make("input", { type: "checkbox", id: "slowly", checked: "" });
  const forget = make("input", { type: "checkbox", id: "forget", checked: "" });
  const [tell, recall] = [make("button", { id: "tell", class: "strong" }, "1. Tell it"), make("button", { id: "recall" }, "2. Ask it back")];
  const [more, fewer, dice] = [make("button", { id: "longer", "aria-label": "longer" }, "+"), make("button", { id: "shorter", "aria-label": "shorter" }, "−"), make("button", { id: "dice" }, "Random")];
  section.append(
    make("h2", {}, "Type a pattern, ask for it back"),
    make("div", { class: "toolbar" }, fewer, more, dice, tell, recall, make("label", {}, forget, "with an empty memory"), make("label", {}, slowly, "slowly enough to see"), note),
    make("div", { class: "halves" }, make("div", {}, "Pattern", asked), make("div", {}, "Answer, and the slot that was read", answered)),
  );

  const draw = () => {
    asked.style.gridTemplateColumns = `repeat(${pattern.length}, 1.9rem)`;
    asked.replaceChildren(...Array.from({ length: bits }, (_, bit) => pattern.map((vector, timestep) =>
      make("button", { class: "toggle", "aria-pressed": vector[bit], "aria-label": `bit ${bit} of vector ${timestep}`, "data-at": `${bit} ${timestep}`, tabindex: bit + timestep ? -1 : 0 }, vector[bit] ? "1" : "0"),
    )).flat());
    fewer.disabled = pattern.length <= 1;
    more.disabled = pattern.length >= LONGEST_PATTERN;
  };
  const button = (bit, timestep) => asked.querySelector(`[data-at="${bit} ${timestep}"]`);
  asked.addEventListener("click", ({ target }) => {
    if (!target.dataset.at) return;
    const [bit, timestep] = target.dataset.at.split(" ").map(Number);
    pattern[timestep][bit] = !pattern[timestep][bit];
    target.setAttribute("aria-pressed", pattern[timestep][bit]);
    target.textContent = pattern[timestep][bit] ? "1" : "0";
  });
  asked.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!move || !event.target.dataset.at) return;
    event.preventDefault();
    const [bit, timestep] = event.target.dataset.at.split(" ").map(Number);
    button(bit + move[0], timestep + move[1])?.focus();
  });
  const change = (next) => {
    pattern = next;
    answered.replaceChildren();
    draw();
  };
  const random = () => Array.from({ length: bits }, () => Math.random() < 0.5);
  more.addEventListener("click", () => change([...pattern, random()]));
  fewer.addEventListener("click", () => change(pattern.slice(0, -1)));
  dice.addEventListener("click", () => change(pattern.map(random)));

  const run = async (timesteps, options, doing, done, onOutput = () => {}) => {
    for (const one of [tell, recall]) one.disabled = true;
    note.textContent = doing;
    try {
      await sender.send(timesteps, { slowly: slowly.checked, ...options }, onOutput);
      note.textContent = done();
    } catch (error) {
      note.textContent = error.message;
    } finally {
      for (const one of [tell, recall]) one.disabled = false;
    }
  };
  tell.addEventListener("click", () => {
    answered.replaceChildren();
    const vectors = pattern.map((vector, timestep) => [...vector.map((bit) => (bit ? 1 : -1)), timestep === 0 ? 1 : 0, 0]);
    return run(vectors, { forget: forget.checked }, "telling…", () => "told; now ask it back");
  });
  recall.addEventListener("click", () => {
    const marker = [...new Array(bits).fill(0), 0, 1];
    const silence = pattern.map(() => new Array(inputs).fill(0));
    const answers = [];
    const wrong = () => answers.flatMap(({ vector }, t) => vector.filter((bit, b) => bit !== pattern[t][b])).length;
    const show = (output, timestep, position) => {
      if (timestep === 0) return; // the marker's
      answers.push({ vector: output.map((logit) => logit > 0), output, position });
      drawAnswer(answered, answers, pattern, maps);
    };
    const done = () => {
      drawAnswer(answered, answers, pattern, maps);
      return wrong() ? `${wrong()} of ${answers.length * bits} bits wrong` : `all ${answers.length * bits} bits right`;
    };
    return run([marker, ...silence], {}, "asking…", done, show);
  });
  draw();
}

/** The answered vectors as columns, mistakes outlined, and under each the slot that the first read head read most. */
function drawAnswer(grid, answers, pattern, maps) {
  grid.style.gridTemplateColumns = `repeat(${answers.length}, 1.9rem)`;
  const bits = pattern[0].length;
  const cells = Array.from({ length: bits }, (_, bit) => answers.map(({ vector, output }, timestep) => {
    const right = vector[bit] === pattern[timestep][bit];
    const title = `bit ${bit} of vector ${timestep}: ${short(output[bit])}${right ? "" : ", wrong"}`;
    return make("i", { class: `${vector[bit] ? "on" : ""} ${right ? "" : "wrong"}`, title }, vector[bit] ? "1" : "0");
  })).flat();
  const slots = answers.map(({ position }) => {
    const weighting = maps.reads[0].at(position);
    const slot = weighting ? weighting.indexOf(Math.max(...weighting)) : "";
    return make("span", { class: "head slot" }, String(slot));
  });
  grid.replaceChildren(...cells, ...slots);
}

function showNumbersBox(section, sender, { input_size: inputs }) {
  const text = make("textarea", { id: "numbers", rows: "3", spellcheck: "false", "aria-label": "Timesteps, a line each" });
  const note = make("span", { class: "note", role: "status" });
  const [send, zeros] = [make("button", { id: "send", class: "strong" }, "Send"), make("button", { id: "zeros" }, "Add a line of zeros")];
  const outputs = make("pre", { id: "outputs" });
  section.append(
    make("h2", {}, "Send a chunk"),
    make("p", { class: "note" }, `A timestep a line, ${inputs} numbers each, separated by blanks or commas.`),
    text, make("div", { class: "toolbar" }, zeros, send, note), outputs,
  );
  zeros.addEventListener("click", () => (text.value += `${text.value && !text.value.endsWith("\n") ? "\n" : ""}${new Array(inputs).fill(0).join(" ")}\n`));
  send.addEventListener("click", async () => {
    const lines = text.value.split("\n").filter((line) => line.trim());
    const timesteps = lines.map((line) => line.trim().split(/[\s,]+/).map(Number));
    const bad = timesteps.findIndex((numbers) => numbers.length !== inputs || numbers.some(Number.isNaN));
    if (bad >= 0 || !lines.length) {
      note.textContent = lines.length ? `line ${bad + 1} is not ${inputs} numbers` : "there is nothing to send";
      return;
    }
    send.disabled = true;
    outputs.textContent = "";
    try {
      await sender.send(timesteps, {}, (output) => (outputs.textContent += `${output.map(short).join(" ")}\n`));
      note.textContent = `${timesteps.length} timesteps sent`;
    } catch (error) {
      note.textContent = error.message;
    } finally {
      send.disabled = false;
    }
  });
}
