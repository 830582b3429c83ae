"""Pictures of a memory."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from dnc_serve.client.plotting import heatmaps, save_heatmaps, side_by_side, terminal_picture, unflatten, used_slots

CONFIG = {"nr_cells": 4, "cell_size": 3, "read_heads": 2, "write_heads": 2, "num_hidden_layers": 1, "hidden_size": 6}


@pytest.fixture
def dump() -> dict[str, "np.ndarray"]:
    """Two memories, two write heads."""
    random = np.random.default_rng(0)
    sizes = {"memory": 12, "link_matrix": 32, "write_weights": 8, "usage_vector": 4}
    arrays = {name: random.random((2, size), np.float32) for name, size in sizes.items()}
    return arrays | {"read_vectors": random.standard_normal((1, 6)).astype(np.float32)}


def test_arrays_get_their_shape_back(dump: dict[str, "np.ndarray"]) -> None:
    shapes = {name: unflatten(name, array[0], CONFIG).shape for name, array in dump.items()}
    assert shapes == {
        "memory": (4, 3), "link_matrix": (4, 8), "write_weights": (2, 4), "usage_vector": (1, 4),
        "read_vectors": (2, 3),
    }  # fmt: skip
    links = dump["link_matrix"][0].reshape(2, 4, 4)
    np.testing.assert_array_equal(unflatten("link_matrix", dump["link_matrix"][0], CONFIG)[:, 4:], links[1])


def test_each_heatmap_says_what_it_is(dump: dict[str, "np.ndarray"]) -> None:
    figure = heatmaps(dump, CONFIG, "session x at position 3")
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in panels][:2] == ["memory 0", "memory 1"]
    assert len(panels) == 9
    assert all(axes.get_xlabel() for axes in panels)
    shares = next(axes for axes in panels if axes.get_title(loc="left") == "write_weights 0").images[0]
    assert shares.get_clim() == (0.0, 1.0)
    values = next(axes for axes in panels if axes.get_title(loc="left") == "read_vectors").images[0]
    assert values.get_clim()[0] == -values.get_clim()[1]


def test_files_are_what_their_names_say(dump: dict[str, "np.ndarray"], tmp_path: Path) -> None:
    save_heatmaps(dump, CONFIG, tmp_path / "x.png", "x")
    save_heatmaps(dump, CONFIG, tmp_path / "x.svg", "x")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(tmp_path / "x.svg").getroot().tag.endswith("svg")


def test_terminal_picture_shows_used_slots_over_time() -> None:
    written = np.zeros((3, 5), np.float32)
    written[0, 1] = written[1, 3] = 1.0
    written[2, 3] = 0.5
    assert used_slots(written) == [1, 3]
    assert terminal_picture("slot", written) == ["slot    ", "  1 │█  ", "  3 │ █▒", "    └───"]
    read = terminal_picture("read", written[:1], [1, 3])
    assert side_by_side(terminal_picture("slot", written), read).splitlines()[1] == "  1 │█       1 │█"


def test_what_a_timestep_asked_can_be_drawn() -> None:
    interface = {"write_gates": np.float32([[0.1, 0.9]]), "read_modes": np.arange(10, dtype=np.float32)[None] / 10}
    assert unflatten("read_modes", interface["read_modes"][0], CONFIG).shape == (2, 5)
    panels = [axes for axes in heatmaps(interface, CONFIG, "x").axes if axes.get_title(loc="left")]
    assert [axes.get_xlabel() for axes in panels] == ["write head", "backward, forward, by content"]
    assert panels[0].images[0].get_array().shape == (1, 2)
