"""Whether a session that floods the server slows another one down, by the server's own histograms.

    python -m bench.fairness [--docs docs] [--code auto] [--quick] [--rounds 5]

A polite session steps one timestep at a time, alone and then while another keeps its queue full of long chunks. The
server's queue-wait histogram counts both; a flood of few, long chunks leaves its p99 to the polite session's many.
"""

import asyncio
from functools import partial
from typing import Any

import grpc

from bench.report import finish, markdown_ratios, parser_of
from dnc_serve.client.cli.measure.aside import Aside, aside
from dnc_serve.client.cli.measure.load import STREAM, Load, bits, create, model_of, run_loop, stream_load
from dnc_serve.client.cli.measure.lockstep import Figures, Span
from dnc_serve.client.cli.measure.rounds import Ratio, in_turns, machine, median_of
from dnc_serve.client.cli.measure.served import Served, quantile, served
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

MODEL = "copy"
FLOOD_CHUNK = 4096
FLOOD_IN_FLIGHT = 32
QUEUE_WAIT = "dnc_queue_wait_seconds"
TICK_DURATION = "dnc_tick_duration_seconds"


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="alternating runs (5)")
    arguments = parser.parse_args()
    rounds, seconds = (1, 0.5) if arguments.quick else (arguments.rounds, 4.0)
    with served(MODEL, code=arguments.code) as server, aside() as polite, aside() as flood:
        input_size = polite.run(model_of, server.grpc)[0]
        polite.run(create, server.grpc, ["polite", "flood"])
        turns = in_turns(
            {
                "alone": partial(_alone, server, polite, input_size, seconds),
                "flooded": partial(_flooded, server, polite, flood, input_size, seconds),
            },
            rounds,
        )
    ratios = [
        Ratio(
            "a polite session beside one that floods: its p99 of queue wait + tick / the same alone",
            median_of(turns, lambda turn: turn["flooded"]["p99_ms"] / turn["alone"]["p99_ms"]),
            at_most=3.0,
        ),
        Ratio(
            "the same, of its calls as its client saw them",
            median_of(turns, lambda turn: turn["flooded"]["call_p99_ms"] / turn["alone"]["call_p99_ms"]),
            at_most=3.0,
        ),
    ]
    report = {
        "machine": machine(),
        "code": arguments.code,
        "turns": turns,
        "ratios": [ratio.as_dict() for ratio in ratios],
    }
    finish("fairness", report, markdown_ratios(ratios), arguments.docs)


def _alone(server: Served, polite: Aside, input_size: int, seconds: float) -> dict[str, float]:
    before = server.metrics()
    figures = polite.run(stream_load, Load(server.grpc, (("polite",),), 1, input_size, Span(seconds, 0.2)))
    return _seen(server, before, figures)


def _flooded(server: Served, polite: Aside, flood: Aside, input_size: int, seconds: float) -> dict[str, float]:
    flooding = flood.start(keep_full, server.grpc, "flood", input_size, seconds + 1.5)
    before = server.metrics()
    figures = polite.run(stream_load, Load(server.grpc, (("polite",),), 1, input_size, Span(seconds, 0.5)))
    seen = _seen(server, before, figures)
    seen["flood_timesteps_per_s"] = flooding.result() / (seconds + 1.5)
    return seen


def _seen(server: Served, before: dict[tuple[str, str], float], figures: Figures) -> dict[str, float]:
    wait = quantile(before, server.metrics(), QUEUE_WAIT, 0.99)
    tick = quantile(before, server.metrics(), TICK_DURATION, 0.99)
    return {
        "p99_ms": (wait + tick) * 1000,
        "queue_wait_p99_ms": wait * 1000,
        "call_p50_ms": figures.p50_ms,
        "call_p99_ms": figures.p99_ms,
        "calls": figures.calls,
    }


def keep_full(address: str, session_id: str, input_size: int, seconds: float) -> int:
    """Keeps many long chunks of one session under way; the timesteps that were answered."""

    async def flood() -> int:
        inputs = bits(FLOOD_CHUNK, input_size)
        array = pb.Array(shape=inputs.shape, data=inputs.tobytes(), dtype=pb.DATA_TYPE_FLOAT32)
        message = pb.StreamRequest(chunk=pb.Chunk(session_id=session_id, inputs=array)).SerializeToString()
        answered = 0
        until = asyncio.get_running_loop().time() + seconds
        async with grpc.aio.insecure_channel(address) as channel:
            stream: Any = channel.stream_stream(STREAM)()
            for _ in range(FLOOD_IN_FLIGHT):
                await stream.write(message)
            while asyncio.get_running_loop().time() < until:
                await stream.read()
                answered += FLOOD_CHUNK
                await stream.write(message)
            stream.cancel()
        return answered

    return run_loop(flood())


if __name__ == "__main__":
    main()
