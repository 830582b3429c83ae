"""The recall demo: keys with values go into a session; another process asks for the values, in another order."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dnc_serve.client.cli.demos.layout import bits, save_picture, table, weightings
from dnc_serve.client.cli.demos.server import SESSION, in_another_process, serving, step_session

HELP = "random keys with values; another process asks for the values"
MOST_PAIRS = 10


@dataclass(frozen=True)
class Options:
    """What can be asked for."""

    pairs: int = 6
    seed: int | None = None
    plot: Path | None = None
    model: str = "recall"
    runtime: str = "torchserve"

    def __post_init__(self) -> None:
        if not 1 <= self.pairs <= MOST_PAIRS:
            raise ValueError(f"--pairs is {self.pairs}; expected 1 to {MOST_PAIRS}")


def configure(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--pairs", type=int, metavar="N", help=f"keys of 8 bits with a value each, 1 to {MOST_PAIRS} (6)"
    )


def run(options: Options) -> int:
    """Exit code 0 if every value is right. What happens goes to standard error, the result to standard output."""
    from dnc_serve.model.tasks.recall import decode, encode_pairs, encode_questions

    generator = np.random.default_rng(options.seed)
    keys = generator.permutation(256)[: options.pairs, None] >> np.arange(8) & 1
    values = generator.integers(0, 2, (options.pairs, 8))
    order = generator.permutation(options.pairs)
    with serving(options.model, options.runtime) as address:
        told = in_another_process(step_session, address, encode_pairs(keys, values))
        print(f"process {told.pid} told session {SESSION!r} {options.pairs} pairs and left", file=sys.stderr)
        asked = in_another_process(step_session, address, encode_questions(keys[order]))
        print(f"process {asked.pid} came back and asked for them, in another order", file=sys.stderr)
    recalled = decode(asked.outputs)
    slots_written, slots_read = told.written.argmax(1), asked.read.argmax(1)
    rows = [
        (bits(keys[pair]), bits(answer), bits(values[pair]), slots_written[pair], slot)
        for pair, answer, slot in zip(order, recalled, slots_read, strict=True)
    ]
    print(table(("asked", "answered", "truth", "written to slot", "read from slot"), rows))
    wrong = int((recalled != values[order]).any(1).sum())
    print(f"\nwrong values: {wrong} of {options.pairs}\n")
    print(weightings(told.written, asked.read))
    if options.plot is not None:
        names = [bits(key) for key in keys]
        title = f"{options.pairs} pairs told, and asked for by key"
        save_picture(options.plot, title, told.written, names, asked.read, [names[pair] for pair in order])
    return 0 if wrong == 0 else 1
