"""Measurements in turns, and what they come to."""

import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dnc_serve.client.cli.measure.lockstep import Figures

Measure = Callable[[], Any]
Turn = Mapping[str, Any]  # what each measurement gave in one round


@dataclass(frozen=True)
class Ratio:
    """A figure that holds on any machine, and what it should be."""

    name: str
    value: float
    at_most: float | None = None
    at_least: float | None = None

    @property
    def reached(self) -> bool:
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "value": round(self.value, 3), "reached": self.reached}


def in_turns(
    measures: Mapping[str, Measure], rounds: int, told: Callable[[str], None] = lambda line: None
) -> list[Turn]:
    """Each measurement once in each round, in an order that alternates; `told` hears what is being done."""
    turns: list[Turn] = []
    for index in range(rounds):
        names = list(measures) if index % 2 == 0 else list(measures)[::-1]
        turn = {}
        for name in names:
            told(f"round {index + 1} of {rounds}: {name}")
            turn[name] = measures[name]()
        turns.append(turn)
    return turns


def median_of(turns: Sequence[Turn], figure: Callable[[Turn], float]) -> float:
    """The median over the rounds of something computed within each."""
    return statistics.median(figure(turn) for turn in turns)


def median_figures(turns: Sequence[Turn], name: str) -> Figures:
    """The median of each figure of a measurement."""
    figures: list[Figures] = [turn[name] for turn in turns]
    return Figures(
        calls=sum(one.calls for one in figures),
        p50_ms=statistics.median(one.p50_ms for one in figures),
        p99_ms=statistics.median(one.p99_ms for one in figures),
        timesteps_per_s=statistics.median(one.timesteps_per_s for one in figures),
    )


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    from importlib.metadata import version

    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as cpuinfo:  # noqa: PTH123  no Path for a file that only Linux has
            model = next((line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")), model)
    except OSError:
        pass
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": version("torch"),
        "grpcio": version("grpcio"),
        "dnc-serve": version("dnc-serve"),
    }


def described(machine: Mapping[str, Any]) -> str:
    """The machine in one line."""
    software = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "grpcio", "dnc-serve"))
    return f"{machine['cores']} cores of {machine['processor']}, {machine['system']}; {software}"


def ratio_lines(ratios: Sequence[Ratio]) -> list[str]:
    """The ratios as a text table."""
    lines = []
    for ratio in ratios:
        aim = f"≤ {ratio.at_most}" if ratio.at_most is not None else f"≥ {ratio.at_least}"
        lines.append(f"{ratio.name:<72} {ratio.value:8.2f}   aim {aim:<6} {'' if ratio.reached else 'missed'}".rstrip())
    return lines
