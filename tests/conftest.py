"""The environment that tests have; what is left out of a run, and that it is told at its end."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.histories.checker import check
from tests.histories.operations import read
from tests.histories.recorder import recorded

LONG = "takes long: `make test-long` runs it"

# The same examples in each run, and none that the machine's speed decides.
settings.register_profile("tests", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "long" in config.option.markexpr:
        return
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason=LONG))


# A developer's shell may hold settings of other servers, and a proxy that doesn't lead to this machine. Here, because
# prometheus_client decides when it is imported.
for _name in [*os.environ]:
    if _name.startswith(("DNC_", "TS_", "PROMETHEUS_", "prometheus_")) or _name.lower().endswith("_proxy"):
        del os.environ[_name]


@pytest.fixture(autouse=True)
def denormals_as_they_were() -> Iterator[None]:
    """Who steps sessions flushes denormal numbers in this thread, which hypothesis refuses to work with."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def history(tmp_path: Path) -> Iterator[None]:
    """Records what clients of this process are answered meanwhile; in the end, an order must explain all of it."""
    path = tmp_path / "history.jsonl"
    with recorded(path):
        yield
    operations = read(path)
    assert operations
    faults = check(operations)
    assert not faults, f"python -m tests.histories check {path} shows why:\n{faults[0]}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", ())
        if isinstance(report.longrepr, tuple)
    )
    if reasons:
        terminalreporter.section("left out")
        for reason, count in sorted(reasons.items()):
            terminalreporter.line(f"{count} {'test' if count == 1 else 'tests'}: {reason}")
