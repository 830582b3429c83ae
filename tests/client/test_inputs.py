"""Inputs of every kind: what can be converted is, without losing anything; all else is BadShape or BadDtype."""

import warnings
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch
from torch.masked import masked_tensor

from dnc_serve.client import BadDtype, BadShape, Client, DncError
from tests.handler.harness import INPUT_SIZE, random_inputs

INPUTS = random_inputs(1, 2)
TENSOR = torch.tensor(INPUTS)


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


class Unreadable:
    """What only looks like an array."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __array__(self, *arguments: Any, **options: Any) -> Any:
        raise self._error


class Wrapped:
    """As an array of another library."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __array__(self, *arguments: Any, **options: Any) -> Any:
        return self._array


@pytest.mark.parametrize(
    "variant",
    [
        INPUTS.tolist(), [tuple(row) for row in INPUTS], list(INPUTS), INPUTS.astype(int), INPUTS.astype(np.float16),
        INPUTS.astype(">f8"), INPUTS.astype(np.longdouble), np.asfortranarray(INPUTS), np.repeat(INPUTS, 2, 0)[::2],
        memoryview(INPUTS), Wrapped(INPUTS), INPUTS.astype(object).astype(np.int8),
        np.ma.masked_array(INPUTS), np.ma.masked_array(INPUTS, mask=np.zeros_like(INPUTS)),
        [np.ma.array(INPUTS[0]), INPUTS[1]],
        TENSOR.bfloat16(), TENSOR.half(), TENSOR.double(), TENSOR.int(), TENSOR.to(torch.float8_e4m3fn),
        TENSOR.clone().requires_grad_(), TENSOR.bfloat16().requires_grad_(), torch.nn.Parameter(TENSOR),
        TENSOR.T.contiguous().T, torch._neg_view(-TENSOR), (TENSOR * -1j).conj().imag,
        list(TENSOR), list(TENSOR.bfloat16()), [row.requires_grad_() for row in TENSOR.clone()],
        [list(row) for row in TENSOR],
    ],
)  # fmt: skip
def test_what_can_be_converted(client: Client, variant: Any) -> None:
    with client.session() as session, client.session() as reference:
        assert session.step(variant).tobytes() == reference.step(INPUTS).tobytes()


def odd_tensors() -> list[torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # half of them are prototypes
        return [
            TENSOR.to_sparse(), TENSOR.to_sparse_csr(), TENSOR.to("meta"),
            torch.quantize_per_tensor(TENSOR, 0.1, 0, torch.qint8),
            torch.nested.nested_tensor([TENSOR[0], TENSOR[1, :2]]),
            masked_tensor(TENSOR, torch.ones_like(TENSOR, dtype=torch.bool)),
        ]  # fmt: skip


RECURSIVE: list[Any] = []
RECURSIVE.append(RECURSIVE)


@pytest.mark.parametrize(
    ("inputs", "error"),
    [
        (None, BadShape), (5, BadShape), ("text", BadShape), (b"bytes", BadShape), ({}, BadShape), ({1}, BadShape),
        (iter(INPUTS), BadShape), (..., BadShape), (int, BadShape), (np, BadShape), ([], BadShape), ([[]], BadShape),
        (INPUTS[0], BadShape), (INPUTS[None], BadShape), (INPUTS[:, :2], BadShape), (INPUTS[:0], BadShape),
        (TENSOR[0], BadShape), (torch.tensor(1.0), BadShape), (np.float32(1), BadShape),
        ([[1.0] * INPUT_SIZE, [1.0]], BadShape), ([[1.0] * INPUT_SIZE, 1.0], BadShape), ([INPUTS[0], INPUTS], BadShape),
        ([["a"] * INPUT_SIZE], BadDtype), ([[b"a"] * INPUT_SIZE], BadDtype), ([[None] * INPUT_SIZE], BadDtype),
        ([[object()] * INPUT_SIZE], BadDtype), ([[Decimal(1)] * INPUT_SIZE], BadDtype),
        ([[10**400] * INPUT_SIZE], BadDtype), (INPUTS.astype(object), BadDtype), (INPUTS.astype(complex), BadDtype),
        (INPUTS.astype("M8[s]"), BadDtype), (INPUTS.astype("m8[s]"), BadDtype), (INPUTS.astype("S3"), BadDtype),
        (np.zeros((2, INPUT_SIZE), "V4"), BadDtype), (np.zeros((2, INPUT_SIZE), [("a", "f4")]), BadDtype),
        (Wrapped(INPUTS.astype(object)), BadDtype), (Wrapped(5), BadDtype), (RECURSIVE, BadDtype),
        *((Unreadable(cause), BadDtype) for cause in (RuntimeError(), ValueError("no"), TypeError("no"), KeyError(1))),
        ([Unreadable(RuntimeError("no"))], BadDtype),
        (TENSOR.to(torch.complex64), BadDtype), (TENSOR.to(torch.complex64).conj(), BadDtype),
        *((tensor, BadDtype) for tensor in odd_tensors()),
        (np.ma.masked_array(INPUTS, mask=np.eye(2, INPUT_SIZE)), BadDtype),
        (np.ma.masked_all((2, INPUT_SIZE)), BadDtype), (np.ma.masked_equal(INPUTS, INPUTS[0, 0]), BadDtype),
        ([np.ma.masked_array(row, mask=[1, 0, 0, 0, 0]) for row in INPUTS], BadDtype),
        ([[np.ma.masked, *[1.0] * (INPUT_SIZE - 1)]], BadDtype), (np.ma.masked, BadDtype),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_can_not(client: Client, inputs: Any, error: type[DncError]) -> None:
    with client.session() as session:
        session.step(INPUTS)
        with pytest.raises(error):
            session.step(inputs)
        answered = []
        with pytest.raises(error):
            answered.extend(session.stream([INPUTS, INPUTS, inputs, INPUTS]))
        assert (len(answered), session.position, session.info().position) == (2, 6, 6)
        session.step(INPUTS)


@pytest.mark.parametrize("raised", [OSError("the sensor is gone"), ValueError("odd"), StopAsyncIteration()])
def test_what_a_source_raises_comes_after_the_outputs_before_it(client: Client, raised: Exception) -> None:
    def chunks() -> Iterator[Any]:
        yield INPUTS
        yield INPUTS
        raise raised

    answered = []
    with client.session() as session:
        with pytest.raises(type(raised)):
            answered.extend(session.stream(chunks()))
        assert (len(answered), session.position) == (2, 4)
