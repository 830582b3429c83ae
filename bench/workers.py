"""What several workers cost beside one, where clients call the one that has a session, and where another passes it on.

    python -m bench.workers [--model copy] [--docs docs] [--quick]

All figures are processor time of all workers for a chunk: they say the same on a machine whose cores are shared.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from bench.run import Run, number, ratio_table, table
from bench.servers import MODEL, Served
from dnc_serve.client.async_client import AsyncClient
from dnc_serve.client.cli.load import (
    LOADS,
    Figures,
    Load,
    Server,
    Span,
    bits,
    lockstep,
    median_figures,
    run_loop,
    stream_load,
)
from dnc_serve.client.transport import Hosts
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from dnc_serve.proto.workers import owner_of

WORKERS = 2
LABELS = ("64 streams", "a stream of 64 sessions in batches", "a stream of 64 sessions, a message each")
LIBRARY = "64 sessions a worker, client library"
ONE, DIRECT, FORWARDED = "one worker", "two, called directly", "two, all passed on"
# Times as much as with one.
AIMS = {DIRECT: 1.1, FORWARDED: 1.6}


def main() -> None:
    with Run("workers", __doc__, model={"default": MODEL}) as run, ExitStack() as stack:
        flags = ("--runtime", "plain")
        one = stack.enter_context(run.served(*flags, model=run.asked.model))
        two = stack.enter_context(run.served(*flags, "--workers", str(WORKERS), model=run.asked.model))
        span = Span(run.seconds, 0.3 * run.seconds)
        measures: dict[tuple[str, str], Callable[[], Figures]] = {}
        # Worker 0 takes it all, or passes it all on: a machine's streams each have one owner, as with our client.
        its_own = replace(two.endpoint, address=addresses_of(two)[0])
        for label in LABELS:
            measures[label, ONE] = partial(loaded, run, one.endpoint, LOADS[label], span, 0)
            measures[label, DIRECT] = partial(loaded, run, its_own, LOADS[label], span, 0)
            measures[label, FORWARDED] = partial(loaded, run, its_own, LOADS[label], span, 1)
        measures[LIBRARY, ONE] = partial(run.load.run, library_load, one.endpoint, 64, span)
        measures[LIBRARY, DIRECT] = partial(run.load.run, library_load, two.endpoint, 64 * WORKERS, span)
        turns = run.turns(measures)
        for label, way in measures:
            if way != ONE:
                ratios = [turn[label, way].server_us / turn[label, ONE].server_us for turn in turns]
                run.ratio(f"{label}, {way}: processor time / with one", ratios, at_most=AIMS[way])
        figures = {key: median_figures([turn[key] for turn in turns]) for key in measures}
        rates = [turn[LIBRARY, DIRECT].timesteps_per_s / turn[LIBRARY, ONE].timesteps_per_s for turn in turns]
        run.ratio(f"{LIBRARY}: timesteps/s / with one", rates)
        loads = [*LABELS, LIBRARY]
        rows = [
            [label, *(number(figures[label, way].server_us) if (label, way) in figures else "" for way in (ONE, *AIMS))]
            for label in loads
        ]
        text = f"{table(['µs of processor time a chunk', ONE, *AIMS], rows)}\n\n{ratio_table(run.ratios)}"
        run.finish(text, [{"load": label, "way": way, "figures": each} for (label, way), each in figures.items()])


def loaded(run: Run, server: Server, load: Load, span: Span, worker: int) -> Figures:
    """A load of sessions that a worker has."""
    figures: Figures = run.load.run(stream_load, server, load, span, "s", True, partial(is_in, worker))
    return figures


def is_in(worker: int, name: str) -> bool:
    return owner_of(name, WORKERS) == worker


def addresses_of(served: Served) -> list[str]:
    """Where each worker listens alone."""

    async def ask() -> list[str]:
        hosts = Hosts(served.endpoint.address, None, None)
        try:
            answer = await hosts.stub(served.endpoint.address).GetModel(pb.GetModelRequest())
        finally:
            await hosts.close()
        host = served.endpoint.address.rpartition(":")[0]
        return [f"{host}{address}" for address in answer.workers.addresses]

    return run_loop(ask())


def library_load(server: Server, sessions: int, span: Span) -> Figures:
    """Sessions of the client library, each with one `step` after the other."""

    async def load() -> Figures:
        inputs = bits(1, server.input_size)
        async with AsyncClient(server.address) as client:
            await client.model()
            opened = [await client.session(f"library-{index}") for index in range(sessions)]
            return await lockstep([partial(one.step, inputs) for one in opened], 1, span, server.pids)

    return run_loop(load())


if __name__ == "__main__":
    main()
