"""Where a chunk's time goes in the worker: processor time by function, for a lone stream and for many.

    python -m bench.breakdown [--docs docs] [--serve FLAGS] [--seconds 8] [--quick]

`py-spy` looks into the worker of a real server under load many times a second, without stopping it, at whatever has the
processor. Each look counts for the innermost function of ours, so numpy, protobuf, SQLite and gRPC's writing count for
who called them; what no function of ours called is gRPC's and the event loop's. The shares are of the processor time a
chunk that the same load takes when nobody looks. On a busy machine what waits for the processor counts too.
"""

import subprocess
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from bench.run import Run, number, table
from bench.servers import ROOT
from dnc_serve.client.cli.load import LOADS, Span, stream_load

LOOKS_PER_S = 500
PY_SPY = str(Path(sysconfig.get_path("scripts")) / "py-spy")
REST, OTHERS, ALL = "gRPC, protobuf, event loop", "other functions", "all"
SHOWN = 0.03  # of some load's time: functions below are added up
COLUMNS = (
    "lone stream", "8 streams", "64 streams", "64 streams, chunks of 16", "a stream of 64 sessions in batches",
    "a stream of 64 sessions, a message each",
)  # fmt: skip


def main() -> None:
    with Run("breakdown", __doc__, seconds=8.0) as run, run.served() as server:
        loads = {}
        for name in COLUMNS:
            unseen = run.stream(server.endpoint, LOADS[name])()
            seconds = max(1, round(run.seconds))
            loading = run.load.start(stream_load, server.endpoint, LOADS[name], Span(seconds + 1))
            looks = look(server.worker.pid, seconds)
            loading.result()
            loads[name] = {part: count / looks.total() * unseen.server_us for part, count in looks.items()}
        run.finish(parts_table(loads), loads)


def look(pid: int, seconds: int) -> Counter[str]:
    """How often each function was at work."""
    with tempfile.TemporaryDirectory(prefix="dnc-bench-") as folder:
        raw = Path(folder) / "raw"
        command = [
            *(PY_SPY, "record", "--pid", str(pid), "--nonblocking", "--rate", str(LOOKS_PER_S), "--format", "raw"),
            *("--duration", str(seconds), "--full-filenames", "--output", str(raw)),
        ]
        subprocess.run(command, check=True, capture_output=True)
        return counted(raw.read_text())


def counted(raw: str) -> Counter[str]:
    """Looks by function, of lines as `thread;outer (file:line);inner (file:line) looks`."""
    looks: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = (frame.rpartition(":")[0].partition(" (") for frame in reversed(stack.split(";")))
        # An environment may lie within the checkout.
        ours = (
            f"{Path(file).relative_to(ROOT)}: {function}"
            for function, _, file in frames
            if Path(file).is_relative_to(ROOT) and "site-packages" not in file
        )
        looks[next(ours, REST)] += int(count)
    return looks


def parts_table(loads: Mapping[str, Mapping[str, float]]) -> str:
    """Microseconds of a chunk; functions in the order of the largest share that they have."""
    shares: Counter[str] = Counter()
    for parts in loads.values():
        for part, us in parts.items():
            shares[part] = max(shares[part], us / sum(parts.values()))  # type: ignore[assignment]
    shown = [part for part, share in shares.most_common() if share >= SHOWN]
    rows = [[part, *(number(parts.get(part, 0.0)) for parts in loads.values())] for part in shown]
    rest = (sum(us for part, us in parts.items() if part not in shown) for parts in loads.values())
    rows.append([OTHERS, *map(number, rest)])
    rows.append([ALL, *(number(sum(parts.values())) for parts in loads.values())])
    return table(["µs of processor time a chunk", *loads], rows)


if __name__ == "__main__":
    main()
