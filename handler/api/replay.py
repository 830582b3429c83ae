"""Past timesteps again: what came in and what was answered, from the journal, and what each left in the state.

The timesteps are stepped anew, one row by itself, by the code that had stepped them: the same bits, which a view of an
earlier position would give too, without going back to a snapshot for each. As in a recovery, what comes out is compared
with what was answered.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from dnc_serve.handler.api.arrays import encode_array
from dnc_serve.handler.api.operations import Caller, Operations
from dnc_serve.handler.api.views import checked_names, thinned
from dnc_serve.handler.api.watch import DEFAULT_MAX_CELLS, MAX_FRAME_CELLS
from dnc_serve.handler.engine.checks import check_replayed
from dnc_serve.handler.engine.state_rows import StateRows
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.store.history import Recovered
from dnc_serve.handler.store.records import Operation
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

MAX_TIMESTEPS = 1 << 16
# Stepped in a thread at once; in between others have their turn.
GROUP_TIMESTEPS = 16
SKIPPED_TIMESTEPS = 512


@dataclass(frozen=True, slots=True)
class _Piece:
    """Timesteps of one record that are stepped together; the last one is shown, if it is wanted."""

    operation: Operation
    first: int  # among those of the record
    timesteps: int
    reset: str  # what comes before them
    shown: bool

    @property
    def position(self) -> int:
        return self.operation.start + self.first + self.timesteps


async def replay(
    operations: Operations, request: pb.ReplaySessionRequest, caller: Caller
) -> AsyncIterator[pb.ReplaySessionResponse]:
    """A message for each timestep that is wanted.

    Raises BAD_REQUEST for a wrong name, or for more than MAX_TIMESTEPS; STEP_GAP for a position that lies ahead;
    POSITION_GONE, MODEL_MISMATCH, CORRUPT_STATE, also where other outputs come out than were answered.
    """
    artifact, engine = operations.artifact, operations.engine
    session = await operations.known(request.session_id, caller)
    names = checked_names(artifact, request.names)
    max_cells = min(request.max_cells or DEFAULT_MAX_CELLS, MAX_FRAME_CELLS // len(names))
    until = request.until if request.HasField("until") else session.position
    if not request.after <= until <= request.after + MAX_TIMESTEPS:
        raise ServeError(
            "BAD_REQUEST",
            f"until is {until} and after {request.after}, expected 0 to {MAX_TIMESTEPS} timesteps between them",
            got=until,
        )
    if request.after == until:
        return
    recovered = await engine.between(session, request.after, until)
    rows = StateRows(1, artifact.layout, engine.runner.device)
    rows.write(0, recovered.state)
    pieces = list(_pieces(recovered, request.after, until, request.every or 1))
    fingerprints = {piece.operation.fingerprint for piece in pieces if piece.timesteps}
    # In a thread, for code that was not used yet is made ready for it.
    runners = await asyncio.to_thread(lambda: {one: engine.runner.of_fingerprint(one) for one in fingerprints})
    if any(runner.fingerprint != one for one, runner in runners.items()):
        engine.observers.replayed_elsewhere(session)

    def work(some: list[_Piece]) -> list[pb.ReplaySessionResponse]:
        return [message for piece in some if (message := step(piece)) is not None]

    def step(piece: _Piece) -> pb.ReplaySessionResponse | None:
        if piece.reset:
            rows.reset(0, piece.reset)
        if not piece.timesteps:
            return None
        steps = slice(piece.first, piece.first + piece.timesteps)
        inputs = artifact.inputs.of_bytes(piece.operation.inputs[steps])
        outputs = artifact.outputs.of_bytes(piece.operation.outputs[steps])
        runner = runners[piece.operation.fingerprint]
        [stepped], _ = runner.step(rows, [0], [0], [inputs])
        same_code = runner.fingerprint == piece.operation.fingerprint
        check_replayed(session.session_id, stepped, outputs, same_code=same_code)
        if not piece.shown:
            return None
        return pb.ReplaySessionResponse(
            position=piece.position,
            experience=piece.operation.experience,
            inputs=encode_array(inputs[-1]),
            outputs=encode_array(outputs[-1]),
            arrays={
                name: pb.WatchedArray(array=encode_array(array.values), full_shape=array.full_shape)
                for name, array in thinned(artifact, rows.read(0), names, max_cells).items()
            },
        )

    for start in range(0, len(pieces), GROUP_TIMESTEPS):
        for message in await asyncio.to_thread(work, pieces[start : start + GROUP_TIMESTEPS]):
            yield message


def _pieces(recovered: Recovered, after: int, until: int, every: int) -> Iterator[_Piece]:
    """What is stepped one after the other: up to each timestep that is shown, and no more than so many at once."""
    for operation in recovered.operations:
        first, reset = 0, operation.reset
        if not len(operation.inputs):
            yield _Piece(operation, 0, 0, reset, shown=False)
        while first < len(operation.inputs):
            position = operation.start + first
            stop = after if position < after else min(position // every * every + every, until)
            end = min(stop, operation.position, position + SKIPPED_TIMESTEPS)
            shown = end > after and (end % every == 0 or end == until)
            yield _Piece(operation, first, end - position, reset, shown)
            first, reset = end - operation.start, ""
