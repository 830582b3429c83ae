"""What a module must have to be served, and whether one has it.

    initial_state(batch_size) -> state          what a new session remembers
    step(x, state) -> (output, state)           one timestep

`x` is [B, *shape] and `output` too, one tensor each. `state` is a NamedTuple, dict, tuple or list of tensors, nested as
you like, all [B, ...] with shapes that never change. A row's results depend on that row alone, and on nothing that was
kept elsewhere. Optional: `experience`, the names of the state's fields that a reset of the experience clears, and
`input_size` or `example_input` [*shape], which tell what a timestep is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dnc_serve.model.recurrent import of_torch
from dnc_serve.model.rows import DTYPES, Field, RowLayout, TensorSpec

# Of one field of one session: a server keeps several states in memory, and writes each as one value.
MAX_FIELD_BYTES = 1 << 30
# A row alone and among others: matrix products may round differently, more means that rows see each other.
COMPANY_TOLERANCE = 1e-3


class ContractError(ValueError):
    """The module can't be served; the message says what it does, what is expected, and what to do."""


@dataclass(frozen=True)
class Checked:
    """What was found by stepping a module."""

    module: nn.Module  # with `initial_state` and `step`
    inputs: TensorSpec
    outputs: TensorSpec
    layout: RowLayout
    order: tuple[int, ...]  # where each field of the layout stands among the leaves of the state
    example: tuple[Tensor, Any]  # arguments of `step`, for two sessions


def check(module: nn.Module, example_input: Tensor | TensorSpec | None = None) -> Checked:
    """Steps the module a few times, in evaluation mode. Raises ContractError."""
    stepping: Any = of_torch(module) or module
    for name in ("initial_state", "step"):
        if not callable(getattr(stepping, name, None)):
            raise ContractError(
                f"{type(module).__name__} has no {name}; expected a module with initial_state(batch_size) and "
                "step(x, state) -> (output, state), or torch.nn's LSTM, GRU, RNN or their cells"
            )
    stepping.eval()
    inputs = _inputs(stepping, example_input)
    with torch.no_grad():
        one, three = (_leaves(stepping.initial_state(rows), rows) for rows in (1, 3))
        fields = _fields(one, three)
        x, state = _random(inputs, 3), stepping.initial_state(3)
        output, after = _step(stepping, x, state, inputs)
        outputs = _outputs(output, 3)
        _check_same_shapes(three, _leaves(after, 3))
        _check_pure(stepping, x, after, inputs)
        _check_rows_apart(stepping, x, after, output, inputs)
        example = _random(inputs, 2), stepping.initial_state(2)
    order, layout = _layout(fields, _experience(stepping, fields))
    layout.begin_with(_initial(layout, [one[at][1] for at in order]))
    return Checked(stepping, inputs, outputs, layout, order, example)


def _inputs(module: nn.Module, example: Tensor | TensorSpec | None) -> TensorSpec:
    if example is None:
        example = getattr(module, "example_input", None)
    if example is None and isinstance(size := getattr(module, "input_size", None), int):
        example = TensorSpec((size,))
    if isinstance(example, Tensor):
        example = TensorSpec(tuple(example.shape), _dtype("a timestep's input", example))
    if not isinstance(example, TensorSpec):
        raise ContractError(
            f"what a timestep of {type(module).__name__} is isn't known: give an example [*shape] without the batch, "
            "as `example_input` of the module or of export, or --input 80 or --input uint8:3,64,64"
        )
    return example


def _dtype(what: str, tensor: Tensor) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ContractError(f"{what} is {name}; expected one of {', '.join(DTYPES)}: convert it, as by .float()")
    return name


def _random(spec: TensorSpec, rows: int) -> Tensor:
    """Inputs of so many rows; small numbers, so that integers may be indices."""
    generator = torch.Generator().manual_seed(20161027)
    bits = torch.randint(0, 2, (rows, *spec.shape), generator=generator)
    if not spec.is_floating:
        return bits.to(spec.torch)
    return (torch.randn(rows, *spec.shape, generator=generator) + bits).to(spec.torch)


def _leaves(state: Any, rows: int) -> list[tuple[str, Tensor]]:
    """The tensors of a state by name, checked one by one."""
    leaves = []
    for path, leaf in pytree.tree_leaves_with_path(state):
        name = ".".join(str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", "")))) for key in path)
        name = name or "state"
        if not isinstance(leaf, Tensor):
            raise ContractError(
                f"the state's {name} is {leaf!r} of type {type(leaf).__name__}; expected tensors only, of fixed shapes "
                "with the batch in front: make a number a tensor [B]"
            )
        if leaf.dim() == 0 or leaf.size(0) != rows:
            raise ContractError(
                f"the state's {name} has shape {list(leaf.shape)} for a batch of {rows}; expected [{rows}, ...], the "
                "batch in front: transpose it in initial_state and step"
            )
        leaves.append((name, leaf))
    if not leaves:
        raise ContractError("the state has no tensor; expected at least one: a model without memory needs no session")
    return leaves


def _fields(one: Sequence[tuple[str, Tensor]], three: Sequence[tuple[str, Tensor]]) -> list[Field]:
    if [(name, leaf.shape[1:], leaf.dtype) for name, leaf in one] != [
        (name, leaf.shape[1:], leaf.dtype) for name, leaf in three
    ]:
        raise ContractError("initial_state gives other fields for a batch of 3 than for one of 1; expected the same")
    fields = []
    for name, leaf in one:
        field = Field(tuple(leaf.shape[1:]), _dtype(f"the state's {name}", leaf), name)
        if field.nbytes > MAX_FIELD_BYTES:
            raise ContractError(
                f"the state's {name} takes {field.nbytes} bytes for each session; expected at most {MAX_FIELD_BYTES}"
            )
        fields.append(field)
    return fields


def _step(module: nn.Module, x: Tensor, state: Any, inputs: TensorSpec) -> tuple[Tensor, Any]:
    try:
        result = module.step(x, state)  # type: ignore[operator]
    except Exception as exc:  # whatever a stranger's module may raise
        raise ContractError(
            f"step fails for x of {inputs} a session, batch of {len(x)}: {type(exc).__name__}: {exc}"
        ) from exc
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[0], Tensor):
        raise ContractError(f"step returns {type(result).__name__}; expected (output, state), the output one tensor")
    return result


