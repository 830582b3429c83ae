"""The artifact that is served: a frozen TorchScript module, its weights, and a manifest that they must fit."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dnc_serve.model.config import DNCConfig
from dnc_serve.model.device import check_device
from dnc_serve.model.dnc import DNC
from dnc_serve.model.layout import StateLayout
from dnc_serve.model.tick import TickModule
from dnc_serve.model.weights import WEIGHTS_FILE, read_weights, save_weights, weights_digest

MANIFEST_FILE = "manifest.json"
MODULE_FILE = "model.pt"
FORMAT = 1


class ArtifactError(Exception):
    """An artifact that can't be served; the message says what is wrong with it and what to do."""


@dataclass(frozen=True)
class Artifact:
    """A loaded artifact. `module` is a `TickModule`, scripted: `module(inputs, packed)`, `trace_debug`, `interface`."""

    manifest: dict[str, Any]
    module: torch.jit.ScriptModule
    layout: StateLayout
    config: DNCConfig
    digest: str


def script(dnc: DNC) -> torch.jit.ScriptModule:
    """The model's `TickModule` compiled by TorchScript, in evaluation mode, its weights frozen in."""
    module = torch.jit.script(TickModule(dnc).eval())
    frozen: torch.jit.ScriptModule = torch.jit.freeze(module, preserved_attrs=["trace_debug", "interface"])
    return frozen


def export(dnc: DNC, folder: str | Path, nr_cells: int | None = None) -> dict[str, Any]:
    """Writes the artifact of a trained model into the folder, in float32, and returns its manifest.

    `nr_cells` gives the exported model another number of memory slots; the weights don't depend on it. The model itself
    is not changed. Raises ValueError for a wrong `nr_cells`, and for a model that feeds read vectors back between calls
    only: how a session's timesteps are divided into chunks mustn't change what it is told.
    """
    folder = Path(folder)
    if dnc.config.read_feedback != "timestep":
        raise ValueError(
            f"read_feedback is {dnc.config.read_feedback!r}; expected 'timestep': a session's timesteps come in chunks "
            "of any length. A model that is called with one timestep at a time computes the same with 'timestep': "
            "change it in the run's config.json, or give it to from_dnc_package. Any other is to be trained again."
        )
    config = dnc.config if nr_cells is None else replace(dnc.config, nr_cells=nr_cells)
    exported = DNC.from_config(config)
    exported.load_state_dict(dnc.state_dict())
    exported.eval()

    save_weights(exported, folder)
    script(exported).save(folder / MODULE_FILE)
    layout = StateLayout(config)
    manifest = {
        "format": FORMAT,
        "kind": "torchscript",
        "digest": weights_digest(config, exported.state_dict()),
        "torch": torch.__version__,
        "input_size": config.input_size,
        "output_size": config.output_size,
        "state_size": layout.size,
        "experience_offset": layout.experience_offset,
        "config": config.to_dict(),
        "files": {name: _file_facts(folder / name) for name in (MODULE_FILE, WEIGHTS_FILE)},
    }
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def load_artifact(folder: str | Path, device: torch.device | str = "cpu") -> Artifact:
    """Loads what `export` wrote, after checking that every part fits the manifest.

    Raises ArtifactError if a file is missing, damaged or of another model, or was made for another torch, and
    DeviceMissing.
    """
    check_device(device)
    folder = Path(folder)
    manifest = _read_manifest(folder)
    config = _checked_config(folder, manifest)
    layout = StateLayout(config)
    _check_sizes(folder, manifest, config, layout)
    for name in (MODULE_FILE, WEIGHTS_FILE):
        _check_file(folder / name, manifest["files"].get(name))
    digest = weights_digest(config, read_weights(folder / WEIGHTS_FILE))
    if digest != manifest["digest"]:
        raise ArtifactError(
            f"{folder / MANIFEST_FILE} names the digest {manifest['digest']}, but config and weights have {digest}: "
            "the manifest was edited or belongs to another model. Export the model again with `dnc export`."
        )
    try:
        module = torch.jit.load(folder / MODULE_FILE, map_location=device).eval()  # type: ignore[no-untyped-call]
    except torch.OutOfMemoryError as exc:
        raise ArtifactError(_no_memory(folder, device, exc)) from exc
    except RuntimeError as exc:
        raise ArtifactError(
            f"{folder / MODULE_FILE} isn't a TorchScript file that torch {torch.__version__} can load ({exc}). "
            "Export the model again with `dnc export`."
        ) from exc
    _check_module(folder, module, config, layout, device)
    return Artifact(manifest, module, layout, config, digest)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise ArtifactError(f"{path} doesn't exist. Give the folder that `dnc export` wrote.")
    try:
        manifest = json.loads(path.read_text())
        lacking = sorted({"format", "digest", "torch", "config", "files"} - set(manifest))
    except (ValueError, TypeError) as exc:
        raise ArtifactError(f"{path} isn't an artifact's manifest: {exc}. Export the model again.") from exc
    if lacking:
        raise ArtifactError(f"{path} lacks {', '.join(lacking)}. Export the model again with `dnc export`.")
    if manifest["format"] != FORMAT:
        raise ArtifactError(
            f"{path} has format {manifest['format']}; this version reads format {FORMAT}. Export the model again."
        )
    made_with = str(manifest["torch"])
    if made_with.split(".")[0] != torch.__version__.split(".")[0]:
        raise ArtifactError(
            f"{folder} was exported with torch {made_with}, and this is torch {torch.__version__}: TorchScript files "
            "don't pass between major versions. Install that torch, or export the model again with this one."
        )
    return dict(manifest)


