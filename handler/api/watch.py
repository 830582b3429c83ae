"""Watching a session's memory: frames of thinned arrays, pulled by each watcher at its own pace.

The engine only says that a session has changed; its state is read when a watcher is ready for a frame, so a slow one
skips what it missed and holds nothing up. All watchers of a session share one look at it, which is turned into frames
in a worker thread, encoded once for all who want the same. What that costs is measured, and frames come less often the
more they cost.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from dnc_serve.handler.api.arrays import encode_array
from dnc_serve.handler.api.operations import Caller, Operations
from dnc_serve.handler.api.views import checked_names, thinned
from dnc_serve.handler.engine.engine import Engine
from dnc_serve.handler.engine.observer import Committed, Observer
from dnc_serve.handler.engine.requests import Inspect, StateView
from dnc_serve.handler.engine.session import Session
from dnc_serve.handler.errors import ServeError
from dnc_serve.model.artifact import Artifact
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

DEFAULT_FRAMES_PER_SECOND = 30.0
LEAST_FRAMES_PER_SECOND = 0.001
MOST_FRAMES_PER_SECOND = 120.0
DEFAULT_MAX_CELLS = 65_536
# All arrays of a frame together, so that it passes gRPC's 4 MiB.
MAX_FRAME_CELLS = (4 << 20) // 4 - (16 << 10)
# Making frames takes at most this share of a processor, for each session that is watched.
COST_SHARE = 0.1
# A session without changes is asked this often whether it is still there.
CHECK_SECONDS = 1.0
FULL_QUEUE_PAUSE_SECONDS = 0.05


async def watch(
    operations: Operations, feeds: "Feeds", request: pb.WatchMemoryRequest, caller: Caller
) -> AsyncIterator[bytes]:
    """A frame now and after each change, at most so many a second, each an encoded `WatchMemoryResponse`.

    Raises BAD_REQUEST for a wrong rate or name, SESSION_NOT_FOUND (and the like) when the session ends, SESSION_MOVED
    when it moves, and DRAINING when the server leaves.
    """
    session = await operations.known(request.session_id, caller)
    names = checked_names(operations.artifact, request.names)
    max_cells = min(request.max_cells or DEFAULT_MAX_CELLS, MAX_FRAME_CELLS // len(names))
    interval_s = 1.0 / _checked_rate(request.max_frames_per_second)
    feed = feeds.join(session)
    seen_changes = -1
    try:
        while True:
            while not await feed.changed_since(seen_changes):
                await _check_there(operations, session, caller)
            began = time.monotonic()
            look = await feed.look(newer_than=seen_changes, share_s=interval_s)
            frame = await feed.frame(look, names, max_cells)
            skipped = max(0, look.changes - seen_changes - 1) if seen_changes >= 0 else 0
            seen_changes = look.changes
            yield frame + _own(skipped)
            await asyncio.sleep(max(began + interval_s - time.monotonic(), feed.cost_s / COST_SHARE))
            await _check_there(operations, session, caller)
    finally:
        feeds.leave(feed)


@dataclass(slots=True)
class Look:
    """A session's state at one moment, and the frames that were made of it."""

    changes: int  # how many changes of the session it follows
    begun_at: float
    seen: "asyncio.Future[StateView]"
    frames: "dict[tuple[tuple[str, ...], int], asyncio.Task[bytes]]" = field(default_factory=dict)


class Feeds(Observer):
    """A feed for each session that is watched; it listens to the engine while there is any."""

    def __init__(self, engine: Engine, artifact: Artifact) -> None:
        self._engine = engine
        self._artifact = artifact
        self._feeds: dict[Session, Feed] = {}

    def join(self, session: Session) -> "Feed":
        """The session's feed, for one more watcher."""
        if not self._feeds:
            self._engine.observers.add(self)
        feed = self._feeds.setdefault(session, Feed(self._engine, self._artifact, session))
        feed.watchers += 1
        return feed

    @property
    def sessions(self) -> list[Session]:
        """Those that are watched."""
        return list(self._feeds)

    def leave(self, feed: "Feed") -> None:
        """One watcher less."""
        feed.watchers -= 1
        if not feed.watchers:
            del self._feeds[feed.session]
            if not self._feeds:
                self._engine.observers.remove(self)

    def committed(self, group: Sequence[Committed]) -> None:
        for session, _, _ in group:
            if (feed := self._feeds.get(session)) is not None:
                feed.tell()

    def ended(self, session: Session, why: str) -> None:
        if (feed := self._feeds.get(session)) is not None:
            feed.tell()


class FeedsOfModels:
    """The feeds of each model that is watched."""

    def __init__(self) -> None:
        self._feeds: dict[Operations, Feeds] = {}

    def of(self, operations: Operations) -> Feeds:
        """Those of one version of a model."""
        if operations not in self._feeds:
            self._feeds[operations] = Feeds(operations.engine, operations.artifact)
        return self._feeds[operations]

    @property
    def sessions(self) -> list[Session]:
        """Those that are watched."""
        return [session for feeds in self._feeds.values() for session in feeds.sessions]


