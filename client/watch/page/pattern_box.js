// The copy task by hand: a pattern of bits to click together, to tell, and to ask back.
import { make, short } from "./heatmap.js";
import { strongest } from "./trace.js";

const LONGEST_PATTERN = 20;

/** The pattern, and two buttons: to tell it, and to ask it back. */
export function showPatternBox(section, sender, { output_size: bits, input_size: inputs }, timeline) {
  let answers = [];
  let pattern = Array.from({ length: 5 }, () => Array.from({ length: bits }, () => Math.random() < 0.5));
  const note = make("span", { class: "note", role: "status" });
  const asked = make("div", { class: "pattern", id: "pattern", role: "group", "aria-label": "Pattern: rows are bits, columns are timesteps" });
  const answered = make("div", { class: "pattern", id: "answer", role: "group", "aria-label": "Answer", tabindex: "0" });
  const slowly = make("input", { type: "checkbox", id: "slowly", checked: "" });
  const forget = make("input", { type: "checkbox", id: "forget", checked: "" });
  const [tell, recall] = [make("button", { id: "tell", class: "strong" }, "1. Tell it"), make("button", { id: "recall" }, "2. Ask it back")];
  const [more, fewer, dice] = [make("button", { id: "longer", "aria-label": "longer" }, "+"), make("button", { id: "shorter", "aria-label": "shorter" }, "−"), make("button", { id: "dice" }, "Random")];
  section.append(
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
    answers = [];
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
    answers = [];
    answered.replaceChildren();
    const vectors = pattern.map((vector, timestep) => [...vector.map((bit) => (bit ? 1 : -1)), timestep === 0 ? 1 : 0, 0]);
    return run(vectors, { forget: forget.checked }, "telling…", () => "told; now ask it back");
  });
  recall.addEventListener("click", () => {
    const marker = [...new Array(bits).fill(0), 0, 1];
    const silence = pattern.map(() => new Array(inputs).fill(0));
    answers = [];
    const wrong = () => answers.flatMap(({ vector }, t) => vector.filter((bit, b) => bit !== pattern[t][b])).length;
    const show = (output, timestep, position) => {
      if (timestep === 0) return; // the marker's
      answers.push({ vector: output.map((logit) => logit > 0), output, position });
      drawAnswer(answered, answers, pattern, slotRead);
    };
    const done = () => {
      drawAnswer(answered, answers, pattern, slotRead);
      return wrong() ? `${wrong()} of ${answers.length * bits} bits wrong` : `all ${answers.length * bits} bits right`;
    };
    return run([marker, ...silence], {}, "asking…", done, show);
  });
  const slotRead = (position) => {
    const read = timeline.at(position);
    return read ? (strongest(read, "read_weights", 0)[0]?.slot ?? "") : "";
  };
  timeline.listeners.push(() => answers.length && drawAnswer(answered, answers, pattern, slotRead));
  draw();
}

/** The answered vectors as columns, mistakes outlined, and under each the slot that the first read head read most. */
function drawAnswer(grid, answers, pattern, slotRead) {
  grid.style.gridTemplateColumns = `repeat(${answers.length}, 1.9rem)`;
  const bits = pattern[0].length;
  const cells = Array.from({ length: bits }, (_, bit) => answers.map(({ vector, output }, timestep) => {
    const right = vector[bit] === pattern[timestep][bit];
    const title = `bit ${bit} of vector ${timestep}: ${short(output[bit])}${right ? "" : ", wrong"}`;
    return make("i", { class: `${vector[bit] ? "on" : ""} ${right ? "" : "wrong"}`, title }, vector[bit] ? "1" : "0");
  })).flat();
  const slots = answers.map(({ position }) => make("span", { class: "head slot" }, String(slotRead(position))));
  grid.replaceChildren(...cells, ...slots);
}
