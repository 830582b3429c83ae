"""What reads bytes of strangers, each with the errors that it may raise; anything else is a fault."""

import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError

from dnc_serve.handler.addresses import split_address
from dnc_serve.handler.api import state_seal
from dnc_serve.handler.api.access import read_tokens
from dnc_serve.handler.api.arrays import decode_inputs
from dnc_serve.handler.api.blob import SessionBlob, decode_blob
from dnc_serve.handler.api.call_json import call_from_json
from dnc_serve.handler.api.http_messages import read_request
from dnc_serve.handler.api.sequences import _flag, _number, _sequence_id
from dnc_serve.handler.api.tensors import check_outputs, parameter, read_input, tensors_of
from dnc_serve.handler.errors import ServeError
from dnc_serve.model.artifact import ArtifactError, load_artifact
from dnc_serve.model.rows import Field, RowLayout, TensorSpec
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from dnc_serve.proto.inference import inference_pb2

DIGEST = "5a" * 32
MOST_TIMESTEPS = 64
SPECS = [TensorSpec((3,)), TensorSpec((), "int64"), TensorSpec((2, 2), "bool")]
LAYOUT = RowLayout([Field((2, 3), "float32", "memory"), Field((), "int64", "steps")])
INPUT, OUTPUT = tensors_of(
    pb.GetModelResponse(
        inputs=pb.TensorSpec(shape=[3], data_type=pb.DATA_TYPE_FLOAT32),
        outputs=pb.TensorSpec(shape=[2], data_type=pb.DATA_TYPE_FLOAT32),
    )
)

_folder = Path(tempfile.mkdtemp(prefix="dnc-fuzz-"))
_keys = _folder / "keys"
_keys.write_text(os.urandom(32).hex())
_seal = state_seal.StateSeal(str(_keys))


def protobuf(data: bytes) -> None:
    """A message of the stream, and the arrays in it."""
    message = pb.StreamRequest.FromString(data)
    for one in message.batch.requests or [message]:
        decode_inputs(one.chunk.inputs, SPECS[one.chunk.request_id % len(SPECS)], MOST_TIMESTEPS)


def call_json(data: bytes) -> None:
    call_from_json(data)


def blob(data: bytes) -> None:
    decode_blob(data, DIGEST, LAYOUT)


def state(data: bytes) -> None:
    """A state behind a signature that is right: else nothing behind it is ever reached."""
    key_name, key = next(iter(_seal._keys.items()))
    content = state_seal.MAGIC + key_name + data
    _seal.opened(content + state_seal._signature(content, key, ""), "", DIGEST, LAYOUT.size)


def inference(data: bytes) -> None:
    _check(inference_pb2.ModelInferRequest.FromString(data))


def inference_json(data: bytes) -> None:
    """With bytes behind the JSON where it begins with a digit: that many tens are JSON."""
    length = str(10 * int(data[:1])) if data[:1].isdigit() else None
    _check(read_request("model", "1", data[1:] if length else data, length).message)


def _check(request: inference_pb2.ModelInferRequest) -> None:
    check_outputs(request, OUTPUT)
    for name, kind in (("sequence_id", _sequence_id), ("sequence_start", _flag), ("position", _number)):
        parameter(request, name, kind, "another")
    decode_inputs(read_input(request, INPUT), SPECS[0], MOST_TIMESTEPS)


def tokens(data: bytes) -> None:
    read_tokens(data.decode(errors="replace"), "the tokens")


def address(data: bytes) -> None:
    split_address(data.decode(errors="replace"))


def manifest(data: bytes) -> None:
    (_folder / "manifest.json").write_bytes(data)
    load_artifact(_folder)


def keys(data: bytes) -> None:
    path = _folder / "others"
    path.write_bytes(data)
    state_seal.StateSeal(str(path))


# From these on, fuzzing goes its way.
_ARRAY = pb.Array(shape=[2, 3], data=np.arange(6, dtype=np.float32).tobytes())
_CHUNK = pb.StreamRequest(chunk=pb.Chunk(session_id="s", position=1, incarnation=2, inputs=_ARRAY))
_TENSOR = inference_pb2.ModelInferRequest.InferInputTensor(
    name="INPUT", datatype="FP32", shape=[2, 3], contents=inference_pb2.InferTensorContents(fp32_contents=range(6))
)
_INFERENCE_JSON = (
    b'{"id": "7", "parameters": {"sequence_id": 5, "sequence_start": true}, "inputs": [{"name": "INPUT", '
    b'"datatype": "FP32", "shape": [2, 3], "data": [[0, 1, 2], [3, 4, 5]]}], "outputs": [{"name": "OUTPUT"}]}'
)
SEEDS: dict[Callable[[bytes], None], list[bytes]] = {
    protobuf: [
        _CHUNK.SerializeToString(),
        pb.StreamRequest(batch=pb.RequestBatch(requests=[_CHUNK, _CHUNK])).SerializeToString(),
    ],
    call_json: [
        b'{"step": {"session_id": "s", "position": 3, "incarnation": "7", "inputs": [[0, 1, 2], [3, 4, 5]]}}',
        b'{"step_with_state": {"chunk": {"inputs": [[0, 1, 2]]}, "state": "AAAA"}, "token": "t"}',
        b'{"dump_memory": {"session_id": "s", "names": ["memory"], "max_cells": 4}}',
    ],
    blob: [SessionBlob("s", DIGEST, 3, 1, "abc", np.zeros(LAYOUT.size, np.float32)).encode()],
    state: [struct.pack("<dQQ32s", 0.0, 3, 1, bytes.fromhex(DIGEST)) + bytes(4 * LAYOUT.size)],
    inference: [inference_pb2.ModelInferRequest(model_name="model", inputs=[_TENSOR]).SerializeToString()],
    inference_json: [_INFERENCE_JSON],
    tokens: [f'[[token]]\nname = "a"\nsha256 = "{DIGEST}"\nexpires = 2027-06-30T00:00:00Z\n'.encode()],
    address: [b"127.0.0.1:8500", b"[::1]:8500", b"localhost:1"],
    manifest: [
        b'{"format": 2, "kind": "program", "digest": "'
        + DIGEST.encode()
        + b'", "torch": "2.13.0", "inputs": {"shape": '
        b'[3], "dtype": "float32"}, "outputs": {"shape": [2], "dtype": "float32"}, "files": {}, '
        b'"experience_offset": 0, '
        b'"state": [{"name": "h", "shape": [4], "dtype": "float32", "part": 0, "offset": 0}]}',
    ],
    keys: [f"# the first signs\n{DIGEST}\n{DIGEST}".encode()],
}

TARGETS: dict[Callable[[bytes], None], tuple[type[Exception], ...]] = {
    protobuf: (DecodeError, ServeError),
    call_json: (ServeError,),
    blob: (ServeError,),
    state: (ServeError,),
    inference: (DecodeError, ServeError),
    inference_json: (ServeError,),
    tokens: (ValueError,),
    address: (ValueError,),
    manifest: (ArtifactError,),
    keys: (ValueError,),
}
BY_NAME = {target.__name__: target for target in TARGETS}


def read(target: Callable[[bytes], None], data: bytes) -> None:
    """Raises what the target should not have raised."""
    try:
        target(data)
    except TARGETS[target] as error:
        assert str(error), "an error says something"
