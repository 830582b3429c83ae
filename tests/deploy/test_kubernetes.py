"""The manifests are valid, fit each other, and set what the server knows."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from dnc_serve.handler.api.access import TokenFile
from dnc_serve.handler.config import ServeConfig
from tests.deploy.observed import DEPLOY, rules

KUBERNETES = DEPLOY / "kubernetes"
VARIANTS = ("base", "overlays/cpu", "overlays/gpu")
# Needed for nothing but their presence: what Kubernetes would put in their place is not at hand here.
PLACEHOLDERS = {"DNC_STORE": "redis://redis:6379/0"}

Manifest = dict[str, Any]


def rendered(variant: str) -> list[Manifest]:
    """All resources of a variant, as they would be applied."""
    # The development environment has a kubectl of its own.
    kubectl = shutil.which("kubectl", path=str(Path(sys.executable).parent)) or "kubectl"
    done = subprocess.run(
        [kubectl, "kustomize", str(KUBERNETES / variant)], capture_output=True, text=True, timeout=60
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module", params=VARIANTS)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return rendered(request.param)


def only(manifests: list[Manifest], kind: str, name: str | None = None) -> Manifest:
    [found] = [
        manifest
        for manifest in manifests
        if manifest["kind"] == kind and name in (None, manifest["metadata"]["name"])
    ]  # fmt: skip
    return found


def pod(manifests: list[Manifest]) -> Manifest:
    template: Manifest = only(manifests, "StatefulSet")["spec"]["template"]
    return template


def environment(manifests: list[Manifest]) -> dict[str, str]:
    """The variables of the server, those of fields and secrets filled in."""
    [container] = pod(manifests)["spec"]["containers"]
    [source] = container["envFrom"]
    variables: dict[str, str] = dict(only(manifests, "ConfigMap", source["configMapRef"]["name"])["data"])
    variables |= {"POD_NAME": "dnc-0", "POD_NAMESPACE": "dnc"}
    for entry in container["env"]:
        if "value" in entry:
            value = entry["value"]
            for name in ("POD_NAME", "POD_NAMESPACE"):
                value = value.replace(f"$({name})", variables[name])
            variables[entry["name"]] = value
        elif "secretKeyRef" in entry["valueFrom"]:
            variables[entry["name"]] = PLACEHOLDERS[entry["name"]]
    return variables


def server_config(manifests: list[Manifest]) -> ServeConfig:
    settings = {
        name.removeprefix("DNC_").lower(): value
        for name, value in environment(manifests).items()
        if name.startswith("DNC_")
    }
    return ServeConfig(**settings)


def test_each_resource_is_valid(manifests: list[Manifest]) -> None:
    assert manifests
    for manifest in manifests:
        kubernetes_validate.validate(manifest, "1.37", strict=True)


def test_the_server_accepts_its_settings(manifests: list[Manifest]) -> None:
    config = server_config(manifests)
    assert config.advertise == "dnc-0.dnc-servers.dnc.svc:8500"
    assert str(config.state_dir) == "/var/lib/dnc"
    assert config.tokens
    # A Service named dnc would otherwise set DNC_PORT to tcp://….
    assert pod(manifests)["spec"]["enableServiceLinks"] is False


def test_the_grace_period_holds_the_wait_and_the_drain(manifests: list[Manifest]) -> None:
    spec = pod(manifests)["spec"]
    wait_s = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert wait_s > 0
    assert spec["terminationGracePeriodSeconds"] >= wait_s + server_config(manifests).grace_s + 5
    # The alert must not fire in a drain that goes as it should.
    [rule] = [rule for rule in rules() if rule.get("alert") == "DncDrainingStuck"]
    assert int(rule["for"].removesuffix("m")) * 60 > spec["terminationGracePeriodSeconds"]


def test_the_pod_may_do_nothing_that_it_need_not(manifests: list[Manifest]) -> None:
    spec = pod(manifests)["spec"]
    [container] = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in container["resources"]["limits"]


def test_all_that_is_mounted_is_there_and_all_that_is_written_to_is_mounted(manifests: list[Manifest]) -> None:
    stateful_set = only(manifests, "StatefulSet")
    spec = pod(manifests)["spec"]
    volumes = {volume["name"] for volume in spec["volumes"]}
    volumes |= {claim["metadata"]["name"] for claim in stateful_set["spec"]["volumeClaimTemplates"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
    assert set(mounts) == volumes
    config = server_config(manifests)
    assert {"/tmp", str(config.state_dir)} <= set(mounts.values())
    for file in (config.tokens, config.tls_certificate, config.tls_key):
        assert not file or str(Path(file).parent) in mounts.values()


def test_selectors_meet_the_servers_and_nobody_else(manifests: list[Manifest]) -> None:
    labels = pod(manifests)["metadata"]["labels"]
    chosen = [only(manifests, "StatefulSet")["spec"]["selector"]["matchLabels"]]
    chosen += [manifest["spec"]["selector"] for manifest in manifests if manifest["kind"] == "Service"]
    chosen.append(only(manifests, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"])
    policies = [manifest["spec"] for manifest in manifests if manifest["kind"] == "NetworkPolicy"]
    chosen += [policy["podSelector"]["matchLabels"] for policy in policies]
    for selector in chosen:
        assert selector
        assert selector.items() <= labels.items()
    # The other end of each rule is somebody else: kustomize could have put our label on it.
    peers = [
        peer
        for policy in policies
        for rule in policy.get("ingress", []) + policy.get("egress", [])
        for peer in rule.get("from", []) + rule.get("to", [])
    ]
    assert peers
    for peer in peers:
        for selector in peer.values():
            assert not labels.items() & selector["matchLabels"].items()


def test_services_reach_ports_that_the_server_opens(manifests: list[Manifest]) -> None:
    config = server_config(manifests)
    [container] = pod(manifests)["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": config.port, "metrics": config.metrics_port}
    for manifest in manifests:
        if manifest["kind"] == "Service":
            for port in manifest["spec"]["ports"]:
                assert port["port"] == ports[port["targetPort"]]
    assert only(manifests, "StatefulSet")["spec"]["serviceName"] == "dnc-servers"


def test_probes_ask_for_the_health_of_the_door(manifests: list[Manifest]) -> None:
    [container] = pod(manifests)["spec"]["containers"]
    tls = bool(server_config(manifests).tls_certificate)
    for name in ("startupProbe", "readinessProbe"):
        probe = container[name]
        if tls:  # the kubelet's own gRPC probe speaks no TLS
            assert probe["exec"]["command"][:4] == ["dnc", "health", "--target", "localhost:8500"]
        else:
            assert probe["grpc"] == {"port": 8500, "service": "dnc.v1.DncService"}
    assert "livenessProbe" in container


@pytest.mark.parametrize("variant", ["overlays/cpu", "overlays/gpu"])
def test_several_servers_share_a_store_and_scale_on_a_recorded_metric(variant: str) -> None:
    manifests = rendered(variant)
    config = server_config(manifests)
    assert config.store.startswith("redis")
    assert not config.insecure
    assert "replicas" not in only(manifests, "StatefulSet")["spec"]
    autoscaler = only(manifests, "HorizontalPodAutoscaler")["spec"]
    assert autoscaler["scaleTargetRef"]["name"] == only(manifests, "StatefulSet")["metadata"]["name"]
    assert autoscaler["minReplicas"] > 1
    [adapted] = yaml.safe_load((KUBERNETES / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    [metric] = autoscaler["metrics"]
    assert metric["pods"]["metric"]["name"] == adapted["name"]["as"]
    assert adapted["seriesQuery"].partition("{")[0] in {rule.get("record") for rule in rules()}


def test_one_server_alone_keeps_its_sessions_on_its_disk() -> None:
    manifests = rendered("base")
    assert server_config(manifests).store == "sqlite"
    assert only(manifests, "StatefulSet")["spec"]["replicas"] == 1


def test_a_gpu_server_asks_for_one_gpu() -> None:
    manifests = rendered("overlays/gpu")
    [container] = pod(manifests)["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["image"].endswith("-gpu")
    assert server_config(manifests).device == "cuda"


def test_the_example_of_tokens_is_one_that_the_server_reads() -> None:
    secret = yaml.safe_load((KUBERNETES / "base" / "tokens.example.yaml").read_text())
    kubernetes_validate.validate(secret, "1.37", strict=True)
    assert secret["metadata"]["name"] == pod(rendered("base"))["spec"]["volumes"][0]["secret"]["secretName"]
    [token] = TokenFile(**tomllib.loads(secret["stringData"]["tokens.toml"])).token
    assert token.name == "ward-3"
