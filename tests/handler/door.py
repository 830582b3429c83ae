"""The streaming door of a real server in this process, through raw stubs."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from dnc_serve.client.arrays import DTYPES
from dnc_serve.handler.api.arrays import encode_array
from dnc_serve.handler.arrays import Float32
from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.server import Addresses, DncServer
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from dnc_serve.proto.dnc.v1 import dnc_pb2_grpc
from dnc_serve.proto.targets import DIRECTLY

TIMEOUT = 120  # a net under calls that hang


class Door:
    """A stub and a few shorthands."""

    def __init__(self, addresses: Addresses, server: DncServer) -> None:
        self.addresses = addresses
        self.server = server
        self.channel = grpc.insecure_channel(addresses.grpc, options=DIRECTLY)
        self.stub = dnc_pb2_grpc.DncServiceStub(self.channel)

    def create(self, session_id: str, **options: Any) -> pb.Session:
        request = pb.CreateSessionRequest(session_id=session_id, **options)
        return self.stub.CreateSession(request, timeout=TIMEOUT).session

    def step(self, session_id: str, inputs: Float32, **options: Any) -> pb.ChunkResult:
        return self.stub.Step(pb.StepRequest(chunk=chunk(session_id, inputs, **options)), timeout=TIMEOUT).result

    def stream(self, messages: Iterable[pb.StreamRequest]) -> list[pb.StreamResponse]:
        return list(self.stub.Stream(iter(list(messages)), timeout=TIMEOUT))

    def session(self, session_id: str) -> pb.Session:
        return self.stub.GetSession(pb.GetSessionRequest(session_id=session_id), timeout=TIMEOUT).session

    def dump(self, session_id: str, **options: Any) -> dict[str, Float32]:
        request = pb.DumpMemoryRequest(dump=pb.Dump(session_id=session_id, **options))
        return whole(response.part for response in self.stub.DumpMemory(request, timeout=TIMEOUT))


@contextmanager
def open_door(
    artifact: Path, state_dir: Path, others: Mapping[str, Path] | None = None, **settings: Any
) -> Iterator[Door]:
    """A server on free ports, stopped at the end; of one model, or of `others` by their names beside it."""
    named = others or {}
    models = ["copy", *(f"{name}={folder}" for name, folder in named.items())]
    config = ServeConfig(**({"model": models, "state_dir": state_dir, "port": 0, "metrics_port": 0} | settings))
    server = DncServer(config, [artifact, *named.values()], "cpu")
    door = Door(server.start(), server)
    try:
        yield door
    finally:
        door.channel.close()
        server.stop()


def chunk(session_id: str, inputs: Float32, **options: Any) -> pb.Chunk:
    return pb.Chunk(session_id=session_id, inputs=encode_array(inputs), **options)


def outputs_of(result: pb.ChunkResult) -> Float32:
    outputs = result.outputs
    return np.frombuffer(outputs.data, DTYPES[outputs.dtype]).reshape(tuple(outputs.shape))


def whole(parts: Iterable[pb.DumpPart]) -> dict[str, Float32]:
    """Arrays from their parts."""
    data: dict[str, bytearray] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, np.dtype] = {}
    for part in parts:
        assert part.offset == len(data.setdefault(part.name, bytearray()))
        data[part.name] += part.data
        shapes[part.name], dtypes[part.name] = tuple(part.shape), DTYPES[part.data_type]
    return {name: np.frombuffer(bytes(data[name]), dtypes[name]).reshape(shapes[name]) for name in data}


@contextmanager
def refused(reason: str, code: grpc.StatusCode) -> Iterator[dict[str, str]]:
    """Expects a refusal; yields the metadata of its `ErrorInfo`, filled when it came."""
    metadata: dict[str, str] = {}
    with pytest.raises(grpc.RpcError) as caught:
        yield metadata
    status = rpc_status.from_call(caught.value)
    assert status is not None, caught.value
    info = error_info(status)
    assert (info.reason, caught.value.code()) == (reason, code)
    assert info.domain == "dnc-serve"
    assert status.message
    metadata.update(info.metadata)


def error_info(status: status_pb2.Status) -> error_details_pb2.ErrorInfo:
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info


def retry_after_s(status: status_pb2.Status) -> float:
    """Seconds of the status' `RetryInfo`; 0 if there is none."""
    for detail in status.details:
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(retry):
            return retry.retry_delay.ToNanoseconds() / 1e9
    return 0.0
