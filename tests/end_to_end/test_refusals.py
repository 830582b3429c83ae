"""A server that can't start says which setting is to blame and what was expected, at once, and leaves nothing."""

import os
import resource
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import trustme

from dnc_serve.client.cli.child_server import serve_command
from tests.end_to_end.test_serve import failed_start


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, small_artifact: Path) -> Path:
    """What the settings below name, and what they don't."""
    folder = tmp_path_factory.mktemp("files")
    for name in ("one", "other"):
        certificate = trustme.CA().issue_cert("127.0.0.1")
        certificate.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
        certificate.private_key_pem.write_to_path(folder / f"{name}.key")
    (folder / "text").write_text("no PEM, no TOML, no archive\n")
    (folder / "cut.pem").write_text("-----BEGIN CERTIFICATE-----\nabc\n")
    (folder / "tokens.toml").write_text('[[token]]\nname = "a"\n')
    (folder / "folder").mkdir()
    whole = (small_artifact / "weights.safetensors").read_bytes()
    with zipfile.ZipFile(folder / "half.mar", "w") as archive:
        archive.writestr("weights.safetensors", whole)
    (folder / "run").mkdir()
    (folder / "run" / "weights.safetensors").write_bytes(whole)
    return folder


TLS = ("--tls-certificate", "one.pem", "--tls-key", "one.key")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ["--model", "none"],
            "model is 'none'; expected a bundled model (copy, graph, recall, traversal), or the path of a",
        ),
        (["--model", "folder"], "model is 'folder'; expected a bundled model ("),
        (["--model", "text"], "text isn't a .mar: "),
        (["--model", "half.mar"], "half.mar holds no artifact; expected a .mar that `dnc archive` made"),
        (["--model", "run"], "run/config.json doesn't exist; expected a folder that `dnc train` wrote"),
        (["--model", "x" * 300], f"model is '{'x' * 300}', which can't be looked at ("),
        (["--model", "~nobody-here"], "model is '~nobody-here', which can't be looked at ("),
        (["--tokens", "none"], "tokens is '{folder}/none'; expected a file of tokens (No such file or directory)"),
        (["--tokens", "folder"], "tokens is '{folder}/folder'; expected a file of tokens (Is a directory)"),
        (["--tokens", "text"], "{folder}/text is not TOML: "),
        (["--tokens", "tokens.toml"], "{folder}/tokens.toml: token.0.sha256: "),
        ([*TLS[:2], "--tls-key", "none"], "tls_key is '{folder}/none'; expected a PEM file (No such file"),
        ([*TLS[:2], "--tls-key", "text"], "tls_key is '{folder}/text'; expected a PEM file, and this has nothing"),
        (
            [*TLS[:2], "--tls-key", "other.key"],
            "tls_certificate is '{folder}/one.pem' and tls_key '{folder}/other.key';",
        ),
        (["--tls-certificate", "folder", *TLS[2:]], "tls_certificate is '{folder}/folder'; expected a PEM file ("),
        (["--tls-certificate", "cut.pem", *TLS[2:]], "tls_certificate is '{folder}/cut.pem' and tls_key"),
        ([*TLS, "--tls-client-ca", "cut.pem"], "tls_client_ca is '{folder}/cut.pem'; expected certificates ("),
        (
            ["--state-dir", "text"],
            "state_dir is '{folder}/text'; expected a folder that can be written to, with room (",
        ),
        (["--state-dir", "text/x"], "state_dir is '{folder}/text/x'; expected a folder that can be written to, with"),
        (["--state-dir", "/proc/x"], "state_dir is '/proc/x'; expected a folder that can be written to, with room ("),
        (["--host", "192.0.2.7", "--insecure"], "host is '192.0.2.7'; expected an address of this machine ("),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_the_setting_is_named(
    flags: list[str], expected: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    before = sorted(files.rglob("*"))
    model, *others = flags[1:] if flags[0] == "--model" else ["copy", *flags]
    code, stdout, cause = failed_start(model, tmp_path, *others)
    assert (code, stdout) == (1, "")
    assert cause.startswith("dnc serve: " + expected.replace("{folder}", str(files))), cause
    assert sorted(files.rglob("*")) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_a_device_that_is_not_there(device: str, runtime: str, small_artifact: Path, tmp_path: Path) -> None:
    code, stdout, cause = failed_start(small_artifact, tmp_path, "--runtime", runtime, "--device", device)
    assert (code, stdout) == (1, "")
    assert cause.startswith(
        f"dnc serve: device is '{device}'; expected one that torch {torch.__version__} can use here: "
    )
    assert "xport the model" not in cause


def test_each_busy_port_is_named_by_its_setting(small_artifact: Path, tmp_path: Path) -> None:
    for flag, setting in (
        ("--port", "port"), ("--metrics-port", "metrics_port"), ("--torchserve-http-port", "torchserve_http_port"),
        ("--torchserve-grpc-management-port", "torchserve_grpc_management_port"),
    ):  # fmt: skip
        with socket.create_server(("127.0.0.1", 0)) as busy:
            port = busy.getsockname()[1]
            code, _, cause = failed_start(small_artifact, tmp_path, flag, str(port))
        assert code == 1
        assert cause.startswith(
            f"dnc serve: something listens already at {port} ({setting}); end it, or take free ports"
        )


@pytest.mark.parametrize(
    ("room", "expected"),
    [(1 << 16, "state_dir is '{state}'; expected a folder that can be written to, with room ("),
     (9 << 20, "the temp folder {temp} can't hold the model's archive (File too large); set TMPDIR to one with more")],
)  # fmt: skip
def test_no_room(room: int, expected: str, small_artifact: Path, tmp_path: Path) -> None:
    """As on a full disk, a file can't grow."""
    large = tmp_path / "large"
    large.mkdir()
    for file in small_artifact.iterdir():
        (large / file.name).write_bytes(file.read_bytes())
    (large / "model.pt").write_bytes(bytes(10 << 20))
    done = subprocess.run(
        serve_command(large, tmp_path / "state"), capture_output=True, text=True, timeout=100, check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
    )  # fmt: skip
    assert done.returncode == 1
    cause = done.stderr.strip().splitlines()[-1]
    named = expected.replace("{state}", str(tmp_path / "state")).replace("{temp}", str(tmp_path))
    assert cause.startswith(f"dnc serve: {named}"), cause
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large"]


def test_a_doctor_says_the_same(files: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dnc_serve.client.cli", "doctor", "--state-dir", str(files / "text")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert f"state_dir is '{files / 'text'}'; expected a folder that can be written to" in done.stdout
