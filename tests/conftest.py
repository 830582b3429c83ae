"""Options of the tests."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--chaos-kills",
        type=int,
        default=3,
        help="how often the chaos tests kill each server (default: 3); from 50 on, they also do all else at length",
    )
