"""What remembering costs: durability modes, recovery, and sessions that come up from below, each beside its floor.

    python -m bench.durability [--docs docs] [--serve FLAGS] [--rounds 5] [--quick]

Three servers (off, async, sync) take the same load in turns; a server of 1,000 sessions is killed and started again;
sessions are called that lie in host memory or in the store; and one resident session is timed while 10 or 20,000 others
lie in the store.
"""

import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import mean, median

import numpy as np

from bench import bare
from bench.run import Run, ratio_table
from dnc_serve.client.cli.load import AT_ONCE, Load

STREAMS = Load(64, 64, 16)
RECOVERED, RECOVERED_TIMESTEPS = 1000, 512
REPLAYED_AT_ONCE = 64
FEW_OTHERS, MANY_OTHERS = 10, 20_000
RESIDENT_ROWS = 8


def main() -> None:
    with Run("durability", __doc__, seconds=2.0) as run:
        modes(run)
        recovery(run, 50 if run.quick else RECOVERED)
        moves(run)
        others(run, 200 if run.quick else MANY_OTHERS)
        run.finish(ratio_table(run.ratios), {})


def modes(run: Run) -> None:
    """Timesteps a second of the modes that remember, beside the one that doesn't."""
    with ExitStack() as stack:
        servers = {mode: stack.enter_context(run.served("--durability", mode)) for mode in ("off", "async", "sync")}
        turns = run.turns({mode: run.stream(server.endpoint, STREAMS) for mode, server in servers.items()})
    for mode, aim in (("async", 0.9), ("sync", 0.5)):
        rates = [turn[mode].timesteps_per_s / turn["off"].timesteps_per_s for turn in turns]
        run.ratio(f"64 streams, chunks of 16: {mode} / off, timesteps/s", rates, at_least=aim)


def recovery(run: Run, sessions: int) -> None:
    """Timesteps a second that a killed server replays, all sessions being called at once, beside the bare unroll."""
    alone = run.aside()
    with tempfile.TemporaryDirectory(prefix="dnc-bench-") as folder:
        start = partial(run.served, "--slots", str(sessions), state_dir=Path(folder))
        with start() as server:
            run.stream(server.endpoint, Load(sessions, sessions, RECOVERED_TIMESTEPS, rounds=1))()
            time.sleep(0.2)
            server.kill()
        with start() as server:
            device = server.model.device
            unroll = partial(alone.run, bare.timesteps_per_s, server.artifact, device, run.seconds, REPLAYED_AT_ONCE)
            before = unroll()
            rate = run.stream(server.endpoint, Load(sessions, sessions, 1, rounds=1))().timesteps_per_s
            floor = mean((before, unroll()))
            replayed = server.metrics()["dnc_timesteps_recovered_total", ""]
    assert replayed == sessions * RECOVERED_TIMESTEPS, replayed
    name = f"recovery of {sessions:,} sessions of {RECOVERED_TIMESTEPS} timesteps: rate / bare unroll"
    run.ratio(name, [rate * (RECOVERED_TIMESTEPS + 1) / floor], at_least=0.8)


def moves(run: Run) -> None:
    """What a call takes longer when its session comes up from a tier below, beside moving the bytes alone."""
    few, many = Load(RESIDENT_ROWS // 2), Load(RESIDENT_ROWS * 8)
    slots = ("--slots", str(RESIDENT_ROWS), "--durability", "async")
    with run.served(*slots) as above:
        size = above.model.state_bytes
        # Less than two states of host memory: whatever leaves its slot goes to the store.
        with run.served(*slots, "--host-bytes", str(size + 1)) as below:
            servers = {"host": above.endpoint, "store": below.endpoint}
            turns = run.turns(
                {(tier, load): run.stream(server, load) for tier, server in servers.items() for load in (few, many)}
            )
            read_ms = reading_ms(size, below.state_dir)
    floors_ms = {"host": 3 * copying_ms(size) + 0.2, "store": 3 * read_ms + 1.0}
    names = {
        "host": f"up from host memory: ms / (3 × copy of {size:,} bytes + 0.2 ms)",
        "store": f"up from SQLite: ms / (3 × read of {size:,} bytes + 1 ms)",
    }
    for tier, floor_ms in floors_ms.items():
        longer = [(turn[tier, many].p50_ms - turn[tier, few].p50_ms) / floor_ms for turn in turns]
        run.ratio(names[tier], longer, at_most=1.0)


def others(run: Run, many: int) -> None:
    """The p50 of a resident session while many others lie in the store, beside that with few."""
    with ExitStack() as stack:
        measures = {}
        for count in (FEW_OTHERS, many):
            server = stack.enter_context(run.served("--slots", "64", "--host-bytes", "1MiB")).endpoint
            # Each steps once before others push it out of memory.
            for first in range(0, count, AT_ONCE):
                sessions = min(AT_ONCE, count - first)
                run.stream(server, Load(sessions, sessions, rounds=1), prefix=f"other{first}-")()
            measures[count] = run.stream(server, Load(), prefix="resident")
        turns = run.turns(measures)
    grew = [turn[many].p50_ms / turn[FEW_OTHERS].p50_ms for turn in turns]
    run.ratio(f"a resident session's p50: with {many:,} others / with {FEW_OTHERS}", grew, at_most=1.2)


def copying_ms(size: int) -> float:
    """The median of copies of so many bytes, none of which are in a cache."""
    rows, target = np.zeros((max(2, 2**26 // size), size), np.uint8), np.empty(size, np.uint8)
    return median_ms(partial(np.copyto, target, row) for row in rows)


def reading_ms(size: int, folder: Path) -> float:
    """The median of opened, read and closed files of so many bytes, as the disk's cache gives them."""
    path = folder / "as-many-bytes"
    path.write_bytes(bytes(size))
    return median_ms([path.read_bytes] * 200)


def median_ms(calls: Iterable[Callable[[], object]]) -> float:
    took = []
    for call in calls:
        started = time.perf_counter()
        call()
        took.append((time.perf_counter() - started) * 1000)
    return median(took)


if __name__ == "__main__":
    main()
