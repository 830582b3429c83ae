"""What a finished run has to stand up to before it is recorded."""

import numpy as np

from dnc_serve.handler.arrays import Array
from dnc_serve.handler.engine.batch_scheduler import Run
from dnc_serve.handler.engine.requests import Replay
from dnc_serve.handler.engine.state_rows import StateRows
from dnc_serve.handler.errors import ServeError
from dnc_serve.model.rows import RowLayout

# Replays by other code than the original's must come this close, relative to the largest output if it exceeds 1.
REPLAY_TOLERANCE = 1e-5


def check_finite(run: Run, rows: StateRows, layout: RowLayout) -> None:
    """Raises NON_FINITE_RESULT, naming the timestep or the tensor, unless only a sum has overflowed."""
    outputs = run.outputs
    assert outputs is not None
    bad = np.argwhere(~np.isfinite(outputs))
    if len(bad):
        timestep, *place = (int(index) for index in bad[0])
        raise _not_finite(f"output {', '.join(map(str, place))} at timestep {timestep}", "outputs", timestep)
    field = layout.not_finite(rows.read(run.row))
    if field is not None:
        raise _not_finite(f"{field.name} after timestep {len(outputs) - 1}", field.name, len(outputs) - 1)


def check_replay(run: Run, replay: Replay) -> None:
    """Raises CORRUPT_STATE where a replay gave other outputs than were recorded."""
    assert run.outputs is not None
    same_code = run.runner.fingerprint == replay.fingerprint
    try:
        check_replayed(run.session.session_id, run.outputs, replay.expected, same_code=same_code)
    except ServeError as error:
        run.session.corrupt = error.message
        raise


def check_replayed(session_id: str, outputs: Array, recorded: Array, *, same_code: bool) -> None:
    """Raises CORRUPT_STATE unless the outputs [T, *shape] of a replay are those that were recorded: the same code gives
    the same bits, other code comes close."""
    difference = float(np.abs(outputs.astype(np.float64) - recorded).max(initial=0.0))
    if same_code:
        same = outputs.tobytes() == recorded.tobytes()
    else:
        same = difference <= REPLAY_TOLERANCE * max(1.0, float(np.abs(recorded).max(initial=0.0)))
    if not same:
        raise ServeError(
            "CORRUPT_STATE",
            f"session {session_id!r}: a replay of its journal gave other outputs than were recorded, "
            f"by up to {difference:.3g}",
        )


def _not_finite(what: str, tensor: str, timestep: int) -> ServeError:
    return ServeError(
        "NON_FINITE_RESULT", f"{what} is not finite; the chunk was not applied", tensor=tensor, timestep=timestep
    )
