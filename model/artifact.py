"""The artifact that is served: a model's programs and weights, and a manifest that they must fit.

manifest.json        format, inputs, outputs, fields of the state, digest, files, the task of a trained run
program.pt2          `step`, captured by torch.export
model.pt             of a DNC: its ticks in TorchScript
weights.safetensors  of a DNC, for the row kernel
initial.safetensors  where a new state isn't all zero: its row
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor

from dnc_serve.model.config import DNCConfig
from dnc_serve.model.device import check_device
from dnc_serve.model.layout import StateLayout
from dnc_serve.model.program import PROGRAM_FILE, Program, load_program
from dnc_serve.model.program_archive import ProgramError
from dnc_serve.model.rows import Array, Field, RowLayout, TensorSpec, Tick
from dnc_serve.model.weights import WEIGHTS_FILE, read_weights, weights_digest

MANIFEST_FILE = "manifest.json"
MODULE_FILE = "model.pt"
INITIAL_FILE = "initial.safetensors"
FORMAT = 2
# What the state asked of a DNC's memory at the timestep that led to it: no part of a state, but it follows from one.
INTERFACE = "interface"


class ArtifactError(Exception):
    """An artifact that can't be served; the message says what is wrong with it and what to do."""


@dataclass(frozen=True)
class Artifact:
    """A loaded model: what it takes and gives, how its state lies in a row, and what steps it."""

    folder: Path
    manifest: dict[str, Any]
    device: torch.device
    inputs: TensorSpec
    outputs: TensorSpec
    layout: RowLayout
    tick: Tick

    def __repr__(self) -> str:
        what = f"{self.folder}: {self.inputs} → {self.outputs}, {4 * self.layout.size} bytes a session"
        return f"<{type(self).__name__} {what}, on {self.device}, digest {self.digest[:12]}…>"

    @property
    def digest(self) -> str:
        """Two models with the same digest have states of the same meaning: a session may go from one to the other."""
        return str(self.manifest["digest"])

    @property
    def task(self) -> str:
        """What it was trained for, as `dnc train` names it; empty where the manifest doesn't say."""
        return str(self.manifest.get("task", ""))

    @property
    def config(self) -> DNCConfig | None:
        """Of a DNC."""
        return None

    @property
    def rows(self) -> int | None:
        """How many rows a call of `tick` must have; None if any number."""
        rows = self.manifest.get("rows")
        return None if rows is None else int(rows)

    @property
    def derived(self) -> tuple[str, ...]:
        """Names of what can be seen beside the fields of a state."""
        return ()

    def derive(self, name: str, state: Array) -> dict[str, Array]:
        """Arrays [parts, ...] that follow from a state [S], under one of the `derived` names."""
        raise KeyError(name)

    @property
    def debug_bytes(self) -> int:
        """Bytes of the debug arrays of a timestep."""
        return sum(field.nbytes for field in self.layout.fields)

    def debug(self, inputs: Array, state: Array, rows: int) -> dict[str, Array]:
        """What is in the state after each timestep, by name, for inputs [T, *shape] from a state [S] on.

        `rows` is a number of rows in which this model is stepped: a row's bits may hang on it.
        """
        tile = torch.zeros(len(inputs), rows, *self.inputs.shape, dtype=self.inputs.torch)
        tile[:, 0] = torch.from_numpy(np.array(inputs))
        states = torch.from_numpy(np.tile(state, (rows, 1)))
        return self._debug(tile.to(self.device), states.to(self.device))

    def _debug(self, inputs: Tensor, states: Tensor) -> dict[str, Array]:
        after = []
        with torch.inference_mode():
            for each in torch.split(inputs, 1):
                _, states = self.tick(each, states)
                after.append(states[0].cpu().numpy())
        return {field.name: np.stack([field.of(row) for row in after]) for field in self.layout.fields}


