// What the page asks of `dnc watch`.

const given = location.hash.match(/^#secret=([^/]*)(\/.*)?$/);
if (given) {
  sessionStorage.setItem("dnc-watch", given[1]);
  history.replaceState(null, "", `#${given[2] ?? "/"}`);
}
const headers = { "X-Dnc-Watch": sessionStorage.getItem("dnc-watch") ?? "" };

/** A refusal, with the server's reason; `lost` if no server answers, or not now. `WATCH_ENDED`: nor does `dnc watch`. */
export class Refused extends Error {
  constructor(reason, message, lost) {
    super(message);
    Object.assign(this, { reason, lost });
  }
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...options, headers: { ...headers, ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("WATCH_ENDED", "dnc watch has ended: start it again", true);
  }
  if (response.ok) return response;
  const { reason, message } = await response.json().catch(() => ({ reason: "INTERNAL", message: response.statusText }));
  throw new Refused(reason, message, [503, 504].includes(response.status));
}

export const getJson = async (path, signal) => (await ask(path, { signal })).json();

export const post = async (path, body) =>
  (await ask(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } })).json();

/** The timesteps in a file for a model, [[number, …], …], read as the command line reads them. */
export const readFile = async (file, model) =>
  (await (await ask(`api/inputs?${new URLSearchParams({ name: file.name, model })}`, { method: "POST", body: file })).json()).inputs;

/** The address of a view, with the secret of this page, for a new tab. */
export const linkTo = (view) => `${location.pathname}#secret=${headers["X-Dnc-Watch"]}${view}`;

export const sessionPath = (id) => `api/sessions/${encodeURIComponent(id)}`;

/** The arrays of a session by name, {values, shape, full}, at a position or now. */
export async function getMemory(id, position, signal) {
  const query = position === null ? "" : `?position=${position}`;
  return decode(await (await ask(`${sessionPath(id)}/memory${query}`, { signal })).arrayBuffer());
}

/** Frames as they come, until the signal aborts. */
export const frames = (id, signal) => messages(`${sessionPath(id)}/frames`, signal);

/** Timesteps behind a position, up to another, as the journal has them: of `every` so many the last. */
export const pastOf = (id, after, until, every, signal) =>
  messages(`${sessionPath(id)}/past?after=${after}&until=${until}&every=${every}`, signal);

async function* messages(path, signal) {
  const reader = (await ask(path, { signal })).body.getReader();
  let kept = new Uint8Array(0);
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const joined = new Uint8Array(kept.length + value.length);
    joined.set(kept);
    joined.set(value, kept.length);
    kept = joined;
    for (let length = messageLength(kept); length && length <= kept.length; length = messageLength(kept)) {
      yield decode(kept.slice(0, length).buffer);
      kept = kept.slice(length);
    }
  }
}

function messageLength(bytes) {
  if (bytes.length < 8) return 0;
  const lengths = new DataView(bytes.buffer, bytes.byteOffset);
  return 8 + lengths.getUint32(0, true) + lengths.getUint32(4, true);
}

function decode(buffer) {
  const headLength = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, headLength)));
  const arrays = {};
  let offset = 8 + headLength;
  for (const { name, shape, full_shape: full } of head.arrays) {
    const values = new Float32Array(buffer, offset, shape.reduce((product, size) => product * size, 1));
    offset += values.byteLength;
    arrays[name] = { values, shape, full };
  }
  return { ...head, arrays };
}

/** One part of an array [parts, …], such as one memory of several: {values, shape, full} without the first axis. */
export function part(array, index) {
  const [parts, ...shape] = array.shape;
  const length = array.values.length / parts;
  const start = Math.min(index, parts - 1) * length;
  return { values: array.values.subarray(start, start + length), shape, full: array.full.slice(1) };
}
