"""Options of the tests, and the environment that they have."""

import os

import pytest

# A developer's shell may hold settings of other servers, and a proxy that doesn't lead to this machine. Here, because
# prometheus_client decides when it is imported.
for _name in [*os.environ]:
    if _name.startswith(("DNC_", "TS_", "PROMETHEUS_", "prometheus_")) or _name.lower().endswith("_proxy"):
        del os.environ[_name]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--chaos-kills",
        type=int,
        default=3,
        help="how often the chaos tests kill each server (default: 3); from 50 on, they also do all else at length",
    )
