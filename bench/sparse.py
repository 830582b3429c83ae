"""A timestep of sparse memories, by the number of slots, beside a dense one where that can be: a table.

    python -m bench.sparse [--most 1048576] [--turns 5] [--json]

One session, one thread, TorchScript as a server runs it, 4 read heads of words of 32 numbers, S = 4, Q = 8. A turn is a
chunk: of one timestep, and of eight, in which the copy that a server makes of the state is shared. Each figure is the
best turn's time on the processor, after one of warming up: on a busy machine the others measure who else is there.
"""

import argparse
import json
import time
from typing import Any

import torch

from dnc_serve.model.dnc import DNC
from dnc_serve.model.export import script
from dnc_serve.model.layout import StateLayout

SLOTS = (1024, 4096, 16384, 65536, 262144, 1048576)
# A dense memory's links are the square of its slots: 4,096 of them take 64 MiB.
MOST_DENSE = 4096
TICKS = (1, 8)
KINDS = ("dense", "sparse", "sparse_links")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=SLOTS[-1], help="slots of the largest memory")
    parser.add_argument("--turns", type=int, default=5, help="of each (5)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    figures = [
        {"slots": slots, "memory": kind, **measure(kind, slots, args.turns)}
        for slots in SLOTS if slots <= args.most
        for kind in KINDS if kind != "dense" or slots <= MOST_DENSE
    ]  # fmt: skip
    print(json.dumps(figures, indent=2) if args.json else table(figures))


def measure(kind: str, slots: int, turns: int) -> dict[str, Any]:
    """Bytes of the state, and milliseconds of a timestep by timesteps of the chunk."""
    torch.manual_seed(0)
    dnc = DNC(8, 64, num_hidden_layers=1, nr_cells=slots, cell_size=32, read_heads=4, memory=kind).eval()
    module, size = script(dnc), StateLayout(dnc.config).size
    milliseconds = {}
    with torch.inference_mode():
        states = torch.zeros(1, size)
        for ticks in TICKS:
            inputs, best = torch.randn(ticks, 1, 8), float("inf")
            for turn in range(turns + 1):
                begin = time.thread_time()
                _, states = module(inputs, states)
                best = min(best, time.thread_time() - begin) if turn else best
            milliseconds[ticks] = best / ticks * 1e3
    return {"state_bytes": 4 * size, "milliseconds": milliseconds}


def table(figures: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| slots | memory | state | ms a timestep, alone | ms a timestep, of eight |",
        "| ---: | --- | ---: | ---: | ---: |",
    ]
    for each in figures:
        times = " | ".join(f"{each['milliseconds'][ticks]:.2f}" for ticks in TICKS)
        lines.append(f"| {each['slots']:,} | {each['memory']} | {each['state_bytes'] / 2**20:.1f} MiB | {times} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
