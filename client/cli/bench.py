"""`dnc bench`: how fast this machine serves, beside what it can't be faster than, all in one run."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dnc_serve.client.cli.child_server import ServerFailed

HELP = "measure a server on this machine beside its model alone and an empty echo"

LONE, MANY = ("s0",), 64
CHUNK = 16
DOOR_ADVANTAGE = 8.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Starts a real server on free ports, an empty gRPC echo laid out in the same way, and measures them in turns; "
        "the load comes from a third process. Figures are medians over the rounds."
    )
    parser.add_argument("--model", default="copy", help="what to serve, as in `dnc serve` (copy)")
    parser.add_argument("--durability", choices=("off", "async", "sync"), default="async", help="of the server (async)")
    parser.add_argument(
        "--code", choices=("auto", "torchscript"), default="auto", help="what steps the model (auto: the row kernel)"
    )
    parser.add_argument("--rounds", type=_positive(int), default=5, metavar="N", help="turns of everything (5)")
    parser.add_argument("--seconds", type=_positive(float), default=0.6, help="of each measurement in a round (0.6)")
    parser.add_argument("--quick", action="store_true", help="one short round: whether it runs, not how fast")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    try:
        report = measure(
            args.model,
            ("--durability", args.durability),
            args.code,
            1 if args.quick else args.rounds,
            0.2 if args.quick else args.seconds,
            lambda line: print(f"\r\x1b[K{line}", end="", file=sys.stderr) if sys.stderr.isatty() else None,
        )
    except ImportError as exc:
        print(f"dnc bench: {exc}; it needs more: pip install 'dnc-serve[serve]'", file=sys.stderr)
        return 1
    except ServerFailed as exc:
        print(f"dnc bench: {exc}", file=sys.stderr)
        return 1
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    print(json.dumps(report, indent=2) if args.json else table(report))
    return 0


def measure(
    model: str, flags: Sequence[str], code: str, rounds: int, seconds: float, told: Callable[[str], None]
) -> dict[str, Any]:
    """All of it, in one run. Raises ServerFailed."""
    from functools import partial

    from dnc_serve.client.cli.measure import bare
    from dnc_serve.client.cli.measure.aside import aside, background
    from dnc_serve.client.cli.measure.echo import serve_echo
    from dnc_serve.client.cli.measure.load import Load, client_load, model_of, own_streams, shared_streams, stream_load
    from dnc_serve.client.cli.measure.lockstep import Figures, Span
    from dnc_serve.client.cli.measure.rounds import in_turns, machine, median_figures, median_of
    from dnc_serve.client.cli.measure.served import served
    from dnc_serve.client.cli.measure.torchserve_door import door_load

    told("starting dnc serve")
    span = Span(seconds, warm_up_s=seconds / 4)
    with (
        served(model, *flags, code=code) as server,
        background(serve_echo) as echo,
        aside() as load,
        aside() as alone,
    ):
        input_size, name, artifact, device = load.run(model_of, server.grpc)
        folder = server.artifact(model)

        def stream(address: str, streams: tuple[tuple[str, ...], ...], chunk: int, in_flight: int = 1) -> Figures:
            asked = Load(address, streams, chunk, input_size, span, in_flight, is_echo=address == echo)
            return load.run(stream_load, asked)

        loads = {
            "lone stream": ((LONE,), 1, 1),
            f"{MANY} streams": (own_streams(MANY), 1, 1),
            f"{MANY} streams, chunks of {CHUNK}": (own_streams(MANY), CHUNK, 1),
            f"one stream of {MANY} sessions": (shared_streams(MANY, 1), 1, MANY),
            f"one stream of {MANY} sessions, chunks of {CHUNK}": (shared_streams(MANY, 1), CHUNK, MANY),
        }
        measures: dict[str, Callable[[], Any]] = {
            "tick": partial(alone.run, bare.tick_us, folder, device, code, seconds),
            "bare": partial(alone.run, bare.timesteps_per_s, folder, device, code, CHUNK, seconds),
        }
        for label, (streams, chunk, in_flight) in loads.items():
            measures[f"echo: {label}"] = partial(stream, echo, streams, chunk, in_flight)
            measures[label] = partial(stream, server.grpc, streams, chunk, in_flight)
        measures["lone stream, client library"] = partial(
            load.run, client_load, server.grpc, "library", 1, input_size, span
        )
        for callers in (1, MANY):
            label = f"TorchServe's door, {callers} caller{'s' * (callers > 1)}"
            measures[label] = partial(load.run, door_load, server.torchserve_grpc, callers, 1, input_size, span)
        turns = in_turns(measures, rounds, told)

    ticks = {rows: median_of(turns, lambda turn, rows=rows: turn["tick"][rows]) for rows in turns[0]["tick"]}  # type: ignore[misc]
    return {
        "machine": machine(),
        "model": {"name": name, "artifact": artifact, "device": device},
        "flags": list(flags),
        "bare_tick_us": ticks,
        "bare_timesteps_per_s": median_of(turns, lambda turn: turn["bare"]),
        "rows": {label: asdict(median_figures(turns, label)) for label in measures if label not in ("tick", "bare")},
        "ratios": [ratio.as_dict() for ratio in ratios(turns, "off" in flags)],
    }


def ratios(turns: Sequence[Mapping[str, Any]], durability_off: bool) -> list[Any]:
    """What should hold on any machine, each computed within a round; the median over the rounds."""
    from dnc_serve.client.cli.measure.rounds import Ratio, median_of

    def against_costs(turn: Mapping[str, Any], label: str) -> float:
        """The rate beside the one at which the costs of an echo and of the bare model add up."""
        costs = 1 / turn[f"echo: {label}"].timesteps_per_s + 1 / turn["bare"]
        return float(turn[label].timesteps_per_s * costs)

    lone = median_of(
        turns,
        lambda turn: (
            turn["lone stream"].p50_ms / (turn["echo: lone stream"].p50_ms + min(turn["tick"].values()) / 1000)
        ),
    )
    found = [Ratio("lone stream: p50 / (echo p50 + a bare tick)", lone, at_most=1.5 if durability_off else 2.0)]
    for label in (f"{MANY} streams, chunks of {CHUNK}", f"one stream of {MANY} sessions, chunks of {CHUNK}"):
        rate = median_of(turns, lambda turn, label=label: against_costs(turn, label))  # type: ignore[misc]
        found.append(Ratio(f"{label}: rate / (1 / (1/echo + 1/bare))", rate, at_least=0.8))
    door = median_of(turns, lambda turn: turn["TorchServe's door, 1 caller"].p50_ms / turn["lone stream"].p50_ms)
    found.append(Ratio("one caller: p50 at TorchServe's door / streaming door", door, at_least=DOOR_ADVANTAGE))
    return found


def table(report: Mapping[str, Any]) -> str:
    """The report for people."""
    from dnc_serve.client.cli.measure.rounds import Ratio, described, ratio_lines

    model = report["model"]
    lines = [
        described(report["machine"]),
        f"model {model['name']}, {model['artifact']} on {model['device']}; {' '.join(report['flags'])}",
        "",
        "bare tick: " + ", ".join(f"{rows} rows {us:.0f} µs" for rows, us in report["bare_tick_us"].items()),
        f"bare unroll of many rows, {CHUNK} ticks a call: {report['bare_timesteps_per_s']:,.0f} timesteps/s",
        "",
        f"{'':<56} {'p50 ms':>8} {'p99 ms':>8} {'timesteps/s':>12}",
    ]
    for label, row in report["rows"].items():
        lines.append(f"{label:<56} {row['p50_ms']:8.2f} {row['p99_ms']:8.2f} {row['timesteps_per_s']:12,.0f}")
    found = [Ratio(ratio["name"], ratio["value"], ratio["at_most"], ratio["at_least"]) for ratio in report["ratios"]]
    return "\n".join([*lines, "", *ratio_lines(found)])


def _positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def number(text: str) -> Any:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text}; expected more than 0")
        return value

    number.__name__ = kind.__name__
    return number
