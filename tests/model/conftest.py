import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dnc_serve.model import DNC, DNCState, MemoryState

GOLDEN = Path(__file__).parents[1] / "golden"

Golden = dict[str, Any]


@pytest.fixture(autouse=True)
def one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def golden() -> Callable[[str], Golden]:
    """Reads a file of DeepMind's numbers: floating-point arrays as float64 tensors, sizes as ints."""

    def read(name: str) -> Golden:
        with np.load(GOLDEN / f"{name}.npz") as arrays:
            return {key: _value(arrays[key]) for key in arrays}

    return read


def _value(array: np.ndarray[Any, Any]) -> Any:
    if array.dtype.kind == "U":
        return str(array)
    if array.ndim == 0:
        return array.item()
    return torch.from_numpy(array)


@pytest.fixture
def random_state() -> Callable[[DNC, int], DNCState]:
    """A state as a session has it after some timesteps of noise."""

    def make(dnc: DNC, batch_size: int) -> DNCState:
        inputs = torch.randn(6, batch_size, dnc.config.input_size, dtype=dnc.output.weight.dtype)
        with torch.no_grad():
            return dnc.unroll(inputs, dnc.initial_state(batch_size))[1]

    return make


@pytest.fixture(scope="session")
def dnc_package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The `dnc` package of PyPI, in a folder of its own: installed beside ours, it would bring an old flann."""
    folder = tmp_path_factory.mktemp("dnc_package")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), "dnc==1.1.0"]
    subprocess.run(command, check=True)
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module("dnc")
    finally:
        sys.path.remove(str(folder))


def state_tensors(state: DNCState) -> list[Tensor]:
    tensors: list[Tensor] = []
    for layer in state.controller_hidden:
        tensors.extend([layer] if isinstance(layer, Tensor) else layer)
    for memory in state.memory:
        tensors.extend(memory)
    return [*tensors, state.read_vectors]


@pytest.fixture
def assert_same_state() -> Callable[..., None]:
    def check(first: DNCState, second: DNCState, **tolerance: float) -> None:
        for one, other in zip(state_tensors(first), state_tensors(second), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=tolerance.get("atol", 0))

    return check


@pytest.fixture
def golden_memory_state() -> Callable[[Golden, str], MemoryState]:
    """The MemoryState under a prefix as `initial/` or, of one timestep, `states/`."""

    def make(arrays: Golden, prefix: str, timestep: int | None = None) -> MemoryState:
        names = ("memory", "link", "precedence", "read_weights", "write_weights", "usage")
        tensors = [arrays[f"{prefix}/{name}"] for name in names]
        return MemoryState(*(tensor if timestep is None else tensor[timestep] for tensor in tensors))

    return make
