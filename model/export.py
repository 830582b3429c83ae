"""`export`: from a module to the artifact folder that is served."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import save_file
from torch import Tensor, nn

from dnc_serve.model.artifact import (
    FORMAT,
    INITIAL_FILE,
    MANIFEST_FILE,
    MODULE_FILE,
    file_facts,
    spec_to_dict,
    state_to_list,
)
from dnc_serve.model.contract import Checked, check
from dnc_serve.model.dnc import DNC
from dnc_serve.model.layout import StateLayout
from dnc_serve.model.program import PROGRAM_FILE, capture, program_digest, save_program
from dnc_serve.model.rows import TensorSpec
from dnc_serve.model.tick import StepModule, TickModule
from dnc_serve.model.weights import WEIGHTS_FILE, save_weights, weights_digest


def export(
    module: nn.Module,
    folder: str | Path,
    *,
    example_input: Tensor | TensorSpec | None = None,
    nr_cells: int | None = None,
    task: str = "",
) -> dict[str, Any]:
    """Writes the artifact of a model into the folder, and returns its manifest. The module itself is not changed.

    `module` is a trained DNC, or any module with `initial_state(batch_size)` and `step(x, state) -> (output, state)`;
    see `dnc_serve.model.contract`. `example_input` [*shape] is one timestep of one session, where the module doesn't
    say so itself. `nr_cells` gives an exported DNC another number of memory slots; the weights don't depend on it.
    `task` is what it was trained for, as `weights.task_of` tells of a run; whoever shows sessions may go by it.

    Raises ContractError, a ValueError, for a module that can't be served; ValueError for a wrong `nr_cells`, and for a
    DNC that feeds read vectors back between calls only: how a session's timesteps are divided into chunks mustn't
    change what it is told.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(module, DNC):
        return _export_dnc(module, folder, nr_cells, task)
    if nr_cells is not None:
        raise ValueError(f"nr_cells is {nr_cells}, but {type(module).__name__} isn't a DNC: it has no memory slots")
    with _evaluating(module):
        checked = check(module, example_input)
        manifest, program = _write_program(checked, folder)
    initial = checked.layout.initial.view("u1")
    described = {name: manifest[name] for name in ("inputs", "outputs", "state")}
    manifest["digest"] = program_digest(program, {**described, "initial": initial.tobytes().hex()})
    if initial.any():
        save_file({"initial": initial}, folder / INITIAL_FILE)
    if task:
        manifest["task"] = task
    return _write_manifest(manifest, folder, PROGRAM_FILE, INITIAL_FILE)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """In evaluation mode; afterwards each part is in the mode that it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def script(dnc: DNC) -> torch.jit.ScriptModule:
    """The model's `TickModule` compiled by TorchScript, in evaluation mode, its weights frozen in."""
    module = torch.jit.script(TickModule(dnc).eval())
    frozen: torch.jit.ScriptModule = torch.jit.freeze(module, preserved_attrs=["trace_debug", "interface"])
    return frozen


def _export_dnc(dnc: DNC, folder: Path, nr_cells: int | None, task: str) -> dict[str, Any]:
    """In float32: TorchScript, whose ticks a server runs or proves the row kernel against, and the program."""
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
    step = StepModule(exported)
    order, example = tuple(range(len(layout.fields))), (torch.randn(2, config.input_size), step.initial_state(2))
    checked = Checked(step, TensorSpec((config.input_size,)), TensorSpec((config.outputs,)), layout, order, example)
    manifest, _ = _write_program(checked, folder)
    manifest |= {
        "kind": "dnc",
        "digest": weights_digest(config, exported.state_dict()),
        "config": config.to_dict(),
    }
    if task:
        manifest["task"] = task
    return _write_manifest(manifest, folder, MODULE_FILE, PROGRAM_FILE, WEIGHTS_FILE)


def _write_program(checked: Checked, folder: Path) -> tuple[dict[str, Any], torch.export.ExportedProgram]:
    program, rows = capture(checked)
    program = save_program(program, folder / PROGRAM_FILE, checked)
    layout = checked.layout
    manifest = {
        "format": FORMAT,
        "kind": "program",
        "torch": torch.__version__,
        "inputs": spec_to_dict(checked.inputs),
        "outputs": spec_to_dict(checked.outputs),
        "state": state_to_list(layout),
        "state_size": layout.size,
        "experience_offset": layout.experience_offset,
        "rows": rows,
    }
    return manifest, program


def _write_manifest(manifest: dict[str, Any], folder: Path, *files: str) -> dict[str, Any]:
    """Last of all: a folder with a manifest is a whole artifact."""
    manifest["files"] = {name: file_facts(folder / name) for name in files if (folder / name).is_file()}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest
