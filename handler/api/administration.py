"""What is served, changed by whoever may: versions of models that come and go, and sessions that go on with another.

With several workers, each loads and unloads for itself what the state folder says; the one that was asked tells the
others to look.
"""

import asyncio
import json
from collections.abc import Iterator
from itertools import islice
from typing import Any, Protocol

from dnc_serve.handler.api.models import Models
from dnc_serve.handler.api.operations import Caller, Operations, settle
from dnc_serve.handler.api.siblings import Siblings
from dnc_serve.handler.engine.requests import Move
from dnc_serve.handler.engine.session import Session, check_id
from dnc_serve.handler.errors import ServeError
from dnc_serve.model.artifact import Artifact
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

MOVED_AT_ONCE = 64
FULL_QUEUE_PAUSE_S = 0.02


class Keeper(Protocol):
    """What loads and unloads: see `ModelKeeper`."""

    async def load(self, name: str, source: str, version: str, share: float | None) -> tuple[str, str]: ...
    async def sync(self) -> None: ...
    async def retire(self, name: str, version: str, retiring: bool) -> None: ...
    async def forget(self, name: str, version: str) -> None: ...


class Administration:
    """Answers the calls of administrators."""

    def __init__(self, models: Models, keeper: Keeper, siblings: Siblings | None = None) -> None:
        self._models = models
        self._keeper = keeper
        self._siblings = siblings
        self._changing = asyncio.Lock()

    async def load(self, request: pb.LoadModelRequest, caller: Caller) -> pb.LoadModelResponse:
        """A version is served from now on, at every worker; what can't be loaded at one is loaded at none.

        Raises PERMISSION_DENIED, MODEL_UNUSABLE, MODEL_IN_USE, BAD_REQUEST.
        """
        caller.grant.check_admin()
        # What was begun comes to its end, also when nobody waits for it any more.
        return await asyncio.shield(asyncio.ensure_future(self._load(request)))

    async def _load(self, request: pb.LoadModelRequest) -> pb.LoadModelResponse:
        share = request.share if request.HasField("share") else None
        async with self._changing:
            name, version = await self._keeper.load(request.model, request.source, request.version, share)
            try:
                await self._everywhere({"do": "sync"})
                if request.source:  # all have it: whoever is told of it by one may ask another about it
                    await self._keeper.retire(name, version, False)
                    await self._everywhere({"do": "sync"})
            except ServeError:
                if request.source:
                    await self._keeper.forget(name, version)
                    await self._everywhere({"do": "sync"})
                raise
        return pb.LoadModelResponse(model=self._models.named(name, version).descriptions.summary(share))

    async def take(self, name: str, source: str, version: str) -> None:
        """The same for the server itself, which found it in a folder."""
        await self._load(pb.LoadModelRequest(model=name, source=source, version=version))

    async def unload(self, request: pb.UnloadModelRequest, caller: Caller) -> pb.UnloadModelResponse:
        """A version is served no more; its sessions end first, or go on with the version that new ones are of.

        Raises PERMISSION_DENIED, MODEL_NOT_FOUND, MODEL_IN_USE, and MODEL_MISMATCH for sessions that can't go on.
        """
        caller.grant.check_admin()
        return await asyncio.shield(asyncio.ensure_future(self._unload(request)))

    async def _unload(self, request: pb.UnloadModelRequest) -> pb.UnloadModelResponse:
        name, version = request.model or self._models.default.name, request.version
        async with self._changing:
            await self._keeper.retire(name, version, True)
            try:
                await self._everywhere({"do": "sync"})
                asked = {"do": "carry" if request.carry_over else "count", "name": name, "version": version}
                counts = await self._everywhere(asked)
                carried, left = sum(one["carried"] for one in counts), sum(one["left"] for one in counts)
                if left:
                    raise ServeError(
                        "MODEL_IN_USE",
                        f"version {version!r} of {name!r} has {left} sessions: carry them over, or wait until they end",
                        sessions=left,
                    )
            except ServeError:
                await self._keeper.retire(name, version, False)
                await self._everywhere({"do": "sync"})
                raise
            await self._keeper.forget(name, version)
            await self._everywhere({"do": "sync"})
        return pb.UnloadModelResponse(carried_over=carried)

    async def migrate(self, request: pb.MigrateSessionRequest, caller: Caller) -> pb.MigrateSessionResponse:
        """The session goes on with another version of its model.

        Raises MODEL_NOT_FOUND, and MODEL_MISMATCH where states, inputs or outputs differ.
        """
        caller.grant.check_writes()
        source = await self._models.of(check_id(request.session_id))
        session = await source.known(request.session_id, caller)
        incarnation = request.incarnation if request.HasField("incarnation") else None
        session.check_incarnation(incarnation)
        target = self._models.named(source.name, request.version)
        if target is source:
            return pb.MigrateSessionResponse(session=await source.descriptions.session(session), changed=False)
        moved = await self._move(session, source, target, incarnation, caller.deadline)
        return pb.MigrateSessionResponse(session=await target.descriptions.session(moved), changed=True)

    async def _move(
        self, session: Session, source: Operations, target: Operations, incarnation: int | None, deadline: float | None
    ) -> Session:
        _check_alike(source, target)
        engine = source.engine
        former: tuple[int, ...] = ()
        if not engine.journal.volatile:
            read = engine.journal.store.snapshots
            infos = await engine.loop.run_in_executor(None, read, session.session_id, session.incarnation)
            former = tuple(info.ordinal for info in infos)
        moving = engine.loop.create_future()
        move = Move(target.engine, former, settle(moving), incarnation=incarnation, deadline=deadline)
        engine.submit(session, move)
        moved: Session = await moving
        return moved

    # Between workers.

    async def _everywhere(self, asked: dict[str, str]) -> list[dict[str, int]]:
        """The answers of this worker and of all others. One that is down reads the state folder when it comes back."""
        payload = json.dumps(asked).encode()
        calls = [self.asked(payload)]
        if self._siblings is not None:
            calls += [self._siblings.versions(worker, payload) for worker in self._siblings.place.others]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                down = isinstance(answer, ServeError) and answer.reason == "STORE_UNAVAILABLE"
                if not (down and asked["do"] == "sync"):
                    raise answer
        return [json.loads(answer) for answer in answers if isinstance(answer, bytes)]

    async def asked(self, payload: bytes) -> bytes:
        """What this worker does of that."""
        asked = json.loads(payload)
        if asked["do"] == "sync":
            await self._keeper.sync()
            return b"{}"
        version = self._models.named(asked["name"], asked["version"])
        carried = await self._carry_over(version) if asked["do"] == "carry" else 0
        return json.dumps({"carried": carried, "left": len(version.engine.table)}).encode()

    async def _carry_over(self, source: Operations) -> int:
        target, engine, carried = self._models.named(source.name), source.engine, 0

        def some() -> Iterator[Session]:
            return islice((one for one in engine.table if not one.end_unknown), MOVED_AT_ONCE)

        while sessions := list(some()):
            moves = (self._carried(session, source, target) for session in sessions)
            for moved in await asyncio.gather(*moves, return_exceptions=True):
                if isinstance(moved, BaseException):
                    raise moved
                carried += moved
        return carried

    async def _carried(self, session: Session, source: Operations, target: Operations) -> bool:
        if session.digest != source.engine.digest:  # of a version that isn't served: it waits there as well
            source.engine.table.remove(session)
            source.engine.ownership.hand_over(session, target.engine.ownership, session)
            target.engine.table.add(session)
            return False
        while True:
            try:
                await self._move(session, source, target, None, None)
                return True
            except ServeError as error:
                if session.ended or source.engine.table.find(session.session_id) is not session:
                    return False
                if error.reason not in ("QUEUE_FULL", "NOT_READY"):
                    raise
                await asyncio.sleep(FULL_QUEUE_PAUSE_S)


def _check_alike(source: Operations, target: Operations) -> None:
    """Raises MODEL_MISMATCH where a state of one is none of the other, or clients would notice."""
    if _shape_of(source.artifact) != _shape_of(target.artifact):
        raise ServeError(
            "MODEL_MISMATCH",
            f"version {target.version!r} of {target.name!r} has other inputs, outputs, or fields of a state than "
            f"{source.version!r}",
            session_digest=source.engine.digest,
            model_digest=target.engine.digest,
        )


def _shape_of(artifact: Artifact) -> tuple[Any, ...]:
    fields = [(field.name, tuple(field.shape), str(field.dtype), field.offset) for field in artifact.layout.fields]
    return fields, artifact.layout.experience_offset, artifact.inputs, artifact.outputs
