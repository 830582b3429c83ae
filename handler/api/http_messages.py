"""Triton's protocol over HTTP: requests in JSON, tensors in it or as bytes behind it, made the messages of gRPC.

The binary extension puts the bytes of tensors behind the JSON, whose length the header Inference-Header-Content-Length
gives; `binary_data_size` of a tensor says how many are its own.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from dnc_serve.handler.api.call_json import counted_values
from dnc_serve.handler.api.tensors import NUMPY_DATATYPES
from dnc_serve.handler.errors import ServeError
from dnc_serve.proto.inference import inference_pb2 as pb

JSON_LENGTH = "inference-header-content-length"
INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request, and whether its outputs are wanted as bytes."""

    message: pb.ModelInferRequest
    binary: bool


def read_request(name: str, version: str, body: bytes, json_length: str | None) -> HttpRequest:
    """A request for a model. Raises BAD_REQUEST, BAD_DTYPE or BAD_SHAPE."""
    if json_length is not None and not (json_length.isascii() and json_length.isdecimal()):
        raise _bad(f"{JSON_LENGTH} is {json_length!r}, expected a number of bytes")
    length = len(body) if json_length is None else int(json_length)
    if length > len(body):
        raise _bad(f"{JSON_LENGTH} is {length}, expected at most the {len(body)} bytes of the request")
    counted_values(body[:length])
    try:
        asked = json.loads(body[:length])
    except (ValueError, RecursionError) as exc:
        raise _bad(f"the request is not JSON: {exc}") from None
    message = pb.ModelInferRequest(model_name=name, model_version=version, id=_text(asked, "id"))
    parameters = _object(asked, "parameters")
    for key, value in parameters.items():
        _set_parameter(message.parameters[key], key, value)
    rest = memoryview(body)[length:]
    for tensor in _objects(asked, "inputs"):
        shape = tensor.get("shape")
        if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 2**32 for size in shape):
            raise ServeError("BAD_SHAPE", f"an input has shape {shape!r}, expected a list of sizes", got=shape)
        name, datatype = _text(tensor, "name"), _text(tensor, "datatype")
        message.inputs.add(name=name, datatype=datatype, shape=shape)
        size = _object(tensor, "parameters").get("binary_data_size")
        if size is None:
            message.raw_input_contents.append(_encoded(name, datatype, tensor.get("data")))
            continue
        if type(size) is not int or not 0 <= size <= len(rest):
            raise _bad(f"binary_data_size of input {name!r} is {size!r}, expected up to {len(rest)}, which are left")
        message.raw_input_contents.append(bytes(rest[:size]))
        rest = rest[size:]
    if rest:
        raise _bad(f"{len(rest)} bytes follow that belong to no input")
    binary = parameters.get("binary_data_output") is True
    for tensor in _objects(asked, "outputs"):
        wanted = _object(tensor, "parameters")
        message.outputs.add(name=_text(tensor, "name"))
        if wanted.get("classification"):
            _set_parameter(message.outputs[-1].parameters["classification"], "classification", 1)
        binary = wanted.get("binary_data", binary) is True
    return HttpRequest(message, binary)


def answer_of(request: HttpRequest, answer: pb.ModelInferResponse) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON if bytes follow it."""
    outputs, following = [], []
    for tensor, data in zip(answer.outputs, answer.raw_output_contents, strict=True):
        shown: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": [*tensor.shape]}
        if request.binary:
            shown["parameters"] = {"binary_data_size": len(data)}
            following.append(data)
        else:
            shown["data"] = np.frombuffer(data, NUMPY_DATATYPES[tensor.datatype]).tolist()
        outputs.append(shown)
    head = json.dumps(
        {
            "model_name": answer.model_name,
            "model_version": answer.model_version,
            **({"id": answer.id} if answer.id else {}),
            "parameters": {name: _value(one) for name, one in answer.parameters.items()},
            "outputs": outputs,
        }
    ).encode()
    return b"".join([head, *following]), len(head) if following else None


def _encoded(name: str, datatype: str, data: Any) -> bytes:
    """The bytes of elements in JSON, nested or not."""
    dtype = NUMPY_DATATYPES.get(datatype)
    if dtype is None:
        raise ServeError(
            "BAD_DTYPE",
            f"input {name!r} has datatype {datatype!r}, expected one of {', '.join(NUMPY_DATATYPES)}",
            got=datatype,
        )
    try:
        read = np.array(data)
        if read.dtype.kind not in "iufb" and read.size:
            raise ValueError("they are no numbers")
        with np.errstate(over="ignore", invalid="ignore"):
            elements = read.astype(dtype)
        if np.dtype(dtype).kind != "f" and not np.array_equal(elements, read):
            raise ValueError(f"they don't fit {datatype}")
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise _bad(f"data of input {name!r}: expected a list of numbers, nested in one way ({exc})") from None
    return elements.tobytes()


def _set_parameter(parameter: pb.InferParameter, name: str, value: Any) -> None:
    match value:
        case bool():
            parameter.bool_param = value
        case int() if value in INT64:
            parameter.int64_param = value
        case int() if 0 <= value < 2**64:
            parameter.uint64_param = value
        case float():
            parameter.double_param = value
        case str():
            parameter.string_param = value
        case _:
            raise _bad(f"parameter {name!r} is {value!r}, expected a number, a text, true or false")


def _value(parameter: pb.InferParameter) -> Any:
    field = parameter.WhichOneof("parameter_choice")
    return getattr(parameter, field) if field else None


def _text(values: Any, name: str) -> str:
    value = values.get(name, "") if isinstance(values, dict) else None
    if not isinstance(value, str):
        raise _bad(f"{name} is {value!r}, expected a text in an object")
    return value


def _object(values: Any, name: str) -> dict[str, Any]:
    value = values.get(name, {})
    if not isinstance(value, dict):
        raise _bad(f"{name} is {value!r}, expected an object")
    return value


def _objects(values: Any, name: str) -> list[dict[str, Any]]:
    value = values.get(name, [])
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise _bad(f"{name} is {value!r}, expected a list of objects")
    return value


def _bad(message: str) -> ServeError:
    return ServeError("BAD_REQUEST", message)
