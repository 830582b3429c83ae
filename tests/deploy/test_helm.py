"""The Helm chart renders what kustomize renders, and differs from it only where its values say so."""

import tomllib
from copy import deepcopy
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml
from helm_python import chart as charts

from tests.deploy.observed import DEPLOY
from tests.deploy.test_kubernetes import Manifest, only, pod, rendered, server_config
from tests.documents import block

CHART = DEPLOY / "helm" / "dnc-serve"
SECRETS = {"tls": {"secret": "dnc-tls"}, "store": {"secret": "dnc-store"}}
HELMS = ("app.kubernetes.io/instance", "app.kubernetes.io/managed-by")
# What to say to the chart for what each kustomization is.
SAYS: dict[str, dict[str, Any]] = {"base": {}, "overlays/cpu": SECRETS, "overlays/gpu": {**SECRETS, "gpu": True}}


def templated(values: dict[str, Any], chart: Path = CHART) -> list[Manifest]:
    """All objects that the chart makes of the values."""
    with helm_python.Chart.load(chart) as loaded:
        loaded.validate_schema(values)
        files = loaded.render(values=values, name="any", namespace="dnc")
    return [manifest for text in files.values() for manifest in yaml.safe_load_all(text) if manifest]


def by_name(manifests: list[Manifest]) -> dict[tuple[str, str], Manifest]:
    """Without what is each tool's own: the hash or the sum by which other settings roll the servers, and marks."""
    objects = {}
    for manifest in deepcopy(manifests):
        metadata = manifest["metadata"]
        metadata.pop("namespace", None)
        # Kustomize labels the resources of its base, the chart all of them.
        labels = {"app.kubernetes.io/name": "dnc-serve", **metadata.pop("labels", {})}
        metadata["labels"] = {name: labels[name] for name in labels if name not in HELMS}
        if manifest["kind"] == "ConfigMap":
            metadata["name"] = metadata["name"].partition("-")[0]
        if manifest["kind"] == "StatefulSet":
            [container] = pod([manifest])["spec"]["containers"]
            container.pop("imagePullPolicy", None)
            container["envFrom"][0]["configMapRef"]["name"] = "dnc"
            pod([manifest])["metadata"]["annotations"].pop("checksum/settings", None)
        objects[manifest["kind"], metadata["name"]] = manifest
    return objects


@pytest.mark.parametrize("variant", SAYS)
def test_the_chart_says_what_the_kustomization_says(variant: str) -> None:
    assert by_name(templated(SAYS[variant])) == by_name(rendered(variant))


@pytest.mark.parametrize("variant", SAYS)
def test_helm_finds_no_fault(variant: str) -> None:
    report = charts.lint(CHART, SAYS[variant], strict=True)
    assert not report["errors"]
    assert [one["error"] for one in report["messages"] if one["severity"] > 1] == []


def test_a_packaged_chart_is_whole(tmp_path: Path) -> None:
    with helm_python.Chart.load(CHART) as loaded:
        archive = loaded.save(tmp_path)
    assert templated(SECRETS, Path(archive)) == templated(SECRETS)


def test_versions_are_the_package_s() -> None:
    version = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    image = pod(templated({}))["spec"]["containers"][0]["image"]
    assert {chart["version"], chart["appVersion"], image.rpartition(":")[2]} == {version}


