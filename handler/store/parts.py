"""The parts of a state folder: each worker of a machine has its own, with a lock, a file and a crash of its own.

    one worker      STATE_DIR/sessions.db
    several         STATE_DIR/workers/0/sessions.db, STATE_DIR/workers/1/sessions.db, …
                    STATE_DIR/workers/number    how many they are; without it, one

A model that was given a name has the same below STATE_DIR/models/NAME.

Where a server starts with another number than the last, the sessions whose worker is another now move first: each is
written into its new part, synced, and only then taken from the old one. The number is 0 from before the first move to
after the last, so that a start which finds 0 looks at all parts, whatever has been moved of them. Run as a program,
`python -m dnc_serve.handler.store.parts STATE_DIR WORKERS` does that.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from dnc_serve.handler.errors import StoreUnavailable
from dnc_serve.handler.store.contract import Append, Begin, Head, Keep, Mutation
from dnc_serve.handler.store.sqlite import SQLiteStore
from dnc_serve.proto.workers import owner_of

FOLDER = "workers"
MODELS = "models"
NUMBER = "number"
DATABASE = "sessions.db"
# What is moved in one write: about so many bytes, and sessions.
MOVED_BYTES = 8 << 20
MOVED_SESSIONS = 256


def model_folder(state_dir: Path, part: str) -> Path:
    """Where a model's sessions are, of all workers; `part` is `NamedModel.part`."""
    return state_dir / MODELS / part if part else state_dir


def part_folder(state_dir: Path, worker: int, workers: int) -> Path:
    """Where a worker's sessions are."""
    return state_dir if workers == 1 else state_dir / FOLDER / str(worker)


def number_of_parts(state_dir: Path) -> int:
    """For how many workers the sessions are laid out; 0 while they move."""
    try:
        return int((state_dir / FOLDER / NUMBER).read_text())
    except FileNotFoundError:
        return 1
    except ValueError:
        return 0


def move(state_dir: Path, workers: int) -> int:
    """Lays the sessions out for so many workers; returns how many moved. Interrupted anywhere, it can be made again.

    Raises `StoreRefused` where a server is using one of the parts, `StoreUnavailable` where the medium fails.
    """
    if number_of_parts(state_dir) == workers:
        return 0
    moved = 0
    with contextlib.ExitStack() as opened:
        stores: dict[Path, SQLiteStore] = {}
        for folder in sorted({*_present(state_dir), *(part_folder(state_dir, one, workers) for one in range(workers))}):
            stores[folder] = store = SQLiteStore(folder)
            store.open()
            opened.callback(store.close)
        _write_number(state_dir, 0)
        for folder, source in stores.items():
            moved += _move_out(folder, source, stores, state_dir, workers)
    _write_number(state_dir, workers)
    return moved


def _present(state_dir: Path) -> Iterator[Path]:
    """The folders in which there may be sessions."""
    for database in (state_dir / DATABASE, *state_dir.glob(f"{FOLDER}/*/{DATABASE}")):
        if database.exists():
            yield database.parent


def _move_out(folder: Path, source: SQLiteStore, stores: dict[Path, SQLiteStore], state_dir: Path, workers: int) -> int:
    """Moves what belongs to other parts than this one."""

    def target_of(head: Head) -> Path:
        return part_folder(state_dir, owner_of(head.session_id, workers), workers)

    leaving = sorted((head for head in source.heads() if target_of(head) != folder), key=target_of)
    for target, heads in groupby(leaving, key=target_of):
        for group in _groups(source, heads):
            outcomes = stores[target].commit([mutation for _, mutations in group for mutation in mutations])
            if (refused := next(filter(None, outcomes), None)) is not None:
                raise StoreUnavailable(f"{target} doesn't take what {folder} has: {refused}")
            stores[target].sync()
            source.forget([head.session_id for head, _ in group])
            source.sync()
    return len(leaving)


def _groups(source: SQLiteStore, heads: Iterator[Head]) -> Iterator[list[tuple[Head, list[Mutation]]]]:
    """What makes the sessions elsewhere, in pieces that fit into memory, a session being one at least."""
    group: list[tuple[Head, list[Mutation]]] = []
    size = 0
    for head in heads:
        mutations = list(_copy(source, head))
        group.append((head, mutations))
        size += sum(_bytes_of(mutation) for mutation in mutations)
        if size >= MOVED_BYTES or len(group) == MOVED_SESSIONS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _copy(source: SQLiteStore, head: Head) -> Iterator[Mutation]:
    """What makes the session elsewhere as it is here: its end, or its head, records and snapshots.

    Where records are lost, the head still says how many there were, so that whoever reads the session finds some
    missing instead of a session that ends too early.
    """
    if head.ended:
        yield Begin(head)
        return
    session_id, incarnation = head.session_id, head.incarnation
    records = list(source.records(session_id, incarnation, 0))
    if records and records[-1].ordinal == head.ordinal:
        first = records[0]
        yield Begin(
            Head(
                session_id, incarnation, head.digest, head.owner, head.created_at, head.created_at,
                first.position, first.experience, first.ordinal - 1,
            )
        )  # fmt: skip
        for record in records:
            yield Append(record)
    else:
        yield Begin(head)
    for info in reversed(source.snapshots(session_id, incarnation)):
        snapshot = source.snapshot(session_id, incarnation, info.ordinal)
        if snapshot is not None:
            yield Keep(snapshot)


def _bytes_of(mutation: Mutation) -> int:
    if isinstance(mutation, Append):
        return len(mutation.record.body)
    return len(mutation.snapshot.state) if isinstance(mutation, Keep) else 0


def _write_number(state_dir: Path, number: int) -> None:
    folder = state_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f"{NUMBER}.new"
    with beside.open("w") as file:
        file.write(f"{number}\n")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(folder / NUMBER)
    for changed in (folder, state_dir):  # the second for the first, which may be new
        descriptor = os.open(changed, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def main(arguments: Sequence[str]) -> None:
    """Ends with the number of the moved on standard output, or with the reason on standard error."""
    state_dir, workers = arguments
    try:
        sys.stdout.write(f"{move(Path(state_dir), int(workers))}\n")
    except Exception as exc:  # what a start is told in one line
        sys.exit(" ".join(str(exc).split()) or type(exc).__name__)


if __name__ == "__main__":
    main(sys.argv[1:])
