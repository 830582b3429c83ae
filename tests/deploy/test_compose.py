"""The compose file names files that are there, ports that are meant, and settings that the server knows."""

from typing import Any

import pytest
import yaml

from dnc_serve.handler.config import ServeConfig
from tests.deploy.observed import DEPLOY

ROOT = DEPLOY.parent


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    return found


def test_all_that_is_mounted_is_there(services: dict[str, Any]) -> None:
    volumes = yaml.safe_load((ROOT / "compose.yaml").read_text())["volumes"]
    for service in services.values():
        for mount in service["volumes"]:
            source = mount.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in volumes, source


def test_nothing_is_published_beyond_this_machine(services: dict[str, Any]) -> None:
    for service in services.values():
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:"), port


def test_the_server_gets_settings_that_it_knows_and_the_time_that_it_needs(services: dict[str, Any]) -> None:
    server = services["dnc"]
    names = {name.removeprefix("DNC_").lower() for name in server["environment"]}
    assert names <= set(ServeConfig.model_fields)
    grace_s = float(server["environment"]["DNC_GRACE_S"])
    assert float(server["stop_grace_period"].removesuffix("s")) > grace_s
    assert (ROOT / server["build"] / "Dockerfile").is_file()


def test_prometheus_finds_the_server_and_grafana_finds_prometheus(services: dict[str, Any]) -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    [job] = config["scrape_configs"]
    assert job["job_name"] == "dnc"  # what the rules say
    metrics_port = ServeConfig.model_fields["metrics_port"].default
    assert job["static_configs"] == [{"targets": [f"dnc:{metrics_port}"]}]
    assert "dnc" in services
    provisioning = DEPLOY / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    [provider] = yaml.safe_load((provisioning / "dashboards" / "dnc.yml").read_text())["providers"]
    assert any(provider["options"]["path"] in mount for mount in services["grafana"]["volumes"])
