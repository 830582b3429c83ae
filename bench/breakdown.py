"""Where a chunk's time goes in the worker: processor time by part, for a lone stream and for many.

    python -m bench.breakdown [--docs docs] [--code auto] [--quick] [--durability async]

The worker's server runs in this process, the load in another. The functions of each part are timed on the clock of
their thread, without what they call of other parts; what is left of the process' time is gRPC, protobuf and the event
loop. Timing costs about a microsecond a call, so small parts look a little larger than they are.
"""

import functools
import importlib
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.report import finish, markdown_table, parser_of
from dnc_serve.client.cli.measure.aside import aside
from dnc_serve.client.cli.measure.load import Load, model_of, own_streams, shared_streams, stream_load
from dnc_serve.client.cli.measure.lockstep import Span
from dnc_serve.client.cli.measure.rounds import machine
from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.server import DncServer
from dnc_serve.handler.torchserve.artifact import resolve_artifact

MODEL = "copy"
MANY = 64
LOADS = {
    "lone stream": ((("s0",),), 1, 1),
    f"{MANY} streams": (own_streams(MANY), 1, 1),
    f"{MANY} streams, chunks of 16": (own_streams(MANY), 16, 1),
    f"one stream of {MANY} sessions": (shared_streams(MANY, 1), 1, MANY),
    f"one stream of {MANY} sessions, chunks of 16": (shared_streams(MANY, 1), 16, MANY),
}
# Each part's functions, as module:name or module:class.name below dnc_serve.handler.
PARTS = {
    "take: decode and check a message": (
        "doors.streams:SessionStream._submit",
        "doors.operations:Operations.chunk",
        "doors.operations:decode_inputs",
        "engine.engine:Engine.submit",
    ),
    "turn: judge, begin, choose company": ("engine.turns:Turns._turn", "engine.turns:Turns._begin_runs"),
    "gather": ("engine.slab:Slab.gather", "engine.stepper:gather_inputs"),
    "step: the model": ("engine.tiles:Tiles.run", "engine.model_runner:RowRunner.step"),
    "step: around it": ("engine.stepper:Stepper.step",),
    "scatter": ("engine.slab:Slab.scatter", "engine.turns:Turns._settle"),
    "commit: checks, swap, metrics": (
        "engine.commits:Commits.commit",
        "engine.commits:Commits._committed",
        "engine.engine:Engine.release",
    ),
    "journal: encode": ("engine.commits:Commits._append",),
    "journal: write": ("journal.journal:Journal.write", "journal.stores.sqlite:SQLiteStore.commit"),
    "answer: hand over": ("engine.engine:Engine.answer",),
    "answer: encode": ("doors.streams:chunk_result",),
}
REST = "gRPC, protobuf, event loop"


def found(place: str) -> tuple[Any, str]:
    """The module or class that has a function, and the function's name there; raises AttributeError."""
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(f"dnc_serve.handler.{module}")
    *classes, name = path.split(".")
    for each in classes:
        owner = getattr(owner, each)
    getattr(owner, name)
    return owner, name


class Stopwatch:
    """Exclusive processor time of parts, over all threads."""

    def __init__(self) -> None:
        self.ns: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._local = threading.local()

    def watch(self, part: str, place: str) -> None:
        """Times a function from now on."""
        owner, name = found(place)
        setattr(owner, name, self._timed(part, place, getattr(owner, name)))

    def reset(self) -> None:
        self.ns.clear()
        self.calls.clear()

    def _timed(self, part: str, place: str, function: Callable[..., Any]) -> Callable[..., Any]:
        local, clock = self._local, time.thread_time_ns

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            within = getattr(local, "within", 0)
            local.within = 0
            started = clock()
            try:
                return function(*args, **kwargs)
            finally:
                took = clock() - started
                self.ns[part] += took - local.within
                self.calls[place] += 1
                local.within = within + took

        return timed


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--durability", choices=("off", "async", "sync"), default="async")
    arguments = parser.parse_args()
    stopwatch = Stopwatch()
    for part, places in PARTS.items():
        for place in places:
            stopwatch.watch(part, place)
    with tempfile.TemporaryDirectory(prefix="dnc-bench-") as folder, aside() as load:
        state_dir = Path(folder)
        artifact = resolve_artifact(MODEL, None, state_dir / "artifacts", state_dir / "unpacked")
        config = ServeConfig(
            state_dir=state_dir, port=0, metrics_port=0, durability=arguments.durability, code=arguments.code
        )
        server = DncServer(config, artifact, "cpu")
        address = server.start().grpc
        try:
            input_size, *_ = load.run(model_of, address)
            span = Span(0.3 if arguments.quick else 2.0, 0.3)
            loads = {}
            for label, (streams, chunk, in_flight) in LOADS.items():
                stopwatch.reset()
                before = time.process_time()
                figures = load.run(stream_load, Load(address, streams, chunk, input_size, span, in_flight))
                spent_us = (time.process_time() - before) * 1e6
                loads[label] = _of_a_chunk(stopwatch, spent_us) | {"timesteps/s": figures.timesteps_per_s}
        finally:
            server.stop()
    report = {
        "machine": machine(),
        "code": arguments.code,
        "durability": arguments.durability,
        "loads": loads,
    }
    finish("breakdown", report, _table(loads), arguments.docs)


def _of_a_chunk(stopwatch: Stopwatch, spent_us: float) -> dict[str, float]:
    """Microseconds of processor time of a chunk by part, and how many rows were stepped in a turn."""
    chunks = stopwatch.calls["doors.operations:Operations.chunk"]
    parts = {part: stopwatch.ns[part] / 1000 / chunks for part in PARTS}
    return {
        **parts,
        REST: spent_us / chunks - sum(parts.values()),
        "all": spent_us / chunks,
        "chunks a commit": chunks / max(1, stopwatch.calls["engine.commits:Commits.commit"]),
    }


def _table(loads: dict[str, dict[str, float]]) -> str:
    rows = next(iter(loads.values()))
    lines = [
        [row, *(f"{parts[row]:,.0f}" if parts[row] >= 100 else f"{parts[row]:.1f}" for parts in loads.values())]
        for row in rows
    ]
    return markdown_table(["µs of processor time a chunk", *loads], lines)


if __name__ == "__main__":
    main()
