"""The simulation's seeds, that a seed replays, and that it finds what was planted."""

import pytest

from tests.simulation.planted import PLANTED, Plant
from tests.simulation.world import run

SEEDS = 120
PLANTED_SEEDS = 120  # of these at least one has to fail with each planted mistake


@pytest.mark.parametrize("first", range(0, SEEDS, 30))
def test_nothing_that_was_promised_is_broken(first: int) -> None:
    failed = {seed: outcome.failure for seed in range(first, first + 30) if (outcome := run(seed)).failure}
    assert not failed


@pytest.mark.parametrize("seed", [1, 3])
def test_a_seed_replays_to_the_same_event(seed: int) -> None:
    assert run(seed).digest == run(seed).digest


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_what_is_planted_is_found(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    found = next((seed for seed in range(PLANTED_SEEDS) if run(seed).failure), None)
    assert found is not None
