"""How fast a server answers and what that costs, by load, beside an empty echo, the bare model, and other versions.

    python -m bench.serving [--beside [NAME=]PYTHON] [--model copy] [--serve FLAGS] [--docs docs] [--quick]

`--beside` names the interpreter of another checkout's environment, whose server takes the same loads from the same
client, in turns with this one's; it may be repeated.
"""

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from bench import bare
from bench.run import Ratio, Run, number, ratio_table, table
from bench.servers import MODEL, Served, echo
from bench.ticks import README_SIZE
from bench.unary import handler_load
from dnc_serve.client import AsyncClient
from dnc_serve.client.cli.load import LOADS, Figures, Server, Span, array_of, bits, lockstep, median_figures, run_loop
from dnc_serve.handler.torchserve.archive import MODEL_NAME
from dnc_serve.model.dnc import DNC
from dnc_serve.model.export import export
from dnc_serve.model.weights import save_weights
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

NOW, BEFORE, ECHO = "now", "before", "echo"
LONE, TWO, EIGHT, MANY, MANY_LONG, BATCHES, BATCHES_LONG, EACH, EIGHT_EACH = LOADS
OFF, LIBRARY = "lone stream, durability off", "lone stream, client library"
TORCHSERVE = {callers: f"TorchServe's own endpoint, {callers} at once" for callers in (1, 64)}

Of = Callable[[str], Figures]  # by load
# What a chunk costs, of a server's figures and the echo's, and what it should cost.
COST: tuple[tuple[str, Callable[[Of, Of], float], dict[str, float]], ...] = (
    (f"µs of processor time a chunk, {MANY}", lambda own, echo: own(MANY).server_us, {"at_most": 80}),
    (f"the same, {BATCHES}", lambda own, echo: own(BATCHES).server_us, {"at_most": 40}),
    (f"the same, {EACH}", lambda own, echo: own(EACH).server_us, {"at_most": 140}),
    (f"chunks/s, {EACH}", lambda own, echo: own(EACH).timesteps_per_s, {"at_least": 5_000}),
    (f"chunks/s, {EIGHT_EACH}", lambda own, echo: own(EIGHT_EACH).timesteps_per_s, {"at_least": 8_000}),
    (f"chunks/s, {MANY}", lambda own, echo: own(MANY).timesteps_per_s, {"at_least": 12_000}),
    (f"{LONE}: p50 / the echo's", lambda own, echo: own(LONE).p50_ms / echo(LONE).p50_ms, {"at_most": 1.6}),
    ("the same, µs above durability off", lambda own, echo: (own(LONE).p50_ms - own(OFF).p50_ms) * 1000,
     {"at_most": 50}),
    (f"rate of {EIGHT} / of {MANY}", lambda own, echo: own(EIGHT).timesteps_per_s / own(MANY).timesteps_per_s,
     {"at_least": 0.8}),
    (f"rate of {TWO} / of {MANY}", lambda own, echo: own(TWO).timesteps_per_s / own(MANY).timesteps_per_s,
     {"at_least": 0.4}),
)  # fmt: skip


def main() -> None:
    beside = {"action": "append", "default": [], "metavar": "[NAME=]PYTHON", "help": "another version"}
    with Run("serving", __doc__, beside=beside, model={"default": MODEL}) as run:
        versions = {name or BEFORE: python for name, _, python in (each.rpartition("=") for each in run.asked.beside)}
        versions[NOW] = sys.executable
        alone = run.aside()
        turns = measure(run, versions, alone)
        against_floors(run, turns)
        if not run.quick:
            of_readme_size(run, alone)
        of_an_lstm(run)
        figures = {key: median_figures([turn[key] for turn in turns]) for key in turns[0] if key[0] != "bare"}
        cost = [cost_of(turns, versions, *row) for row in COST]
        text = f"{loads_table(figures)}\n\n{cost_table(cost)}\n\n{ratio_table(run.ratios)}"
        loads = [{"server": who, "load": label, "figures": each} for (who, label), each in figures.items()]
        run.finish(text, {"loads": loads, "cost": cost})


def measure(run: Run, versions: Mapping[str, str], alone: Any) -> Sequence[Mapping[Any, Any]]:
    """Figures by server and load, and of the bare model, in turns."""
    with ExitStack() as stack:
        endpoints, measures = {}, {}
        for name, python in versions.items():
            off = stack.enter_context(run.served("--durability", "off", model=run.asked.model, python=python))
            measures[name, OFF] = run.stream(off.endpoint, LOADS[LONE])
            now = stack.enter_context(run.served(model=run.asked.model, python=python))
            endpoints[name] = now.endpoint
        endpoints[ECHO] = stack.enter_context(echo(now.model.input_size))
        for label, load in LOADS.items():
            measures |= {(name, label): run.stream(server, load) for name, server in endpoints.items()}
        span = Span(run.seconds, 0.3 * run.seconds)
        measures[NOW, LIBRARY] = partial(run.load.run, library_load, now.endpoint, span)
        inputs = array_of(bits(1, now.model.input_size))
        for callers, label in TORCHSERVE.items():  # through sessions that the streams made
            chunks = [pb.Chunk(session_id=f"s{caller}", inputs=inputs) for caller in range(callers)]
            rows = [{"data": pb.Call(step=pb.StepRequest(chunk=chunk)).SerializeToString()} for chunk in chunks]
            measures[NOW, label] = partial(run.load.run, handler_load, now.torchserve, MODEL_NAME, rows, 1, span)
        bare_model = (now.artifact, now.model.device, run.seconds)
        measures["bare", "tick"] = partial(alone.run, bare.tick_ms, *bare_model)
        measures["bare", "rate"] = partial(alone.run, bare.timesteps_per_s, *bare_model, 16)
        return run.turns(measures)


