"""A real `dnc serve` for as long as a demo needs it."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dnc_serve.client.cli.demos import DemoFailed

STOP_TIMEOUT_S = 30.0
PORT_FLAGS = (
    "--port", "--metrics-port", "--torchserve-http-port", "--torchserve-management-port", "--torchserve-metrics-port",
    "--torchserve-grpc-port", "--torchserve-grpc-management-port",
)  # fmt: skip


class ServerFailed(DemoFailed):
    """`dnc serve` ended before it served; what it said is on standard error."""


@contextmanager
def serving(model: str, state_dir: Path | None = None) -> Iterator[str]:
    """The address of the streaming door of a server on free ports, which is stopped afterwards.

    Without a state folder it has one that vanishes with it. Raises ServerFailed.
    """
    with ExitStack() as stack:
        if state_dir is None:
            state_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dnc-demo-"))) / "state"
        command = [sys.executable, "-m", "dnc_serve.client.cli", "serve", "--model", model]
        command += ["--state-dir", str(state_dir), "--log-level", "warning"]
        for flag in PORT_FLAGS:
            command += [flag, "0"]
        print("starting dnc serve …", file=sys.stderr)
        server = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        try:
            yield _address(server)
        finally:
            server.terminate()
            try:
                server.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                server.kill()


def _address(server: "subprocess.Popen[str]") -> str:
    """Waits for the line that begins with `ready`."""
    assert server.stdout is not None
    for line in server.stdout:
        words = line.split()
        if words and words[0] == "ready":
            print(line.strip(), file=sys.stderr)
            return next(word.removeprefix("grpc=") for word in words if word.startswith("grpc="))
    raise ServerFailed(f"dnc serve ended with exit code {server.wait()}")
