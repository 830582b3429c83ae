// What all views use: the line that says whether the server is there, questions, and cleaning up.

/** Says at the top whether the server is there; why: what is wrong, or nothing. */
export function showConnection(why) {
  const line = document.getElementById("connection");
  const text = why ? `server lost: ${why}` : "connected";
  line.classList.toggle("lost", Boolean(why));
  if (line.textContent !== text) line.textContent = text;
}

/** Asks; returns null if cancelled, else what was answered ("" without a field). */
export function ask(title, text, ok, field = null) {
  const dialog = document.getElementById("confirm");
  const [label, answer] = [dialog.querySelector("label"), dialog.querySelector("input")];
  dialog.querySelector("h2").textContent = title;
  dialog.querySelector("p").textContent = text;
  dialog.querySelector("button[value=ok]").textContent = ok;
  label.hidden = field === null;
  label.querySelector("span").textContent = field ? `${field.label} ` : "";
  answer.value = field?.value ?? "";
  answer.pattern = "[A-Za-z0-9._~:@\\-]{1,128}";
  answer.required = field !== null;
  dialog.returnValue = "cancel";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok" ? answer.value : null), { once: true });
  });
}

/** Fills the page with a template's content. */
export function fill(templateId) {
  const view = document.getElementById("view");
  view.replaceChildren(document.getElementById(templateId).content.cloneNode(true));
  return (selector) => view.querySelector(selector);
}

/** Waits, or ends early when the signal aborts. */
export function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}

/** Runs `step` again and again until the signal aborts; while it fails, the page says that the server is lost. */
export async function repeat(milliseconds, signal, step) {
  while (!signal.aborted) {
    try {
      await step();
      showConnection("");
    } catch (error) {
      if (signal.aborted) return;
      if (!error.lost) throw error;
      showConnection(error.message);
    }
    await pause(milliseconds, signal);
  }
}

export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB"];
  const unit = Math.min(Math.floor(Math.log2(Math.max(count, 1)) / 10), units.length - 1);
  return `${(count / 1024 ** unit).toFixed(unit ? 1 : 0)} ${units[unit]}`;
}
