"""What remembering costs: durability modes, recovery, and sessions that come up from below, each beside its floor.

    python -m bench.durability [--docs docs] [--code auto] [--quick]

Three servers (off, async, sync) take the same load in turns; a server of 1,000 sessions is killed and started again;
sessions are called that lie in host memory or in the store; and one resident session is timed while 10 or 20,000 others
lie in the store.
"""

import statistics
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from bench.report import finish, markdown_ratios, parser_of
from dnc_serve.client.cli.measure import bare
from dnc_serve.client.cli.measure.aside import Aside, aside
from dnc_serve.client.cli.measure.load import (
    CREATED_AT_ONCE,
    STREAM,
    Load,
    Talker,
    bits,
    create,
    model_of,
    own_streams,
    run_loop,
    sessions_of,
    shared_streams,
    step_each,
    stream_load,
)  # fmt: skip
from dnc_serve.client.cli.measure.lockstep import Figures, Span
from dnc_serve.client.cli.measure.rounds import Ratio, in_turns, machine, median_of
from dnc_serve.client.cli.measure.served import Served, served
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from dnc_serve.proto.dnc.v1 import dnc_pb2_grpc
from dnc_serve.proto.targets import channel_options

MODEL = "copy"
MODES = ("off", "async", "sync")
STREAMS, CHUNK = 64, 16
RECOVERED, RECOVERED_TIMESTEPS = 1000, 512
REPLAYED_AT_ONCE = 64
FEW_OTHERS, MANY_OTHERS = 10, 20_000
RESIDENT_ROWS = 8


def main() -> None:
    arguments = parser_of(__doc__).parse_args()
    code = arguments.code
    rounds, seconds = (1, 0.3) if arguments.quick else (5, 2.0)
    with aside() as load, aside() as alone:
        ratios = [
            *modes(load, code, rounds, seconds),
            recovery(load, alone, code, 50 if arguments.quick else RECOVERED, seconds),
            *moves(load, code, rounds, seconds),
            company(load, code, rounds, seconds, 200 if arguments.quick else MANY_OTHERS),
        ]
    report = {"machine": machine(), "code": code, "ratios": [ratio.as_dict() for ratio in ratios]}
    finish("durability", report, markdown_ratios(ratios), arguments.docs)


def modes(load: Aside, code: str, rounds: int, seconds: float) -> list[Ratio]:
    """Timesteps a second of the modes that remember, beside the one that doesn't."""
    with ExitStack() as stack:
        servers = {mode: stack.enter_context(served(MODEL, "--durability", mode, code=code)) for mode in MODES}
        input_size = load.run(model_of, servers["off"].grpc)[0]
        measures = {
            mode: partial(
                load.run, stream_load, Load(server.grpc, own_streams(STREAMS), CHUNK, input_size, Span(seconds, 0.3))
            )
            for mode, server in servers.items()
        }
        turns = in_turns(measures, rounds)
    return [
        Ratio(
            f"{STREAMS} streams, chunks of {CHUNK}: {mode} / off, timesteps/s",
            median_of(turns, lambda turn, mode=mode: turn[mode].timesteps_per_s / turn["off"].timesteps_per_s),
            at_least=aim,
        )
        for mode, aim in (("async", 0.9), ("sync", 0.5))
    ]


def recovery(load: Aside, alone: Aside, code: str, sessions: int, seconds: float) -> Ratio:
    """Timesteps a second that a killed server replays, all sessions being called at once, beside the bare unroll."""
    names = [f"r{i}" for i in range(sessions)]
    with tempfile.TemporaryDirectory(prefix="dnc-bench-") as folder:
        state_dir = Path(folder)
        with served(MODEL, "--slots", str(sessions), code=code, state_dir=state_dir) as server:
            input_size = load.run(model_of, server.grpc)[0]
            load.run(create, server.grpc, names)
            load.run(step_each, server.grpc, names, RECOVERED_TIMESTEPS, input_size)
            time.sleep(0.2)
            server.kill()
        with served(MODEL, "--slots", str(sessions), code=code, state_dir=state_dir) as server:
            unroll = partial(
                alone.run, bare.timesteps_per_s, server.artifact(MODEL), "cpu", code,
                REPLAYED_AT_ONCE, seconds,
            )  # fmt: skip
            before = unroll()
            took = load.run(step_each, server.grpc, names, 1, input_size)
            after = unroll()
            replayed = server.metrics()["dnc_timesteps_recovered_total", ""]
    assert replayed == sessions * RECOVERED_TIMESTEPS, replayed
    return Ratio(
        f"recovery of {sessions:,} sessions of {RECOVERED_TIMESTEPS} timesteps: rate / bare unroll",
        (replayed + sessions) / took / statistics.mean((before, after)),
        at_least=0.8,
    )


