"""The arithmetic of docs/scale.md, as far as it can be asked for."""

import re

import pytest

from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.metrics import Metrics
from dnc_serve.model.config import DNCConfig
from dnc_serve.model.layout import StateLayout
from tests.deploy.observed import DEPLOY

SCALE = (DEPLOY.parent / "docs" / "scale.md").read_text()


def number(text: str) -> int:
    return int(text.replace(",", ""))


def rows() -> list[list[str]]:
    """The table of models: name, I, O, N, W, R, H, state bytes, journal bytes a timestep."""
    lines = [line for line in SCALE.splitlines() if line.startswith(("| bundled", "| large"))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_bytes_of_a_session(row: list[str]) -> None:
    inputs, outputs, cells, words, heads, hidden, state_bytes, journal_bytes = map(number, row[1:])
    depth = 1 if row[0].startswith("bundled") else 2
    config = DNCConfig(
        input_size=inputs, output_size=outputs, hidden_size=hidden, num_hidden_layers=depth, nr_cells=cells,
        cell_size=words, read_heads=heads,
    )  # fmt: skip
    assert StateLayout(config).size * 4 == state_bytes
    floats = depth * 2 * hidden + heads * words + cells * words + cells**2 + cells * (heads + 3)
    assert floats * 4 == state_bytes
    assert (inputs + outputs) * 4 == journal_bytes


def test_the_defaults_that_are_named() -> None:
    defaults = {name: field.default for name, field in ServeConfig.model_fields.items()}
    assert (defaults["snapshot_every_timesteps"], defaults["max_streams"]) == (1024, 1024)
    assert (defaults["host_bytes"], defaults["lease_s"], defaults["max_sessions"]) == (256 * 2**20, 10.0, 100_000)


def test_series_of_a_server() -> None:
    metrics = Metrics()
    metrics.of("copy")
    series = sum(len(family.samples) for family in metrics.registry.collect())
    [said] = re.findall(r"× (\d+) series", SCALE)
    # Refusals add one for each reason that was met.
    assert series <= int(said) + 1
