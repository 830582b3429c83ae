"""Where each setting's value comes from, and one line for what is wrong."""

from pathlib import Path

import pytest

from dnc_serve.handler.config import ServeConfig, flag
from dnc_serve.handler.settings import ConfigError, load_config, unknown_variables


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "other.toml"
    file.write_text("slots = 1\nbatch_size = 1\nmax_sessions = 1\n")
    monkeypatch.setenv("DNC_SLOTS", "2")
    monkeypatch.setenv("DNC_BATCH_SIZE", "2")
    loaded = load_config({"slots": "3"}, file)
    config, origins = loaded.config, loaded.origins
    assert (config.slots, config.batch_size, config.max_sessions, config.max_streams) == (3, 2, 1, 1024)
    assert (origins["slots"], origins["batch_size"]) == ("--slots", "DNC_BATCH_SIZE")
    assert (origins["max_sessions"], origins["max_streams"]) == (str(file), "default")


def test_file_in_the_working_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "dnc.toml").write_text("slots = 5\n")
    assert load_config({}).config.slots == 5


def test_the_worker_gets_it_unchanged() -> None:
    config = load_config({"host_bytes": "3GiB", "nr_cells": "7", "store": "redis://:secret@host/0"}).config
    assert ServeConfig.model_validate_json(config.model_dump_json()) == config
    assert config.host_bytes == 3 * 2**30


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"port": "x"}, "port is 'x' (--port); expected a whole number"),
        ({"port": "70000"}, "port is '70000' (--port); expected at most 65535"),
        ({"slots": "0"}, "slots is '0' (--slots); expected at least 1"),
        ({"slots": "1.5"}, "slots is '1.5' (--slots); expected a whole number"),
        ({"grace_s": "0"}, "grace_s is '0' (--grace-s); expected more than 0"),
        ({"idle_timeout_s": "inf"}, "idle_timeout_s is 'inf' (--idle-timeout-s); expected a finite number"),
        (
            {"host_bytes": "12 zork"},
            "host_bytes is '12 zork' (--host-bytes); expected a size such as 4096 or \"256MiB\"",
        ),
        ({"insecure": "hm"}, "insecure is 'hm' (--insecure); expected true or false"),
        ({"durability": "maybe"}, "durability is 'maybe' (--durability); expected 'off', 'async' or 'sync'"),
        ({"device": "tpu"}, "device is 'tpu' (--device); expected auto, cpu, cuda or cuda:INDEX"),
        (
            {"advertise": "here"},
            "advertise is 'here' (--advertise); expected host:port, an IPv6 address in brackets: [::1]:8500",
        ),
        (
            {"state_dir": "~nobody-here/x"},
            "state_dir is '~nobody-here/x' (--state-dir); expected a path (Could not determine home directory.)",
        ),
        ({"max_batch_delay_ms": "0"}, "max_batch_delay_ms is '0' (--max-batch-delay-ms); expected at least 1"),
        (
            {"store": "mysql://me:secret@host"},
            "store is 'mysql://me:***@host' (--store); "
            "expected sqlite, redis://HOST:PORT/DB, rediss://…, unix://PATH or "
            "redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB",
        ),
        (
            {"store": "redis+sentinel://me:secret@host:1"},
            "store is 'redis+sentinel://me:***@host:1' (--store); expected "
            "redis+sentinel://USER:PASSWORD@HOST:PORT,HOST:PORT/SERVICE/DB, odd characters percent-encoded; "
            "the URL of the store names no service",
        ),
        ({"store_replicas": "-1"}, "store_replicas is '-1' (--store-replicas); expected at least 0"),
        ({"store_replicas": "1"}, "store_replicas is 1; expected 0, because store is 'sqlite'"),
        ({"metrics_port": "8500"}, "metrics_port is 8500; expected another port than that of port"),
        ({"tls_key": "k"}, "tls_certificate is ''; expected a file, because tls_key is set"),
        ({"tls_client_ca": "c"}, "tls_certificate is ''; expected a file, because tls_client_ca is set"),
    ],
)
def test_wrong_values(flags: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(flags)
    assert str(refused.value) == message


@pytest.mark.parametrize("name", list(ServeConfig.model_fields))
@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_value_is_refused_wherever_it_comes_from(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a shell's variable that isn't set: no state in the working folder, and no door without its tokens."""
    with pytest.raises(ConfigError) as refused:
        load_config({name: value})
    assert str(refused.value) == f"{name} is {value!r} ({flag(name)}); expected a value, or to be left out"
    file = tmp_path / "empty.toml"
    file.write_text(f'{name} = "{value}"\n')
    with pytest.raises(ConfigError, match="to be left out"):
        load_config({}, file)
    monkeypatch.setenv(f"DNC_{name.upper()}", value)
    with pytest.raises(ConfigError, match=rf"^{name} is '{value}' \(DNC_{name.upper()}\); "):
        load_config({})


def test_empty_tokens_in_the_environment_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNC_TOKENS_TEXT", "")
    with pytest.raises(ConfigError, match=r"^DNC_TOKENS_TEXT is empty"):
        load_config({})


def test_wrong_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"^--config is 'none\.toml'; expected a TOML file$"):
        load_config({}, Path("none.toml"))
    file = tmp_path / "bad.toml"
    file.write_text("slots = [")
    with pytest.raises(ConfigError, match=r"bad\.toml is not TOML"):
        load_config({}, file)
    file.write_text("slotz = 1\n")
    with pytest.raises(ConfigError, match=r"bad\.toml sets 'slotz', which is no setting"):
        load_config({}, file)
    monkeypatch.setenv("DNC_SLOTS", "none")
    with pytest.raises(ConfigError, match=r"^slots is 'none' \(DNC_SLOTS\); expected a whole number$"):
        load_config({})


def test_shown_as_toml_that_can_be_read_again(tmp_path: Path) -> None:
    given = load_config({"store": "redis://me:secret@host:1/0", "model": 'a "b"\\c', "insecure": True, "nr_cells": "3"})
    shown = given.show()
    assert "secret" not in shown
    file = tmp_path / "shown.toml"
    file.write_text(shown.replace("***", "secret"))
    assert load_config({}, file).config == given.config
    assert "# nr_cells is not set" in load_config({}).show()


def test_misspelt_variables_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNC_SLOTZ", "1")
    monkeypatch.setenv("DNC_TOKEN", "for the client")
    monkeypatch.setenv("DNC_SLOTS", "1")
    monkeypatch.setenv("DNC_8500_TCP", "from Kubernetes")
    assert unknown_variables() == [
        "DNC_8500_TCP in the environment is no setting",
        "DNC_SLOTZ in the environment is no setting; did you mean DNC_SLOTS?",
    ]


def test_models_are_named_wherever_they_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ("copy", "risk=runs/risk,2", "fraud=artifact.mar")
    assert load_config({"model": list(wanted)}).config.model == wanted
    file = tmp_path / "dnc.toml"
    file.write_text('model = ["copy", "risk=runs/risk,2", "fraud=artifact.mar"]\n')
    assert load_config({}, file).config.model == wanted
    monkeypatch.setenv("DNC_MODEL", ",".join(wanted))
    loaded = load_config({})
    assert loaded.config.model == wanted
    assert [(model.name, model.source, model.part) for model in loaded.config.models] == [
        ("copy", "copy", ""),
        ("risk", "runs/risk,2", "risk"),
        ("fraud", "artifact.mar", "fraud"),
    ]
    file.write_text(loaded.show())
    monkeypatch.delenv("DNC_MODEL")
    assert load_config({}, file).config == loaded.config


@pytest.mark.parametrize(
    ("source", "name"), [("runs/copy/", "copy"), ("a/b.mar", "b"), ("./x=y", "x=y"), ("risk=x", "risk")]
)
def test_what_a_model_is_called(source: str, name: str) -> None:
    assert [model.name for model in ServeConfig(model=(source,)).models] == [name]


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([], "expected [NAME=]SOURCE, once or more"),
        (["a", "b"], "expected a NAME= for all but one: 'a' and 'b' have none, and by it a model's sessions are found"),
        (["copy", "copy=b"], "expected another name for one of the two models that are called 'copy'"),
        (["x=a", "x=b"], "expected another name for one of the two models that are called 'x'"),
        (["-x=a"], "expected a name of 1 to 64 of A-Z a-z 0-9 . _ -, a letter or a digit first, got '-x'"),
        (["x" * 65 + "=a"], "expected a name of 1 to 64"),
        (["x="], "expected a source for 'x'"),
    ],
)
def test_wrong_models(models: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config({"model": models})
    assert str(refused.value).startswith(f"model is {models!r} (--model); {message}")


def test_a_number_of_cells_is_one_models() -> None:
    with pytest.raises(ConfigError, match="nr_cells is 4 and model is given 2 times; expected one model"):
        load_config({"model": ["copy", "risk=runs/risk"], "nr_cells": "4"})
