"""How fast a server answers and what that costs, by load, beside an empty echo, the bare model, and other versions.

    python -m bench.serving [--beside [NAME=]PYTHON] [--model copy] [--serve FLAGS] [--docs docs] [--quick]

`--beside` names the interpreter of another checkout's environment, whose server takes the same loads from the same
client, in turns with this one's; it may be repeated.
"""

import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import bare
from bench.report import Ratio, finish, markdown_ratios, markdown_table, median_of, number, parser_of
from bench.servers import MODEL, Aside, aside, echo, served
from bench.unary import torchserve_load
from dnc_serve.client import AsyncClient
from dnc_serve.client.cli.bench import told
from dnc_serve.client.cli.load import (
    LOADS,
    Figures,
    Server,
    Span,
    bits,
    in_turns,
    lockstep,
    median_figures,
    model_of,
    run_loop,
    stream_load,
)  # fmt: skip
from dnc_serve.model.dnc import DNC
from dnc_serve.model.weights import save_weights

NOW, BEFORE, ECHO = "now", "before", "echo"
LONE, TWO, EIGHT, MANY, MANY_LONG, BATCHES, BATCHES_LONG, EACH, EIGHT_EACH = LOADS
OFF, LIBRARY = "lone stream, durability off", "lone stream, client library"
TORCHSERVE = {1: "TorchServe's own endpoint, 1 caller", 64: "TorchServe's own endpoint, 64 callers"}
# The size that the `dnc` package's README shows: a step is many times the bundled models', and what a server adds
# should vanish beside it.
README_SIZE: dict[str, Any] = {
    "input_size": 64, "hidden_size": 128, "rnn_type": "lstm", "num_layers": 4, "num_hidden_layers": 1, "nr_cells": 100,
    "cell_size": 32, "read_heads": 4,
}  # fmt: skip

Turn = Mapping[Any, Any]
Of = Callable[[str], Figures]
# What a chunk costs: of a server's figures and the echo's, and what it should be.
COST: dict[str, tuple[Callable[[Of, Of], float], dict[str, float]]] = {
    f"µs of processor time a chunk, {MANY}": (lambda own, echo: own(MANY).server_us, {"at_most": 80}),
    f"the same, {BATCHES}": (lambda own, echo: own(BATCHES).server_us, {"at_most": 40}),
    f"the same, {EACH}": (lambda own, echo: own(EACH).server_us, {"at_most": 140}),
    f"chunks/s, {EACH}": (lambda own, echo: own(EACH).timesteps_per_s, {"at_least": 5_000}),
    f"chunks/s, {EIGHT_EACH}": (lambda own, echo: own(EIGHT_EACH).timesteps_per_s, {"at_least": 8_000}),
    f"chunks/s, {MANY}": (lambda own, echo: own(MANY).timesteps_per_s, {"at_least": 12_000}),
    f"{LONE}: p50 / the echo's": (lambda own, echo: own(LONE).p50_ms / echo(LONE).p50_ms, {"at_most": 1.6}),
    f"{LONE}: µs that durability adds": (
        lambda own, echo: (own(LONE).p50_ms - own(OFF).p50_ms) * 1000, {"at_most": 50},
    ),
    f"rate of {EIGHT} / of {MANY}": (
        lambda own, echo: own(EIGHT).timesteps_per_s / own(MANY).timesteps_per_s, {"at_least": 0.8},
    ),
    f"rate of {TWO} / of {MANY}": (
        lambda own, echo: own(TWO).timesteps_per_s / own(MANY).timesteps_per_s, {"at_least": 0.4},
    ),
}  # fmt: skip


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--beside", action="append", default=[], metavar="[NAME=]PYTHON", help="another version")
    parser.add_argument("--model", default=MODEL, help="what is served (%(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each load in a round (%(default)s)")
    arguments = parser.parse_args()
    rounds, seconds = (1, 0.1) if arguments.quick else (arguments.rounds, arguments.seconds)
    versions = {name or BEFORE: python for name, _, python in (each.rpartition("=") for each in arguments.beside)}
    versions[NOW] = sys.executable
    flags = shlex.split(arguments.serve)
    with aside() as load, aside() as alone:
        turns = _turns(versions, arguments.model, flags, load, alone, rounds, Span(seconds, seconds / 4))
        # A chunk of all its sessions takes half a second: the span has to hold many of them.
        large = _of_readme_size(flags, load, alone, *((1, Span(0.5, 0.2)) if arguments.quick else (3, Span(6.0, 1.5))))
    told("")
    figures = {key: median_figures([turn[key] for turn in turns]) for key in turns[0] if key[0] != "bare"}
    cost = {name: _cost(turns, versions, name) for name in COST}
    ratios = [*_against_floors(turns), *large]
    text = f"{_loads(figures)}\n\n{_cost_table(versions, cost)}\n\n{markdown_ratios(ratios)}"
    report = {
        "loads": [{"server": who, "load": label, "figures": each} for (who, label), each in figures.items()],
        "cost": cost,
        "ratios": ratios,
    }
    finish("serving", arguments, text, report)


