"""A client of TorchServe's own gRPC, made from the .proto file in its jar.

The messages live in a descriptor pool of their own: TorchServe's stubs, generated in the usual way, would collide with
those of whoever has them already.
"""

import zipfile
from functools import cached_property
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.rpc import status_pb2
from grpc_tools import protoc

from dnc_serve.handler.torchserve.torchserve import torchserve_home
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.waiting import PATIENCE_S

PACKAGE = "org.pytorch.serve.grpc.inference"


class TorchServeClient:
    """Unary `Predictions`, one `Call` each."""

    def __init__(self, address: str, folder: Path) -> None:
        self._folder = folder
        self.channel = grpc.insecure_channel(address)
        self._predictions = self.channel.unary_unary(
            f"/{PACKAGE}.InferenceAPIsService/Predictions",
            request_serializer=self._class("PredictionsRequest").SerializeToString,
            response_deserializer=self._class("PredictionResponse").FromString,
        )

    def call(self, call: pb.Call) -> pb.CallResult:
        return pb.CallResult.FromString(self.send(call.SerializeToString()))

    def send(self, payload: bytes) -> bytes:
        return self.begin(payload).result().prediction

    def begin(self, payload: bytes) -> Any:
        """The future of one call, so that several are under way together."""
        request = self._class("PredictionsRequest")(model_name="dnc", input={"data": payload})
        return self._predictions.future(request, timeout=PATIENCE_S)

    def _class(self, name: str) -> Any:
        return message_factory.GetMessageClass(self._pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))

    @cached_property
    def _pool(self) -> descriptor_pool.DescriptorPool:
        with zipfile.ZipFile(torchserve_home() / "ts" / "frontend" / "model-server.jar") as jar:
            (self._folder / "inference.proto").write_bytes(jar.read("inference.proto"))
        described = self._folder / "described"
        folders = (self._folder, Path(protoc.__file__).parent / "_proto", Path(status_pb2.__file__).parents[2])
        arguments = ["", *(f"-I{folder}" for folder in folders), "--include_imports"]
        assert protoc.main([*arguments, f"--descriptor_set_out={described}", "inference.proto"]) == 0
        pool = descriptor_pool.DescriptorPool()
        for file in descriptor_pb2.FileDescriptorSet.FromString(described.read_bytes()).file:
            pool.Add(file)
        return pool
