"""A server that notes what of its log is safe.

`python -m tests.powered_serving ARTIFACT STATE_DIR PORT [SETTING=VALUE …]` prints its address, and serves until it is
killed.
"""

import signal
import sys
from pathlib import Path

from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.server import DncServer
from dnc_serve.handler.store import sqlite_upkeep
from tests.power import note_syncs

CHECKPOINT_BYTES = 1 << 20  # small, so that losses find the log in the midst of being moved and begun anew, too


def main(artifact: str, state_dir: str, port: str, *settings: str) -> None:
    note_syncs(Path(state_dir))
    sqlite_upkeep.CHECKPOINT_BYTES = CHECKPOINT_BYTES
    values = dict(setting.split("=", 1) for setting in settings)
    config = ServeConfig(state_dir=Path(state_dir), port=int(port), metrics_port=0, **values)
    print(DncServer(config, [Path(artifact)], "cpu").start().grpc, flush=True)
    signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
