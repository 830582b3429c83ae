"""Who may know whom: read from the imports, those within functions and for types alone included."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("client", "handler", "model")
# What starts a worker, and is one.
PROCESSES = ("dnc_serve.handler.runtime", "dnc_serve.handler.torchserve", "dnc_serve.handler.plain")


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(("dnc_serve", *(parts[:-1] if parts[-1] == "__init__" else parts)))


FILES = {name_of(file): file for part in (*PARTS, "proto") for file in sorted((ROOT / part).rglob("*.py"))}


def imported(module: str) -> Iterator[str]:
    """The modules that one names in its imports; ours as far down as they are modules."""
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, f"{module} imports relatively"
            for one in node.names:
                deeper = f"{node.module}.{one.name}"
                yield deeper if deeper in FILES else node.module


IMPORTS = {module: set(imported(module)) for module in FILES}


def modules_of(*parts: str) -> list[str]:
    return [module for module in FILES if within(module, *(f"dnc_serve.{part}" for part in parts))]


def within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("part", PARTS)
def test_no_modules_import_each_other(part: str) -> None:
    try:
        TopologicalSorter({module: IMPORTS[module] for module in modules_of(part)}).prepare()
    except CycleError as cycle:
        pytest.fail(" → ".join(reversed(cycle.args[1])))


@pytest.mark.parametrize(
    ("layer", "unknown_to_it"),
    [
        ("handler.store", ["dnc_serve.handler.engine", "dnc_serve.handler.api", *PROCESSES]),
        ("handler.engine", ["dnc_serve.handler.api", *PROCESSES]),
        ("handler.engine", ["grpc", "google", "ts", "dnc_serve.proto.dnc"]),
        ("handler.api", [*PROCESSES, "ts"]),
        ("handler.runtime", ["dnc_serve.handler.torchserve", "dnc_serve.handler.plain", "ts"]),
        ("handler.plain", ["dnc_serve.handler.torchserve", "ts"]),
        ("handler", ["dnc_serve.client"]),
        ("model", ["dnc_serve.handler", "dnc_serve.client", "dnc_serve.proto"]),
        ("client", ["dnc_serve.handler", "dnc_serve.model"]),
    ],
)
def test_a_layer_knows_nothing_of_those_above_it(layer: str, unknown_to_it: list[str]) -> None:
    found = {
        f"{module} imports {one}"
        for module in modules_of(layer)
        for one in IMPORTS[module]
        if within(one, *unknown_to_it) and not within(module, "dnc_serve.client.cli")
    }
    assert not found


@pytest.mark.parametrize(
    ("module", "unneeded"),
    [
        ("handler.engine.engine", ["grpc", "google.protobuf", "ts", "dnc_serve.proto.dnc"]),
        ("model", ["grpc", "google.protobuf", "ts", "dnc_serve.handler", "dnc_serve.client", "dnc_serve.proto"]),
        ("client", ["torch", "ts", "dnc_serve.handler", "dnc_serve.model"]),
        ("handler.launch", ["torch", "ts", "dnc_serve.model", "dnc_serve.handler.engine"]),
        ("client.cli.main", ["torch", "ts", "dnc_serve.handler", "dnc_serve.model"]),  # commands, when they are run
    ],
)
def test_a_module_loads_nothing_that_it_can_do_without(module: str, unneeded: list[str]) -> None:
    program = f"import sys, dnc_serve.{module}; print(*sys.modules)"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = printed.stdout.split()
    assert f"dnc_serve.{module}" in loaded
    assert not [name for name in loaded if within(name, *unneeded)]
