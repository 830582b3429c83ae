"""The checked-in clients in Node.js and Go, made ready from the shipped contract; what they need is in the cache of
`bench`."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import grpc_tools
import numpy as np
import pytest
from filelock import FileLock

import dnc_serve.proto
from bench.peers.setup import INSTALL_TIMEOUT_S, cache_folder, unpack_debian
from dnc_serve.handler.arrays import Float32
from tests.programs import COMPLETE_VARIABLE, program
from tests.server_process import REPOSITORY, STOP_TIMEOUT_S

CLIENTS = REPOSITORY / "deploy" / "clients"
(CONTRACT,) = map(Path, dnc_serve.proto.__path__)  # as it is installed
# gRPC's sources and the generators, as Debian has them.
GO_PACKAGES = (
    "golang-google-grpc-dev", "golang-google-protobuf-dev", "golang-google-genproto-dev", "golang-golang-x-net-dev",
    "golang-golang-x-sys-dev", "golang-golang-x-text-dev", "golang-github-golang-protobuf-1-5-dev",
    "protoc-gen-go", "protoc-gen-go-grpc",
)  # fmt: skip


def client_command(language: str, folder: Path) -> list[str]:
    """How the client of a language is started; `folder` is empty, and for what is built."""
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{language}.lock"):
        return _node(cache) if language == "node" else _go(cache, folder)


def _node(cache: Path) -> list[str]:
    files = [CLIENTS / "node" / name for name in ("package.json", "package-lock.json", "step.mjs")]
    digest = hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]
    ready = cache / "node" / digest
    if not (ready / ".installed").is_file():
        _prepares("the packages of the Node.js client are")
        ready.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copy(file, ready)
        _run(program("node"), program("npm"), "ci", "--no-audit", "--no-fund", "--ignore-scripts", cwd=ready)
        (ready / ".installed").touch()
    return [program("node"), str(ready / "step.mjs")]


def _go(cache: Path, folder: Path) -> list[str]:
    root = cache / "go" / "root"
    if not root.is_dir():
        _prepares("the packages of the Go client are")
        unpacked = root.with_name("unpacked")
        unpack_debian(GO_PACKAGES, root.with_name("debs"), unpacked)
        unpacked.rename(root)
    sources = folder / "src" / "example"
    sources.mkdir(parents=True)
    shutil.copy(CLIENTS / "go" / "main.go", sources)
    mapped = "Mdnc/v1/dnc.proto=example/dncv1"
    _run(
        sys.executable, "-m", "grpc_tools.protoc", f"-I{CONTRACT}", f"-I{Path(grpc_tools.__file__).parent / '_proto'}",
        f"--plugin={root}/usr/bin/protoc-gen-go", f"--plugin={root}/usr/bin/protoc-gen-go-grpc",
        f"--go_out={folder}/src", f"--go-grpc_out={folder}/src", f"--go_opt={mapped}", f"--go-grpc_opt={mapped}",
        "dnc/v1/dnc.proto", cwd=folder,
    )  # fmt: skip
    # Debian's sources are no modules, but folders of a GOPATH.
    path = f"{folder}{os.pathsep}{root}/usr/share/gocode"
    settings = {"GO111MODULE": "off", "GOPATH": path, "GOCACHE": str(cache / "go" / "built"), "CGO_ENABLED": "0"}
    _run(program("go"), "build", "-o", str(folder / "step"), "example", cwd=folder, env=os.environ | settings)
    return [str(folder / "step")]


def _prepares(what: str) -> None:
    if not os.environ.get(COMPLETE_VARIABLE):
        pytest.skip(f"{what} not in {cache_folder()}, where a run with {COMPLETE_VARIABLE}=1 puts them")


def _run(*command: str, cwd: Path, env: dict[str, str] | None = None) -> None:
    ran = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
    assert ran.returncode == 0, ran.stdout + ran.stderr


class StreamingClient:
    """Such a client at work: it takes timesteps and prints what they were answered."""

    def __init__(self, command: list[str], address: str, session_id: str, position: int | None = None) -> None:
        arguments = [address, session_id, *([] if position is None else [str(position)])]
        self._process = subprocess.Popen(
            [*command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"DNC_PROTO": str(CONTRACT)},
        )  # fmt: skip

    def send(self, inputs: Float32) -> None:
        assert self._process.stdin is not None
        self._process.stdin.writelines(f"{','.join(map(str, timestep))}\n" for timestep in inputs.tolist())
        self._process.stdin.flush()

    def receive(self, count: int) -> tuple[list[int], Float32]:
        """So many positions and outputs."""
        assert self._process.stdout is not None
        lines = [self._process.stdout.readline() for _ in range(count)]
        assert all(lines), f"it ended with {self._process.wait(STOP_TIMEOUT_S)}"
        parts = [line.split(": ") for line in lines]
        outputs = [np.array(numbers.split(","), np.float32) for _, numbers in parts]
        return [int(position) for position, _ in parts], np.stack(outputs)

    def end(self) -> int:
        """There are no more timesteps; its exit code."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait(STOP_TIMEOUT_S)

    def kill(self) -> None:
        """kill -9, unless it has ended."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
