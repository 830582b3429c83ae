"""From what a user calls a model to the artifact folder that is served.

a bundled name, or a run   weights and config: exported once, and kept in a cache
an artifact folder         as it is
a .mar                     the artifact in it, unpacked
"""

import hashlib
import shutil
import subprocess
import sys
import zipfile
import zlib
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from dnc_serve import __version__
from dnc_serve.handler.runtime.environment import child_environment

# As `dnc_serve.model.artifact`, `.program` and `.weights` call them; not imported, because torch takes seconds and
# `dnc serve` itself never steps a model.
MODULE_FILE = "model.pt"
PROGRAM_FILE = "program.pt2"
INITIAL_FILE = "initial.safetensors"
MANIFEST_FILE = "manifest.json"
WEIGHTS_FILE = "weights.safetensors"
CONFIG_FILE = "config.json"
TRAINING_FILE = "training.json"
ARTIFACT_FILES = (MODULE_FILE, PROGRAM_FILE, INITIAL_FILE, MANIFEST_FILE, WEIGHTS_FILE, CONFIG_FILE)

PACKED = "models"  # the folder of all but the first artifact in an archive of several, by their numbers

_EXPORT = """
import sys
from dnc_serve.model.export import export
from dnc_serve.model.weights import load_model, task_of
try:
    nr_cells = int(sys.argv[3]) if sys.argv[3] else None
    export(load_model(sys.argv[1]), sys.argv[2], nr_cells=nr_cells, task=task_of(sys.argv[1]))
except (ValueError, OSError) as exc:
    sys.exit(str(exc))
"""


class ModelError(Exception):
    """What was given as a model can't be served; the message says why and what to do."""


def bundled_models() -> list[str]:
    """The names of the models that the package carries."""
    return sorted(entry.name for entry in _bundled().iterdir() if (entry / WEIGHTS_FILE).is_file())


def _bundled() -> Path:
    """Their folder: looked up, as importing it would load torch."""
    spec = find_spec("dnc_serve.model")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "pretrained"


def unpacked_artifacts(archive: Path) -> list[Path]:
    """The artifact folders in an archive that TorchServe has unpacked, in the order in which they were packed."""
    others = sorted(archive.glob(f"{PACKED}/*"), key=lambda folder: int(folder.name))
    return [archive, *others]


def resolve_artifact(model: str, nr_cells: int | None, cache: Path, scratch: Path) -> Path:
    """The artifact folder of a model. Exports go to `cache`, unpacked archives to `scratch`.

    Raises ModelError.
    """
    try:
        path = Path(model).expanduser()
        is_file = path.is_file()
    except (OSError, RuntimeError) as exc:  # no permission, too long a name; ~NAME of an unknown user
        raise ModelError(f"model is {model!r}, which can't be looked at ({getattr(exc, 'strerror', exc)})") from exc
    if is_file:
        _refuse_cells(model, nr_cells)
        return _unpack(path, scratch / "artifact")
    if (path / MANIFEST_FILE).is_file():
        _refuse_cells(model, nr_cells)
        return path
    if (path / WEIGHTS_FILE).is_file():
        return _exported(path, nr_cells, cache)
    if model in bundled_models():
        return _exported(_bundled() / model, nr_cells, cache)
    raise ModelError(
        f"model is {model!r}; expected a bundled model ({', '.join(bundled_models()) or 'this package has none'}), or "
        f"the path of a run ({WEIGHTS_FILE}), an artifact ({MANIFEST_FILE}) or a .mar"
    )


def _refuse_cells(model: str, nr_cells: int | None) -> None:
    if nr_cells is not None:
        raise ModelError(
            f"nr_cells is {nr_cells}, but {model} is exported already; give it to `dnc export`, or serve the run"
        )


def _exported(run: Path, nr_cells: int | None, cache: Path) -> Path:
    key = hashlib.sha256(f"{__version__} {version('torch')} {nr_cells}".encode())
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        if not (run / name).is_file():
            raise ModelError(f"{run / name} doesn't exist; expected a folder that `dnc train` wrote")
        key.update((run / name).read_bytes())
    if (run / TRAINING_FILE).is_file():  # it names the task
        key.update((run / TRAINING_FILE).read_bytes())
    folder = cache / key.hexdigest()[:24]
    if (folder / MANIFEST_FILE).is_file():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ModelError(f"{cache} can't be made for exported models: {exc.strerror}; set state_dir") from exc
    beside = cache / f".{folder.name}.part"
    shutil.rmtree(beside, ignore_errors=True)
    child = subprocess.run(
        [sys.executable, "-c", _EXPORT, str(run), str(beside), str(nr_cells or "")],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        check=False,
        env=child_environment({}),
        start_new_session=True,  # a Ctrl-C ends the start in good order, not this alone
    )
    if child.returncode != 0:
        shutil.rmtree(beside, ignore_errors=True)
        raise ModelError(
            f"{run} can't be exported to {cache}: {(child.stderr.strip().splitlines() or ['no reason given'])[-1]}"
        )
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)
    return folder


def _unpack(archive: Path, folder: Path) -> Path:
    try:
        with zipfile.ZipFile(archive) as opened:
            names = set(opened.namelist())
            if MANIFEST_FILE not in names or not names & {MODULE_FILE, PROGRAM_FILE}:
                raise ModelError(f"{archive} holds no artifact; expected a .mar that `dnc archive` made")
            contents = {name: opened.read(name) for name in names.intersection(ARTIFACT_FILES)}
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as exc:
        raise ModelError(
            f"{archive} isn't a .mar: {exc}; expected one that `dnc archive` made, or the folder of a run or artifact"
        ) from exc
    except OSError as exc:
        raise ModelError(f"{archive} can't be read ({exc.strerror})") from exc
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (folder / name).write_bytes(content)
    except OSError as exc:
        raise ModelError(f"{folder} can't hold the unpacked {archive} ({exc.strerror}); set TMPDIR to another") from exc
    return folder
