"""Copies of sessions: forks here, and blobs for elsewhere."""

import hashlib
import json
import secrets
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from dnc_serve.handler.api.blob import SessionBlob, decode_blob
from dnc_serve.handler.api.operations import Caller, Operations, session_exists
from dnc_serve.handler.arrays import Float32
from dnc_serve.handler.engine.session import Session, check_id
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.store.records import Damaged, decode_snapshot
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb


class ForkedState(NamedTuple):
    """What a fork begins with."""

    position: int
    experience: int
    state: Float32  # [S]


StateAt = Callable[[int | None], Awaitable[ForkedState]]
"""The state of a fork's source, at the present or an earlier position."""


class Copies:
    """Makes copies.

    The upper half of a copy's incarnation follows from what was copied, so that a repeated request recognises what it
    made. The lower half is random: made again after its delete it is another session, and what was meant for the former
    one does not reach it.
    """

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._engine = operations.engine

    async def fork(self, request: pb.ForkSessionRequest, caller: Caller) -> pb.ForkSessionResponse:
        """An independent copy under another id; repeated, it changes nothing."""
        source = await self._operations.known(request.session_id, caller)
        if request.HasField("incarnation"):
            source.check_incarnation(request.incarnation)

        async def state_at(position: int | None) -> ForkedState:
            seen = await self._operations.seen(source, position, caller)
            assert seen.state is not None
            return ForkedState(seen.head.position, seen.head.experience, seen.state)

        return await self.fork_of(source.incarnation, state_at, request, caller)

    async def fork_of(
        self, incarnation: int, state_at: StateAt, request: pb.ForkSessionRequest, caller: Caller
    ) -> pb.ForkSessionResponse:
        """The same, of a source that may be in another worker."""
        fork_id = check_id(request.fork_session_id)
        await self._engine.ownership.adopt(fork_id, caller.owner)
        position = request.position if request.HasField("position") else None
        if position is not None:
            made = self._made(fork_id, caller, _origin(fork_id, incarnation, position))
            if made is not None:
                return pb.ForkSessionResponse(session=await self._operations.descriptions.session(made), created=False)
        seen = await state_at(position)
        origin = _origin(fork_id, incarnation, seen.position)
        fork, created = await self._copy(fork_id, caller, origin, seen.state, seen.position, seen.experience)
        return pb.ForkSessionResponse(session=await self._operations.descriptions.session(fork), created=created)

    def read(self, blob: bytes) -> ForkedState:
        """What an export has of a source in another worker."""
        read = decode_blob(blob, self._engine.digest, self._engine.layout)
        return ForkedState(read.position, read.experience, read.state)

    async def export_blob(self, request: pb.ExportSessionRequest, caller: Caller) -> bytes:
        """The blob of a session as it stands, or stood; also of one that belongs to another model, if its snapshot is
        up to date."""
        session = await self._operations.known(request.session_id, caller)
        if request.HasField("incarnation"):
            session.check_incarnation(request.incarnation)
        position = request.position if request.HasField("position") else None
        if session.digest != self._engine.digest and position in (None, session.position):
            return await self._export_foreign(session)
        seen = await self._operations.seen(session, position, caller)
        assert seen.state is not None
        return SessionBlob(
            session.session_id, session.digest, seen.head.position, seen.head.experience, seen.fingerprint, seen.state
        ).encode()

    async def _export_foreign(self, session: Session) -> bytes:
        store = self._engine.journal.store

        def read() -> bytes:
            snapshot = store.snapshot(session.session_id, session.incarnation, session.ordinal)
            if snapshot is None:
                raise ServeError(
                    "MODEL_MISMATCH",
                    f"session {session.session_id!r} belongs to model {session.digest[:12]} and its last timesteps "
                    f"exist only as records: serve that model once more to export it",
                    session_digest=session.digest,
                    model_digest=self._engine.digest,
                )
            try:
                state, fingerprint = decode_snapshot(snapshot)
            except Damaged as exc:
                raise ServeError("CORRUPT_STATE", f"session {session.session_id!r} can't be exported: {exc}") from exc
            return SessionBlob(
                session.session_id, session.digest, snapshot.position, snapshot.experience, fingerprint, state
            ).encode()

        return await self._engine.loop.run_in_executor(None, read)

    async def import_blob(self, session_id: str, blob: bytes, caller: Caller) -> pb.ImportSessionResponse:
        """A session from a blob, once its content has been proven; repeated, it changes nothing."""
        await self._engine.ownership.adopt(check_id(session_id), caller.owner)
        read = decode_blob(blob, self._engine.digest, self._engine.layout)
        identity = int.from_bytes(hashlib.blake2b(blob, digest_size=8).digest(), "little")
        origin = _origin(session_id, identity, read.position)
        made, _ = await self._copy(session_id, caller, origin, read.state, read.position, read.experience)
        return pb.ImportSessionResponse(session=await self._operations.descriptions.session(made))

    async def _copy(
        self, session_id: str, caller: Caller, origin: int, state: Float32, position: int, experience: int
    ) -> tuple[Session, bool]:
        """The copy, and whether it was made just now; raises SESSION_EXISTS if something else stands under that id."""
        while (made := self._made(session_id, caller, origin)) is None:
            incarnation = origin << 32 | secrets.randbits(32) or 1
            try:
                begun = await self._operations.begin(session_id, caller, incarnation, state, position, experience)
            except ServeError as error:
                if error.reason != "SESSION_EXISTS" or self._operations.find(session_id) is None:
                    raise
                continue  # another call was faster, perhaps the same one
            return begun, True
        return made, False

    def _made(self, session_id: str, caller: Caller, origin: int) -> Session | None:
        """The copy, if it was made already; raises SESSION_EXISTS if something else stands under that id."""
        present = self._operations.find(session_id)
        if present is not None and (present.owner != caller.owner or present.incarnation >> 32 != origin):
            raise session_exists(session_id)
        return None if present is None else self._operations.session(session_id, caller)


def _origin(session_id: str, source: int, position: int) -> int:
    """32 bits that the same request gives again, and hardly any other."""
    described = json.dumps([session_id, source, position])
    return int.from_bytes(hashlib.blake2b(described.encode(), digest_size=4).digest(), "little")
