"""python -m tests.simulation --seeds 0..N: runs seeds; one that fails prints what happened."""

import argparse
import sys
import time
from collections import Counter
from multiprocessing import Pool

from tests.simulation.world import Outcome, run

SHOWN = 60  # events before the end
SEEDS_OF_A_PROCESS = 256  # what a seed leaves behind adds up


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", default="0..200", help="FIRST..END, without the last, or one")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--trace", action="store_true", help="print all events of each seed")
    args = parser.parse_args()
    first, _, end = args.seeds.partition("..")
    seeds = range(int(first), int(end or int(first) + 1))
    started, kinds, failed = time.perf_counter(), Counter[str](), []
    answered = crashes = 0
    with Pool(args.jobs, maxtasksperchild=SEEDS_OF_A_PROCESS // 8) as pool:
        for outcome in pool.imap_unordered(run, seeds, chunksize=8):
            kinds[outcome.kind] += 1
            answered += outcome.answered
            crashes += outcome.crashes
            if outcome.failure:
                failed.append(outcome.seed)
            if args.trace or outcome.failure:
                show(outcome, None if args.trace or len(seeds) == 1 else SHOWN)
    print(f"{len(seeds)} seeds in {time.perf_counter() - started:.1f} s ({dict(sorted(kinds.items()))}), "
          f"{answered} operations, {crashes} crashes; failed: {sorted(failed) or 'none'}")  # fmt: skip
    return bool(failed)


def show(outcome: Outcome, events: int | None) -> None:
    lines = outcome.lines()
    for line in lines[-events:] if events else lines:
        print(f"  {line}")
    print(f"seed {outcome.seed} ({outcome.kind}), digest {outcome.digest}: {outcome.failure or 'all held'}")


if __name__ == "__main__":
    sys.exit(main())
