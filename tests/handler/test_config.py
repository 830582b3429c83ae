"""What a setting may be, and what fits together."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from dnc_serve.handler.config import PORTS, ServeConfig, default_state_dir


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_class_itself_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dnc.toml").write_text("slots = 5\n")
    monkeypatch.setenv("DNC_SLOTS", "2")
    assert ServeConfig().slots == 256


def test_every_setting_is_described() -> None:
    for name, field in ServeConfig.model_fields.items():
        assert field.description, name
    assert len(PORTS) == 8


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
def test_a_door_that_others_reach_is_protected_or_meant_to_be_open(host: str) -> None:
    tls = {"tls_certificate": "c.pem", "tls_key": "k.pem"}
    for unprotected in ({}, tls, {"tokens": "t"}):
        with pytest.raises(ValidationError, match="insecure"):
            ServeConfig(host=host, **unprotected)
    for accepted in ({"insecure": True}, {**tls, "tokens": "t"}, {**tls, "tls_client_ca": "a.pem"}):
        assert ServeConfig(host=host, **accepted).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]"])
def test_a_server_among_others_has_an_address_that_clients_can_be_sent_to(host: str) -> None:
    shared = {"host": host, "insecure": True, "store": "redis://store"}
    with pytest.raises(ValidationError, match=r"advertise is ''.*expected host:port"):
        ServeConfig(**shared)
    assert ServeConfig(**shared, advertise="host-1:8500").store == "redis://store"


def test_state_folder_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_state_dir() == tmp_path / "dnc-serve" == ServeConfig().state_dir


def test_paths_are_those_of_who_asked_not_of_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ServeConfig(state_dir=Path("state"), tokens="tokens", tls_certificate="cert.pem", tls_key="~/key.pem")
    monkeypatch.chdir("/")
    assert ServeConfig.model_validate_json(config.model_dump_json()) == config
    assert config.state_dir == tmp_path / "state"
    assert config.tokens == str(tmp_path / "tokens")
    assert config.tls_key == str(Path.home() / "key.pem")
    assert config.tls_client_ca == ""
