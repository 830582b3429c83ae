"""Clients that have no contract get it whole: from the server, or out of the folder that is shipped."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc_tools
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.rpc import status_pb2
from grpc_reflection.v1alpha import reflection_pb2 as pb

from tests.handler.door import TIMEOUT, Door, open_door

VERSIONS = ("v1", "v1alpha")
SERVICES = {
    "dnc.v1.DncService",
    "inference.GRPCInferenceService",
    "grpc.health.v1.Health",
    *(f"grpc.reflection.{version}.ServerReflection" for version in VERSIONS),
}
CONTRACTS = Path(__file__).parents[3] / "proto"


@pytest.fixture(scope="module")
def door(artifact_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with open_door(artifact_folder, tmp_path_factory.mktemp("state")) as door:
        yield door


def ask(channel: grpc.Channel, version: str, request: pb.ServerReflectionRequest) -> pb.ServerReflectionResponse:
    call = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=pb.ServerReflectionRequest.SerializeToString,
        response_deserializer=pb.ServerReflectionResponse.FromString,
    )
    (response,) = call(iter([request]), timeout=TIMEOUT)
    return response


@pytest.mark.parametrize("version", VERSIONS)
def test_schemas_are_complete(door: Door, version: str) -> None:
    listed = ask(door.channel, version, pb.ServerReflectionRequest(list_services=""))
    assert {service.name for service in listed.list_services_response.service} == SERVICES
    for service in SERVICES:
        found = ask(door.channel, version, pb.ServerReflectionRequest(file_containing_symbol=service))
        pool = descriptor_pool.DescriptorPool()  # one that knows nothing yet
        for schema in reversed(found.file_descriptor_response.file_descriptor_proto):
            pool.Add(FileDescriptorProto.FromString(schema))
        assert pool.FindServiceByName(service).methods


def test_the_shipped_folder_compiles_alone(tmp_path: Path) -> None:
    contracts = sorted(str(path.relative_to(CONTRACTS)) for path in CONTRACTS.rglob("*.proto"))
    assert contracts == ["dnc/v1/dnc.proto", "google/rpc/status.proto", "inference/inference.proto"]
    # Google's well-known types are protoc's own.
    wellknown = Path(grpc_tools.__file__).parent / "_proto"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{CONTRACTS}", f"-I{wellknown}"]
    subprocess.run([*command, f"--python_out={tmp_path}", *contracts], check=True)
    assert len([*tmp_path.rglob("*_pb2.py")]) == len(contracts)


def test_the_shipped_status_is_googles() -> None:
    assert (CONTRACTS / "google/rpc/status.proto").read_text() == Path(
        status_pb2.__file__.replace("_pb2.py", ".proto")
    ).read_text()
