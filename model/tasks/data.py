"""Sequences of your own: x [T, I] to y [T, O], from a file, with some of them held out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dnc_serve.model.dnc import DNC
from dnc_serve.model.normalisation import folded, scale_of
from dnc_serve.model.recipe import Recipe
from dnc_serve.model.tasks.data_report import Data, Part, report, write_card
from dnc_serve.model.tasks.sequence_files import Sequences, read_sequences
from dnc_serve.model.tasks.task import Batch, Task, option

KINDS = ("auto", "numbers", "classes")
WRONG = 0.5  # a number is counted as wrong that is off by more than so much of its column's deviation


@dataclass(frozen=True, kw_only=True)
class DataTask(Task):
    """To answer at each timestep: with numbers, by their squared error, or with a class, by cross-entropy.

    Integers are classes, counted from 0, and the model's outputs are their logits. Inputs, and outputs that are
    numbers, are normalised with what the trained sequences' columns are like; the model that is saved takes and gives
    them as they are in the file. A batch holds sequences of the trained part, each as likely, or a random stretch of
    those that are longer than `window`.

    Outputs aren't clipped: a clip of 20 would hold in the data's units, where 20 may be nothing.
    """

    name = "data"
    unit = "answers"
    recipe = Recipe(
        model={
            "hidden_size": 64,
            "num_hidden_layers": 1,
            "nr_cells": 16,
            "cell_size": 16,
            "read_heads": 2,
            "clip": 0,
        },
        iterations=2000,
        lr=3e-3,
        final_lr=1e-4,
    )

    source: str = option("", "the data's path")
    inputs: tuple[str, ...] = option((), "columns of CSV files that go in")
    outputs: tuple[str, ...] = option((), "columns that are to come out")
    targets: str = option("auto", "numbers, classes, or auto: classes if they are whole numbers by their type")
    held_out: float = option(0.2, "share of the sequences that is not trained on; of a single sequence, its end")
    window: int = option(100, "most timesteps of a sequence in a batch")
    split_seed: int = option(1, "decides which sequences are held out")
    sha256: str = option("", "of the data; those of another digest are refused")

    def __post_init__(self) -> None:
        for name in ("inputs", "outputs"):  # JSON knows lists only, and a command line text
            value = getattr(self, name)
            names = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
            object.__setattr__(self, name, tuple(names))
        if self.targets not in KINDS:
            raise ValueError(f"targets is {self.targets!r}; expected one of {', '.join(KINDS)}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out!r}; expected a share in (0, 1)")
        if not isinstance(self.window, int) or self.window < 1:
            raise ValueError(f"window is {self.window!r}; expected at least 1 timestep")

    @classmethod
    def from_source(cls, source: Path, options: Mapping[str, Any]) -> Self:
        """The task of a file or folder, read and checked, and known by its digest from now on."""
        task = cls.from_options({**options, "source": str(source.resolve())})
        return replace(task, sha256=task.data.sha256)

    def moved(self, source: Path) -> Self:
        """The same task, with its data in another place."""
        return replace(self, source=str(source.resolve()))

    @property
    def argument(self) -> str:
        return self.source

    @cached_property
    def data(self) -> Data:
        """Read when first asked for. Raises ValueError if it isn't what it was, or can't be trained on."""
        sequences = read_sequences(Path(self.source), self.inputs, self.outputs)
        if self.sha256 and sequences.sha256 != self.sha256:
            raise ValueError(
                f"{self.source} has the sha256 {sequences.sha256[:16]}…; expected {self.sha256[:16]}…, that of the "
                "data which the run was trained on"
            )
        classes = self._classes(sequences)
        trained, held_out = self._split(sequences, classes)
        return Data(
            trained,
            held_out,
            classes,
            scale_of(trained.inputs, sequences.input_names),
            None if classes else scale_of(trained.targets[trained.due], sequences.output_names),
            sequences.input_names,
            sequences.output_names,
            sequences.sha256,
        )

    def _classes(self, sequences: Sequences) -> int | None:
        """How many, after a look at all targets; None if they are numbers."""
        targets = sequences.targets[sequences.due]
        if self.targets == "numbers" or (self.targets == "auto" and targets.dtype.kind == "f"):
            return None
        remark = "; measured numbers are told by --task-option targets=numbers"
        if targets.shape[1] != 1 or not (targets == np.floor(targets)).all():
            raise ValueError(
                f"{self.source}: {', '.join(sequences.output_names)} are to be classes; expected one column of whole "
                f"numbers{remark}"
            )
        present = np.unique(targets).astype(np.int64)
        if len(present) < 2 or (present != np.arange(len(present))).any():
            raise ValueError(
                f"{self.source}: {sequences.output_names[0]} has the classes {present[0]} to {present[-1]}, "
                f"{len(present)} in all; expected at least two, counted from 0, with none left out{remark}"
            )
        return len(present)

    def _split(self, sequences: Sequences, classes: int | None) -> tuple[Part, Part]:
        lengths = sequences.lengths
        if len(lengths) == 1:  # its end
            length = int(lengths[0])
            cut = min(max(round(length * (1 - self.held_out)), 1), length - 1)
            lengths, held = np.array([cut, length - cut]), np.array([False, True])
        else:
            count = min(max(round(len(lengths) * self.held_out), 1), len(lengths) - 1)
            order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(self.split_seed))
            held = (order < count).numpy()
        parts = []
        for name, chosen in (("trained", ~held), ("held out", held)):
            rows = np.repeat(chosen, lengths)
            if not sequences.due[rows].any():
                raise ValueError(f"{self.source}: in the part that is {name} no answer is due; expected more sequences")
            targets = sequences.targets[rows].astype(np.int64 if classes else np.float32)
            parts.append(
                Part(
                    torch.from_numpy(sequences.inputs[rows].astype(np.float32)),
                    torch.from_numpy(targets),
                    torch.from_numpy(sequences.due[rows]),
                    torch.from_numpy(lengths[chosen].astype(np.int64)),
                )
            )
        return parts[0], parts[1]

    @property
    def input_size(self) -> int:
        return len(self.data.input_names)

    @property
    def output_size(self) -> int:
        return self.data.classes or len(self.data.output_names)

    @cached_property
    def _normalised(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the trained part."""
        data = self.data
        targets = data.trained.targets.float()
        if data.output_scale is not None:
            targets = data.output_scale.normalised(data.trained.targets)
        return data.input_scale.normalised(data.trained.inputs), targets

    def draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Normalised; behind the end of a sequence that is shorter than the longest stand zeros, and nothing is due."""
        part, (inputs, targets) = self.data.trained, self._normalised
        chosen = torch.randint(0, len(part.lengths), (batch_size,), generator=generator)
        lengths = part.lengths[chosen]
        stretches = lengths.clamp(max=self.window)
        offsets = (torch.rand(batch_size, generator=generator) * (lengths - stretches + 1)).long()
        starts = (part.lengths.cumsum(0) - part.lengths)[chosen] + offsets
        timesteps = torch.arange(int(stretches.max())).unsqueeze(1)
        there = timesteps < stretches  # [T, B]
        rows = torch.where(there, starts + timesteps, 0)
        there_values = there.unsqueeze(2)
        return Batch(
            inputs[rows] * there_values, targets[rows] * there_values, (part.due[rows] & there).to(inputs.dtype)
        )

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Mean over what is due of the squared error in deviations, or of the cross-entropy in nats."""
        if self.data.classes:
            classes = batch.targets[:, :, 0].long()
            losses = cross_entropy(outputs.flatten(0, 1), classes.flatten(), reduction="none").view_as(batch.due)
        else:
            losses = (outputs - batch.targets).square().mean(2)
        return (losses * batch.due).sum() / batch.due.sum().clamp(min=1)

    def wrong(self, outputs: Tensor, batch: Batch) -> Tensor:
        """1 where the likeliest class isn't the right one, or any number is off by half its deviation and more."""
        if self.data.classes:
            return (outputs.argmax(2) != batch.targets[:, :, 0]) * batch.due
        return ((outputs - batch.targets).abs() > WRONG).any(2) * batch.due

    def units(self, batch: Batch) -> int:
        return int(batch.due.sum())

    def servable(self, model: DNC) -> DNC:
        return folded(model, self.data.input_scale, self.data.output_scale)

    def examine(self, model: DNC, episodes: int) -> Iterator[object]:
        """Each sequence once, however many episodes are asked for."""
        yield from report(self.data, model)

    def card(self, model: DNC, command: str) -> str | None:
        return write_card(self.source, self.data, model, command)
