"""What the programs write into the documentation, and how a long load is judged."""

from pathlib import Path

import pytest

from bench.plots import draw_comparison
from bench.report import DOCUMENT, finish
from bench.soak import Callers, Look, judged, moments_of
from dnc_serve.client.cli.measure.rounds import machine


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    (tmp_path / DOCUMENT).write_text("before\n<!-- measured: it -->\n\nold\n\n<!-- end: it -->\nafter\n")
    return tmp_path


def draw(folder: Path) -> dict[str, str]:
    (folder / "it.svg").write_text("<svg/>")
    return {"it.svg": "What it is"}


def test_a_section_gets_its_text_and_its_plots_and_nothing_else_changes(docs: Path) -> None:
    for text in ("first", "second"):
        finish("it", {"machine": machine(), "code": "auto"}, text, docs, draw)
    written = (docs / DOCUMENT).read_text()
    assert written.startswith("before\n<!-- measured: it -->\n")
    assert written.endswith("\n\nsecond\n\n![What it is](images/it.svg)\n\n<!-- end: it -->\nafter\n")
    assert "old" not in written and "first" not in written
    assert (docs / "images" / "it.svg").is_file()
    assert (docs / "performance-it.json").is_file()


def test_a_document_without_the_section_is_refused(docs: Path) -> None:
    with pytest.raises(ValueError, match="no section between <!-- measured: other -->"):
        finish("other", {"machine": machine(), "code": "auto"}, "text", docs)


def test_the_comparison_draws_a_plot_for_each_axis_without_peers_that_failed(tmp_path: Path) -> None:
    servers = [
        {"system": system, "sessions": sessions, "chunk": chunk, **figures}
        for sessions, chunk in ((1, 1), (64, 1), (64, 16))
        for system, figures in (("lives", {"timesteps_per_s": 1000.0 * sessions}), ("dies", {"failed": True}))
    ]
    by_cells = [{"nr_cells": cells, "timesteps_per_s": {"lives": 10_000 // cells}} for cells in (16, 64)]
    plots = draw_comparison({"servers": servers, "by_memory_slots": by_cells}, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == set(plots)
    assert len(plots) == 4


def looks(memory: list[float]) -> list[Look]:
    """A hundred chunks an interval, all within a millisecond."""
    return [
        Look(
            10.0 * index,
            rss_mib,
            {
                ("dnc_step_duration_seconds_count", ""): 100.0 * index,
                ("dnc_step_duration_seconds_bucket", "0.001"): 100.0 * index,
                ("dnc_step_duration_seconds_bucket", "+Inf"): 100.0 * index,
                ("dnc_timesteps_total", ""): 1000.0 * index,
                ("dnc_sessions", ""): 5.0,
            },
        )
        for index, rss_mib in enumerate(memory)
    ]


def test_memory_that_grows_and_refusals_miss_their_aims() -> None:
    callers = Callers(calls=1000, sessions=5, refusals=0)
    flat = judged(moments_of(looks([100.0] * 20)), callers)
    assert [ratio.reached for ratio in flat] == [True, True, True]
    growing = judged(moments_of(looks([100.0 + index for index in range(20)])), callers)
    assert [ratio.reached for ratio in growing] == [False, True, True]
    refused = judged(moments_of(looks([100.0] * 20)), Callers(calls=1000, sessions=5, refusals=1))
    assert [ratio.reached for ratio in refused] == [True, True, False]


def test_an_interval_without_an_answer_counts_as_a_wait_of_its_length() -> None:
    first, second = looks([100.0] * 2)
    (moment,) = moments_of([second, Look(20.0, 100.0, second.metrics)])
    assert moment.p99_ms == pytest.approx(10_000)
    (answered,) = moments_of([first, second])
    assert answered.p99_ms <= 1.0
    assert answered.timesteps_per_s == pytest.approx(100)