def _outputs(output: Tensor, rows: int) -> TensorSpec:
    if output.dim() == 0 or output.size(0) != rows:
        raise ContractError(f"the output has shape {list(output.shape)} for a batch of {rows}; expected [{rows}, ...]")
    dtype = _dtype("the output", output)
    return TensorSpec(tuple(output.shape[1:]), "float32" if dtype == "bfloat16" else dtype)


def _check_same_shapes(before: Sequence[tuple[str, Tensor]], after: Sequence[tuple[str, Tensor]]) -> None:
    if [name for name, _ in before] != [name for name, _ in after]:
        raise ContractError(
            f"step returns a state of {', '.join(name for name, _ in after)}; expected the fields of initial_state: "
            f"{', '.join(name for name, _ in before)}"
        )
    for (name, old), (_, new) in zip(before, after, strict=True):
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise ContractError(
                f"the state's {name} is {new.dtype} {list(new.shape)} after a step, and {old.dtype} {list(old.shape)} "
                "in initial_state; expected the same: a state's size must not depend on the input"
            )


def _check_pure(module: nn.Module, x: Tensor, state: Any, inputs: TensorSpec) -> None:
    """Two steps from one state give the same bits, and leave what they were given as it was."""
    kept_x, kept_state = x.clone(), pytree.tree_map(torch.clone, state)
    torch.manual_seed(1)
    first = pytree.tree_map(torch.clone, _step(module, x, state, inputs))
    if not _same((x, state), (kept_x, kept_state)):
        raise ContractError("step changes its arguments in place; expected new tensors: a refused chunk is undone")
    _step(module, x.flip(0), first[1], inputs)
    torch.manual_seed(2)
    if _same(first, second := _step(module, x, state, inputs)):
        return
    torch.manual_seed(2)
    if _same(second, _step(module, x, state, inputs)):
        raise ContractError("step draws random numbers; expected the same result each time: put it into eval mode")
    raise ContractError(
        "step gives another result the second time from the same state: it keeps something on self between calls; "
        "expected all that it remembers in the state"
    )


def _check_rows_apart(module: nn.Module, x: Tensor, state: Any, output: Tensor, inputs: TensorSpec) -> None:
    together = _step(module, x, state, inputs)
    alone = _step(module, x[:1], pytree.tree_map(lambda leaf: leaf[:1], state), inputs)
    for one, three in zip(pytree.tree_leaves(alone), pytree.tree_leaves(together), strict=True):
        of_three = three[:1]
        close = torch.allclose(one.double(), of_three.double(), COMPANY_TOLERANCE, COMPANY_TOLERANCE, equal_nan=True)
        if not close:
            raise ContractError(
                "a row's result depends on the other rows of its batch; expected each session by itself: normalise "
                "over features, not over the batch"
            )


def _same(one: Any, other: Any) -> bool:
    """Whether all bits are the same."""
    return all(
        a.shape == b.shape and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
        for a, b in zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True)
    )


def _experience(module: nn.Module, fields: Sequence[Field]) -> set[str]:
    """The names of the fields that are the experience; a name stands for all that lies under it too."""
    wanted = getattr(module, "experience", ())
    wanted = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    chosen = set()
    for prefix in wanted:
        of_prefix = {field.name for field in fields if field.name == prefix or field.name.startswith(f"{prefix}.")}
        if not of_prefix:
            names = ", ".join(field.name for field in fields)
            raise ContractError(f"experience names {prefix!r}, which isn't a field of the state: {names}")
        chosen |= of_prefix
    return chosen


def _layout(fields: Sequence[Field], experience: set[str]) -> tuple[tuple[int, ...], RowLayout]:
    """The experience stands behind the rest."""
    order = tuple(sorted(range(len(fields)), key=lambda at: fields[at].name in experience))
    layout = RowLayout(fields[at] for at in order)
    if experience:
        layout.experience_offset = next(field.offset for field in layout.fields if field.name in experience)
    return order, layout


def _initial(layout: RowLayout, tensors: Sequence[Tensor]) -> "np.ndarray[Any, Any]":
    rows = torch.zeros(1, layout.size)
    layout.pack_fields(tensors, rows)
    return rows[0].numpy()
