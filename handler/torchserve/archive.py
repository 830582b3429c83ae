"""The archive that TorchServe loads: artifacts, the shim that it imports, and how it is to be run.

A `.mar` is a zip of files beside a manifest. It is written here rather than by `torch-model-archiver`, which splits
file names at commas and copies everything twice; the same artifact gives the same bytes.
"""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.runtime.artifact import ARTIFACT_FILES, MODULE_FILE, PACKED, PROGRAM_FILE
from dnc_serve.handler.torchserve import dnc_serve_entry

MODEL_NAME = "dnc"
MODEL_VERSION = "1.0"
SETTINGS_FILE = "model-config.yaml"
# One worker owns all sessions. A start may compile; and a worker that keeps failing is retried for hours, because
# TorchServe otherwise gives the model up for good while it goes on calling itself healthy.
STARTUP_TIMEOUT_S = 900
RETRY_S = 24 * 3600
# The first instant that a zip can hold: no clock, so that equal contents are equal files.
_EPOCH = (1980, 1, 1, 0, 0, 0)
_CREATED_ON = "01/01/1980 00:00:00"  # TorchServe warns without one


def write_archive(artifacts: Sequence[Path], target: Path, config: ServeConfig) -> None:
    """Writes the archive of artifact folders, replacing `target` as a whole: the first lies at its top, as TorchServe
    has it, and each other in a folder of its own."""
    artifact = artifacts[0]
    entry = Path(dnc_serve_entry.__file__)
    manifest = {
        "createdOn": _CREATED_ON,
        "runtime": "python",
        "model": {
            "modelName": MODEL_NAME,
            "modelVersion": MODEL_VERSION,
            "serializedFile": MODULE_FILE if (artifact / MODULE_FILE).is_file() else PROGRAM_FILE,
            "handler": entry.name,
            "configFile": SETTINGS_FILE,
        },
        "archiverVersion": "0.12.0",
    }
    contents = {
        "MAR-INF/MANIFEST.json": json.dumps(manifest, indent=2).encode(),
        SETTINGS_FILE: _settings(config).encode(),
        entry.name: entry.read_bytes(),
    }
    for number, folder in enumerate(artifacts):
        for name in ARTIFACT_FILES:
            if (folder / name).is_file():
                contents[f"{PACKED}/{number}/{name}" if number else name] = (folder / name).read_bytes()
    beside = target.with_name(f".{target.name}.part")
    try:
        with zipfile.ZipFile(beside, "w", zipfile.ZIP_STORED) as archive:
            for name, content in contents.items():
                archive.writestr(zipfile.ZipInfo(name, _EPOCH), content)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def _settings(config: ServeConfig) -> str:
    """The model's own settings; a `maxBatchDelay` of 0 would mean unset, which is 100 ms."""
    settings = {
        "minWorkers": 1,
        "maxWorkers": 1,
        "batchSize": config.batch_size,
        "maxBatchDelay": config.max_batch_delay_ms,
        "responseTimeout": config.response_timeout_s,
        "startupTimeout": STARTUP_TIMEOUT_S,
        "maxRetryTimeoutInSec": RETRY_S,
    }
    return yaml.safe_dump(settings, sort_keys=False)
