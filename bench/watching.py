"""Whether ten watchers of one session slow the others down, by the server's own histograms.

    python -m bench.watching [--docs docs] [--code auto] [--quick] [--rounds 5]

Four sessions step one timestep at a time, and a fifth is stepped beside them, alone and then with ten watchers that ask
for everything, 30 frames a second each.
"""

import asyncio
from functools import partial

from bench.report import finish, markdown_ratios, parser_of
from dnc_serve.client import AsyncClient
from dnc_serve.client.cli.measure.aside import Aside, aside
from dnc_serve.client.cli.measure.load import Load, create, model_of, run_loop, stream_load
from dnc_serve.client.cli.measure.lockstep import Span
from dnc_serve.client.cli.measure.rounds import Ratio, in_turns, machine, median_of
from dnc_serve.client.cli.measure.served import Served, served

MODEL = "copy"
WATCHED = "watched"
SESSIONS = ("one", "two", "three", "four", WATCHED)
WATCHERS = 10
FRAMES_PER_SECOND = 30
NAMES = ("memory", "link_matrix", "usage_vector", "write_weights", "read_weights", "precedence", "interface")
HISTOGRAMS = {"tick": "dnc_tick_duration_seconds", "queue wait": "dnc_queue_wait_seconds"}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="alternating runs (5)")
    arguments = parser.parse_args()
    rounds, seconds = (1, 0.5) if arguments.quick else (arguments.rounds, 4.0)
    with served(MODEL, code=arguments.code) as server, aside() as steppers, aside() as watchers:
        input_size = steppers.run(model_of, server.grpc)[0]
        steppers.run(create, server.grpc, list(SESSIONS))
        turns = in_turns(
            {
                "alone": partial(_means, server, steppers, input_size, seconds),
                "watched": partial(_watched, server, steppers, watchers, input_size, seconds),
            },
            rounds,
        )
    ratios = [
        Ratio(
            f"mean {name}, with ten watchers of one session / without",
            median_of(turns, lambda turn, name=name: turn["watched"][name] / turn["alone"][name]),  # type: ignore[misc]
            at_most=1.1,
        )
        for name in HISTOGRAMS
    ]
    report = {
        "machine": machine(),
        "code": arguments.code,
        "turns": turns,
        "ratios": [ratio.as_dict() for ratio in ratios],
    }
    finish("watching", report, markdown_ratios(ratios), arguments.docs)


def _means(server: Served, steppers: Aside, input_size: int, seconds: float) -> dict[str, float]:
    before = server.metrics()
    steppers.run(stream_load, Load(server.grpc, tuple((name,) for name in SESSIONS), 1, input_size, Span(seconds, 0.5)))
    after = server.metrics()
    return {
        name: (after[f"{metric}_sum", ""] - before[f"{metric}_sum", ""])
        / (after[f"{metric}_count", ""] - before[f"{metric}_count", ""])
        for name, metric in HISTOGRAMS.items()
    }


def _watched(server: Served, steppers: Aside, watchers: Aside, input_size: int, seconds: float) -> dict[str, float]:
    watching = watchers.start(watch, server.grpc, seconds + 1.0)
    means = _means(server, steppers, input_size, seconds)
    means["frames_per_s_of_each"] = watching.result() / WATCHERS / (seconds + 1.0)
    return means


def watch(address: str, seconds: float) -> int:
    """Ten watchers; how many frames they got."""

    async def run() -> int:
        frames = 0

        async def one(client: AsyncClient) -> None:
            nonlocal frames
            session = client.session(WATCHED, create=False)
            async for _ in session.watch(NAMES, FRAMES_PER_SECOND):
                frames += 1

        async with AsyncClient(address) as client:
            watching = [asyncio.ensure_future(one(client)) for _ in range(WATCHERS)]
            await asyncio.sleep(seconds)
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
        return frames

    return run_loop(run())


if __name__ == "__main__":
    main()
