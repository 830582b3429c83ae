"""A streaming door in a process of its own, which a test can kill: `python -m tests.client.watch.serving`."""

import signal
import sys
from pathlib import Path

from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.server import DncServer


def main(artifact: str, state_dir: str, port: str) -> None:
    server = DncServer(ServeConfig(state_dir=Path(state_dir), port=int(port), metrics_port=0), Path(artifact), "cpu")
    print(server.start().grpc, flush=True)
    signal.sigwait({signal.SIGTERM})
    server.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
