"""`python -m tests.histories check FILE` judges a history, and shows the smallest part of it that nothing explains.

`python -m tests.histories load --target HOST:PORT FILE` puts a random load on a server, and records it.
"""

import argparse
import sys
from pathlib import Path

from tests.histories.checker import check
from tests.histories.load import load
from tests.histories.operations import Operation, read
from tests.histories.recorder import recorded
from tests.histories.shrink import shrunk


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.histories", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    checking = commands.add_parser("check", help="exit status 1 if nothing explains the history")
    checking.add_argument("file", type=Path)
    loading = commands.add_parser("load", help="calls of four writers on six sessions and their copies")
    loading.add_argument("--target", required=True, help="host:port")
    loading.add_argument("--seconds", type=float, default=10.0)
    loading.add_argument("--calls", type=int, default=10_000, help="of each writer, at most")
    loading.add_argument("--seed", type=int, default=0)
    loading.add_argument("--prefix", default="load", help="of sessions' ids; give a new one to each load")
    loading.add_argument("file", type=Path, help="is appended to")
    arguments = parser.parse_args()
    if arguments.command == "load":
        with recorded(arguments.file):
            load(arguments.target, arguments.seed, arguments.calls, arguments.seconds, arguments.prefix)
        return 0
    return judged(read(arguments.file))


def judged(operations: list[Operation]) -> int:
    """Prints the verdict; the exit status."""
    faults = check(operations)
    sessions = len({one.session for one in operations if one.session})
    print(f"{len(operations)} operations of {sessions} sessions: {f'{len(faults)} FAULTS' if faults else 'explained'}")
    if faults:
        smallest, fault = shrunk(operations, faults[0])
        needed = [one for one in smallest if one.is_settled]
        print(fault)
        print(f"with these {len(needed)} answers, and {len(smallest) - len(needed)} calls whose answers don't matter:")
        for one in needed:
            print(f"  {one}")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
