"""Far more sessions than memory holds: each right to the bit after moving down and up again, and memory in budget."""

import asyncio
import gc
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.engine.session import Session, Tier
from dnc_serve.handler.engine.tile_runner import TileRunner
from dnc_serve.model.artifact import Artifact, load_artifact
from dnc_serve.model.dnc import DNC
from dnc_serve.model.export import export
from tests.chaos.truth import Truth, random_inputs
from tests.handler.harness import INPUT_SIZE, OUTPUT_SIZE, EngineHarness, running_engine

MIB = 2**20
SLOTS = 64
ROUNDS, TIMESTEPS = 2, 2
# Beside its state, each session has an identity, a queue, its latest replies, and a place in the store's index.
SESSION_BYTES = 8 * 1024
# Working rows, the store's caches, and what allocators keep.
SLACK_BYTES = 96 * MIB


@pytest.fixture(scope="module")
def large_artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A state of 30 KiB and more: those of 20,000 sessions take more than twice the budget."""
    folder = tmp_path_factory.mktemp("large-artifact")
    torch.manual_seed(6)
    export(DNC(INPUT_SIZE, 16, num_hidden_layers=1, nr_cells=80, cell_size=16, output_size=OUTPUT_SIZE), folder)
    return load_artifact(folder)


async def step_all(harness: EngineHarness, sessions: list[Session], inputs: np.ndarray) -> np.ndarray:
    """Outputs [T, B, O] for inputs [T, B, I], some hundred sessions at a time."""
    outputs = []
    for first in range(0, len(sessions), 256):
        steps = [
            harness.step(session, np.ascontiguousarray(inputs[:, first + place]))
            for place, session in enumerate(sessions[first : first + 256])
        ]
        outputs += [applied.outputs for applied in await asyncio.gather(*steps)]
    return np.stack(outputs, axis=1)


@pytest.mark.parametrize(
    ("count", "host_bytes"), [(1_000, 8 * MIB), pytest.param(20_000, 256 * MIB, marks=pytest.mark.long)]
)
async def test_many_sessions_in_little_memory(
    large_artifact: Artifact, tmp_path: Path, count: int, host_bytes: int
) -> None:
    tiles = TileRunner(large_artifact, "cpu")
    row_bytes = 4 * tiles.layout.size
    assert count * row_bytes > 2 * host_bytes
    config = ServeConfig(state_dir=tmp_path, slots=SLOTS, host_bytes=host_bytes, max_queued_chunks_total=1024)
    chance = np.random.default_rng(0)
    process = psutil.Process()
    async with running_engine(tiles, large_artifact, config) as harness:
        # The truth's own states would be in the way: it is told in the end, from the same inputs.
        gc.collect()
        before, most = process.memory_info().rss, 0
        sessions = [await harness.create(f"s{number}") for number in range(count)]
        inputs = [random_inputs(chance, TIMESTEPS * count).reshape(TIMESTEPS, count, INPUT_SIZE) for _ in range(ROUNDS)]
        outputs = []
        for values in inputs:
            outputs.append(await step_all(harness, sessions, values))
            most = max(most, process.memory_info().rss - before)
            assert harness.engine.cache.host_used * row_bytes <= host_bytes
            assert harness.engine.cache.slots_used <= SLOTS
        tiers = {tier: sum(session.tier is tier for session in sessions) for tier in Tier}
    expected = Truth(tiles, count).step(np.concatenate(inputs))
    served = np.concatenate(outputs)
    wrong = (served.view(np.uint32) != expected.view(np.uint32)).any(axis=(0, 2)).sum()
    allowed = host_bytes + count * SESSION_BYTES + SLACK_BYTES
    print(
        f"{count} sessions of {row_bytes} bytes, {SLOTS} slots, {host_bytes / MIB:.0f} MiB for states in host memory: "
        f"{wrong} wrong; {most / MIB:.0f} MiB more resident, {allowed / MIB:.0f} allowed; "
        + ", ".join(f"{number} in {tier.value}" for tier, number in tiers.items())
    )
    assert wrong == 0
    assert tiers[Tier.STORE] > count // 2
    assert most <= allowed
