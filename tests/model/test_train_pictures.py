"""The memory as pictures: the same heatmaps in Visdom, TensorBoard and PNG files."""

import csv
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dnc_serve.handler.runtime.probe import is_open
from dnc_serve.model.dnc import DNC
from dnc_serve.model.pictures import PngGallery, TensorBoardGallery, VisdomGallery, coloured, enlarged, heatmaps
from tests.ports import own_port
from tests.waiting import wait_until

NAMES = {"memory", "link_matrix", "precedence", "read_weights", "write_weights", "usage_vector"}
needs_visdom = pytest.mark.skipif(importlib.util.find_spec("visdom") is None, reason="visdom isn't installed")


@pytest.fixture(scope="module")
def pictures() -> dict[str, np.ndarray]:
    torch.manual_seed(1)
    model = DNC(4, 8, nr_cells=5, cell_size=3, read_heads=2)
    return heatmaps(model, torch.randn(6, 2, 4))


@pytest.fixture(scope="module")
def visdom_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A real Visdom server; its own command would download scripts first, `main` doesn't."""
    port = own_port()
    folder = tmp_path_factory.mktemp("visdom")
    start = [sys.executable, "-c", "from visdom.server.run_server import main; main()"]
    flags = ["-port", str(port), "-bind_local", "-env_path", str(folder)]
    server = subprocess.Popen([*start, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: is_open(f"127.0.0.1:{port}") or server.poll() is not None, "the Visdom server listens")
        assert server.poll() is None, "the Visdom server ended"
        yield port
    finally:
        server.terminate()
        server.wait()


def test_heatmaps_are_the_debug_table_of_the_first_sequence(pictures: dict[str, np.ndarray]) -> None:
    torch.manual_seed(1)
    model = DNC(4, 8, nr_cells=5, cell_size=3, read_heads=2, debug=True, batch_first=False)
    _, _, table = model(torch.randn(6, 2, 4))
    assert set(pictures) == NAMES
    for name, values in table.items():
        np.testing.assert_allclose(pictures[name], values, rtol=1e-5, atol=1e-7)


def test_png_files_show_every_value(tmp_path: Path, pictures: dict[str, np.ndarray]) -> None:
    with PngGallery(tmp_path / "png") as gallery:
        gallery.show(30, pictures)
    assert {path.name for path in (tmp_path / "png").iterdir()} == {f"0000030-{name}.png" for name in NAMES}
    usage = np.asarray(Image.open(tmp_path / "png" / "0000030-usage_vector.png"))
    assert usage.shape[0] >= 400 and usage.shape[1] >= 400
    height, width = usage.shape[0] // 6, usage.shape[1] // 5
    assert np.array_equal(usage[::height, ::width], coloured(pictures["usage_vector"]))


def test_colours_run_from_the_smallest_to_the_largest_value() -> None:
    pixels = coloured(np.array([[-2.0, 0.0, 2.0]], np.float32))
    assert pixels[0].tolist() == [[68, 1, 84], [33, 145, 140], [253, 231, 37]]
    assert len(np.unique(coloured(np.zeros((2, 2), np.float32)))) == 3  # one colour, and no division by zero
    assert enlarged(pixels, 7).shape == (7, 9, 3)


def test_tensorboard_has_the_images(tmp_path: Path, pictures: dict[str, np.ndarray]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with TensorBoardGallery(tmp_path) as gallery:
        gallery.show(10, pictures)
        gallery.show(20, pictures)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["images"]) == {f"memory/{name}" for name in NAMES}
    image = events.Images("memory/memory")[-1]
    assert (image.step, image.height, image.width) == (20, 6, 15)


@needs_visdom
def test_a_real_visdom_server_has_the_heatmaps(visdom_port: int, pictures: dict[str, np.ndarray]) -> None:
    import json

    import visdom

    with VisdomGallery("http://localhost", visdom_port) as gallery:
        gallery.show(10, pictures)
        gallery.show(20, pictures)
    client = visdom.Visdom(port=visdom_port, use_incoming_socket=False)
    windows = json.loads(client.get_window_data())
    assert set(windows) == NAMES
    content = windows["usage_vector"]["content"]
    assert content["data"][0]["type"] == "heatmap"
    np.testing.assert_allclose(content["data"][0]["z"], pictures["usage_vector"], rtol=1e-5)
    assert windows["usage_vector"]["title"] == "usage_vector, iteration 20"


@needs_visdom
def test_without_a_visdom_server_the_error_says_where_it_looked() -> None:
    port = own_port()
    with pytest.raises(ConnectionError, match=f"no Visdom server answers at http://localhost:{port}"):
        VisdomGallery("http://localhost", port)


def test_without_visdom_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "visdom", None)  # as if it weren't installed
    with pytest.raises(ModuleNotFoundError, match="pip install --no-build-isolation"):
        VisdomGallery()


def test_mlflow_has_parameters_curves_and_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlflow'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # its other local store takes packages more
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    run = tmp_path / "run"
    options = ["--iterations", "3", "--task-option", "max_length=3", "--pictures-every", "2"]
    command = [
        sys.executable,
        "-m",
        "dnc_serve.client.cli",
        "train",
        "copy",
        "-o",
        str(run),
        *options,
        "--log",
        "mlflow",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    from mlflow import MlflowClient

    client = MlflowClient()
    [kept] = client.search_runs(["0"])
    assert (kept.info.run_name, kept.info.status) == ("run", "FINISHED")
    assert {"task": "copy", "iterations": "3", "task.max_length": "3"}.items() <= kept.data.params.items()
    losses = [float(row["loss"]) for row in csv.DictReader((run / "metrics.csv").open())]
    history = sorted((point.step, point.value) for point in client.get_metric_history(kept.info.run_id, "loss"))
    assert history == [(number, pytest.approx(loss, rel=1e-4)) for number, loss in enumerate(losses)]
    images = [Path(file.path).name for file in client.list_artifacts(kept.info.run_id, "memory")]
    assert set(images) == {f"000000{number}-{name}.png" for name in NAMES for number in (0, 2)}
