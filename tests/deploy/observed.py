"""A real Prometheus that watches servers in this process, and the expressions that it is to answer.

In the copy of the rules that it evaluates a minute is two seconds; scrapes and evaluations come every second instead
of every 15 s. Nothing else differs from what is deployed.
"""

import json
import math
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from deploy.grafana.generate import FILE as DASHBOARD
from tests.ports import own_port
from tests.programs import program
from tests.waiting import PATIENCE_S, wait_until

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
STEP = "1s"
MINUTE_S = 2
ALERT_PATIENCE_S = 600.0  # on a busy machine, scrapes that come too late let an alert wait anew


def rules() -> list[dict[str, Any]]:
    """All recording and alerting rules."""
    groups: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> list[str]:
    """The names of all alerts."""
    return [rule["alert"] for rule in rules() if "alert" in rule]


def dashboard_expressions() -> Iterator[tuple[str, str]]:
    """The title of each panel with each of its expressions, as they stand in the dashboard."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def as_grafana_asks(expression: str) -> str:
    """The expression with Grafana's variables filled in, for all servers."""
    filled = expression.replace("$__rate_interval", "8s").replace("$job", ".*").replace("$instance", ".*")
    assert "$" not in filled, expression
    return filled


class Prometheus:
    """A running Prometheus: asked over its API, told of servers through a file."""

    def __init__(self, url: str, targets: Path) -> None:
        self.url = url
        self._targets = targets

    def watch(self, *addresses: str) -> None:
        """Scrapes the servers whose metrics are at these addresses, and no others."""
        beside = self._targets.with_suffix(".new")
        beside.write_text(json.dumps([{"targets": list(addresses)}]))
        beside.replace(self._targets)

    def values(self, expression: str) -> list[float]:
        """What an expression gives now; NaN, which dashboards show as a gap, is left out."""
        answer = self._get("query", query=expression)
        series = answer["data"]["result"]
        return [value for one in series if not math.isnan(value := float(one["value"][1]))]

    def firing(self) -> set[str]:
        """The names of the alerts that fire."""
        answer = self._get("alerts")
        return {alert["labels"]["alertname"] for alert in answer["data"]["alerts"] if alert["state"] == "firing"}

    def await_values(self, expressions: dict[str, str]) -> None:
        """Returns when each expression has given data; fails naming those that have not."""
        left = dict(expressions)

        def all_have() -> bool:
            for name in [name for name, expression in left.items() if self.values(expression)]:
                del left[name]
            return not left

        wait_until(all_have, left)

    def fired(self) -> set[str]:
        """The names of the alerts that fire or fired before."""
        answer = self._get("query", query='max_over_time(ALERTS{alertstate="firing"}[10m])')
        return {series["metric"]["alertname"] for series in answer["data"]["result"]}

    def await_fired(self, alert: str) -> None:
        """Returns when the alert has fired; one whose fault happens once may be over by now."""
        wait_until(lambda: alert in self.fired(), f"{alert} fires", ALERT_PATIENCE_S)

    def _get(self, path: str, **query: str) -> dict[str, Any]:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
            answer: dict[str, Any] = json.load(response)
        assert answer["status"] == "success", answer
        return answer


@contextmanager
def prometheus(folder: Path) -> Iterator[Prometheus]:
    """A Prometheus with the rules in which a minute is two seconds."""
    (folder / "rules.yml").write_text(hurried(RULES.read_text()))
    targets = folder / "targets.json"
    targets.write_text("[]")
    config = {
        "global": {"scrape_interval": STEP, "scrape_timeout": STEP, "evaluation_interval": STEP},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": "dnc", "file_sd_configs": [{"files": [targets.name]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = own_port()
    command = [
        program("prometheus"), f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
    ]  # fmt: skip
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _answers(f"{url}/-/ready") or process.poll() is not None, "Prometheus is ready")
        assert process.poll() is None, (folder / "prometheus.log").read_text()
        yield Prometheus(url, targets)
    finally:
        process.terminate()
        try:
            process.wait(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=PATIENCE_S)


def hurried(text: str) -> str:
    """The rules with all durations shortened; in the names of recorded series nothing changes."""
    return re.sub(r"(\[|offset |for: )(\d+)m\b", lambda found: f"{found[1]}{MINUTE_S * int(found[2])}s", text)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE_S):
            return True
    except OSError:
        return False
