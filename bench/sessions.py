"""A machine full of sessions: what it costs to make, step, list, and drain them all, and to start with them again.

python -m bench.sessions [--sessions 100000] [--workers 4] [--docs docs] [--quick]
"""

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from bench.run import Run, number, table
from bench.servers import Served
from dnc_serve.client import AsyncClient
from dnc_serve.client.cli.bench import told
from dnc_serve.client.cli.load import Server, bits, processor_s, run_loop, some_at_once
from dnc_serve.client.transport import Hosts
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from dnc_serve.proto.dnc.v1 import dnc_pb2_grpc
from dnc_serve.proto.workers import owner_of

STEPPED_TOGETHER = 1000
PAGE = 1000


class Cost(NamedTuple):
    """Of something done to all sessions: on the clock, and the workers' processor time."""

    seconds: float
    processor_s: float = 0.0


def main() -> None:
    sessions = {"type": int, "default": 100_000, "help": "of all workers together (100,000)"}
    workers = {"type": int, "default": 4, "help": "beside one alone (4)"}
    with Run("sessions", __doc__, sessions=sessions, workers=workers) as run:
        count = 2_000 if run.quick else run.asked.sessions
        columns = {each: measured(run, each, count) for each in (1, run.asked.workers)}
        rows = [
            [what, *(text for costs, _ in columns.values() for text in cells(costs[what], count))]
            for what in columns[1][0]
        ]
        rows.append(["KiB of memory a session", *(text for _, kib in columns.values() for text in ("", number(kib)))])
        head = ["", *(title for each in columns for title in (f"{workers_of(each)}: s", "µs a session"))]
        run.finish(f"{count:,} sessions, alive at once.\n\n{table(head, rows)}", columns)


def measured(run: Run, workers: int, count: int) -> tuple[dict[str, Cost], float]:
    """What each thing takes that is done to all sessions, one after the other; KiB of memory of each session."""
    flags = ("--runtime", "plain", "--workers", str(workers), "--max-sessions", str(2 * count))
    costs: dict[str, Cost] = {}
    with tempfile.TemporaryDirectory(prefix="dnc-bench-") as folder:
        state_dir = Path(folder) / "state"
        with run.served(*flags, state_dir=state_dir) as server:
            before = resident(server)
            for what, work in {"create": create, "a timestep of each": step, "list": list_all}.items():
                told(f"{workers_of(workers)}: {what}")
                costs[what] = run.load.run(work, server.endpoint, count, workers)
            kib = (resident(server) - before) / count / 1024
            told(f"{workers_of(workers)}: drain")
            began = time.perf_counter()
        costs["drain, and end"] = Cost(time.perf_counter() - began)
        began = time.perf_counter()
        with run.served(*flags, state_dir=state_dir) as server:
            costs["start again"] = Cost(time.perf_counter() - began)
            # Their states come back from the store.
            costs["a timestep of each, after the start"] = run.load.run(step, server.endpoint, count, workers)
            if (position := server.position("s")) != 2 * count:
                raise RuntimeError(f"the sessions are at {position} timesteps together, expected {2 * count}")
    return costs, kib


def create(server: Server, count: int, workers: int) -> Cost:
    """Sessions by name, each by a call to the worker that has it."""

    async def work() -> None:
        hosts = Hosts(server.address, None, None)
        try:
            model = await hosts.stub(server.address).GetModel(pb.GetModelRequest())
            host = server.address.rpartition(":")[0]
            addresses = [f"{host}{each}" for each in model.workers.addresses] or [server.address]
            stubs: list[Any] = [dnc_pb2_grpc.DncServiceStub(hosts.channel(address)) for address in addresses]

            async def one(name: str) -> None:
                await stubs[owner_of(name, workers)].CreateSession(pb.CreateSessionRequest(session_id=name))

            await some_at_once(one, names(count))
        finally:
            await hosts.close()

    return cost(server, work)


def step(server: Server, count: int, workers: int) -> Cost:
    """A chunk of one timestep for each, by the client library, a thousand under way."""

    async def work() -> None:
        inputs = bits(1, server.input_size)
        async with AsyncClient(server.address) as client:
            multiplex = client.multiplex()
            for first in range(0, count, STEPPED_TOGETHER):
                together = map(multiplex.session, names(count)[first : first + STEPPED_TOGETHER])
                opened = await asyncio.gather(*together)
                outcome = await multiplex.step(dict.fromkeys(opened, inputs))
                for failed in (each for each in outcome.values() if isinstance(each, Exception)):
                    raise failed
                await asyncio.gather(*(session.close() for session in opened))

    return cost(server, work)


def list_all(server: Server, count: int, workers: int) -> Cost:
    async def work() -> None:
        async with AsyncClient(server.address) as client:
            listed = [session.id async for session in client.sessions("s", page_size=PAGE)]
        if sorted(listed) != sorted(names(count)):
            raise RuntimeError(f"{len(listed)} sessions are listed, expected {count}")

    return cost(server, work)


def cost(server: Server, work: Callable[[], Any]) -> Cost:
    spent, began = processor_s(server.pids), time.perf_counter()
    run_loop(work())
    return Cost(time.perf_counter() - began, processor_s(server.pids) - spent)


def names(count: int) -> Sequence[str]:
    return [f"s{index}" for index in range(count)]


def workers_of(count: int) -> str:
    return "one worker" if count == 1 else f"{count} workers"


def resident(server: Served) -> int:
    """Bytes of memory of all workers."""
    return sum(psutil.Process(pid).memory_info().rss for pid in server.endpoint.pids)


def cells(of: Cost, count: int) -> list[str]:
    return [number(of.seconds), number(of.processor_s / count * 1e6) if of.processor_s else ""]


if __name__ == "__main__":
    main()
