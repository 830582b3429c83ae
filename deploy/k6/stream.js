// Load by k6, with the contract from the server's reflection: each virtual user streams one session.
//
//     k6 run -e TARGET=localhost:8500 -e CHUNKS=300 -e TIMESTEPS=1 --vus 16 --iterations 16 deploy/k6/stream.js
//
// Each iteration is a new session, a chunk at a time, and the same timesteps again as a sequence of Triton's protocol.
// It fails unless every chunk was answered at its position, and both gave the same bits.
import { check } from 'k6';
import encoding from 'k6/encoding';
import exec from 'k6/execution';
import grpc from 'k6/net/grpc';
import { Trend } from 'k6/metrics';

const target = __ENV.TARGET || 'localhost:8500';
const chunks = Number(__ENV.CHUNKS || 100);
const timesteps = Number(__ENV.TIMESTEPS || 1);
const step = new Trend('dnc_step_ms', true);
const infer = new Trend('dnc_infer_ms', true);
const client = new grpc.Client();

export const options = {
  thresholds: { checks: ['rate==1'] },
  summaryTrendStats: ['med', 'p(99)', 'count'],
};

export default async function () {
  try {
    await session();
  } catch (error) {
    check(error, { 'the iteration ran to its end': () => false });
    throw error;
  }
}

async function session() {
  client.connect(target, { plaintext: __ENV.TLS !== '1', reflect: true });
  const model = client.invoke('dnc.v1.DncService/GetModel', {}).message;
  const id = `k6-${exec.scenario.iterationInTest}`;
  client.invoke('dnc.v1.DncService/DeleteSession', { session_id: id });
  client.invoke('dnc.v1.DncService/CreateSession', { session_id: id });
  const inputs = random(timesteps * model.inputs.shape.reduce((product, size) => product * size, 1));
  const shape = [timesteps, ...model.inputs.shape];
  const streamed = await stream(id, inputs, shape);
  const inferred = sequence(id, model.name, inputs, shape);
  check(null, {
    'all chunks are answered': () => streamed.length === chunks && inferred.length === chunks,
    'both protocols give the same bits': () => streamed.every((outputs, number) => outputs === inferred[number]),
  });
  client.close();
}

// The outputs of each chunk, in base64.
function stream(id, inputs, shape) {
  return new Promise((resolve) => {
    const outputs = [];
    let sent = 0;
    const stream = new grpc.Stream(client, 'dnc.v1.DncService/Stream', { metadata: { 'x-dnc-session': id } });
    const send = () => {
      sent = Date.now();
      const position = String(outputs.length * timesteps);
      stream.write({ chunk: { session_id: id, position, inputs: { shape, data: inputs } } });
    };
    stream.on('data', ({ chunk, error }) => {
      const position = chunk ? Number(chunk.position) : JSON.stringify(error);
      if (!check(position, { 'it is answered at its position': () => position === (outputs.length + 1) * timesteps })) {
        console.error(`chunk ${outputs.length} of ${id}: ${position}`);
        stream.end();
        return;
      }
      step.add(Date.now() - sent);
      outputs.push(chunk.outputs.data);
      if (outputs.length < chunks) send();
      else stream.end();
    });
    stream.on('error', (error) => console.error(`${id}: ${error.message}`));
    stream.on('end', () => resolve(outputs));
    send();
  });
}

function sequence(id, name, inputs, shape) {
  const outputs = [];
  for (let number = 0; number < chunks; number++) {
    const began = Date.now();
    const answer = client.invoke(
      'inference.GRPCInferenceService/ModelInfer',
      {
        model_name: name,
        parameters: {
          sequence_id: { string_param: id },
          sequence_start: { bool_param: number === 0 },
          sequence_end: { bool_param: number === chunks - 1 },
        },
        inputs: [{ name: 'INPUT', datatype: 'FP32', shape }],
        raw_input_contents: [inputs],
      },
      { metadata: { 'x-dnc-session': id } },
    );
    if (!check(answer, { 'a request of the sequence is answered': ({ status }) => status === grpc.StatusOK })) {
      console.error(`request ${number} of ${id}: ${JSON.stringify(answer.error)}`);
      return outputs;
    }
    infer.add(Date.now() - began);
    outputs.push(answer.message.rawOutputContents[0]);
  }
  return outputs;
}

// So many ±1, little-endian, in base64.
function random(count) {
  const bits = Float32Array.from({ length: count }, () => (Math.random() < 0.5 ? -1 : 1));
  return encoding.b64encode(bits.buffer);
}
