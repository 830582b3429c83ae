"""The dashboard that is checked in is the one that its source makes, and asks only for metrics that servers have."""

import json
import re

from deploy.grafana.generate import FILE, rendered
from dnc_serve.handler.metrics import Metrics
from tests.deploy.observed import dashboard_expressions


def test_the_dashboard_is_what_its_source_makes() -> None:
    assert FILE.read_text() == rendered(), "run python deploy/grafana/generate.py"


def test_panels_explain_themselves() -> None:
    panels = [panel for panel in json.loads(FILE.read_text())["panels"] if panel["type"] != "row"]
    assert len(panels) > 20
    for panel in panels:
        assert panel["description"], panel["title"]
        assert panel["targets"], panel["title"]
    ids = [panel["id"] for panel in panels]
    assert len(set(ids)) == len(ids)


def test_every_metric_is_one_that_servers_have_and_every_one_is_shown() -> None:
    shown = {
        re.sub(r"_(bucket|count|sum|total)$", "", name)
        for _, expression in dashboard_expressions()
        for name in re.findall(r"dnc_[a-z_]+", expression)
    }
    ours = {family.name for family in Metrics().registry.collect() if family.name.startswith("dnc_")}
    assert shown == ours