def _turns(
    versions: Mapping[str, str], model: str, flags: Sequence[str], load: Aside, alone: Aside, rounds: int, span: Span
) -> list[dict[Any, Any]]:
    """Figures by server and load, and of the bare model."""
    with ExitStack() as stack:
        servers = {name: stack.enter_context(served(model, *flags, python=python)) for name, python in versions.items()}
        off = {
            name: stack.enter_context(served(model, *flags, "--durability", "off", python=python)).endpoint
            for name, python in versions.items()
        }
        now = servers[NOW]
        device, input_size = load.run(served_on, now.endpoint)
        endpoints = {name: server.endpoint for name, server in servers.items()}
        endpoints[ECHO] = stack.enter_context(echo(input_size))
        measures: dict[Any, Callable[[], Any]] = {
            (name, label): partial(load.run, stream_load, endpoint, each, span)
            for label, each in LOADS.items()
            for name, endpoint in endpoints.items()
        }
        for name, endpoint in off.items():
            measures[name, OFF] = partial(load.run, stream_load, endpoint, LOADS[LONE], span)
        measures[NOW, LIBRARY] = partial(load.run, library_load, now.endpoint, input_size, span)
        for callers, label in TORCHSERVE.items():
            measures[NOW, label] = partial(load.run, torchserve_load, now.torchserve, callers, 1, input_size, span)
        artifact = now.artifact(model)
        measures["bare", "tick"] = partial(alone.run, bare.tick_ms, artifact, device, span.seconds)
        measures["bare", "rate"] = partial(alone.run, bare.timesteps_per_s, artifact, device, 16, span.seconds)
        return in_turns(measures, rounds, told)


def _of_readme_size(flags: Sequence[str], load: Aside, alone: Aside, rounds: int, span: Span) -> list[Ratio]:
    """The rate of a large model beside that of its bare loop."""
    with tempfile.TemporaryDirectory(prefix="dnc-bench-") as folder:
        torch.manual_seed(0)
        save_weights(DNC(**README_SIZE), Path(folder))
        with served(folder, "--slots", "64", *flags) as server:
            device, _ = load.run(served_on, server.endpoint)
            measures: dict[Any, Callable[[], Any]] = {
                label: partial(load.run, stream_load, server.endpoint, LOADS[label], span)
                for label in (MANY_LONG, BATCHES_LONG)
            }
            artifact = server.artifact(folder)
            measures["bare"] = partial(alone.run, bare.timesteps_per_s, artifact, device, 16, span.seconds / 2)
            turns = in_turns(measures, rounds, told)
    return [
        Ratio(
            f"README size, {label}: rate / bare",
            median_of(turns, lambda turn, label=label: turn[label].timesteps_per_s / turn["bare"]),  # type: ignore[misc]
            at_least=0.9,
        )
        for label in (MANY_LONG, BATCHES_LONG)
    ]


def served_on(server: Server) -> tuple[str, int]:
    """The device of the served model, and its input size."""
    model = model_of(server)
    return model.device, model.input_size


def library_load(server: Server, input_size: int, span: Span) -> Figures:
    """A lone session through the client library, one `step` after the other."""

    async def load() -> Figures:
        inputs = bits(1, input_size)
        async with AsyncClient(server.address) as client, client.session("library") as session:
            return await lockstep([lambda: session.step(inputs)], 1, span, server.pids)

    return run_loop(load())


def _cost(turns: Sequence[Turn], versions: Mapping[str, str], name: str) -> dict[str, float]:
    """The median over the rounds, by server; an echo knows no durability."""
    figure, _ = COST[name]

    def of(who: str, turn: Turn) -> float:
        return figure(lambda label: turn[who, label], lambda label: turn[ECHO, label])

    servers = [who for who in (*versions, ECHO) if who != ECHO or "durability" not in name]
    return {who: median_of(turns, partial(of, who)) for who in servers}


def _against_floors(turns: Sequence[Turn]) -> list[Ratio]:
    """This version beside what an echo and the bare model cost together, and its two endpoints beside each other."""

    def lone(turn: Turn) -> float:
        floor = turn[ECHO, LONE].p50_ms + turn["bare", "tick"]
        return float(turn[NOW, LONE].p50_ms / floor)

    def rate(label: str, turn: Turn) -> float:
        costs = 1 / turn[ECHO, label].timesteps_per_s + 1 / turn["bare", "rate"]
        return float(turn[NOW, label].timesteps_per_s * costs)

    def endpoints(turn: Turn) -> float:
        return float(turn[NOW, TORCHSERVE[1]].p50_ms / turn[NOW, LONE].p50_ms)

    return [
        Ratio(f"{LONE}: p50 / (the echo's + a bare tick)", median_of(turns, lone), at_most=1.5),
        *(
            Ratio(f"{label}: rate / (1 / (1/echo + 1/bare))", median_of(turns, partial(rate, label)), at_least=0.8)
            for label in (MANY_LONG, BATCHES_LONG)
        ),
        Ratio("p50 of one caller: TorchServe's own endpoint / a stream", median_of(turns, endpoints), at_least=8.0),
    ]


def _loads(figures: Mapping[tuple[str, str], Figures]) -> str:
    """This version's figures by load, the echo's p50, rate and cost beside them."""
    rows = []
    for who, label in figures:
        if who != NOW:
            continue
        one, floor = figures[NOW, label], figures.get((ECHO, label))
        beside = [number(getattr(floor, name)) if floor else "" for name in ("p50_ms", "timesteps_per_s", "server_us")]
        own = [number(each) for each in (one.p50_ms, one.p99_ms, one.timesteps_per_s, one.server_us)]
        rows.append([label, *own, *beside])
    head = ["", "p50, ms", "p99, ms", "timesteps/s", "µs a chunk", "echo: p50, ms", "timesteps/s", "µs a chunk"]
    return markdown_table(head, rows)


def _cost_table(versions: Mapping[str, str], cost: Mapping[str, Mapping[str, float]]) -> str:
    rows = []
    for name, by_server in cost.items():
        now = Ratio(name, by_server[NOW], **COST[name][1])
        measured = [number(by_server[who]) if who in by_server else "" for who in (*versions, ECHO)]
        rows.append([name, *measured, now.aim, now.verdict])
    return markdown_table(["", *versions, ECHO, "aim", ""], rows)


if __name__ == "__main__":
    main()
