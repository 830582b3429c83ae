"""Reflection, by which clients without a contract learn it; under its present name and the one before, v1alpha."""

from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf import descriptor_pool, json_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

V1ALPHA = reflection.SERVICE_NAME
V1 = V1ALPHA.replace("v1alpha", "v1")


def add_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Answers for these services, whose code is imported, and for itself."""
    servicer = reflection.aio.ReflectionServicer((*services, V1ALPHA, V1), _schemas_of(services))
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    # The messages are the same; the package that makes them knows the former name alone.
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(V1, {"ServerReflectionInfo": handler}),))


def _schemas_of(services: Sequence[str]) -> descriptor_pool.DescriptorPool:
    """A pool of its own: v1 may be added to the common one by whoever has its code."""
    pool, added = descriptor_pool.DescriptorPool(), set()

    def add(file: Any) -> None:
        if file.name not in added:
            added.add(file.name)
            for imported in file.dependencies:
                add(imported)
            schema = FileDescriptorProto()
            file.CopyToProto(schema)
            pool.Add(schema)

    for name in (*services, V1ALPHA):
        add(descriptor_pool.Default().FindServiceByName(name).file)
    former = FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(former)
    text = json_format.MessageToJson(former).replace("v1alpha", "v1")
    pool.Add(json_format.Parse(text, FileDescriptorProto()))
    return pool
