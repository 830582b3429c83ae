"""The rows of the SQLite file as Python sees them, with the checksums of their small columns."""

import struct
import zlib
from typing import NamedTuple

from dnc_serve.handler.store.contract import Head, Record

_RECORD_COLUMNS = struct.Struct("<qqqqqd")


class SessionRow(NamedTuple):
    """A row of `sessions`, without its checksum."""

    key: int
    id: str
    incarnation: int  # signed
    digest: str
    owner: str
    created_at: float
    last_used_at: float
    position: int
    experience: int
    pruned: int
    ended: str
    ended_at: float

    @classmethod
    def of(cls, key: int, head: Head) -> "SessionRow":
        return cls(
            key=key,
            id=head.session_id,
            incarnation=to_signed(head.incarnation),
            digest=head.digest,
            owner=head.owner,
            created_at=float(head.created_at),
            last_used_at=float(head.last_used_at),
            position=head.position,
            experience=head.experience,
            pruned=head.ordinal,
            ended=head.ended,
            ended_at=float(head.ended_at),
        )

    def crc(self) -> int:
        return zlib.crc32(repr(tuple(self)).encode())


def record_crc(row: int, session: int, ordinal: int, position: int, experience: int, at: float) -> int:
    return zlib.crc32(_RECORD_COLUMNS.pack(row, session, ordinal, position, experience, at))


def record_row(row: int, session: int, record: Record) -> tuple[int, int, int, int, int, float, int, bytes]:
    """The row of `records` for a record."""
    at = float(record.at)
    crc = record_crc(row, session, record.ordinal, record.position, record.experience, at)
    return row, session, record.ordinal, record.position, record.experience, at, crc, record.body


def to_signed(incarnation: int) -> int:
    """SQLite's integers are signed; incarnations are not."""
    return incarnation - (1 << 64) if incarnation >> 63 else incarnation


def to_unsigned(incarnation: int) -> int:
    return incarnation + (1 << 64) if incarnation < 0 else incarnation
