"""A real `dnc serve` as a child process, on free ports."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STOP_TIMEOUT_S = 40.0


class ServerFailed(Exception):
    """`dnc serve` ended before it served; what it said is on standard error."""


@dataclass(frozen=True)
class ChildServer:
    """A server that serves."""

    process: "subprocess.Popen[str]"
    addresses: Mapping[str, str]  # host:port by the names of the `ready` line: grpc, metrics, http, …


def serve_command(model: str | Path, state_dir: Path, *flags: str) -> list[str]:
    """`dnc serve` of this environment, each port a free one unless a flag says otherwise; those that are opened only
    where one is asked for stay closed."""
    from dnc_serve.handler.config import PORTS, ServeConfig, flag

    opened = (setting for setting in PORTS if ServeConfig.model_fields[setting].default is not None)
    ports = (text for setting in opened for text in (flag(setting), "0"))
    command = [sys.executable, "-m", "dnc_serve.client.cli", "serve"]
    return [*command, "--model", str(model), "--state-dir", str(state_dir), *ports, *flags]


@contextmanager
def child_server(model: str | Path, state_dir: Path, *flags: str) -> Iterator[ChildServer]:
    """Starts a server and stops it at the end; of settings it has these alone. Raises ServerFailed."""
    named = Path(model).expanduser()
    with running(serve_command(named.absolute() if named.exists() else model, state_dir.absolute(), *flags)) as server:
        yield server


@contextmanager
def running(command: Sequence[str]) -> Iterator[ChildServer]:
    """The same for a `dnc serve` of any environment."""
    # Somebody's own server may have settings in the environment, and in a dnc.toml of this folder.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DNC_")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd="/") as process:
        try:
            yield ChildServer(process, _addresses(process))
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _addresses(process: "subprocess.Popen[str]") -> dict[str, str]:
    """Waits for the line that begins with `ready`."""
    assert process.stdout is not None
    for line in process.stdout:
        words = line.split()
        if words and words[0] == "ready":
            return dict(word.split("=", 1) for word in words[1:])
    raise ServerFailed(f"dnc serve ended with exit code {process.wait()}")
