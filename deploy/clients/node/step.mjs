// Streams timesteps into a session, from the shipped contract alone: one a line of CSV, each answered by a line.
//
//     npm ci
//     node step.mjs localhost:8500 ward-3 < timesteps.csv
//
// A server that is killed is waited for, and what it had not answered is sent again at the same positions, so that each
// timestep is applied once. The same holds if this program is killed: `step.mjs HOST:PORT SESSION POSITION` goes on
// behind a position, with the lines that follow it, also if some of them had been applied unseen.
//
// Through a proxy it needs no change. Two writers of one session at once want a `writer_id` each.
import grpc from '@grpc/grpc-js';
import loader from '@grpc/proto-loader';
import { createInterface } from 'node:readline';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

const PAUSE_MS = 200;
const WINDOW = 16; // chunks in flight; the server keeps the answers of as many and more (GetModel says how many)
const CONTRACT = process.env.DNC_PROTO || fileURLToPath(new URL('../../../proto', import.meta.url));

const [target, id, from] = process.argv.slice(2);
const { DncService } = grpc.loadPackageDefinition(
  loader.loadSync('dnc/v1/dnc.proto', { includeDirs: [CONTRACT], longs: Number, keepCase: true, defaults: true }),
).dnc.v1;
const client = new DncService(target, grpc.credentials.createInsecure());
const metadata = new grpc.Metadata({ waitForReady: true });
metadata.set('x-dnc-session', id); // proxies hash on it

const session = await new Promise((resolve, reject) => {
  const request = { session_id: id, allow_existing: true };
  client.CreateSession(request, metadata, (error, response) => (error ? reject(error) : resolve(response.session)));
});
let position = from === undefined ? session.position : Number(from);
let stream; // the present one
let more = true; // lines are to come
let answered = () => {};
const unanswered = [];

const reading = (async () => {
  for await (const line of createInterface({ input: process.stdin })) {
    const inputs = Float32Array.from(line.split(','), Number);
    while (unanswered.length >= WINDOW) await new Promise((resolve) => (answered = resolve));
    const array = { shape: [1, inputs.length], data: Buffer.from(inputs.buffer) };
    const chunk = { session_id: id, position: position++, inputs: array };
    unanswered.push(chunk);
    stream?.write({ chunk });
  }
  more = false;
  if (!unanswered.length) stream?.end();
})();

while (more || unanswered.length) {
  stream = client.Stream(metadata);
  stream.on('error', () => {}); // the loop is told of it too
  for (const chunk of unanswered) stream.write({ chunk });
  try {
    for await (const { chunk, error, go_away: goAway } of stream) {
      if (goAway) break; // the server leaves; another one, or the same, will come
      if (error) throw Object.assign(new Error(error.status.message), { code: error.status.code });
      const { data } = chunk.outputs;
      const outputs = new Float32Array(data.buffer.slice(data.byteOffset, data.byteOffset + data.length));
      console.log(`${chunk.position}: ${outputs.join(',')}`);
      unanswered.shift();
      answered();
      if (!more && !unanswered.length) stream.end();
    }
  } catch (error) {
    if (error.code !== grpc.status.UNAVAILABLE) throw error;
    console.error(`unavailable, and asked again: ${error.message}`);
  }
  stream.cancel();
  stream = undefined;
  if (more || unanswered.length) await pause(PAUSE_MS);
}
await reading;
client.close();
