"""Pictures of a memory."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from dnc_serve.client.plotting import heatmaps, panel_of, save_heatmaps, side_by_side, terminal_picture, used_slots


@pytest.fixture
def dump() -> dict[str, "np.ndarray"]:
    """Two memories, two write heads."""
    random = np.random.default_rng(0)
    shapes = {"memory": (4, 3), "link_matrix": (2, 4, 4), "write_weights": (2, 4), "usage_vector": (4,)}
    arrays = {name: random.random((2, *shape), np.float32) for name, shape in shapes.items()}
    return arrays | {"read_vectors": random.standard_normal(6).astype(np.float32)}


def test_every_array_is_rows_and_columns(dump: dict[str, "np.ndarray"]) -> None:
    shapes = {name: panel_of(array[0]).shape for name, array in dump.items()}
    assert shapes == {
        "memory": (4, 3), "link_matrix": (4, 8), "write_weights": (2, 4), "usage_vector": (1, 4),
        "read_vectors": (1, 1),
    }  # fmt: skip
    links = dump["link_matrix"][0]
    np.testing.assert_array_equal(panel_of(links)[:, 4:], links[1])


def test_each_heatmap_says_what_it_is(dump: dict[str, "np.ndarray"]) -> None:
    figure = heatmaps(dump, "session x at position 3")
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in panels][:2] == ["memory 0", "memory 1"]
    assert len(panels) == 9
    assert all(axes.get_xlabel() for axes in panels)
    shares = next(axes for axes in panels if axes.get_title(loc="left") == "write_weights 0").images[0]
    assert shares.get_clim() == (0.0, 1.0)
    values = next(axes for axes in panels if axes.get_title(loc="left") == "read_vectors").images[0]
    assert values.get_clim()[0] == -values.get_clim()[1]


def test_nothing_collides_where_panels_are_low() -> None:
    """Labels of one-head strips and of their scales."""
    random = np.random.default_rng(1)
    heads = {name: random.random((1, 64), np.float32) for name in ("precedence", "read_weights", "write_weights")}
    figure = heatmaps({"memory": random.standard_normal((64, 16)), **heads, "write_gates": np.float32([0.5])}, "x")
    figure.draw_without_rendering()
    boxes = []
    for axes in figure.axes:
        labels = [axes.title, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            labels += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            labels += [tick.label2 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        boxes += [label.get_window_extent() for label in labels if label.get_visible() and label.get_text()]
        if axes.get_title(loc="left"):
            ticks = [*axes.get_xticks(), *axes.get_yticks()]
            assert all(float(tick).is_integer() for tick in ticks), "there is no half slot, and no half head"
        else:
            assert axes.get_window_extent().width >= 6, "a scale can be seen"
    assert len(boxes) > 30
    for place, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[place + 1 :])


def test_files_are_what_their_names_say(dump: dict[str, "np.ndarray"], tmp_path: Path) -> None:
    save_heatmaps(dump, tmp_path / "x.png", "x")
    save_heatmaps(dump, tmp_path / "x.svg", "x")
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
    interface = {
        "write_gates": np.float32([0.1, 0.9]),
        "read_modes": np.arange(10, dtype=np.float32).reshape(2, 5) / 10,
    }
    panels = [axes for axes in heatmaps(interface, "x").axes if axes.get_title(loc="left")]
    assert [axes.get_xlabel() for axes in panels] == ["write head", "backward, forward, by content"]
    assert panels[0].images[0].get_array().shape == (1, 2)
