"""A drain says what it could not make safe."""

from pathlib import Path

import pytest

from tests.handler.api.syncs import failing_syncs
from tests.handler.door import open_door
from tests.handler.harness import random_inputs


@pytest.mark.parametrize("durability", ["async", "sync"])
def test_a_drain_whose_sync_fails_does_not_say_that_all_is_safe(
    artifact_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    durability: str,
) -> None:
    with open_door(artifact_folder, tmp_path, durability=durability) as door:
        door.create("s")
        door.step("s", random_inputs(0, 3))
        with failing_syncs(monkeypatch):
            door.server.drain(5.0)
    assert "the drain left sessions without a snapshot" in caplog.text
    with open_door(artifact_folder, tmp_path) as door:  # nothing that was answered is lost
        assert door.step("s", random_inputs(1, 2), position=3).position == 5
