"""A model's weights and config in a folder, and the digest that names them."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from dnc_serve.model.config import DNCConfig
from dnc_serve.model.dnc import DNC

WEIGHTS_FILE = "weights.safetensors"
CONFIG_FILE = "config.json"
TRAINING_FILE = "training.json"

# What changes how a model is trained or called, but not one number of a served timestep.
WITHOUT_EFFECT_ON_STEPS = ("dropout", "stop_usage_gradient", "read_feedback")
# Of a dense memory: its sessions go on from before there were others.
OF_SPARSE_MEMORIES = ("memory", "sparse_reads", "temporal_reads")


def save_weights(dnc: DNC, folder: str | Path) -> None:
    """Writes `weights.safetensors` and `config.json` into the folder, each replaced as a whole."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in dnc.state_dict().items()}
    _replace(folder / WEIGHTS_FILE, lambda path: path.write_bytes(save(weights)))
    config = json.dumps(dnc.config.to_dict(), indent=2) + "\n"
    _replace(folder / CONFIG_FILE, lambda path: path.write_text(config))


def check_run(folder: str | Path, expected: str = "a folder that `dnc train` wrote") -> None:
    """Raises FileNotFoundError, naming what was expected, if the folder doesn't hold a model's weights and config."""
    folder = Path(folder)
    for name in ("", CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder / name} doesn't exist; expected {expected}")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is a file; expected {expected}")


def load_weights(dnc: DNC, folder: str | Path) -> None:
    """Fills a DNC with the folder's weights; how many memory slots it has doesn't matter.

    Raises FileNotFoundError, or ValueError if the file is damaged or belongs to a model of other sizes.
    """
    weights = read_weights(Path(folder) / WEIGHTS_FILE)
    try:
        dnc.load_state_dict(weights)
    except RuntimeError as exc:
        raise ValueError(f"the weights in {folder} don't fit this model: {exc}") from exc


def load_model(folder: str | Path, nr_cells: int | None = None, **placement: Any) -> DNC:
    """The DNC that `save_weights` wrote, in its precision; with another number of memory slots if `nr_cells` says so.

    `placement`: batch_first, debug, device, gpu_id. Raises as `load_weights`, and ValueError for a wrong config.
    """
    check_run(folder)
    path = Path(folder) / CONFIG_FILE
    try:
        config = DNCConfig.from_dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as exc:
        raise ValueError(f"{path} isn't a model's config: {exc}") from exc
    dnc = DNC.from_config(config if nr_cells is None else replace(config, nr_cells=nr_cells), **placement)
    weights = read_weights(Path(folder) / WEIGHTS_FILE)
    dnc.to(next(iter(weights.values())).dtype)
    load_weights(dnc, folder)
    return dnc


def task_of(folder: str | Path) -> str:
    """The task that a run was trained for, as `dnc train` names it; empty for weights that no run has left."""
    path = Path(folder) / TRAINING_FILE
    try:
        return str(json.loads(path.read_text()).get("task", "")) if path.is_file() else ""
    except (ValueError, AttributeError) as exc:
        raise ValueError(f"{path} isn't a training run's description: {exc!r}") from exc


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises FileNotFoundError, or ValueError if it is damaged."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} doesn't exist; expected a model's weights")
    try:
        weights: dict[str, Tensor] = load_file(path)
    except SafetensorError as exc:
        raise ValueError(
            f"{path} isn't a safetensors file, or is damaged: {exc}; expected what safetensors.torch.save_file writes"
        ) from exc
    return weights


def weights_digest(config: DNCConfig, weights: Mapping[str, Tensor]) -> str:
    """sha256, in hexadecimal, of all that decides what a served timestep computes: weights, sizes and options.

    Two models with the same digest have states of the same meaning, so that a session may go on from one to the other.
    """
    without_effect = WITHOUT_EFFECT_ON_STEPS if config.is_sparse else (*WITHOUT_EFFECT_ON_STEPS, *OF_SPARSE_MEMORIES)
    settings = {name: value for name, value in config.to_dict().items() if name not in without_effect}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())  # NumPy has no bfloat16
    return digest.hexdigest()


def _replace(path: Path, write: Any) -> None:
    """Writes beside the file first, so that an interrupted write leaves the old one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
