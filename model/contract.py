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
# Of a row alone and among others, or of a module and its program: products may round differently, and no more.
TOLERANCE = 1e-3


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
    """Steps the module a few times, and leaves it in evaluation mode. Raises ContractError."""
    stepping: Any = of_torch(module) or module
    for name in ("initial_state", "step"):
        if not callable(getattr(stepping, name, None)):
            raise ContractError(
                f"{type(module).__name__} has no {name}; expected a module with initial_state(batch_size) and "
                "step(x, state) -> (output, state), or torch.nn's LSTM, GRU, RNN or their cells"
            )
    stepping.eval()
    inputs = _inputs(stepping, example_input)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        three, one = (_leaves(stepping.initial_state(rows), rows) for rows in (3, 1))
        fields = _fields(one, three)
        x, state = _random(inputs, 3), stepping.initial_state(3)
        output, after = _step(stepping, x, state, inputs)
        outputs = _outputs(output, 3)
        _check_same_fields(three, pytree.tree_leaves_with_path(after))
        _check_pure(stepping, x, after, inputs)
        _check_rows_apart(stepping, x, after, inputs)
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
    if example.dtype == "bfloat16":
        raise ContractError(
            "a timestep's input is bfloat16, which clients don't have; expected float32: step may take x.bfloat16()"
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


def _name(path: pytree.KeyPath) -> str:
    """Of a field, from its keys and numbers on the way to it."""
    keys = (getattr(key, "name", getattr(key, "key", getattr(key, "idx", ""))) for key in path)
    return ".".join(map(str, keys)) or "state"


def _leaves(state: Any, rows: int) -> list[tuple[str, Tensor]]:
    """The tensors of a state by name. All that can't be kept is named at once: it may be past mending."""
    leaves, faults = [], []
    for path, leaf in pytree.tree_leaves_with_path(state):
        name = _name(path)
        if not isinstance(leaf, Tensor):
            faults.append(f"{name} is {repr(leaf)[:60]} of type {type(leaf).__name__} (make a number a tensor [B])")
        elif leaf.dim() == 0 or leaf.size(0) != rows:
            faults.append(f"{name} has shape {list(leaf.shape)} for a batch of {rows} (transpose it)")
        else:
            leaves.append((name, leaf))
    if faults:
        more = f"; and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise ContractError(
            f"initial_state gives a state whose {'; '.join(faults[:4])}{more}; expected tensors only, "
            "[B, ...] with the batch in front, whose shapes never change"
        )
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


def _check_same_fields(before: Sequence[tuple[str, Tensor]], after: Sequence[tuple[pytree.KeyPath, Any]]) -> None:
    names = [_name(path) for path, _ in after]
    if [name for name, _ in before] != names:
        raise ContractError(
            f"step returns a state of {', '.join(names) or 'no tensors'}; expected the fields of initial_state in "
            f"their order: {', '.join(name for name, _ in before)}"
        )
    for (name, old), (_, new) in zip(before, after, strict=True):
        if not isinstance(new, Tensor):
            raise ContractError(f"the state's {name} is {repr(new)[:60]} after a step; expected a tensor, as before it")
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise ContractError(
                f"the state's {name} is {_described(new)} after a step, and {_described(old)} in initial_state; "
                "expected the same: a state's size must not depend on the input or on time"
            )


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _check_pure(module: nn.Module, x: Tensor, state: Any, inputs: TensorSpec) -> None:
    """Two steps from one state give the same bits, and leave what they were given, and the module, as it was."""
    kept_x, kept_state = x.clone(), pytree.tree_map(torch.clone, state)
    torch.default_generator.manual_seed(1)
    first = pytree.tree_map(torch.clone, _step(module, x, state, inputs))
    kept = _kept(module)  # not before: what is made once, as a table, may stay
    if not _same((x, state), (kept_x, kept_state)):
        raise ContractError(
            "step changes its arguments in place; expected new tensors, since a refused chunk leaves its session as it "
            "was: copy what is written into, as by state['memory'].clone() or dict(state)"
        )
    _step(module, x.flip(0), first[1], inputs)
    torch.default_generator.manual_seed(2)
    second = _step(module, x, state, inputs)
    changed = [name for name, value in _kept(module).items() if name in kept and not _same(value, kept[name])]
    if changed:
        raise ContractError(
            f"step keeps something on self between calls: it changes {', '.join(changed[:4])}; expected all that it "
            "remembers in the state"
        )
    if _same(first, second):
        return
    torch.default_generator.manual_seed(2)
    if _same(second, _step(module, x, state, inputs)):
        raise ContractError(
            "step draws random numbers; expected the same result each time: leave chance to the caller, or "
            "make noise an input"
        )
    raise ContractError(
        "step gives another result the second time from the same state: it keeps something between calls, or draws "
        "random numbers; expected all that it remembers in the state"
    )


def _kept(module: nn.Module) -> dict[str, Any]:
    """Copies of the buffers, and of the plain attributes, of all parts of a module."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    return buffers | {
        f"{prefix}.{name}".removeprefix("."): value.clone() if isinstance(value, Tensor) else value
        for prefix, part in module.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, bool | int | float | str | Tensor)
    }


def _check_rows_apart(module: nn.Module, x: Tensor, state: Any, inputs: TensorSpec) -> None:
    together = pytree.tree_leaves(_step(module, x, state, inputs))
    for rows in (2, 1):
        fewer = _step(module, x[:rows], pytree.tree_map(lambda leaf, rows=rows: leaf[:rows], state), inputs)
        for few, all_three in zip(pytree.tree_leaves(fewer), together, strict=True):
            one, other = few.double(), all_three[:rows].double()
            if not torch.allclose(one, other, TOLERANCE, TOLERANCE, equal_nan=True):
                raise ContractError(
                    "a row's result depends on the other rows of its batch; expected each session by itself: normalise "
                    "over features, not over the batch"
                )


def _same(one: Any, other: Any) -> bool:
    """Whether all tensors have the same bits, and all else is equal."""
    leaves, others = pytree.tree_leaves(one), pytree.tree_leaves(other)
    return len(leaves) == len(others) and all(map(_equal, leaves, others))


def _equal(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return bool(one is other or one == other)
    # Each as a row, since a scalar has no bytes to be viewed.
    bits = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return one.shape == other.shape and torch.equal(*bits)


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