@dataclass(frozen=True)
class DNCArtifact(Artifact):
    """A DNC: `tick` is a `TickModule` in TorchScript, which can be looked into too."""

    module: torch.jit.ScriptModule

    @cached_property
    def config(self) -> DNCConfig:
        return DNCConfig.from_dict(self.manifest["config"])

    @property
    def derived(self) -> tuple[str, ...]:
        return (INTERFACE,)

    def derive(self, name: str, state: Array) -> dict[str, Array]:
        """The gates [L, heads], read modes [L, R, M] and strengths [L, heads] of the timestep that led to a state.

        Empty for a state to which no timestep led: a new one, or one that was reset as a whole.
        """
        if name != INTERFACE:
            raise KeyError(name)
        if not self.layout.array(state, "controller_hidden").any():
            return {}
        with torch.inference_mode():
            packed = torch.from_numpy(state)[None].to(self.device)
            return {part: values[:, 0].cpu().numpy() for part, values in self.module.interface(packed).items()}

    @cached_property
    def debug_bytes(self) -> int:
        assert self.layout.experience_offset is not None
        memory = (self.layout.size - self.layout.experience_offset) // self.config.num_memories
        return 4 * self.config.num_layers * memory

    def _debug(self, inputs: Tensor, states: Tensor) -> dict[str, Array]:
        """What each layer's access left in memory under the seed's six names, [T x L, flat]."""
        with torch.inference_mode():
            _, _, arrays = self.module.trace_debug(inputs, states)
        return {name: array[:, :, 0].flatten(0, 1).flatten(1).cpu().numpy() for name, array in dict(arrays).items()}


def load_artifact(folder: str | Path, device: torch.device | str = "cpu", *, torchscript: bool = True) -> Artifact:
    """Loads what `export` wrote, after checking that every part fits the manifest. Nothing is unpickled.

    Without `torchscript` a DNC is stepped by its program, as any other model.

    Raises ArtifactError if a file is missing, damaged or of another model, or was made for another torch, and
    DeviceMissing.
    """
    check_device(device)
    folder, device = Path(folder), torch.device(device)
    manifest = _read_manifest(folder)
    is_dnc = manifest["kind"] == "dnc"
    needed = {MODULE_FILE, WEIGHTS_FILE} if is_dnc else {PROGRAM_FILE}
    for name in sorted(needed - set(manifest["files"])):
        raise ArtifactError(f"{folder / MANIFEST_FILE} names no sha256 of {name}. Export the model again.")
    for name in manifest["files"]:
        _check_file(folder / name, manifest["files"][name])
    try:
        if is_dnc:
            config = DNCConfig.from_dict(manifest["config"])
            layout: RowLayout = StateLayout(config)
            inputs, outputs = TensorSpec((config.input_size,)), TensorSpec((config.outputs,))
        else:
            layout = RowLayout(_field(each) for each in manifest["state"])
            layout.experience_offset = manifest["experience_offset"]
            inputs, outputs = _spec(manifest["inputs"]), _spec(manifest["outputs"])
            if INITIAL_FILE in manifest["files"]:
                layout.begin_with(load_file(folder / INITIAL_FILE)["initial"].view("<f4"))
        _check_sizes(folder, manifest, layout, inputs, outputs)
    except (ValueError, TypeError, KeyError, SafetensorError) as exc:
        raise ArtifactError(f"{folder / MANIFEST_FILE} can't be used: {exc}. Export the model again.") from exc
    try:
        if is_dnc and torchscript:
            _check_digest(folder, manifest, config)
            module = torch.jit.load(folder / MODULE_FILE, map_location=device).eval()  # type: ignore[no-untyped-call]
            artifact: Artifact = DNCArtifact(folder, manifest, device, inputs, outputs, layout, module, module)
        else:
            tick = Program(load_program(folder / PROGRAM_FILE), layout, outputs, device)
            artifact = Artifact(folder, manifest, device, inputs, outputs, layout, tick)
    except torch.OutOfMemoryError as exc:
        raise ArtifactError(_no_memory(folder, device, exc)) from exc
    except (RuntimeError, ProgramError) as exc:
        raise ArtifactError(
            f"{folder} can't be loaded by torch {torch.__version__} ({exc}). Export the model again with `dnc export`."
        ) from exc
    _check_tick(artifact)
    return artifact


def spec_to_dict(spec: TensorSpec) -> dict[str, Any]:
    """For the manifest."""
    return {"shape": list(spec.shape), "dtype": spec.dtype}


def state_to_list(layout: RowLayout) -> list[dict[str, Any]]:
    """For the manifest."""
    return [{"name": field.name, "part": field.part, **spec_to_dict(field)} for field in layout.fields]


