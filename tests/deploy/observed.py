"""A real Prometheus that watches servers in this process, and the expressions that it is to answer.

In the copy of the rules that it evaluates a minute is a second; scrapes and evaluations come every 500 ms instead of
every 15 s. Nothing else differs from what is deployed.
"""

import json
import math
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from deploy.grafana.generate import FILE as DASHBOARD
from dnc_serve.handler.torchserve.ports import free_port
from tests.programs import program

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
STEP = "500ms"
POLL_SECONDS = 0.25


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
    filled = expression.replace("$__rate_interval", "4s").replace("$job", ".*").replace("$instance", ".*")
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

    def await_values(self, expressions: dict[str, str], timeout_s: float) -> None:
        """Returns when each expression has given data; fails naming those that have not in time."""
        left = dict(expressions)
        deadline = time.monotonic() + timeout_s
        while left:
            left = {name: expression for name, expression in left.items() if not self.values(expression)}
            if left:
                assert time.monotonic() < deadline, f"no data for {left}"
                time.sleep(POLL_SECONDS)

    def fired(self) -> set[str]:
        """The names of the alerts that fire or fired before."""
        answer = self._get("query", query='max_over_time(ALERTS{alertstate="firing"}[10m])')
        return {series["metric"]["alertname"] for series in answer["data"]["result"]}

    def await_fired(self, alert: str, timeout_s: float) -> None:
        """Returns when the alert has fired; one whose fault happens once may be over by now."""
        deadline = time.monotonic() + timeout_s
        while alert not in (fired := self.fired()):
            assert time.monotonic() < deadline, f"{alert} did not fire; fired: {sorted(fired)}"
            time.sleep(POLL_SECONDS)

    def _get(self, path: str, **query: str) -> dict[str, Any]:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as response:
            answer: dict[str, Any] = json.load(response)
        assert answer["status"] == "success", answer
        return answer


@contextmanager
def prometheus(folder: Path) -> Iterator[Prometheus]:
    """A Prometheus on a free port, with the rules in which a minute is a second."""
    (folder / "rules.yml").write_text(minutes_as_seconds(RULES.read_text()))
    targets = folder / "targets.json"
    targets.write_text("[]")
    config = {
        "global": {"scrape_interval": STEP, "scrape_timeout": STEP, "evaluation_interval": STEP},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": "dnc", "file_sd_configs": [{"files": [targets.name]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [
        program("prometheus"), f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
    ]  # fmt: skip
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        url = f"http://127.0.0.1:{port}"
        _await_ready(f"{url}/-/ready", process, folder / "prometheus.log")
        yield Prometheus(url, targets)
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=10)


def minutes_as_seconds(text: str) -> str:
    """The rules with each duration of n minutes as n seconds; in the names of recorded series nothing changes."""
    return re.sub(r"(\[|offset |for: )(\d+)m\b", r"\1\2s", text)


def _await_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
