"""`dnc serve --compile`: the model compiled for this host, before TorchServe starts.

A process of its own compiles, because `dnc serve` doesn't load torch, and because a stop must end it at once.
"""

import contextlib
import logging
import os
import queue
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.torchserve.environment import child_environment
from dnc_serve.handler.torchserve.events import StopAsked

logger = logging.getLogger(__name__)

POLL_S = 0.2
END_PATIENCE_S = 5.0

_COMPILE = "from dnc_serve.model.compiled import main; main()"


def compile_model(artifact: Path, config: ServeConfig, events: "queue.SimpleQueue[Any]") -> bool:
    """Compiles the artifact into the cache unless it is there; False if a stop was asked for meanwhile.

    Where it can't be compiled, a line of the log says why, and the server runs TorchScript.
    """
    device = config.device if config.device.startswith("cuda") else "cpu"
    child = subprocess.Popen(
        [sys.executable, "-c", _COMPILE, str(artifact), str(config.compiled_dir), device],
        stdout=subprocess.PIPE,
        text=True,
        env=child_environment({}),
        start_new_session=True,  # its compilers end with it
    )
    try:
        while True:
            with contextlib.suppress(queue.Empty):
                if isinstance(events.get(timeout=POLL_S), StopAsked):
                    return False
            if child.poll() is not None:
                break
        if child.returncode != 0:
            reason = (child.stdout.read() if child.stdout else "").strip()
            logger.warning(
                "the model is served uncompiled: %s", reason or f"the compiler ended with {child.returncode}"
            )
        return True
    finally:
        _end(child)


def _end(child: "subprocess.Popen[str]") -> None:
    """Ends the compilation with all its processes."""
    for number, patience_s in ((signal.SIGTERM, END_PATIENCE_S), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(patience_s)
    if child.stdout is not None:
        child.stdout.close()
