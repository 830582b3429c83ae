"""A sequence in pieces, as foreign clients send it."""

from itertools import count
from typing import Any

import numpy as np

from dnc_serve.client import Client
from dnc_serve.handler.arrays import Float32
from tests.handler.harness import random_inputs

TIMESTEPS = 12
NUMBERS = count(1)  # ids of sequences: the tests of a process share a server
INPUTS = random_inputs(1, TIMESTEPS)


def request(sequence_id: int | str, start: int, end: int, **options: Any) -> dict[str, Any]:
    """The timesteps from `start` to `end` of a sequence."""
    first, last = start == 0, end == TIMESTEPS
    return {"sequence_id": sequence_id, "inputs": INPUTS[start:end].tolist(), "start": first, "end": last, **options}


def outputs(answers: list[dict[str, Any]]) -> Float32:
    return np.concatenate([np.array(answer["outputs"], np.float32) for answer in answers])


def answered(address: str, inputs: Float32) -> Float32:
    """What our own client is answered, whose outputs foreign ones must get too."""
    with Client(address) as client, client.session() as session:
        outputs: Float32 = session.step(inputs)
        session.delete()
    return outputs
