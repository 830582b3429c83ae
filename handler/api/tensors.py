"""The tensors of Triton's protocol: what the model takes and gives, and chunks read from them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dnc_serve.handler.errors import ServeError
from dnc_serve.proto.dnc.v1 import dnc_pb2
from dnc_serve.proto.inference import inference_pb2 as pb

# By the names of the protocol: how the contract calls a datatype, numpy, and the field that holds its elements.
_DATATYPES: dict[str, tuple[int, str, str]] = {
    "FP32": (dnc_pb2.DATA_TYPE_FLOAT32, "<f4", "fp32_contents"),
    "FP64": (dnc_pb2.DATA_TYPE_FLOAT64, "<f8", "fp64_contents"),
    "FP16": (dnc_pb2.DATA_TYPE_FLOAT16, "<f2", ""),
    "INT8": (dnc_pb2.DATA_TYPE_INT8, "<i1", "int_contents"),
    "UINT8": (dnc_pb2.DATA_TYPE_UINT8, "<u1", "uint_contents"),
    "INT16": (dnc_pb2.DATA_TYPE_INT16, "<i2", "int_contents"),
    "INT32": (dnc_pb2.DATA_TYPE_INT32, "<i4", "int_contents"),
    "INT64": (dnc_pb2.DATA_TYPE_INT64, "<i8", "int64_contents"),
    "BOOL": (dnc_pb2.DATA_TYPE_BOOL, "?", "bool_contents"),
}
NUMPY_DATATYPES = {name: dtype for name, (_, dtype, _) in _DATATYPES.items()}
MAX_DIMENSION = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of time [T, *timestep]."""

    name: str
    datatype: str
    timestep: tuple[int, ...]

    @property
    def shape(self) -> list[int]:
        """As the protocol writes it: -1 is any size."""
        return [-1, *self.timestep]


def tensors_of(model: dnc_pb2.GetModelResponse) -> tuple[Tensor, Tensor]:
    """What a model takes and gives."""
    names = {data_type: name for name, (data_type, _, _) in _DATATYPES.items()}

    def tensor(name: str, spec: dnc_pb2.TensorSpec) -> Tensor:
        return Tensor(name, names[spec.data_type], tuple(spec.shape))

    return tensor("INPUT", model.inputs), tensor("OUTPUT", model.outputs)


def read_input(request: pb.ModelInferRequest, expected: Tensor) -> dnc_pb2.Array:
    """The request's one input as the contract has it; whether it suits the model, the contract's own check says.

    Raises BAD_REQUEST, BAD_SHAPE or BAD_DTYPE.
    """
    names = [tensor.name for tensor in request.inputs]
    if names != [expected.name]:
        raise ServeError(
            "BAD_REQUEST",
            f"inputs are {names}, expected [{expected.name!r}] of the model {request.model_name!r}",
            expected=expected.name,
            got=names,
        )
    tensor = request.inputs[0]
    if "shared_memory_region" in tensor.parameters:
        raise ServeError(
            "BAD_REQUEST", f"input {tensor.name!r} lies in shared memory, expected its data in the request"
        )
    if any(not 0 <= size <= MAX_DIMENSION for size in tensor.shape):
        raise ServeError("BAD_SHAPE", f"input {tensor.name!r} has shape {list(tensor.shape)}, expected sizes")
    known = _DATATYPES.get(tensor.datatype)
    if known is None:
        raise ServeError(
            "BAD_DTYPE",
            f"input {tensor.name!r} has datatype {tensor.datatype!r}, expected one of {', '.join(_DATATYPES)}",
            expected=expected.datatype,
            got=tensor.datatype,
        )
    dtype, numpy_dtype, field = known
    if not request.raw_input_contents:
        data = _elements(tensor, numpy_dtype, field)
    elif len(request.raw_input_contents) != 1 or tensor.HasField("contents"):
        raise ServeError(
            "BAD_REQUEST",
            f"raw_input_contents has {len(request.raw_input_contents)} entries"
            f"{' and the input has contents too' if tensor.HasField('contents') else ''}, expected one of both, once",
        )
    else:
        data = request.raw_input_contents[0]
    return dnc_pb2.Array(shape=tensor.shape, data=data, dtype=dtype)  # type: ignore[arg-type]  # one of its values


def _elements(tensor: pb.ModelInferRequest.InferInputTensor, dtype: str, field: str) -> bytes:
    """The bytes of what stands in the field of a datatype; too many or too few are the contract's to refuse."""
    if not field:
        raise ServeError("BAD_DTYPE", f"input {tensor.name!r} is {tensor.datatype}, expected it in raw_input_contents")
    elements = getattr(tensor.contents, field)
    if len(elements) != math.prod(tensor.shape):
        raise ServeError(
            "BAD_SHAPE",
            f"{field} of input {tensor.name!r} has {len(elements)} elements, expected {math.prod(tensor.shape)} for "
            f"the shape {list(tensor.shape)}",
            expected=math.prod(tensor.shape),
            got=len(elements),
        )
    try:
        return np.array(elements, np.dtype(dtype)).tobytes()
    except OverflowError as exc:
        raise ServeError("BAD_DTYPE", f"{field} of input {tensor.name!r}: {exc}, as {tensor.datatype}") from None


def check_outputs(request: pb.ModelInferRequest, expected: Tensor) -> None:
    """Raises BAD_REQUEST for outputs that the model has not."""
    for tensor in request.outputs:
        if tensor.name != expected.name:
            raise ServeError(
                "BAD_REQUEST",
                f"output {tensor.name!r} is asked for, expected {expected.name!r} of the model {request.model_name!r}",
            )
        for name in ("shared_memory_region", "classification"):
            if name in tensor.parameters:
                raise ServeError("BAD_REQUEST", f"output {tensor.name!r} is asked for with {name}, expected none")


def parameter(request: pb.ModelInferRequest, name: str, kind: Callable[[Any], Any], expected: str) -> Any:
    """A parameter, whichever field it came in, as `kind` reads it; None if there is none. Raises BAD_REQUEST."""
    if name not in request.parameters:
        return None
    choice = request.parameters[name]
    field = choice.WhichOneof("parameter_choice")
    value = getattr(choice, field) if field else None
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise ServeError(
            "BAD_REQUEST", f"parameter {name!r} is {value!r}, expected {expected}", expected=expected, got=value
        ) from None
