"""Copies of sessions: forks here, and blobs for elsewhere."""

import hashlib
import json

from dnc_serve.handler.api.blob import SessionBlob, decode_blob
from dnc_serve.handler.api.operations import Caller, Operations
from dnc_serve.handler.engine.session import Session, check_id
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.store.records import Damaged, decode_snapshot
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb


class Copies:
    """Makes copies.

    The incarnation of a copy follows from what was copied, so that a repeated request recognises what it made.
    """

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._engine = operations.engine

    async def fork(self, request: pb.ForkSessionRequest, caller: Caller) -> pb.ForkSessionResponse:
        """An independent copy under another id; repeated, it changes nothing."""
        source = await self._operations.known(request.session_id, caller)
        fork_id = check_id(request.fork_session_id)
        await self._engine.ownership.adopt(fork_id)
        if request.HasField("incarnation"):
            source.check_incarnation(request.incarnation)
        position = request.position if request.HasField("position") else None
        # The fork's incarnation follows from what was forked, so that a repeated fork recognises itself.
        if position is not None and (made := self._made(fork_id, caller, source.incarnation, position)) is not None:
            return pb.ForkSessionResponse(session=await self._operations.descriptions.session(made), created=False)
        seen = await self._operations.seen(source, position, caller)
        at = seen.head.position
        if (made := self._made(fork_id, caller, source.incarnation, at)) is not None:
            return pb.ForkSessionResponse(session=await self._operations.descriptions.session(made), created=False)
        incarnation = self._derived(fork_id, source.incarnation, at)
        fork = await self._operations.begin(fork_id, caller, incarnation, seen.state, at, seen.head.experience)
        return pb.ForkSessionResponse(session=await self._operations.descriptions.session(fork), created=True)

    async def export_blob(self, request: pb.ExportSessionRequest, caller: Caller) -> bytes:
        """The blob of a session as it stands; also of one that belongs to another model, if its snapshot is up to
        date."""
        session = await self._operations.known(request.session_id, caller)
        if session.digest != self._engine.digest:
            return await self._export_foreign(session)
        seen = await self._operations.seen(session, None, caller)
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
        await self._engine.ownership.adopt(check_id(session_id))
        read = decode_blob(blob, self._engine.digest, self._engine.layout.size)
        identity = int.from_bytes(hashlib.blake2b(blob, digest_size=8).digest(), "little")
        made = self._made(session_id, caller, identity, read.position)
        if made is None:
            incarnation = self._derived(session_id, identity, read.position)
            made = await self._operations.begin(
                session_id, caller, incarnation, read.state, read.position, read.experience
            )
        return pb.ImportSessionResponse(session=await self._operations.descriptions.session(made))

    def _made(self, session_id: str, caller: Caller, source: int, position: int) -> Session | None:
        """The copy, if it was made already; raises SESSION_EXISTS if something else stands under that id."""
        present = self._engine.table.find(session_id)
        if present is None:
            return None
        if present.owner != caller.owner or present.incarnation != self._derived(session_id, source, position):
            raise ServeError("SESSION_EXISTS", f"session {session_id!r} exists already", session_id=session_id)
        return present

    def _derived(self, session_id: str, source: int, position: int) -> int:
        """The incarnation of a copy: a number that no other session has, and that the same request gives again."""
        described = json.dumps([session_id, source, position])
        return int.from_bytes(hashlib.blake2b(described.encode(), digest_size=8).digest(), "little") or 1
