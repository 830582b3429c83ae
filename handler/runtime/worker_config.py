"""How a worker gets its configuration: from the run folder of the `dnc serve` above it, else from the environment."""

import os
from pathlib import Path

from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.place import Place, read_place
from dnc_serve.handler.settings import load_config

RUN_FOLDER_VARIABLE = "DNC_SERVE_RUN_FOLDER"
CONFIG_FILE = "config.json"


def own_run_folder() -> Path | None:
    """The run folder, if this worker was started under `dnc serve`."""
    folder = os.environ.get(RUN_FOLDER_VARIABLE)
    return Path(folder) if folder else None


def worker_place(run_folder: Path | None) -> Place | None:
    """Where the worker stands among several."""
    return None if run_folder is None else read_place(run_folder)


def worker_config(run_folder: Path | None) -> ServeConfig:
    """The configuration, unchanged from what `dnc serve` was given."""
    if run_folder is None:
        return load_config({}).config
    return ServeConfig.model_validate_json((run_folder / CONFIG_FILE).read_bytes())
