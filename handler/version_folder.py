"""The versions of models that were loaded while the server ran, kept so that its next start has them.

    STATE_DIR/versions/NAME/VERSION/    an artifact, and version.json: in which order they came, and what each gets
    STATE_DIR/versions/NAME/.configured what `--model` named when the last of them was loaded: its version, its digest
    STATE_DIR/versions/NAME/.unloaded   digests of versions that were unloaded, though the configuration may name them

What lies there is what is served beside what `--model` says: workers read it when they start, and when one of them has
changed it.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from dnc_serve.handler.runtime.artifact import ARTIFACT_FILES

FOLDER = "versions"
FILE = "version.json"
DROPPED, CONFIGURED = ".unloaded", ".configured"  # no version's name begins so


@dataclass(frozen=True, slots=True)
class KeptVersion:
    """One of them."""

    name: str
    version: str
    number: int  # by which they are in order
    share: float | None = None  # of new sessions; None is all that others don't get
    retiring: bool = False  # gets no new sessions: not all workers have it yet, or it is to be unloaded


class VersionFolder:
    """Reads and writes them; all of it is work of the file system, for a thread."""

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / FOLDER

    def artifact(self, kept: KeptVersion) -> Path:
        """Where its artifact is."""
        return self._folder / kept.name / kept.version

    def read(self) -> list[KeptVersion]:
        """All that are there, in the order in which they were loaded."""
        kept = []
        for file in self._folder.glob(f"*/*/{FILE}"):
            fields = json.loads(file.read_text())
            kept.append(KeptVersion(file.parent.parent.name, file.parent.name, **fields))
        return sorted(kept, key=lambda one: one.number)

    def keep(
        self,
        name: str,
        version: str,
        artifact: Path,
        share: float | None,
        configured: tuple[str, str],
        number: int | None = None,
    ) -> None:
        """Copies an artifact there, as a whole or not at all; it gets no new sessions yet, and comes after all others
        unless its number is given. `configured` is what the configuration names meanwhile: its version, and its
        digest. Raises OSError."""
        if number is None:
            number = 1 + max((one.number for one in self.read()), default=0)
        kept = KeptVersion(name, version, number, share, retiring=True)
        target = self.artifact(kept)
        beside = target.with_name(f".{target.name}.part")  # no version's name begins so
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        for file in ARTIFACT_FILES:
            if (artifact / file).is_file():
                shutil.copyfile(artifact / file, beside / file)
                _sync(beside / file)
        self._write(beside, kept)
        (target.parent / CONFIGURED).write_text(" ".join(configured))
        beside.rename(target)
        _sync(target.parent)

    def change(self, kept: KeptVersion) -> None:
        """Writes what one gets anew."""
        self._write(self.artifact(kept), kept)

    def forget(self, name: str, version: str) -> None:
        """Removes one."""
        folder = self._folder / name / version
        (folder / FILE).unlink(missing_ok=True)  # from here on it is none
        shutil.rmtree(folder, ignore_errors=True)

    def configured(self, name: str) -> tuple[str, str]:
        """What the configuration named when a version was loaded last: its version, and its digest."""
        file = self._folder / name / CONFIGURED
        words = file.read_text().split() if file.is_file() else []
        return (words[0], words[1]) if len(words) == 2 else ("", "")

    def dropped(self, name: str) -> list[str]:
        """Digests of what was unloaded of a model that the configuration may still name."""
        file = self._folder / name / DROPPED
        return file.read_text().split() if file.is_file() else []

    def drop(self, name: str, digest: str) -> None:
        """One more of these."""
        with (self._folder / name / DROPPED).open("a") as file:
            file.write(f"{digest}\n")
            file.flush()
            os.fsync(file.fileno())

    def _write(self, folder: Path, kept: KeptVersion) -> None:
        fields = {key: value for key, value in asdict(kept).items() if key not in ("name", "version")}
        beside = folder / f"{FILE}.new"
        beside.write_text(json.dumps(fields))
        _sync(beside)
        beside.replace(folder / FILE)
        _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
