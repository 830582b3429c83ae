"""Watching a session's memory: frames of thinned arrays, pulled by each watcher at its own pace.

The engine only marks a watcher as behind; the state is read when the watcher is ready for a frame, so a slow one skips
what it missed and holds nothing up.
"""

import asyncio
from collections.abc import AsyncIterator

import numpy as np

from dnc_serve.handler.codec import Float32, encode_array
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.operations import Caller, Operations
from dnc_serve.handler.sessions import Session
from dnc_serve.handler.work import Peek
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

DEFAULT_FRAMES_PER_SECOND = 30.0
DEFAULT_MAX_CELLS = 65_536


async def watch(
    operations: Operations, request: pb.WatchMemoryRequest, caller: Caller
) -> AsyncIterator[pb.WatchMemoryResponse]:
    """A frame now and after each change, at most so many a second; raises SESSION_NOT_FOUND when the session ends."""
    session = operations.session(request.session_id, caller)
    interval_s = 1.0 / (request.max_frames_per_second or DEFAULT_FRAMES_PER_SECOND)
    changed = asyncio.Event()
    changed.set()
    missed = 0

    def mark(session: Session) -> None:
        nonlocal missed
        missed += 1
        changed.set()

    if session.watchers is None:
        session.watchers = []
    session.watchers.append(mark)
    try:
        while True:
            await changed.wait()
            changed.clear()
            if session.ended:
                raise ServeError("SESSION_NOT_FOUND", f"session {session.session_id!r} has ended")
            skipped, missed = max(0, missed - 1), 0
            yield await _frame(operations, session, request, skipped)
            await asyncio.sleep(interval_s)
    finally:
        session.watchers.remove(mark)


async def _frame(
    operations: Operations, session: Session, request: pb.WatchMemoryRequest, skipped: int
) -> pb.WatchMemoryResponse:
    engine = operations.engine
    seen_later = engine.loop.create_future()
    engine.submit(session, Peek(lambda seen, error: _deliver(seen_later, seen, error), door="watch"))
    seen = await seen_later
    frame = pb.WatchMemoryResponse(
        session_id=session.session_id,
        incarnation=session.incarnation,
        position=seen.head.position,
        experience=seen.head.experience,
        skipped_frames=skipped,
    )
    frame.at.GetCurrentTime()
    for name, array in operations.arrays(seen, request.names).items():
        thinned = thin(array, request.max_cells or DEFAULT_MAX_CELLS)
        frame.arrays[name].array.CopyFrom(encode_array(thinned))
        frame.arrays[name].full_shape.extend(array.shape)
    return frame


def thin(array: Float32, max_cells: int) -> Float32:
    """The array, or a smaller one [rows, columns]: each cell is the value of largest magnitude of the block that it
    stands for."""
    if array.size <= max_cells:
        return array
    rows = array.reshape(array.shape[0], -1)
    block = -(-array.size // max_cells)
    padding = -rows.shape[1] % block
    blocks = np.pad(rows, ((0, 0), (0, padding))).reshape(rows.shape[0], -1, block)
    strongest = np.abs(blocks).argmax(axis=2)
    thinned: Float32 = np.take_along_axis(blocks, strongest[:, :, None], axis=2)[:, :, 0]
    return thinned


def _deliver(future: "asyncio.Future[object]", seen: object, error: ServeError | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(seen)
