"""Watching a session's memory: frames of thinned arrays, pulled by each watcher at its own pace.

The engine only says that a session has changed; its state is read when a watcher is ready for a frame, so a slow one
skips what it missed and holds nothing up. All watchers of a session share one look at it, which is turned into frames
in a worker thread. What that costs is measured, and frames come less often the more they cost.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch

from dnc_serve.handler.doors.codec import Float32, encode_array
from dnc_serve.handler.doors.operations import Caller, Operations
from dnc_serve.handler.engine.engine import Engine
from dnc_serve.handler.engine.sessions import Session
from dnc_serve.handler.engine.work import Peek, Seen
from dnc_serve.handler.errors import ServeError
from dnc_serve.model.layout import StateLayout
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

DEFAULT_FRAMES_PER_SECOND = 30.0
MOST_FRAMES_PER_SECOND = 120.0
DEFAULT_MAX_CELLS = 65_536
# All arrays of a frame together, so that it passes gRPC's 4 MiB.
MAX_FRAME_CELLS = (4 << 20) // 4 - (16 << 10)
INTERFACE = "interface"
# Making frames takes at most this share of a processor, for each session that is watched.
COST_SHARE = 0.1
# A session without changes is asked this often whether it is still there.
CHECK_SECONDS = 1.0
FULL_QUEUE_PAUSE_SECONDS = 0.05

Arrays = dict[str, pb.WatchedArray]


async def watch(
    operations: Operations, request: pb.WatchMemoryRequest, caller: Caller
) -> AsyncIterator[pb.WatchMemoryResponse]:
    """A frame now and after each change, at most so many a second.

    Raises BAD_REQUEST for a wrong rate or name, SESSION_NOT_FOUND (and the like) when the session ends, and DRAINING
    when the server leaves.
    """
    session = operations.session(request.session_id, caller)
    names = _checked_names(operations.engine.layout, request.names)
    max_cells = min(request.max_cells or DEFAULT_MAX_CELLS, MAX_FRAME_CELLS // len(names))
    interval_s = 1.0 / _checked_rate(request.max_frames_per_second)
    feed = Feed.of(operations.engine, session)
    feed.watchers += 1
    seen_changes = -1
    try:
        while True:
            while not await feed.changed_since(seen_changes, CHECK_SECONDS):
                _check_there(operations, session, caller)
            began = time.monotonic()
            look = await feed.look(newer_than=seen_changes, share_s=interval_s)
            arrays = await feed.arrays(look, names, max_cells)
            skipped = max(0, look.changes - seen_changes - 1) if seen_changes >= 0 else 0
            seen_changes = look.changes
            yield _frame(session, look, arrays, skipped)
            await asyncio.sleep(max(began + interval_s - time.monotonic(), feed.cost_s / COST_SHARE))
            _check_there(operations, session, caller)
    finally:
        feed.watchers -= 1
        feed.leave_if_unwatched()


@dataclass(slots=True)
class Look:
    """A session's state at one moment, and the frames that were made of it."""

    changes: int  # how many changes of the session it follows
    begun_at: float
    seen: "asyncio.Future[Seen]"
    arrays: "dict[tuple[tuple[str, ...], int], asyncio.Task[Arrays]]" = field(default_factory=dict)


class Feed:
    """What the watchers of one session share. It stands among the session's watchers while there are any."""

    def __init__(self, engine: Engine, session: Session) -> None:
        self.watchers = 0
        self.cost_s = 0.0  # processor time that the arrays of the latest frame took
        self._engine = engine
        self._session = session
        self._changes = 0
        self._changed = asyncio.Event()
        self._look: Look | None = None

    @classmethod
    def of(cls, engine: Engine, session: Session) -> "Feed":
        """The session's feed, made if there is none."""
        if session.watchers is None:
            session.watchers = []
        for watcher in session.watchers:
            if isinstance(watcher, cls):
                return watcher
        feed = cls(engine, session)
        session.watchers.append(feed)
        return feed

    def __call__(self, session: Session) -> None:
        """The session has changed."""
        self._changes += 1
        self._changed.set()

    def leave_if_unwatched(self) -> None:
        """Costs the session nothing any more once nobody watches."""
        if not self.watchers and self._session.watchers is not None and self in self._session.watchers:
            self._session.watchers.remove(self)

    async def changed_since(self, changes: int, timeout_s: float) -> bool:
        """Whether the session has changed since, waiting for it a while."""
        if self._changes > changes:
            return True
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), timeout_s)
        except TimeoutError:
            return False
        return self._changes > changes

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

    async def _peek(self) -> Seen:
        engine, seen = self._engine, self._engine.loop.create_future()

        def deliver(result: Seen | None, error: ServeError | None) -> None:
            if not seen.done():
                seen.set_exception(error) if error is not None else seen.set_result(result)

        while True:
            try:
                engine.submit(self._session, Peek(deliver, door="watch"))
                break
            except ServeError as error:
                if error.reason != "QUEUE_FULL":
                    raise
                await asyncio.sleep(FULL_QUEUE_PAUSE_SECONDS)  # who looks comes after who works
        result: Seen = await seen
        return result

    async def arrays(self, look: Look, names: tuple[str, ...], max_cells: int) -> Arrays:
        """The look's arrays, thinned and encoded, in a thread; made once for all who want the same."""
        key = names, max_cells
        if key not in look.arrays:
            look.arrays[key] = asyncio.ensure_future(self._make(look.seen.result(), names, max_cells))
        return await asyncio.shield(look.arrays[key])

    async def _make(self, seen: Seen, names: tuple[str, ...], max_cells: int) -> Arrays:
        arrays, self.cost_s = await asyncio.to_thread(_encoded, self._engine, seen, names, max_cells)
        return arrays


