"""Feeds a decoder what coverage suggests: `python -m tests.fuzz TARGET [--seconds 60]`, after `pip install atheris`.

What is found is kept in tests/fuzz/corpus/TARGET, as little as covers all; an input that fails stays here, `crash-…`.
"""

import argparse
import gc
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FunctionType

import atheris

from tests.fuzz.targets import BY_NAME, SEEDS, read

CORPUS = Path(__file__).parent / "corpus"
LONGEST = 4096  # bytes of an input


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=sorted(BY_NAME))
    parser.add_argument("--seconds", type=int, default=60)
    # libFuzzer ends the process in which it runs: each of its runs is in one of its own, with flags of its own.
    parser.add_argument("--flags", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args()
    again = [sys.executable, "-m", "tests.fuzz", args.target, "--flags"]
    if args.flags is not None:
        instrument()
        atheris.Setup([" ".join(again), *args.flags], lambda data: read(BY_NAME[args.target], data))
        atheris.Fuzz()
    corpus = CORPUS / args.target
    corpus.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as found:
        for number, seed in enumerate(SEEDS[BY_NAME[args.target]]):
            (Path(found) / f"seed-{number}").write_bytes(seed)
        for flags in ([f"-max_total_time={args.seconds}", found, str(corpus)], ["-merge=1", str(corpus), found]):
            code = subprocess.run([*again, f"-max_len={LONGEST}", *flags], check=False).returncode
            if code:
                return code
    return 0


def instrument() -> None:
    """Counts what is reached of this package's functions."""
    for thing in gc.get_objects():
        if isinstance(thing, FunctionType) and (thing.__module__ or "").startswith(
            ("dnc_serve.handler", "dnc_serve.model")
        ):
            atheris.instrument_func(thing)


if __name__ == "__main__":
    sys.exit(main())
