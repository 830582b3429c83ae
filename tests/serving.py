"""A server in a process of its own: `python -m tests.serving ARTIFACT STATE_DIR PORT [SETTING=VALUE …]`.

Prints its address; serves until it is killed, or drains and ends with SIGTERM.
"""

import signal
import sys
from pathlib import Path

from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.server import DncServer


def main(artifact: str, state_dir: str, port: str, *settings: str) -> None:
    signals = (signal.SIGTERM, signal.SIGINT)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    values = dict(setting.split("=", 1) for setting in settings)
    config = ServeConfig(state_dir=Path(state_dir), port=int(port), metrics_port=0, **values)
    server = DncServer(config, [Path(artifact)], "cpu" if config.device == "auto" else config.device)
    print(server.start().grpc, flush=True)
    signal.sigwait(signals)
    server.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
