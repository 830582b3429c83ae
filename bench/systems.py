"""The servers that are compared, each under the same load: so many sessions, one chunk of each under way at a time."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc

from bench.loops import package_sizes
from bench.peers import afternoon
from bench.peers.cache import dnc_package, triton_python
from bench.peers.triton import Triton, triton
from dnc_serve.client.cli.measure.aside import Aside, background
from dnc_serve.client.cli.measure.echo import serve_echo
from dnc_serve.client.cli.measure.load import Load, model_of, shared_streams, stream_load
from dnc_serve.client.cli.measure.lockstep import Figures, Span
from dnc_serve.client.cli.measure.served import served
from dnc_serve.client.cli.measure.torchserve_door import handler_load

OURS = "dnc-serve"
ECHO, AFTERNOON, TRITON = "empty echo", "TorchServe in an afternoon", "Triton"
MOST_CALLERS = 64  # more sessions than this are gone round, or chosen at random


class System(Protocol):
    """A server under load; None for a peer that did not live through it."""

    def load(self, sessions: int, chunk: int, span: Span) -> Figures | None: ...


@dataclass(frozen=True)
class Door:
    """A streaming door, ours or the echo's: a stream for each session, up to MOST_CALLERS."""

    address: str
    input_size: int
    aside: Aside
    is_echo: bool = False

    def load(self, sessions: int, chunk: int, span: Span) -> Figures:
        streams = shared_streams(sessions, min(sessions, MOST_CALLERS))
        asked = Load(self.address, streams, chunk, self.input_size, span, is_echo=self.is_echo)
        return self.aside.run(stream_load, asked)


@dataclass(frozen=True)
class AfternoonDoor:
    """Unary calls of the handler of an afternoon."""

    address: str
    input_size: int
    aside: Aside

    def load(self, sessions: int, chunk: int, span: Span) -> Figures | None:
        names = [f"c{chunk}-{index}" for index in range(sessions)]
        callers = min(sessions, MOST_CALLERS)
        asked = (self.address, afternoon.MODEL, names, callers, chunk, self.input_size, span)
        try:
            return self.aside.run(handler_load, *asked)
        except (grpc.RpcError, RuntimeError) as exc:
            print(f"{AFTERNOON} did not answer {sessions} sessions with chunks of {chunk}: {exc}", file=sys.stderr)
            return None


@dataclass(frozen=True)
class TritonDoor:
    """Triton by its own client."""

    triton: Triton

    def load(self, sessions: int, chunk: int, span: Span) -> Figures | None:
        try:
            return self.triton.load(sessions, min(sessions, MOST_CALLERS), chunk, span)
        except subprocess.SubprocessError as exc:
            print(f"{TRITON} did not answer {sessions} sessions with chunks of {chunk}: {exc}", file=sys.stderr)
            return None


@dataclass(frozen=True)
class Arena:
    """All of them, running, for one model."""

    systems: Mapping[str, System]
    artifact: str  # our artifact's folder


@contextmanager
def arena(
    model: str, nr_cells: int | None, slots: int, most_sessions: int, code: str, load: Aside, cache: Path
) -> Iterator[Arena]:
    """Starts every server with the same model, or for the `dnc` package with one of the same sizes.

    `code`: what steps ours, as the setting says.
    """
    flags = ("--slots", str(slots), *(() if nr_cells is None else ("--nr-cells", str(nr_cells))))
    with ExitStack() as stack:
        ours = stack.enter_context(served(model, *flags, code=code))
        artifact = ours.artifact(model, nr_cells)
        input_size = load.run(model_of, ours.grpc)[0]
        systems: dict[str, System] = {
            ECHO: Door(stack.enter_context(background(serve_echo)), input_size, load, is_echo=True),
            OURS: Door(ours.grpc, input_size, load),
        }
        its_triton = stack.enter_context(triton(triton_python(cache), Path(artifact), most_sessions + MOST_CALLERS))
        systems[TRITON] = TritonDoor(its_triton)
        sizes: dict[str, Any] = package_sizes(artifact)
        in_an_afternoon = stack.enter_context(afternoon.afternoon(dnc_package(cache), sizes))
        systems[AFTERNOON] = AfternoonDoor(in_an_afternoon, input_size, load)
        yield Arena(systems, artifact)
