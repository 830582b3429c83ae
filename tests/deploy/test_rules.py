"""The rules are valid, their own unit tests pass, and each alert is explained in the runbook."""

import re
import subprocess

import pytest

from tests.deploy.observed import DEPLOY, MINUTE_S, alerts, hurried, rules
from tests.programs import program

PROMETHEUS = DEPLOY / "prometheus"
RUNBOOK = DEPLOY.parent / "docs" / "runbook.md"


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "--lint=all", "--lint-fatal", "rules.yml"],
        ["test", "rules", "rules_test.yml"],
    ],
    ids=lambda arguments: "-".join(arguments[:2]),
)
def test_promtool_is_content(arguments: list[str]) -> None:
    done = subprocess.run([program("promtool"), *arguments], cwd=PROMETHEUS, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_unit_test() -> None:
    tested = set(re.findall(r"alertname[:=] ?\"?(\w+)", (PROMETHEUS / "rules_test.yml").read_text()))
    assert tested == set(alerts())


def test_each_alert_has_its_section_in_the_runbook_and_each_section_its_alert() -> None:
    sections = re.findall(r"^### (Dnc\w+)$", RUNBOOK.read_text(), re.MULTILINE)
    assert sorted(sections) == sorted(alerts())
    # The table on top says the same severity as the rule.
    table = dict(re.findall(r"^\| \[(Dnc\w+)\]\(#\w+\) \| (\w+) \|", RUNBOOK.read_text(), re.MULTILINE))
    assert table == {rule["alert"]: rule["labels"]["severity"] for rule in rules() if "alert" in rule}
    for rule in rules():
        if "alert" in rule:
            # GitHub makes a heading's anchor of its small letters.
            assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"
            assert rule["annotations"]["summary"]
            assert rule["annotations"]["description"]
            assert rule["labels"]["severity"] in ("critical", "warning", "info")


def test_the_hurried_copy_differs_in_durations_alone() -> None:
    deployed = (PROMETHEUS / "rules.yml").read_text()
    assert not re.search(r"(for: |\[|offset )\d+[mh]", hurried(deployed))
    slowed = re.sub(
        r"(for: |\[|offset )(\d+)s", lambda found: f"{found[1]}{int(found[2]) // MINUTE_S}m", hurried(deployed)
    )
    assert slowed == deployed
