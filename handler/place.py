"""Where a worker stands among those of its machine."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from dnc_serve.proto.workers import owner_of

FILE = "place.json"


@dataclass(frozen=True)
class Place:
    """One of several workers; one that is alone has none."""

    worker: int  # from 0 on
    workers: int
    machine: str  # what tells this start of the machine from others
    address: str  # host:port, at which all of them listen
    run_folder: str  # of the whole machine

    def owner_of(self, session_id: str) -> int:
        """The worker that has the session."""
        return owner_of(session_id, self.workers)

    def owns(self, session_id: str) -> bool:
        """Whether that is this one."""
        return owner_of(session_id, self.workers) == self.worker

    @property
    def others(self) -> tuple[int, ...]:
        return tuple(one for one in range(self.workers) if one != self.worker)

    def door(self, worker: int) -> Path:
        """The socket of a worker that only the others come in by."""
        return Path(self.run_folder) / f"door.{worker}"

    def line(self, worker: int) -> Path:
        """And the one that takes their clients' streams."""
        return Path(self.run_folder) / f"line.{worker}"

    def tell(self, address: str) -> None:
        """Lets the others know, and through them clients, where this worker listens alone."""
        path = self._address_file(self.worker)
        beside = path.with_suffix(".new")
        beside.write_text(address)
        beside.replace(path)

    def addresses(self) -> list[str]:
        """Where each listens alone; empty for one that never did."""
        files = map(self._address_file, range(self.workers))
        return [file.read_text() if file.exists() else "" for file in files]

    def _address_file(self, worker: int) -> Path:
        return Path(self.run_folder) / f"address-{worker}"

    def write(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(asdict(self)))


def read_place(folder: Path) -> Place | None:
    """What `write` wrote; None for a worker that is alone."""
    path = folder / FILE
    return Place(**json.loads(path.read_text())) if path.exists() else None