class Feed:
    """What the watchers of one session share."""

    def __init__(self, engine: Engine, artifact: Artifact, session: Session) -> None:
        self.watchers = 0
        self.cost_s = 0.0  # processor time that the latest frame took
        self._engine = engine
        self._artifact = artifact
        self.session = session
        self._changes = 0
        self._waiting: list[asyncio.Future[None]] = []
        self._check: asyncio.TimerHandle | None = None
        self._look: Look | None = None
        self._turns: deque[asyncio.Future[None]] = deque()

    def tell(self) -> None:
        """The session has changed."""
        self._changes += 1
        if self._waiting:
            self._wake()

    async def changed_since(self, changes: int) -> bool:
        """Whether the session has changed since, waiting for it a while."""
        if self._changes > changes:
            return True
        waiting = self._engine.loop.create_future()
        self._waiting.append(waiting)
        if self._check is None:  # one timer for all
            self._check = self._engine.loop.call_later(CHECK_SECONDS, self._wake)
        await waiting
        return self._changes > changes

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if not one.done():
                one.set_result(None)
        if self._check is not None:
            self._check.cancel()
            self._check = None

    async def look(self, newer_than: int, share_s: float) -> Look:
        """A look at the session that shows something newer: another watcher's if it is not older than `share_s`."""
        look = self._look
        if look is None or look.changes <= newer_than or time.monotonic() - look.begun_at > share_s:
            look = self._look = Look(self._changes, time.monotonic(), asyncio.ensure_future(self._peek()))
        try:
            await asyncio.shield(look.seen)  # a watcher that goes away must not take it from the others
        except ServeError:
            self._look = None
            raise
        return look

    async def _peek(self) -> StateView:
        engine, seen = self._engine, self._engine.loop.create_future()

        def deliver(result: StateView | None, error: ServeError | None) -> None:
            if not seen.done():
                seen.set_exception(error) if error is not None else seen.set_result(result)

        while True:
            try:
                engine.submit(self.session, Inspect(deliver, endpoint="watch"))
                break
            except ServeError as error:
                if error.reason != "QUEUE_FULL":
                    raise
                await asyncio.sleep(FULL_QUEUE_PAUSE_SECONDS)  # who looks comes after who works
        result: StateView = await seen
        return result

    async def frame(self, look: Look, names: tuple[str, ...], max_cells: int) -> bytes:
        """The look, thinned and encoded in a thread; made once for all who want the same."""
        key = names, max_cells
        if key not in look.frames:
            look.frames[key] = asyncio.ensure_future(self._make(look.seen.result(), names, max_cells))
        frame = await asyncio.shield(look.frames[key])
        await self._turn()
        return frame

    async def _turn(self) -> None:
        """Those who got the same frame go on one by one, each in a turn of the loop: others' chunks come in between."""
        turn = self._engine.loop.create_future()
        self._turns.append(turn)
        if len(self._turns) == 1:
            self._engine.loop.call_soon(self._next_turn)
        await turn

    def _next_turn(self) -> None:
        turn = self._turns.popleft()
        if not turn.done():
            turn.set_result(None)
        if self._turns:
            self._engine.loop.call_soon(self._next_turn)

    async def _make(self, seen: StateView, names: tuple[str, ...], max_cells: int) -> bytes:
        tier = f"TIER_{self.session.tier.name}"
        frame, self.cost_s = await asyncio.to_thread(_encoded, self._artifact, seen, tier, names, max_cells)
        return frame


def _encoded(
    artifact: Artifact, seen: StateView, tier: str, names: tuple[str, ...], max_cells: int
) -> tuple[bytes, float]:
    """What all watchers who want the same get, and the processor time that it took."""
    started = time.thread_time()
    assert seen.state is not None
    frame = pb.WatchMemoryResponse(
        session_id=seen.head.session_id,
        incarnation=seen.head.incarnation,
        position=seen.head.position,
        experience=seen.head.experience,
        tier=tier,
        arrays={
            name: pb.WatchedArray(array=encode_array(array.values), full_shape=array.full_shape)
            for name, array in thinned(artifact, seen.state, names, max_cells).items()
        },
    )
    frame.at.GetCurrentTime()
    return frame.SerializeToString(), time.thread_time() - started


def _own(skipped: int) -> bytes:
    """What one watcher alone is told; encoded messages that follow each other are one."""
    return pb.WatchMemoryResponse(skipped_frames=skipped).SerializeToString() if skipped else b""


async def _check_there(operations: Operations, session: Session, caller: Caller) -> None:
    """Raises why the session can't be watched any more, or not before it is asked for again."""
    if operations.draining:
        raise ServeError("DRAINING", "the server is leaving", retry_after_s=1.0)
    if operations.engine.table.find(session.session_id) is None and operations.find(session.session_id) is not None:
        raise ServeError("NOT_READY", "the session has come to another version of its model", retry_after_s=0.05)
    present = await operations.known(session.session_id, caller)
    if present is session:
        return
    if present.incarnation == session.incarnation:
        raise ServeError("NOT_READY", "the session was at another server meanwhile", retry_after_s=0.05)
    raise ServeError("SESSION_REPLACED", f"session {session.session_id!r} was created or imported anew")


def _checked_rate(frames_per_second: float) -> float:
    rate = frames_per_second or DEFAULT_FRAMES_PER_SECOND
    if not LEAST_FRAMES_PER_SECOND <= rate <= MOST_FRAMES_PER_SECOND:
        raise ServeError(
            "BAD_REQUEST",
            f"max_frames_per_second is {rate:g}, expected {LEAST_FRAMES_PER_SECOND:g} to {MOST_FRAMES_PER_SECOND:g}",
            got=rate,
        )
    return rate
