"""The program of any model: its `step`, captured by `torch.export` as a `.pt2`, which is loaded without unpickling."""

import hashlib
import io
import json
import re
import traceback
import warnings
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from dnc_serve.model.contract import Checked, ContractError
from dnc_serve.model.rows import RowLayout, TensorSpec

PROGRAM_FILE = "program.pt2"

# What an archive of a program holds. Weights and constants lie there as raw bytes; all else that torch can load from
# one is unpickled, and isn't taken.
_RAW = re.compile(r"data/(weights/weight_\d+|constants/tensor_\d+|(weights|constants)/model_\w+_config\.json)")
_KNOWN = re.compile(r"models/model\.json|archive_(format|version)|byteorder|version|\.data/(version|serialization_id)")
_SAMPLE = "data/sample_inputs/model.pt"
# A graph calls operators of torch and of Python by their name; other functions could do anything.
_TARGET = re.compile(r"(torch\.ops\.(aten|prims|prim)\.[\w.]+|_operator\.\w+|torch\.sym_\w+|math\.\w+)")
# A size is an expression of symbols, which torch has evaluated by Python.
_EXPRESSION = re.compile(
    r"(Symbol\('[a-z]\d+'(, \w+=(True|False))*\)|(Integer|Rational|Add|Mul|Pow|Max|Min|Mod|\w*Div)\(|\d+|[-+*/(), ])*"
)


class ProgramError(Exception):
    """A file that isn't a program, or holds what isn't executed here; the message says what."""


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
    fields = [leaves[at] for at in checked.order]
    flat = _Flat(checked).eval()
    rows = {0: Dim("rows", min=1, max=4096)}
    with torch.no_grad(), warnings.catch_warnings():
        # That nn.LSTM lists its weights anew at each call is no fault of whoever exports one.
        warnings.filterwarnings("ignore", "The tensor attributes .*_flat_weights")
        try:
            return torch.export.export(flat, (x, *fields), dynamic_shapes=(rows, (rows,) * len(fields))), None
        except Exception:  # the number of rows is built into some modules: one row can still be had
            try:
                return torch.export.export(flat, (x[:1], *(field[:1] for field in fields))), 1
            except Exception as exc:
                raise ContractError(_reason(exc)) from exc


def _reason(error: Exception) -> str:
    """What torch.export says, and where in the module."""
    said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__)
        if "/torch/" not in frame.filename and not frame.filename.endswith(("model/program.py", "model/export.py"))
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


def load_program(path: Path) -> ExportedProgram:
    """Raises ProgramError for a file that isn't one, or that would have to be unpickled."""
    try:
        with zipfile.ZipFile(path) as archive:
            _check_archive(archive)
        program = torch.export.load(path)
        if any(each.kind is not OutputKind.USER_OUTPUT for each in program.graph_signature.output_specs):
            raise ProgramError("it changes its own weights or inputs as it steps")
        return program
    except ProgramError:
        raise
    except Exception as exc:  # torch raises what it likes for a damaged file
        raise ProgramError(f"{path} isn't a program that torch {torch.__version__} can load: {exc}") from exc


def _check_archive(archive: zipfile.ZipFile) -> None:
    for entry in archive.namelist():
        name = entry.partition("/")[2]
        if name == _SAMPLE:
            torch.load(io.BytesIO(archive.read(entry)), weights_only=True)
        elif _RAW.fullmatch(name) is None and _KNOWN.fullmatch(name) is None:
            raise ProgramError(f"it holds {name!r}, which isn't part of a program of weights and operators")
        if name.endswith("_config.json"):
            for key, value in _pairs(json.loads(archive.read(entry))):
                if key == "use_pickle" and value:
                    raise ProgramError("it holds pickled tensors, which could execute anything")
        if name == "models/model.json":
            _check_graph(json.loads(archive.read(entry)))


def _check_graph(graph: Any) -> None:
    for key, value in _pairs(graph):
        if key == "target" and isinstance(value, str) and _TARGET.fullmatch(value) is None:
            raise ProgramError(f"it calls {value!r}; expected operators of torch.ops.aten")
        if key == "expr_str" and _EXPRESSION.fullmatch(str(value)) is None:
            raise ProgramError(f"it has a size of {value!r}; expected an expression of sizes")


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a JSON document with its value, at all depths."""
    if isinstance(value, dict):
        yield from value.items()
        for inner in value.values():
            yield from _pairs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _pairs(inner)


class Program:
    """A program over rows of state; see `Tick`."""

    def __init__(self, program: ExportedProgram, layout: RowLayout, outputs: TensorSpec, device: Any) -> None:
        if torch.device(device).type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, str(device))
        # The graph itself, weights first: `program.module()` checks its inputs once more, for half as long as a small
        # model's step takes.
        tensors = {**program.state_dict, **program.constants}
        inputs = program.graph_signature.input_specs
        weights = [tensors[str(each.target)] for each in inputs if each.kind is not InputKind.USER_INPUT]
        self._step = partial(program.graph_module.forward, *weights)
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