def file_facts(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    return {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _spec(described: dict[str, Any]) -> TensorSpec:
    return TensorSpec(_shape(described["shape"]), str(described["dtype"]))


def _field(described: dict[str, Any]) -> Field:
    return Field(_shape(described["shape"]), str(described["dtype"]), str(described["name"]), int(described["part"]))


def _shape(sizes: Sequence[Any]) -> tuple[int, ...]:
    if not all(isinstance(size, int) and size >= 0 for size in sizes):
        raise ValueError(f"shape is {sizes!r}; expected whole numbers")
    return tuple(sizes)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise ArtifactError(f"{path} doesn't exist. Give the folder that `dnc export` wrote.")
    try:
        manifest = dict(json.loads(path.read_text()))
        if manifest.get("format") == 1:  # of a DNC, before other models could be served
            manifest = _of_format_1(manifest)
        of_kind = {"config"} if manifest.get("kind") == "dnc" else {"state", "experience_offset"}
        lacking = sorted({"format", "kind", "digest", "torch", "inputs", "outputs", "files", *of_kind} - set(manifest))
    except (ValueError, TypeError, KeyError) as exc:
        raise ArtifactError(f"{path} isn't an artifact's manifest: {exc}. Export the model again.") from exc
    if lacking:
        raise ArtifactError(f"{path} lacks {', '.join(lacking)}. Export the model again with `dnc export`.")
    if manifest["format"] != FORMAT:
        raise ArtifactError(
            f"{path} has format {manifest['format']}; this version reads 1 and {FORMAT}. Export the model again."
        )
    made_with = str(manifest["torch"])
    if made_with.split(".")[0] != torch.__version__.split(".")[0]:
        raise ArtifactError(
            f"{folder} was exported with torch {made_with}, and this is torch {torch.__version__}: programs "
            "don't pass between major versions. Install that torch, or export the model again with this one."
        )
    return manifest


def _of_format_1(manifest: dict[str, Any]) -> dict[str, Any]:
    inputs, outputs = ({"shape": [manifest[name]], "dtype": "float32"} for name in ("input_size", "output_size"))
    return {**manifest, "format": FORMAT, "kind": "dnc", "inputs": inputs, "outputs": outputs}


def _check_sizes(
    folder: Path, manifest: dict[str, Any], layout: RowLayout, inputs: TensorSpec, outputs: TensorSpec
) -> None:
    expected = {
        "inputs": spec_to_dict(inputs),
        "outputs": spec_to_dict(outputs),
        "state_size": layout.size,
        "experience_offset": layout.experience_offset,
    }
    for name, value in expected.items():
        if manifest.get(name) != value:
            raise ValueError(f"it says {name} {manifest.get(name)}, but the rest of it makes it {value}")
    offset = layout.experience_offset
    if offset is not None and offset not in [field.offset for field in layout.fields]:
        raise ValueError(f"experience_offset is {offset}, where no field begins")


def _check_digest(folder: Path, manifest: dict[str, Any], config: DNCConfig) -> None:
    digest = weights_digest(config, read_weights(folder / WEIGHTS_FILE))
    if digest != manifest["digest"]:
        raise ArtifactError(
            f"{folder / MANIFEST_FILE} names the digest {manifest['digest']}, but config and weights have {digest}: "
            "the manifest was edited or belongs to another model. Export the model again with `dnc export`."
        )


def _check_file(path: Path, facts: dict[str, Any] | None) -> None:
    if not path.is_file():
        raise ArtifactError(f"{path} doesn't exist. Copy the whole folder, or export the model again.")
    found = file_facts(path)
    if facts != found:
        raise ArtifactError(
            f"{path} doesn't fit its manifest: it should be {facts}, and is {found}. It is damaged or from another "
            "export. Copy the whole folder again, or export the model again."
        )


def _check_tick(artifact: Artifact) -> None:
    """One real timestep from a new state."""
    folder, rows = artifact.folder, artifact.rows or 1
    inputs = torch.zeros(1, rows, *artifact.inputs.shape, dtype=artifact.inputs.torch, device=artifact.device)
    states = torch.from_numpy(np.tile(artifact.layout.initial, (rows, 1))).to(artifact.device)
    try:
        with torch.inference_mode():
            outputs, after = artifact.tick(inputs, states)
    except torch.OutOfMemoryError as exc:
        raise ArtifactError(_no_memory(folder, artifact.device, exc)) from exc
    except (RuntimeError, ValueError) as exc:
        raise ArtifactError(f"{folder} can't step: {exc}. Export the model again.") from exc
    expected = [1, rows, *artifact.outputs.shape]
    if list(outputs.shape) != expected or after.shape != states.shape:
        raise ArtifactError(
            f"{folder} gives outputs {list(outputs.shape)} and states {list(after.shape)}; its manifest "
            f"says {expected} and {list(states.shape)}. Export the model again."
        )


def _no_memory(folder: Path, device: Any, error: Exception) -> str:
    return f"{folder} doesn't fit into the memory of {device}: {str(error).splitlines()[0]}"