def library_load(server: Server, span: Span) -> Figures:
    """A lone session through the client library, one `step` after the other."""

    async def load() -> Figures:
        inputs = bits(1, server.input_size)
        async with AsyncClient(server.address) as client, client.session("library") as session:
            return await lockstep([lambda: session.step(inputs)], 1, span, server.pids)

    return run_loop(load())


def of_readme_size(run: Run, alone: Any) -> None:
    """The rate of a large model beside that of its bare loop."""
    with tempfile.TemporaryDirectory(prefix="dnc-bench-") as folder:
        torch.manual_seed(0)
        save_weights(DNC(**README_SIZE), Path(folder))
        with run.served("--slots", "64", model=folder) as server:
            # A chunk of all its sessions takes half a second: the time has to hold many of them.
            measures = {
                label: run.stream(server.endpoint, LOADS[label], seconds=6.0) for label in (MANY_LONG, BATCHES_LONG)
            }
            unroll = partial(alone.run, bare.timesteps_per_s, server.artifact, server.model.device, 3.0, 16)
            turns = run.turns({**measures, "bare": unroll}, 3)
    for label in measures:
        rates = [turn[label].timesteps_per_s / turn["bare"] for turn in turns]
        run.ratio(f"README size, {label}: rate / bare", rates, at_least=0.9)


def of_an_lstm(run: Run) -> None:
    """What a server adds to the steps of a model that is no DNC, beside what it adds to a DNC's."""
    with tempfile.TemporaryDirectory(prefix="dnc-bench-") as folder:
        torch.manual_seed(0)
        export(nn.LSTM(10, 128, 2), folder)
        with run.served(model=run.asked.model) as dnc, run.served(model=folder) as lstm:
            measures = {
                (name, label): partial(added_us, run, server, label)
                for label in (LONE, MANY)
                for name, server in (("dnc", dnc), ("lstm", lstm))
            }
            turns = run.turns(measures)
    for label in (LONE, MANY):
        ratios = [turn["lstm", label] / turn["dnc", label] for turn in turns]
        run.ratio(f"{label}: µs that a server adds to an LSTM's step / to a DNC's", ratios, at_most=1.1)


def added_us(run: Run, server: Served, label: str) -> float:
    """Processor time of a chunk of one timestep, without what the server itself says that its ticks took."""
    before = server.metrics()
    figures = run.stream(server.endpoint, LOADS[label])()
    after = server.metrics()
    tick_s, chunks = (
        after[f"dnc_{name}_sum", ""] - before.get((f"dnc_{name}_sum", ""), 0.0)
        for name in ("tick_duration_seconds", "batch_size")
    )
    return figures.server_us - tick_s / chunks * 1e6


def against_floors(run: Run, turns: Sequence[Mapping[Any, Any]]) -> None:
    """This version beside what an echo and the bare model cost together, and its two endpoints beside each other."""
    floors = [turn[NOW, LONE].p50_ms / (turn[ECHO, LONE].p50_ms + turn["bare", "tick"]) for turn in turns]
    run.ratio(f"{LONE}: p50 / (the echo's + a bare tick)", floors, at_most=1.5)
    for label in (MANY_LONG, BATCHES_LONG):
        costs = [1 / turn[ECHO, label].timesteps_per_s + 1 / turn["bare", "rate"] for turn in turns]
        rates = [turn[NOW, label].timesteps_per_s * cost for turn, cost in zip(turns, costs, strict=True)]
        run.ratio(f"{label}: rate / (1 / (1/echo + 1/bare))", rates, at_least=0.8)
    endpoints = [turn[NOW, TORCHSERVE[1]].p50_ms / turn[NOW, LONE].p50_ms for turn in turns]
    run.ratio("p50 of one caller: TorchServe's own endpoint / a stream", endpoints, at_least=8.0)


def cost_of(
    turns: Sequence[Mapping[Any, Any]], versions: Mapping[str, str], name: str, figure: Callable[[Of, Of], float],
    aim: dict[str, float],
) -> tuple[Ratio, dict[str, float]]:  # fmt: skip
    """The median over the rounds, by server; an echo knows no durability."""
    servers = [who for who in (*versions, ECHO) if (who, OFF) in turns[0] or "durability" not in name]
    by_server = {
        who: median(
            figure(lambda label, turn=turn, who=who: turn[who, label], lambda label, turn=turn: turn[ECHO, label])  # type: ignore[misc]
            for turn in turns
        )
        for who in servers
    }
    return Ratio(name, by_server[NOW], **aim), by_server


def cost_table(cost: Sequence[tuple[Ratio, Mapping[str, float]]]) -> str:
    servers = list(cost[0][1])
    rows = []
    for now, by_server in cost:
        measured = [number(by_server[who]) if who in by_server else "" for who in servers]
        rows.append([now.name, *measured, now.aim, now.verdict])
    return table(["", *servers, "aim", ""], rows)


def loads_table(figures: Mapping[tuple[str, str], Figures]) -> str:
    """This version's figures by load, the echo's beside them."""
    rows = []
    for label in (label for who, label in figures if who == NOW):
        one, floor = figures[NOW, label], figures.get((ECHO, label))
        own = (one.p50_ms, one.p99_ms, one.timesteps_per_s, one.server_us)
        beside = (floor.p50_ms, floor.timesteps_per_s, floor.server_us) if floor else ()
        rows.append([label, *map(number, (*own, *beside)), *([] if floor else [""] * 3)])
    head = ["", "p50, ms", "p99, ms", "timesteps/s", "µs a chunk", "echo: p50, ms", "timesteps/s", "µs a chunk"]
    return table(head, rows)


if __name__ == "__main__":
    main()
