"""A client in a process of its own: `python -m tests.client.streaming ADDRESS SESSION SEED`.

Prints its writer id and position once it has opened the session. Then each line of its standard input is an order:
`step` sends the next chunk and prints the position after it, `stream` sends all that is left. Ends with the reason if
one is refused.
"""

import sys

import numpy as np

from dnc_serve.client import Client, DncError
from dnc_serve.client.arrays import Float32

CHUNKS, TIMESTEPS, INPUT_SIZE = 60, 4, 5


def inputs_of(seed: int) -> Float32:
    """All that a client of that seed sends, [T, I]."""
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.float32), (CHUNKS * TIMESTEPS, INPUT_SIZE))


def main(address: str, session_id: str, seed: str) -> None:
    chunks = iter(np.split(inputs_of(int(seed)), CHUNKS))
    with Client(address) as client, client.session(session_id) as session:
        print(session.writer_id, session.position, flush=True)
        try:
            for order in sys.stdin:
                if order.strip() == "step":
                    session.step(next(chunks))
                else:
                    for _ in session.stream(chunks):
                        pass
                print(session.position, flush=True)
        except DncError as error:
            print(f"{error.reason} {error}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
