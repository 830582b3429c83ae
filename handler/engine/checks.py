"""What a finished run has to stand up to before it is recorded."""

import numpy as np

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
    outputs = run.outputs
    assert outputs is not None
    difference = float(np.abs(outputs.astype(np.float64) - replay.expected).max(initial=0.0))
    if run.runner.fingerprint == replay.fingerprint:
        same = outputs.tobytes() == replay.expected.tobytes()
    else:
        same = difference <= REPLAY_TOLERANCE * max(1.0, float(np.abs(replay.expected).max(initial=0.0)))
    if not same:
        run.session.corrupt = (
            f"session {run.session.session_id!r}: a replay of its journal gave other outputs than were recorded, "
            f"by up to {difference:.3g}"
        )
        raise ServeError("CORRUPT_STATE", run.session.corrupt)


def _not_finite(what: str, tensor: str, timestep: int) -> ServeError:
    return ServeError(
        "NON_FINITE_RESULT", f"{what} is not finite; the chunk was not applied", tensor=tensor, timestep=timestep
    )