def _checked_config(folder: Path, manifest: dict[str, Any]) -> DNCConfig:
    try:
        return DNCConfig.from_dict(manifest["config"])
    except (ValueError, TypeError) as exc:
        raise ArtifactError(f"{folder / MANIFEST_FILE} has a wrong config: {exc}. Export the model again.") from exc


def _check_sizes(folder: Path, manifest: dict[str, Any], config: DNCConfig, layout: StateLayout) -> None:
    expected = {
        "input_size": config.input_size,
        "output_size": config.output_size,
        "state_size": layout.size,
        "experience_offset": layout.experience_offset,
    }
    for name, size in expected.items():
        if manifest.get(name) != size:
            raise ArtifactError(
                f"{folder / MANIFEST_FILE} says {name} {manifest.get(name)}, but its config makes it {size}. "
                "Export the model again with `dnc export`."
            )


def _check_file(path: Path, facts: dict[str, Any] | None) -> None:
    if not path.is_file():
        raise ArtifactError(f"{path} doesn't exist. Copy the whole folder, or export the model again.")
    found = _file_facts(path)
    if facts != found:
        raise ArtifactError(
            f"{path} doesn't fit its manifest: it should be {facts}, and is {found}. It is damaged or from another "
            "export. Copy the whole folder again, or export the model again."
        )


def _check_module(
    folder: Path, module: Callable[[Tensor, Tensor], Any], config: DNCConfig, layout: StateLayout, device: Any
) -> None:
    """One real timestep from a zero state."""
    inputs, packed = torch.zeros(1, 1, config.input_size, device=device), torch.zeros(1, layout.size, device=device)
    try:
        with torch.inference_mode():
            outputs, after = module(inputs, packed)
        fits = list(outputs.shape) == [1, 1, config.output_size] and after.shape == packed.shape
    except torch.OutOfMemoryError as exc:
        raise ArtifactError(_no_memory(folder, device, exc)) from exc
    except RuntimeError as exc:
        raise ArtifactError(f"{folder / MODULE_FILE} can't step: {exc}. Export the model again.") from exc
    if not fits:
        raise ArtifactError(
            f"{folder / MODULE_FILE} gives outputs {list(outputs.shape)} and states {list(after.shape)}; its manifest "
            f"says {[1, 1, config.output_size]} and {list(packed.shape)}. Export the model again."
        )


def _no_memory(folder: Path, device: Any, error: Exception) -> str:
    return f"{folder} doesn't fit into the memory of {device}: {str(error).splitlines()[0]}"


def _file_facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
