"""What the programs write into the documentation, and how a long load is judged."""

import sys
from pathlib import Path
from typing import Any

import pytest

from bench.breakdown import REST, counted
from bench.compare import ECHO, OURS, TRITON, draw, judge
from bench.run import DOCUMENT, Run
from bench.servers import ROOT
from bench.soak import Callers, Look, moments_of
from bench.soak import judge as judge_soak
from dnc_serve.client.cli.load import Figures


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    (tmp_path / DOCUMENT).write_text("before\n<!-- measured: it -->\n\nold\n\n<!-- end: it -->\nafter\n")
    return tmp_path


@pytest.fixture
def argv(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "--docs", str(docs)])


def draw_it(folder: Path) -> dict[str, str]:
    (folder / "it.svg").write_text("<svg/>")
    return {"it.svg": "What it is"}


@pytest.mark.usefixtures("argv")
def test_a_section_gets_its_text_and_its_plots_and_nothing_else_changes(docs: Path) -> None:
    for text in ("first", "second"):
        with Run("it", None) as run:
            run.finish(text, {"a": 1}, draw_it)
    written = (docs / DOCUMENT).read_text()
    assert written.startswith("before\n<!-- measured: it -->\n")
    assert written.endswith("\n\nsecond\n\n![What it is](images/it.svg)\n\n<!-- end: it -->\nafter\n")
    assert "old" not in written and "first" not in written
    assert (docs / "images" / "it.svg").is_file()
    assert (docs / "performance-it.json").is_file()


@pytest.mark.usefixtures("argv")
def test_a_document_without_the_section_is_refused() -> None:
    with Run("other", None) as run, pytest.raises(ValueError, match="no section between <!-- measured: other -->"):
        run.finish("text", {})


def figures(rate: float) -> Figures:
    return Figures(calls=10, p50_ms=1000 / rate, p99_ms=1.0, timesteps_per_s=rate, server_us=100.0)


@pytest.mark.usefixtures("argv")
def test_the_comparison_judges_and_draws_without_peers_that_failed(tmp_path: Path) -> None:
    turns: list[dict[Any, Figures | None]] = [
        {(who, sessions, chunk): figures(rate) for sessions, chunk in ((1, 1), (64, 1), (64, 16))}
        for who, rate in ((OURS, 3000.0), (ECHO, 9000.0))
    ]
    turn = {**turns[0], **turns[1], (TRITON, 1, 1): figures(1000.0), (TRITON, 64, 1): None}
    with Run("it", None) as run:
        judge(run, [turn])
    assert [(ratio.value, ratio.verdict) for ratio in run.ratios] == [(pytest.approx(1 / 3), "")]
    plots = draw(turn, {(OURS, 16): figures(10.0), (TRITON, 16): None}, tmp_path)
    assert {file.name for file in tmp_path.glob("*.svg")} == set(plots)
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


@pytest.mark.usefixtures("argv")
@pytest.mark.parametrize(
    ("growth_mib", "refusals", "verdicts"),
    [(0, 0, ["", "", ""]), (1, 0, ["missed", "", ""]), (0, 1, ["", "", "missed"])],
)
def test_memory_that_grows_and_refusals_miss_their_aims(growth_mib: int, refusals: int, verdicts: list[str]) -> None:
    moments = moments_of(looks([100.0 + growth_mib * index for index in range(20)]))
    with Run("soak", None) as run:
        judge_soak(run, moments, Callers(calls=1000, sessions=5, refusals=refusals))
    assert [ratio.verdict for ratio in run.ratios] == verdicts


def test_an_interval_without_an_answer_counts_as_a_wait_of_its_length() -> None:
    first, second = looks([100.0] * 2)
    (moment,) = moments_of([second, Look(20.0, 100.0, second.metrics)])
    assert moment.p99_ms == pytest.approx(10_000)
    (answered,) = moments_of([first, second])
    assert answered.p99_ms <= 1.0
    assert answered.timesteps_per_s == pytest.approx(100)


def test_a_look_counts_for_the_innermost_function_of_ours() -> None:
    ours, library = f"{ROOT}/handler/engine/engine.py", f"{ROOT}/.venv/lib/site-packages/numpy/core.py"
    raw = (
        f"run (/usr/lib/threading.py:9);step (uvloop/loop.pyx:1);Engine.step ({ours}:7);sum ({library}:3) 4\n"
        "run (/usr/lib/threading.py:9);poll (grpc/aio.pyx:1) 2\n"
    )
    assert counted(raw) == {"handler/engine/engine.py: Engine.step": 4, REST: 2}
