"""The starting point of a training: a fresh model, biased to use its memory."""

from dataclasses import replace

import torch
from torch import Tensor

from dnc_serve.model.controller import Cell
from dnc_serve.model.dnc import DNC
from dnc_serve.model.interface import InterfaceVector, interface_sections
from dnc_serve.model.recipe import Recipe, Start
from dnc_serve.model.tasks.task import Task


def new_model(task: Task, recipe: Recipe, device: torch.device | str = "cpu") -> DNC:
    """A model of the recipe's sizes for the task, initialised from the recipe's seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = DNC(task.input_size, output_size=task.output_size, **recipe.model)
    apply_start(model, recipe.start)
    return model.to(device)


@torch.no_grad()
def apply_start(model: DNC, start: Start) -> None:
    """Changes a fresh model's parameters as `start` says; of what a sparse memory lacks, as free gates, nothing.

    Raises ValueError for an unknown part of the interface.
    """
    known = interface_sections(replace(model.config, memory="dense"))
    for interface in [module for module in model.modules() if isinstance(module, InterfaceVector)]:
        for part, value in start.biases.items():
            needed = "read_modes" if part == "content_mode" else part
            if needed in interface.sections or needed not in known:
                _bias(interface, part).add_(value)
    cells = [module for module in model.modules() if isinstance(module, Cell)]
    if model.has_cell_state:
        for cell in cells:
            cell.bias_ih[model.hidden_size : 2 * model.hidden_size].add_(start.forget_bias)
    cells[0].weight_ih[:, : model.config.input_size].mul_(start.input_scale)


def _bias(interface: InterfaceVector, part: str) -> Tensor:
    """The biases of one part of the interface vector, as a view to write through."""
    if part == "content_mode":
        _, modes = interface.section("read_modes")
        return modes.view(interface.read_heads, interface.read_modes)[:, -1]
    _, bias = interface.section(part)
    return bias