def moves(load: Aside, code: str, rounds: int, seconds: float) -> list[Ratio]:
    """What a call takes longer when its session comes up from a tier below, beside moving the bytes alone."""
    few, many = shared_streams(RESIDENT_ROWS // 2, 1), shared_streams(RESIDENT_ROWS * 8, 1)
    slots = ("--slots", str(RESIDENT_ROWS), "--durability", "async")
    with ExitStack() as stack:
        above = stack.enter_context(served(MODEL, *slots, code=code))
        # Less than two states of host memory: whatever leaves its slot goes to the store.
        below = stack.enter_context(served(MODEL, *slots, "--host-bytes", str(state_bytes(load, above) + 1), code=code))
        input_size = load.run(model_of, above.grpc)[0]

        def lone(server: Served, sessions: tuple[tuple[str, ...], ...]) -> Figures:
            return load.run(stream_load, Load(server.grpc, sessions, 1, input_size, Span(seconds, 0.3)))

        measures = {
            "slot": partial(lone, above, few),
            "host": partial(lone, above, many),
            "slot of the other": partial(lone, below, few),
            "store": partial(lone, below, many),
        }
        turns = in_turns(measures, rounds)
        size = state_bytes(load, above)
        copy_ms, read_ms = copying_ms(size), reading_ms(size, below.state_dir)
    host_ms = median_of(turns, lambda turn: turn["host"].p50_ms - turn["slot"].p50_ms)
    store_ms = median_of(turns, lambda turn: turn["store"].p50_ms - turn["slot of the other"].p50_ms)
    return [
        Ratio(f"up from host memory: ms / (3 × copy of {size:,} bytes + 0.2 ms)", host_ms / (3 * copy_ms + 0.2), 1.0),
        Ratio(f"up from SQLite: ms / (3 × read of {size:,} bytes + 1 ms)", store_ms / (3 * read_ms + 1.0), 1.0),
    ]


def company(load: Aside, code: str, rounds: int, seconds: float, many_others: int) -> Ratio:
    """The p50 of a resident session while many others lie in the store, beside that with few."""
    limits = ("--slots", "64", "--host-bytes", "1MiB")
    with ExitStack() as stack:
        servers = {
            others: stack.enter_context(served(MODEL, *limits, code=code)) for others in (FEW_OTHERS, many_others)
        }
        input_size = load.run(model_of, servers[FEW_OTHERS].grpc)[0]
        for others, server in servers.items():
            load.run(populate, server.grpc, [f"o{i}" for i in range(others)], input_size)
        measures = {
            str(others): partial(
                load.run, stream_load, Load(server.grpc, (("resident",),), 1, input_size, Span(seconds, 0.3))
            )
            for others, server in servers.items()
        }
        turns = in_turns(measures, rounds)
    ratio = median_of(turns, lambda turn: turn[str(many_others)].p50_ms / turn[str(FEW_OTHERS)].p50_ms)
    return Ratio(f"a resident session's p50: with {many_others:,} others / with {FEW_OTHERS}", ratio, at_most=1.2)


def populate(address: str, names: list[str], input_size: int) -> None:
    """Sessions with a state of their own: each is made, and steps once before others push it out of memory."""

    async def step() -> None:
        inputs = bits(1, input_size)
        async with grpc.aio.insecure_channel(address, options=channel_options(address)) as channel:
            stream: Any = channel.stream_stream(STREAM)()
            for start in range(0, len(names), CREATED_AT_ONCE):
                found = await sessions_of(channel, names[start : start + CREATED_AT_ONCE])
                requests = [Talker(session, inputs).ask() for session in found]
                await stream.write(pb.StreamRequest(batch=pb.RequestBatch(requests=requests)).SerializeToString())
                answered = 0
                while answered < len(found):
                    reply = pb.StreamResponse.FromString(await stream.read())
                    answers = reply.batch.responses if reply.WhichOneof("message") == "batch" else [reply]
                    if refused := [answer for answer in answers if answer.WhichOneof("message") != "chunk"]:
                        raise RuntimeError(f"the server refused a chunk: {refused[0]}")
                    answered += len(answers)

    run_loop(step())


def state_bytes(load: Aside, server: Served) -> int:
    """Of one session."""
    return load.run(_state_bytes, server.grpc)


def _state_bytes(address: str) -> int:
    with grpc.insecure_channel(address, options=channel_options(address)) as channel:
        return int(dnc_pb2_grpc.DncServiceStub(channel).GetModel(pb.GetModelRequest(), timeout=30).state_bytes)


def copying_ms(size: int) -> float:
    """The median of copies of so many bytes, none of which are in a cache."""
    rows = np.zeros((max(2, 2**26 // size), size), np.uint8)
    target = np.empty(size, np.uint8)
    times = []
    for row in rows:
        started = time.perf_counter()
        target[:] = row
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


def reading_ms(size: int, folder: Path) -> float:
    """The median of opened, read and closed files of so many bytes, as the disk's cache gives them."""
    path = folder / "as-many-bytes"
    path.write_bytes(bytes(size))
    times = []
    for _ in range(200):
        started = time.perf_counter()
        path.read_bytes()
        times.append(time.perf_counter() - started)
    path.unlink()
    return statistics.median(times) * 1000


if __name__ == "__main__":
    main()
