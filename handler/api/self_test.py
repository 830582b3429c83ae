"""One real step through the server's own endpoint, before anybody is told that it serves."""

import secrets

import grpc
import numpy as np

from dnc_serve.handler.api.access import Access
from dnc_serve.handler.api.arrays import encode_array
from dnc_serve.handler.api.operations import Operations
from dnc_serve.handler.place import Place
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from dnc_serve.proto.dnc.v1 import dnc_pb2_grpc
from dnc_serve.proto.targets import DIRECTLY

TIMEOUT_SECONDS = 60.0


async def self_test(address: str, operations: Operations, access: Access, place: Place | None = None) -> None:
    """Creates a session of the model, streams one timestep into it, and deletes it; raises what the endpoint answers
    otherwise."""
    spec = operations.engine.runner.inputs
    session_id = _own_id(place)
    inputs = encode_array(np.zeros((1, *spec.shape), spec.numpy))
    metadata = access.own_metadata()
    async with grpc.aio.insecure_channel(address, options=DIRECTLY) as channel:
        stub = dnc_pb2_grpc.DncServiceStub(channel)
        options = {"metadata": metadata, "timeout": TIMEOUT_SECONDS}
        await stub.CreateSession(pb.CreateSessionRequest(session_id=session_id, model=operations.name), **options)
        chunk = pb.Chunk(session_id=session_id, position=0, inputs=inputs)
        stream = stub.Stream(iter([pb.StreamRequest(chunk=chunk)]), **options)
        async for response in stream:
            if response.WhichOneof("message") != "chunk" or response.chunk.position != 1:
                raise RuntimeError(f"the first step was answered with {response}")
        await stub.DeleteSession(pb.DeleteSessionRequest(session_id=session_id), **options)


def _own_id(place: Place | None) -> str:
    """The id of a session that this worker has: the others may not be there yet."""
    while True:
        session_id = f"self-test-{secrets.token_hex(8)}"
        if place is None or place.owns(session_id):
            return session_id
