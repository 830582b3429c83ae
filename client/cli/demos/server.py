"""A real `dnc serve` for as long as a demo needs it."""

import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dnc_serve.client.cli.child_server import child_server

PATIENCE_S = 5.0


@contextmanager
def _patience() -> Iterator[None]:
    """Says every few seconds that it still goes on."""
    done = threading.Event()

    def tell() -> None:
        waited_s = 0.0
        while not done.wait(PATIENCE_S):
            waited_s += PATIENCE_S
            print(f"still starting, after {waited_s:.0f} s …", file=sys.stderr)

    threading.Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        done.set()


@contextmanager
def serving(model: str, state_dir: Path | None = None) -> Iterator[str]:
    """The address of the streaming door of a server on free ports, which is stopped afterwards.

    Without a state folder it has one that vanishes with it. Raises ServerFailed.
    """
    with ExitStack() as stack:
        if state_dir is None:
            state_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dnc-demo-"))) / "state"
        print("starting dnc serve …", file=sys.stderr)
        with _patience():
            server = stack.enter_context(child_server(model, state_dir, "--log-level", "warning"))
        address = server.addresses["grpc"]
        print(f"dnc serve is ready at {address}", file=sys.stderr)
        yield address
