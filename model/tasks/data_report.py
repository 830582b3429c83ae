"""Data as it is trained on; how far a model is off on what it wasn't trained on, in the data's units; and its card."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dnc_serve.model.dnc import DNC
from dnc_serve.model.normalisation import Scale
from dnc_serve.model.numerics import denormals_flushed

ROWS = 64  # sequences side by side


class Part(NamedTuple):
    """Some of the sequences, one behind the other, as they are in the file."""

    inputs: Tensor  # [rows, I], float32
    targets: Tensor  # [rows, O], float32; or [rows, 1], int64: a class
    due: Tensor  # [rows], bool; whether an answer is expected
    lengths: Tensor  # [sequences], int64


class Data(NamedTuple):
    """A source as it is trained on: split, and with the scales of what is trained on."""

    trained: Part
    held_out: Part
    classes: int | None  # None: the targets are numbers
    input_scale: Scale
    output_scale: Scale | None  # None for classes
    input_names: list[str]
    output_names: list[str]
    sha256: str


class Errors(NamedTuple):
    """On one part of the data, each sequence from a new session's state to its end.

    For numbers each output's error is the root of its mean squared error, and `plain` that of always answering with the
    trained sequences' mean. For classes it is the share of wrong answers, and `plain` that of the trained sequences'
    commonest class.
    """

    part: str
    sequences: int
    answers: int
    outputs: list[str]
    error: list[float]
    plain: list[float]
    classes: bool

    def __str__(self) -> str:
        if self.classes:
            how = f"{self.error[0]:.2%} wrong; always the commonest class, {self.plain[0]:.2%}"
        else:
            how = "; ".join(
                f"{name} off by {error:.6g}, its mean by {plain:.6g}"
                for name, error, plain in zip(self.outputs, self.error, self.plain, strict=True)
            )
        return f"{self.part}, {self.sequences} sequences, {self.answers} answers: {how}"


def report(data: Data, model: DNC) -> Iterator[Errors]:
    """The errors of a servable model: held out, and trained on."""
    for name, part in (("held out", data.held_out), ("trained on", data.trained)):
        outputs, targets = _outputs(model, part)[part.due], part.targets[part.due]
        if data.classes:
            commonest = data.trained.targets[data.trained.due].flatten().bincount().argmax()
            error = [float((outputs.argmax(1) != targets[:, 0]).double().mean())]
            plain = [float((targets[:, 0] != commonest).double().mean())]
        else:
            assert data.output_scale is not None, "numbers have a scale"
            error = _root_mean_square(outputs.double() - targets.double())
            plain = _root_mean_square(data.output_scale.mean - targets.double())
        yield Errors(
            name, len(part.lengths), len(targets), data.output_names, error, plain, classes=data.classes is not None
        )


def _root_mean_square(differences: Tensor) -> list[float]:
    """Of each column."""
    roots: list[float] = differences.square().mean(0).sqrt().tolist()
    return roots


@torch.no_grad()
@denormals_flushed()
def _outputs(model: DNC, part: Part) -> Tensor:
    """What the model answers to each row [rows, O]; sequences of like lengths go side by side."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    starts = part.lengths.cumsum(0) - part.lengths
    answers = torch.empty(len(part.inputs), model.config.outputs)
    for chosen in torch.split(part.lengths.argsort(), ROWS):
        timesteps = torch.arange(int(part.lengths[chosen].max())).unsqueeze(1)
        there = timesteps < part.lengths[chosen]
        rows = torch.where(there, starts[chosen] + timesteps, 0)
        outputs, _ = model.unroll(part.inputs[rows].to(device), model.initial_state(len(chosen)))
        answers[rows[there]] = outputs.cpu()[there].float()
    model.train(was_training)
    return answers


def write_card(source: str, data: Data, model: DNC, command: str) -> str:
    """What is worth knowing of a model that was trained on data."""
    config = model.config
    held_out, trained = report(data, model)
    lengths = torch.cat((data.trained.lengths, data.held_out.lengths))
    kind = f"one of {data.classes} classes, as logits" if data.classes else "numbers, by their mean squared error"
    measure = "wrong answers" if data.classes else "root mean squared error"
    otherwise = "always the commonest class" if data.classes else "always the mean"
    rows = [
        f"| {name} | " + " | ".join(f"{value:.2%}" if data.classes else f"{value:.6g}" for value in values) + " |"
        for name, *values in zip(held_out.outputs, held_out.error, held_out.plain, trained.error, strict=True)
    ]
    lines = [
        f"# {', '.join(data.input_names)} → {', '.join(data.output_names)}",
        "",
        "| | |",
        "|---|---|",
        f"| data | {source}, sha256 {data.sha256} |",
        f"| sequences | {len(lengths)} of {int(lengths.min())} to {int(lengths.max())} timesteps; "
        f"{held_out.sequences} of them held out |",
        f"| inputs | {config.input_size}, as they are in the file |",
        f"| outputs | {config.outputs}: {kind} |",
        f"| sizes | {config.rnn_type.upper()} of {config.hidden_size}, {config.nr_cells} slots of {config.cell_size} "
        f"numbers, {config.read_heads} read heads |",
        f"| trained by | `{command}` |",
        "",
        f"**Error** on the {held_out.sequences} sequences held out, {held_out.answers} answers, each sequence in a new "
        "session:",
        "",
        f"| output | {measure} | {otherwise} | {measure} on what was trained on |",
        "|---|---|---|---|",
        *rows,
    ]
    return "\n".join(lines) + "\n"
