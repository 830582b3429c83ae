"""The state folder, laid out for the number of workers before any of them starts: a short-lived child's work."""

import logging
import os
import subprocess
import sys
from pathlib import Path

from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.runtime.child import StartFailed
from dnc_serve.handler.runtime.environment import child_environment
from dnc_serve.handler.store.parts import model_folder, number_of_parts

logger = logging.getLogger(__name__)

MODULE = "dnc_serve.handler.store.parts"


def lay_out(config: ServeConfig) -> None:
    """Moves each model's sessions to where their workers look for them, if the last start had another number. Raises
    StartFailed."""
    if config.durability == "off" or config.store != "sqlite":
        return
    for model in config.models:
        _lay_out(model_folder(config.state_dir, model.part), config.workers)


def _lay_out(folder: Path, workers: int) -> None:
    before = number_of_parts(folder)
    if before == workers:
        return
    child = subprocess.run(
        [sys.executable, "-m", MODULE, str(folder), str(workers)],
        capture_output=True,
        text=True,
        check=False,
        env=child_environment({}),
        start_new_session=True,  # a Ctrl-C ends the start in good order, not this alone
        cwd=os.sep,
    )
    if child.returncode != 0:
        raise StartFailed((child.stderr.strip().splitlines() or ["the sessions could not be moved"])[-1])
    logger.info(
        "sessions are laid out for another number of workers",
        extra={"folder": str(folder), "before": before, "workers": workers, "moved": int(child.stdout)},
    )
