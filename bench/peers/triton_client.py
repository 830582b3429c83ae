"""The load on Triton, by its own asyncio client; run in its environment, with `lockstep` on the path.

    python triton_client.py '{"port": …, "sessions": …, "callers": …, "chunk": …, "input_size": …, "span": {…}}'

Prints the figures as JSON. A lone session has a bidirectional stream; several go over unary calls, because many streams
on one connection bring the server down.
"""

import asyncio
import dataclasses
import json
import random
import sys

import numpy as np
import tritonclient.grpc.aio as triton
import uvloop
from lockstep import Span, lockstep

FIRST_SEQUENCE = 1 << 20
ENDED_AT_ONCE = 64


async def main(asked: dict) -> None:
    address = f"127.0.0.1:{asked['port']}"
    inputs = np.random.default_rng(7).integers(0, 2, (1, asked["chunk"], asked["input_size"])).astype(np.float32)
    # A sequence of an earlier run of this client must not be taken for one of this.
    first = random.randrange(FIRST_SEQUENCE, 1 << 62)
    sequences = [first + index for index in range(asked["sessions"])]
    directly = [("grpc.enable_http_proxy", 0)]  # a proxy in the environment is none of its business
    async with triton.InferenceServerClient(address, channel_args=directly) as client:
        started = set()
        if asked["sessions"] == 1:
            callers = [stream_caller(client, sequences[0], inputs, started)]
        else:
            shares = [sequences[i :: asked["callers"]] for i in range(asked["callers"])]
            callers = [unary_caller(client, share, inputs, started) for share in shares]
        figures = await lockstep(callers, asked["chunk"], Span(**asked["span"]))
        await end(client, sorted(started), inputs[:, :1])
    print(json.dumps(dataclasses.asdict(figures)))


async def end(client, sequences, inputs):
    """Gives back the places of sequences in the batcher: those that are left wait for their idle time there."""
    for first in range(0, len(sequences), ENDED_AT_ONCE):
        some = sequences[first : first + ENDED_AT_ONCE]
        await asyncio.gather(*(client.infer(**request(inputs, each, end=True)) for each in some))


def request(inputs: np.ndarray, sequence: int, start: bool = False, end: bool = False) -> dict:
    tensor = triton.InferInput("INPUT", list(inputs.shape), "FP32")
    tensor.set_data_from_numpy(inputs)
    about = {"sequence_id": sequence, "sequence_start": start, "sequence_end": end}
    return {"model_name": "dnc", "inputs": [tensor], **about}


def unary_caller(client, sequences, inputs, started):
    turn = 0

    async def exchange():
        nonlocal turn
        sequence = sequences[turn % len(sequences)]
        turn += 1
        result = await client.infer(**request(inputs, sequence, start=sequence not in started))
        started.add(sequence)
        result.as_numpy("OUTPUT")

    return exchange


def stream_caller(client, sequence, inputs, started):
    asked = asyncio.Queue()
    answers = None

    async def requests():
        while True:
            yield await asked.get()

    async def exchange():
        nonlocal answers
        if answers is None:
            answers = client.stream_infer(requests())
        asked.put_nowait(request(inputs, sequence, start=sequence not in started))
        started.add(sequence)
        result, error = await anext(answers)
        if error is not None:
            raise error
        result.as_numpy("OUTPUT")

    return exchange


if __name__ == "__main__":
    asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main(json.loads(sys.argv[1])))
