"""The schema of the SQLite file, and how an older one becomes the present one."""

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from dnc_serve.handler.store.contract import StoreRefused

Migration = Callable[[sqlite3.Connection], None]


def _first(connection: sqlite3.Connection) -> None:
    statements = Path(__file__).with_name("schema.sql").read_text()
    for statement in statements.split(";\n"):
        connection.execute(statement)


# Migration n leads from version n to n + 1; version 0 is the empty file. Each runs in one transaction with the note of
# its version, so that a crash leaves the old schema or the new one. A change to a table is appended here; what stands
# here is never edited, because files out there went through it.
MIGRATIONS: Sequence[Migration] = (_first,)


def migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Brings the file to the newest version; raises `StoreRefused` if it is from a newer program."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(migrations):
        raise StoreRefused(
            f"{path} has schema version {version}, written by a newer dnc-serve; this one reads up to version "
            f"{len(migrations)}: upgrade it, or use another state folder"
        )
    for number, migration in enumerate(migrations[version:], version + 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            migration(connection)
            connection.execute(f"PRAGMA user_version = {number}")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
