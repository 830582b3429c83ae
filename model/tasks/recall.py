"""Associative recall: told keys with their values, asked for the values of some keys."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dnc_serve.model.recipe import LOOKUP_START, Recipe
from dnc_serve.model.tasks.task import Batch, Task, check_range, option, random_bits, random_int, random_share


@dataclass(frozen=True, kw_only=True)
class Recall(Task):
    """Distinct keys with a value each, one pair a timestep; then questions, each a key, answered in the same timestep.

    An input holds the key's bits as ±1, the value's bits as ±1 (0 in a question), and two flags: told, asked. The
    harder batches make the model compare whole keys: with dropped bits, a question lacks (as 0) some of its key's bits,
    never so that it could mean two keys; with near keys, each pair of keys is one bit apart.
    """

    name = "recall"
    recipe = Recipe(
        model={"hidden_size": 64, "num_hidden_layers": 1, "nr_cells": 32, "cell_size": 32, "read_heads": 1},
        start=replace(LOOKUP_START, forget_bias=-1.0),
        iterations=7000,
        batch_size=32,
        lr=3e-3,
        final_lr=1e-4,
        carry=0.5,
    )

    key_bits: int = option(8, "bits of a key")
    value_bits: int = option(8, "bits of a value")
    min_pairs: int = option(1, "fewest pairs told")
    max_pairs: int = option(10, "most pairs told")
    questions: int = option(6, "questions asked of each episode")
    dropped_share: float = option(0.4, "share of the batches whose questions lack one or two bits of their keys")
    near_share: float = option(0.3, "share of the batches whose keys are, two by two, one bit apart")

    def __post_init__(self) -> None:
        check_range("the number of pairs", self.min_pairs, self.max_pairs, at_most=2**self.key_bits)

    @property
    def input_size(self) -> int:
        return self.key_bits + self.value_bits + 2

    @property
    def output_size(self) -> int:
        return self.value_bits

    def draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        pairs = random_int(self.min_pairs, self.max_pairs, generator)
        kind = random_share(generator)
        near = kind < self.near_share
        keys = self.distinct_keys(pairs, batch_size, generator, near=near)
        values = random_bits((pairs, batch_size, self.value_bits), generator)
        asked = torch.randint(0, pairs, (self.questions, batch_size), generator=generator)
        batch = self.episode(keys, values, asked)
        if not near and kind < self.near_share + self.dropped_share:
            self._drop_bits(batch.inputs[pairs:, :, : self.key_bits], 2 * keys - 1, asked, generator)
        return batch

    def episode(self, keys: Tensor, values: Tensor, asked: Tensor) -> Batch:
        """The whole episode for keys and values [pairs, B, bits], asked for pairs by number [questions, B]."""
        pairs, batch_size, _ = keys.shape
        rows = torch.arange(batch_size)
        key_channels, value_channels = slice(0, self.key_bits), slice(self.key_bits, self.key_bits + self.value_bits)
        inputs = torch.zeros(pairs + len(asked), batch_size, self.input_size)
        inputs[:pairs, :, key_channels] = 2 * keys - 1
        inputs[:pairs, :, value_channels] = 2 * values - 1
        inputs[:pairs, :, -2] = 1
        inputs[pairs:, :, key_channels] = 2 * keys[asked, rows] - 1
        inputs[pairs:, :, -1] = 1
        targets = torch.zeros(pairs + len(asked), batch_size, self.value_bits)
        targets[pairs:] = values[asked, rows]
        due = torch.zeros(pairs + len(asked), batch_size)
        due[pairs:] = 1
        return Batch(inputs, targets, due)

    def distinct_keys(self, pairs: int, batch_size: int, generator: torch.Generator, *, near: bool = False) -> Tensor:
        """Keys [pairs, B, bits], all different within an episode; `near`: 2i and 2i + 1 are one bit apart."""
        places = torch.arange(self.key_bits)
        numbers = torch.rand(2**self.key_bits, batch_size, generator=generator).argsort(0)
        if near:
            flipped = torch.randint(0, self.key_bits, (1, batch_size), generator=generator)
            # Each number and its neighbour across one bit: the first of both comes where the number stood.
            first = numbers[(numbers >> flipped & 1 == 0).T.nonzero(as_tuple=True)[::-1]].view(batch_size, -1).T
            numbers = torch.stack((first, first | 1 << flipped), 1).flatten(0, 1)
        return (numbers[:pairs].unsqueeze(2) >> places & 1).float()

    def _drop_bits(self, questions: Tensor, keys: Tensor, asked: Tensor, generator: torch.Generator) -> None:
        """Zeroes two random bits (one, if they are the same) of each question [Q, B, bits] that stays unambiguous."""
        dropped = torch.randint(0, self.key_bits, (*questions.shape[:2], 2), generator=generator)
        kept = torch.ones_like(questions).scatter(2, dropped, 0.0)
        agreement = ((keys.unsqueeze(0) * questions.unsqueeze(1)) * kept.unsqueeze(1)).sum(3)  # [Q, pairs, B]
        matches = (agreement == kept.sum(2).unsqueeze(1)).sum(1)  # [Q, B]
        questions *= torch.where((matches == 1).unsqueeze(2), kept, 1.0)

    def lengthened(self, by: int) -> Self:
        return replace(self, max_pairs=self.max_pairs + by)

    def exams(self) -> dict[str, Task]:
        plain = replace(self, dropped_share=0.0, near_share=0.0)
        return {
            f"{pairs} pairs": replace(plain, min_pairs=pairs, max_pairs=pairs)
            for pairs in (1, 6, 10, 16)
            if pairs <= 2 * self.max_pairs
        }


BUNDLED = Recall()
"""The task of the bundled model."""


def encode_pairs(keys: npt.ArrayLike, values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """What tells the bundled model keys [n, 8] and their values [n, 8], as bits: inputs [n, 18]."""
    keys, values = _bits("keys", keys, BUNDLED.key_bits), _bits("values", values, BUNDLED.value_bits)
    if len(keys) != len(values):
        raise ValueError(f"values has {len(values)} rows; expected {len(keys)}, one for each key")
    flags = np.tile(np.array([1, 0], np.float32), (len(keys), 1))
    return np.concatenate((2 * keys - 1, 2 * values - 1, flags), 1)


def encode_questions(keys: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """What asks the bundled model for the values of keys [n, 8]: inputs [n, 18]; each is answered at its timestep."""
    keys = _bits("keys", keys, BUNDLED.key_bits)
    flags = np.tile(np.array([0, 1], np.float32), (len(keys), 1))
    return np.concatenate((2 * keys - 1, np.zeros((len(keys), BUNDLED.value_bits), np.float32), flags), 1)


def decode(outputs: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """The values' bits [n, 8] in the bundled model's outputs for `encode_questions`."""
    return (np.asarray(outputs) > 0).astype(np.uint8)


def _bits(name: str, bits: npt.ArrayLike, width: int) -> npt.NDArray[np.float32]:
    given = np.asarray(bits)
    if given.ndim != 2 or given.shape[1] != width or not np.isin(given, (0, 1)).all():
        raise ValueError(f"{name} has shape {list(given.shape)}; expected [n, {width}] of zeros and ones")
    return given.astype(np.float32)
