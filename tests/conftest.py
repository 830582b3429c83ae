"""Options of the tests."""

import os

import pytest

# Tests reach servers of their own, and what they start inherits this; what a proxy changes is tested by setting one.
for variable in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[variable]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--chaos-kills",
        type=int,
        default=3,
        help="how often the chaos tests kill each server (default: 3); from 50 on, they also do all else at length",
    )
