"""Servers of many models in one process: `python -m tests.end_to_end.many_servers FOLDER`.

Each folder in it holds an `artifact`, and gets its `state` beside that. Prints each one's name and address, then an
empty line, and serves until it is killed.
"""

import signal
import sys
from pathlib import Path

from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.server import DncServer


def main(folder: str) -> None:
    servers = []
    for model in sorted(path for path in Path(folder).iterdir() if path.is_dir()):
        config = ServeConfig(state_dir=model / "state", port=0, metrics_port=0)
        servers.append(DncServer(config, [model / "artifact"], "cpu"))
        print(model.name, servers[-1].start().grpc, flush=True)
    print(flush=True)
    signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