def _encoded(engine: Engine, seen: Seen, names: tuple[str, ...], max_cells: int) -> tuple[Arrays, float]:
    """The arrays, and the processor time that they took."""
    started = time.thread_time()
    assert seen.state is not None
    arrays: Arrays = {}
    for name in names:
        named = interface(engine, seen.state) if name == INTERFACE else {name: _array(engine.layout, seen.state, name)}
        for part, array in named.items():
            arrays[part] = pb.WatchedArray(array=encode_array(thin(array, max_cells)), full_shape=array.shape)
    return arrays, time.thread_time() - started


def _array(layout: StateLayout, state: Float32, name: str) -> Float32:
    """One array of a state in its own shape, the parts (memories or layers) first: [parts, …]."""
    parts = [
        state[part.offset : part.offset + part.size].reshape(part.shape) for part in layout.fields if part.name == name
    ]
    return parts[0][None] if len(parts) == 1 else np.stack(parts)


def interface(engine: Engine, state: Float32) -> dict[str, Float32]:
    """The gates [L, heads], read modes [L, R, M] and strengths [L, heads] of the timestep that led to a state.

    Empty for a state to which no timestep led: a new one, or one that was reset as a whole.
    """
    if not _array(engine.layout, state, "controller_hidden").any():
        return {}
    with torch.inference_mode():
        packed = torch.from_numpy(state)[None].to(engine.tiles.device)
        return {name: values[:, 0].cpu().numpy() for name, values in engine.tiles.module.interface(packed).items()}


def thin(array: Float32, max_cells: int) -> Float32:
    """The array [..., rows, columns] itself, or one with fewer rows and columns that has at most so many elements (but
    one for each leading index).

    Each cell is the value of largest magnitude of the block that it stands for; blocks are ceil(full / thinned) wide.
    """
    if array.size <= max_cells:
        return array
    rows, columns = array.shape[-2:]
    budget = max(1, max_cells // math.prod(array.shape[:-2]))
    side = math.isqrt(budget)
    if rows <= side:
        most_rows, most_columns = rows, budget // rows
    elif columns <= side:
        most_rows, most_columns = budget // columns, columns
    else:
        most_rows = most_columns = side
    height, width = _block_length(rows, most_rows), _block_length(columns, most_columns)
    highest, lowest = _blocks(np.maximum, array, height, width), _blocks(np.minimum, array, height, width)
    thinned: Float32 = np.where(highest >= -lowest, highest, lowest)
    return thinned


def _block_length(length: int, at_most: int) -> int:
    """How long blocks are if there are at most so many; it follows from their number too."""
    return math.ceil(length / math.ceil(length / math.ceil(length / at_most)))


def _blocks(extreme: np.ufunc, array: Float32, height: int, width: int) -> Float32:
    """The extreme value of each block [height, width]."""
    # Row by row first, which numpy does at the speed of memory.
    strips = [extreme.reduce(array[..., row : row + height, :], axis=-2) for row in range(0, array.shape[-2], height)]
    reduced: Float32 = extreme.reduceat(np.stack(strips, axis=-2), range(0, array.shape[-1], width), axis=-1)
    return reduced


def _frame(session: Session, look: Look, arrays: Arrays, skipped: int) -> pb.WatchMemoryResponse:
    head = look.seen.result().head
    frame = pb.WatchMemoryResponse(
        session_id=head.session_id,
        incarnation=head.incarnation,
        position=head.position,
        experience=head.experience,
        tier=f"TIER_{session.tier.name}",
        arrays=arrays,
        skipped_frames=skipped,
    )
    frame.at.GetCurrentTime()
    return frame


def _check_there(operations: Operations, session: Session, caller: Caller) -> None:
    """Raises why the session can't be watched any more."""
    if operations.draining:
        raise ServeError("DRAINING", "the server is leaving", retry_after_s=1.0)
    if operations.session(session.session_id, caller) is not session:
        raise ServeError("SESSION_REPLACED", f"session {session.session_id!r} was created or imported anew")


def _checked_names(layout: StateLayout, names: Iterable[str]) -> tuple[str, ...]:
    known = tuple(dict.fromkeys(part.name for part in layout.fields))
    wanted = tuple(dict.fromkeys(names)) or known
    for name in wanted:
        if name not in (*known, INTERFACE):
            raise ServeError(
                "BAD_REQUEST",
                f"there is no array {name!r}, expected any of {', '.join((*known, INTERFACE))}",
                got=name,
            )
    return wanted


def _checked_rate(frames_per_second: float) -> float:
    rate = frames_per_second or DEFAULT_FRAMES_PER_SECOND
    if not 0 < rate <= MOST_FRAMES_PER_SECOND:
        raise ServeError(
            "BAD_REQUEST",
            f"max_frames_per_second is {rate:g}, expected more than 0 and at most {MOST_FRAMES_PER_SECOND:g}",
            got=rate,
        )
    return rate
