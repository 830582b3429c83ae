"""Looks at earlier positions, with resets in between."""

from pathlib import Path

import pytest

from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.handler.door import TIMEOUT, open_door
from tests.handler.harness import random_inputs


@pytest.mark.parametrize("scope", [pb.RESET_SCOPE_EXPERIENCE, pb.RESET_SCOPE_ALL])
def test_a_later_reset_does_not_reach_back(artifact_folder: Path, tmp_path: Path, scope: pb.ResetScope) -> None:
    with open_door(artifact_folder, tmp_path) as door:
        inputs = random_inputs(1, 13)
        door.create("twin")
        door.step("twin", inputs[:10])
        at_10 = door.dump("twin")["memory"]
        door.create("past")
        door.step("past", inputs)
        door.stub.ResetSession(pb.ResetSessionRequest(reset=pb.Reset(session_id="past", scope=scope)), timeout=TIMEOUT)
        assert door.dump("past", position=10)["memory"].tobytes() == at_10.tobytes()
        assert not door.dump("past", position=13)["memory"].any()
        door.step("past", inputs)
        assert door.dump("past", position=10)["memory"].tobytes() == at_10.tobytes()
        # Where it stood twice, the later state is meant.
        assert not door.dump("past", position=13)["memory"].any()