def test_each_value_is_heeded() -> None:
    values = {
        "image": {
            "repository": "r.example/mine",
            "tag": "7",
            "pullPolicy": "Always",
            "pullSecrets": [{"name": "pull"}],
        },
        "settings": {"model": "/models/mine", "host_bytes": 4194304, "idle_timeout_s": 60.5},
        "durability": "sync",
        "tokens": {"secret": "my-tokens"},
        "tls": {"secret": "my-tls"},
        "store": {"secret": "my-store", "key": "redis"},
        "autoscaler": {"maxReplicas": 5},
        "resources": {"requests": {"cpu": "7"}, "limits": {"memory": "9Gi"}},
        "nodeSelector": {"pool": "ours"},
        "tolerations": [{"operator": "Exists"}],
        "volume": {"size": "7Gi", "storageClass": "fast"},
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}, "interval": "5s"},
    }
    manifests = templated(values)
    for manifest in manifests:
        if manifest["kind"] != "ServiceMonitor":  # the operator's own
            kubernetes_validate.validate(manifest, "1.37", strict=True)
    config = server_config(manifests)
    assert (config.model, int(config.host_bytes), config.durability) == (("/models/mine",), 4194304, "sync")
    assert config.idle_timeout_s == 60.5
    spec = pod(manifests)["spec"]
    [container] = spec["containers"]
    assert (container["image"], container["imagePullPolicy"]) == ("r.example/mine:7", "Always")
    assert spec["imagePullSecrets"] == [{"name": "pull"}]
    secrets = {volume["name"]: volume["secret"]["secretName"] for volume in spec["volumes"] if "secret" in volume}
    assert secrets == {"tokens": "my-tokens", "tls": "my-tls"}
    [store] = [entry for entry in container["env"] if entry["name"] == "DNC_STORE"]
    assert store["valueFrom"] == {"secretKeyRef": {"name": "my-store", "key": "redis"}}
    assert container["resources"] == {"requests": {"cpu": "7", "memory": "2Gi"}, "limits": {"memory": "9Gi"}}
    assert spec["nodeSelector"] == {"kubernetes.io/arch": "amd64", "pool": "ours"}
    assert spec["tolerations"] == [{"operator": "Exists"}]
    [claim] = only(manifests, "StatefulSet")["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["resources"]["requests"]["storage"] == "7Gi"
    assert claim["spec"]["storageClassName"] == "fast"
    scaled = only(manifests, "HorizontalPodAutoscaler")["spec"]
    assert (scaled["minReplicas"], scaled["maxReplicas"]) == (3, 5)
    monitor = only(manifests, "ServiceMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["endpoints"] == [{"port": "metrics", "interval": "5s"}]
    service = only(manifests, "Service", "dnc-servers")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert "release" not in service["metadata"]["labels"]
    assert not [name for name in pod(manifests)["metadata"]["annotations"] if name.startswith("prometheus.io/")]


def test_the_values_of_the_page_are_what_it_says() -> None:
    values = yaml.safe_load(block("docs/deploy.md", "yaml", "serviceMonitor:"))
    config = server_config(templated(values))
    assert (config.durability, config.max_sessions, config.idle_timeout_s) == ("sync", 1_000_000, 86_400)
    differs = {
        kind
        for (kind, name), manifest in by_name(templated(values)).items()
        if manifest != by_name(rendered("overlays/cpu")).get((kind, name))
    }
    assert differs == {"ConfigMap", "HorizontalPodAutoscaler", "StatefulSet", "ServiceMonitor"}


def test_other_settings_roll_the_servers() -> None:
    sums = [pod(templated({"settings": {"slots": slots}}))["metadata"]["annotations"] for slots in (7, 8)]
    assert sums[0] != sums[1]


def test_a_number_of_servers_takes_the_autoscaler_s_place() -> None:
    manifests = templated({**SECRETS, "replicas": 5})
    assert only(manifests, "StatefulSet")["spec"]["replicas"] == 5
    assert not [manifest for manifest in manifests if manifest["kind"] == "HorizontalPodAutoscaler"]


def test_a_gpu_stays_asked_for_beside_other_resources() -> None:
    values = {"gpu": True, "resources": {"limits": {"memory": "9Gi"}}, "tolerations": [{"key": "x"}]}
    spec = pod(templated(values))["spec"]
    assert spec["containers"][0]["resources"]["limits"] == {"memory": "9Gi", "nvidia.com/gpu": "1"}
    assert [one["key"] for one in spec["tolerations"]] == ["nvidia.com/gpu", "x"]


def test_what_is_not_wanted_is_left_out() -> None:
    kinds = {
        manifest["kind"] for manifest in templated({**SECRETS, "networkPolicy": False, "podDisruptionBudget": False})
    }
    assert kinds == {"ConfigMap", "Service", "StatefulSet", "HorizontalPodAutoscaler"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"replicas": 2}, "replicas is 2 without store.secret; expected at most 1"),
        ({"durability": "never"}, "durability"),
        ({"replica": 2}, "replica"),
        ({"settings": {"DNC_SLOTS": 2}}, "DNC_SLOTS"),
    ],
)
def test_what_can_not_be_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(helm_python.HelmError, match=said):
        templated(values)
