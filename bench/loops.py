"""Models stepped in a bare Python loop, one timestep a call: microseconds of a tick. Run aside, one thread."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dnc_serve.client.cli.measure.bare import seconds_of
from dnc_serve.handler.engine.model_runner import load_kernel
from dnc_serve.model.export import load_artifact

# What the `dnc` package's class and ours both take.
PACKAGE_SIZES = (
    "input_size", "hidden_size", "rnn_type", "num_layers", "num_hidden_layers", "bias", "nr_cells", "read_heads",
    "cell_size", "nonlinearity", "independent_linears", "share_memory",
)  # fmt: skip


def package_sizes(artifact: str) -> dict[str, Any]:
    """The arguments that make the `dnc` package's model of the same sizes as an artifact's."""
    config = json.loads((Path(artifact) / "manifest.json").read_text())["config"]
    return {name: config[name] for name in PACKAGE_SIZES}


def package_tick_us(package: str, sizes: Mapping[str, Any], rows: int, seconds: float) -> float:
    """The `dnc` package, its hidden state handed back at each call."""
    torch.set_num_threads(1)
    if package not in sys.path:
        sys.path.insert(0, package)
    from dnc import DNC

    model = DNC(**sizes).eval()
    inputs = torch.randint(0, 2, (rows, 1, sizes["input_size"])).float()
    with torch.inference_mode():
        hidden = model(inputs)[1]

        def call() -> None:
            nonlocal hidden
            _, hidden = model(inputs, hidden)

        return seconds_of(call, seconds) * 1e6


def torchscript_tick_us(artifact: str, rows: int, seconds: float) -> float:
    """Our artifact as TorchScript."""
    torch.set_num_threads(1)
    loaded = load_artifact(artifact)
    return _tick_us(loaded.module, loaded.config.input_size, loaded.layout.size, rows, seconds)


def kernel_tick_us(artifact: str, rows: int, seconds: float) -> float:
    """The row kernel of our artifact. Raises KernelError."""
    loaded = load_artifact(artifact)
    kernel = load_kernel(loaded, Path(artifact), [])
    states = np.zeros((rows, kernel.state_size), np.float32)
    inputs = np.random.default_rng(0).integers(0, 2, (1, rows, kernel.input_size)).astype(np.float32)
    numbers = list(range(rows))
    return seconds_of(lambda: kernel.step(states, numbers, numbers, inputs), seconds) * 1e6


def _tick_us(module: Any, input_size: int, state_size: int, rows: int, seconds: float) -> float:
    torch.set_flush_denormal(True)
    inputs, states = torch.randint(0, 2, (1, rows, input_size)).float(), torch.zeros(rows, state_size)
    with torch.inference_mode():

        def call() -> None:
            nonlocal states
            _, states = module(inputs, states)

        for _ in range(5):  # TorchScript's executor may change its code after the first calls
            call()
        return seconds_of(call, seconds) * 1e6
