"""A real Prometheus watches real servers: each expression has data under load, each alert fires for its fault."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import numpy as np
import pytest

from dnc_serve.handler.api.arrays import encode_array
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.deploy import faults
from tests.deploy.observed import (
    Prometheus,
    alerts,
    as_grafana_asks,
    dashboard_expressions,
    prometheus,
    rules,
)
from tests.handler.door import Door, chunk, open_door
from tests.handler.harness import INPUT_SIZE, random_inputs

Fault = Callable[[Path, Path], AbstractContextManager[str]]
# Which alerts each fault must lead to.
FAULTS: dict[Fault, set[str]] = {
    # First, because while it prepares, servers that start take themselves for another machine.
    faults.damaged_snapshots: {"DncSnapshotFallback", "DncReplayedElsewhere"},
    faults.gone: {"DncServerDown"},
    faults.crash_loop: {"DncRestartLoop"},
    faults.hanging_device: {"DncStalled"},
    faults.endless_drain: {"DncDrainingStuck"},
    faults.flood: {"DncQueueWaitHigh"},
    faults.no_room: {"DncRefusingForRoom"},
    faults.small_memory: {"DncMemoryBudgetSpent"},
    faults.slow_disk: {"DncStepLatencyHigh", "DncJournalSlow", "DncSnapshotsSlow"},
    faults.lost_store: {"DncStoreDown"},
    faults.failing_device: {"DncInternalErrors"},
    faults.garbling_device: {"DncNonFiniteResults"},
    faults.mistaken_client: {"DncErrorRatioHigh"},
    faults.damaged_records: {"DncCorruptState"},
}
# A second model beside them is a fault of the job, not of a server.
EXPECTED = set().union(*FAULTS.values(), {"DncModelsMixed"})
# What a busy machine may do to a healthy server.
TIMING = {"DncServerDown", "DncStalled", "DncStepLatencyHigh", "DncQueueWaitHigh", "DncJournalSlow", "DncSnapshotsSlow"}


@pytest.fixture(scope="module")
def watching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with prometheus(tmp_path_factory.mktemp("prometheus")) as running:
        yield running


def everything(door: Door) -> None:
    """A little of all that a server does."""
    for number in range(6):
        session_id = f"s{number}"
        door.stub.CreateSession(pb.CreateSessionRequest(session_id=session_id, allow_existing=True))
        position = door.session(session_id).position
        door.step(session_id, random_inputs(number, 3), position=position)
        door.step(session_id, random_inputs(number, 3), position=position)  # answered again
        door.stream([pb.StreamRequest(chunk=chunk(session_id, random_inputs(number, 3)))])
        step = pb.StepRequest(chunk=pb.Chunk(session_id=session_id, inputs=encode_array(random_inputs(number, 2))))
        door.server.call([pb.Call(step=step)], 10.0)
    door.stub.ResetSession(pb.ResetSessionRequest(reset=pb.Reset(session_id="s0")))
    wrong = np.zeros((1, INPUT_SIZE + 1), np.float32)
    door.stream([pb.StreamRequest(chunk=chunk("s0", wrong))])


def test_every_expression_has_data_under_load_and_no_alert_fires(
    watching: Prometheus, artifact: Path, tmp_path: Path
) -> None:
    expressions = {
        f"{title}: {expression}": as_grafana_asks(expression) for title, expression in dashboard_expressions()
    }
    expressions |= {rule["record"]: rule["record"] for rule in rules() if "record" in rule}
    with open_door(artifact, tmp_path, slots=4, snapshot_every_timesteps=8) as door:
        with faults.again_and_again(lambda: everything(door)):
            watching.watch(door.addresses.metrics)
            watching.await_values(expressions)
            assert sum(watching.values("dnc_session_evictions_total{reason='slot'}")) > 0
            assert sum(watching.values("dnc_steps_replayed_total")) > 0
        assert watching.firing() <= TIMING
        watching.watch()


def test_each_alert_has_its_fault() -> None:
    assert set(alerts()) == EXPECTED


@pytest.fixture(scope="module")
def troubled(
    watching: Prometheus, artifact: Path, other_artifact: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """All faults at once, each on its own server, and a server of another model: their times to fire overlap."""
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("state")
        other = stack.enter_context(open_door(other_artifact, folder / "other"))
        addresses = [stack.enter_context(fault(artifact, folder / fault.__name__)) for fault in FAULTS]
        watching.watch(other.addresses.metrics, *addresses)
        yield watching


@pytest.mark.long
@pytest.mark.parametrize("alert", sorted(EXPECTED))
def test_the_alert_fires(troubled: Prometheus, alert: str) -> None:
    troubled.await_fired(alert)
