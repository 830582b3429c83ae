"""What the pages name is there."""

import re
from pathlib import Path

import pytest

from dnc_serve.handler.config import ServeConfig, flag
from tests.deploy.observed import DEPLOY

DOCS = DEPLOY.parent / "docs"
PAGES = ("deploy.md", "runbook.md", "scale.md")


@pytest.mark.parametrize("page", PAGES)
def test_paths_and_settings_exist(page: str) -> None:
    text = (DOCS / page).read_text()
    for path in re.findall(r"(?:tests/)?deploy/[\w./-]+[\w]", text):
        assert (DEPLOY.parent / path).exists(), path
    flags = {flag(name) for name in ServeConfig.model_fields}
    for name in re.findall(r"`(--[a-z-]+)`", text):
        assert name in flags | {"--stop-timeout"}, name
    for name in re.findall(r"\bDNC_[A-Z_]+[A-Z]", text):
        is_clients = name == "DNC_TARGET"
        assert is_clients or name.removeprefix("DNC_").lower() in ServeConfig.model_fields, name


@pytest.mark.parametrize("page", PAGES)
def test_links_within_lead_to_a_heading(page: str) -> None:
    for target, anchor in re.findall(r"\]\(((?:\w+\.md)?)#([\w-]+)\)", (DOCS / page).read_text()):
        assert anchor in anchors(DOCS / (target or page)), anchor


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
