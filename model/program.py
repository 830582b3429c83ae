"""The program of any model: its `step`, captured by `torch.export` as a `.pt2`, which is loaded without unpickling."""

import hashlib
import io
import json
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from dnc_serve.model.contract import TOLERANCE, Checked, ContractError
from dnc_serve.model.program_archive import ProgramError, check_archive
from dnc_serve.model.rows import RowLayout, TensorSpec

PROGRAM_FILE = "program.pt2"
_TORCH = Path(torch.__file__).parent


class _Flat(nn.Module):
    """`step` over the fields of a state, in the order of the layout."""

    def __init__(self, checked: Checked) -> None:
        super().__init__()
        self.module, self._order = checked.module, checked.order
        self._tree = pytree.tree_structure(checked.example[1])
        self._dtype = checked.outputs.torch

    def forward(self, x: Tensor, *fields: Tensor) -> tuple[Tensor, ...]:
        leaves = [fields[self._order.index(at)] for at in range(len(fields))]
        output, state = self.module.step(x, pytree.tree_unflatten(leaves, self._tree))  # type: ignore[operator]
        after = pytree.tree_leaves(state)
        return (output.to(self._dtype), *(after[at] for at in self._order))


def capture(checked: Checked) -> tuple[ExportedProgram, int | None]:
    """The program `(x, *fields) -> (output, *fields)`, and for how many rows: None is any number.

    Raises ContractError with the line of the module that can't be captured.
    """
    x, state = checked.example
    leaves = pytree.tree_leaves(state)
    # Copies: torch.export takes one tensor that stands in two fields for one argument.
    fields = [leaves[at].clone() for at in checked.order]
    flat = _Flat(checked).eval()
    rows = {0: Dim("rows", min=1, max=4096)}
    with torch.no_grad(), _quiet():
        try:
            return torch.export.export(flat, (x, *fields), dynamic_shapes=(rows, (rows,) * len(fields))), None
        except Exception:  # the number of rows is built into some modules: one row can still be had
            try:
                return torch.export.export(flat, (x[:1], *(field[:1] for field in fields))), 1
            except Exception as exc:
                raise ContractError(_reason(exc)) from exc


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch.export tells beside its errors: the graph so far, and warnings of what `check` looks for."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logger.disabled = True
        try:
            yield
        finally:
            logger.disabled = False


def _reason(error: Exception) -> str:
    """What torch.export says, and where in the module."""
    said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and not Path(frame.filename).is_relative_to(_TORCH)
    ]  # fmt: skip
    where = f" at {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""
    return (
        f"torch.export can't capture step{where}: {type(error).__name__}: {said}. Write what depends on values with "
        "torch.where instead of `if`, and lengths as fixed sizes"
    )


def program_digest(program: ExportedProgram, described: Any) -> str:
    """sha256, in hexadecimal, of all that decides what a timestep computes: the graph, its weights, and `described`."""
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    digest.update(str(program.graph_module.code).encode())
    constants = {name: value for name, value in program.constants.items() if isinstance(value, Tensor)}
    for name, tensor in sorted({**program.state_dict, **constants}.items()):
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_program(program: ExportedProgram, path: Path, checked: Checked) -> ExportedProgram:
    """Writes a program, and returns it as it is loaded.

    Raises ContractError if it holds what isn't loaded, or computes something else than the module.
    """
    with _quiet():
        torch.export.save(program, path)
    try:
        loaded = load_program(path)
    except ProgramError as exc:
        raise ContractError(f"the program of step can't be served: {exc}") from exc
    _check_same_results(loaded, checked)
    return loaded


def _check_same_results(program: ExportedProgram, checked: Checked) -> None:
    """From a new state on, and from one in which all fields differ."""
    x, state = pytree.tree_map(lambda tensor: tensor[:1], checked.example)
    run, step = stepping(program), _Flat(checked).eval()
    leaves = pytree.tree_leaves(state)
    fields = [leaves[at] for at in checked.order]
    with torch.no_grad():
        for _ in range(3):
            expected = step(x, *fields)
            for one, other in zip(run(x, *fields), expected, strict=True):
                if not torch.allclose(one.double(), other.double(), TOLERANCE, TOLERANCE, equal_nan=True):
                    raise ContractError(
                        "the program that torch.export makes of step gives other results than step itself; expected a "
                        "step that hangs on its arguments and the weights alone"
                    )
            fields = list(expected[1:])


def load_program(path: Path) -> ExportedProgram:
    """Raises ProgramError for a file that isn't one, or in which something would be executed but operators."""
    try:
        check_archive(path)
        program = torch.export.load(path)
        if any(each.kind is not OutputKind.USER_OUTPUT for each in program.graph_signature.output_specs):
            raise ProgramError("it changes its own weights or inputs as it steps")
        return program
    except ProgramError as exc:
        raise ProgramError(f"{path} is refused: {exc}") from exc
    except Exception as exc:  # torch raises what it likes for a damaged file
        raise ProgramError(f"{path} isn't a program that torch {torch.__version__} can load: {exc}") from exc


def stepping(program: ExportedProgram) -> Callable[..., Sequence[Tensor]]:
    """From x and the fields, the output and the fields after it.

    The graph itself, weights first: `program.module()` checks its inputs once more, for half as long as a small model's
    step takes, and executes guards, which are text in the file.
    """
    tensors = {**program.state_dict, **program.constants}
    inputs = program.graph_signature.input_specs
    weights = [tensors[str(each.target)] for each in inputs if each.kind is not InputKind.USER_INPUT]
    return partial(program.graph_module.forward, *weights)


class Program:
    """A program over rows of state; see `Tick`."""

    def __init__(self, program: ExportedProgram, layout: RowLayout, outputs: TensorSpec, device: Any) -> None:
        if torch.device(device).type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, str(device))
        self._step = stepping(program)
        self._layout, self._outputs = layout, outputs

    def __call__(self, inputs: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        fields = [field.contiguous() for field in self._layout.unpack_fields(rows)]
        outputs = torch.empty(
            len(inputs), len(rows), *self._outputs.shape, dtype=self._outputs.torch, device=rows.device
        )
        for tick, x in enumerate(inputs.unbind(0)):
            outputs[tick], *fields = self._step(x, *fields)
        after = torch.zeros_like(rows)
        self._layout.pack_fields(fields, after)
        return outputs, after
