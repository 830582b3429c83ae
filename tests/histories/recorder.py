"""Writes down what clients send to a server, and what they are answered, as JSON lines.

Within `recorded(path)` every gRPC channel that is opened in this process, also by the client library, is recorded;
other processes may write to the same file at the same time. Each line is written as it happens, so whatever a killed
client sent is there, without an answer. Times are of the monotonic clock, which processes of one machine share. Arrays
are kept as one digest for each timestep, as float32; a dump as one for each of its arrays; a blob as one, with its
position.
"""

import asyncio
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

SERVICE = "/dnc.v1.DncService/"
KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
DTYPES = ("f4", "f4", "f8", "f2", "i1", "u1", "i4", "i8", "i2", "?")  # by the contract's number; little-endian
STATUS_KEY = "grpc-status-details-bin"
HEADER_LENGTH_BYTES = 8  # of a safetensors file


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def rows(array: pb.Array, whole: bool = False) -> list[str]:
    """A digest for each timestep of inputs or outputs [T, *shape], or one for an array that is `whole`."""
    values = np.frombuffer(array.data, "<" + DTYPES[array.dtype]).astype("<f4")
    timesteps = 1 if whole or not array.shape else array.shape[0]
    return [digest(row.tobytes()) for row in values.reshape(timesteps, -1)] if timesteps else []


def refusal(status: status_pb2.Status) -> dict[str, Any]:
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info):
            return {"reason": info.reason, **info.metadata}
    return {"reason": ""}


def told(message: Message) -> dict[str, Any]:
    """A message in JSON's types. What has no value is left out, as protobuf does."""
    whole = isinstance(message, pb.ReplaySessionResponse)
    result: dict[str, Any] = {}
    for field, value in message.ListFields():
        if isinstance(value, pb.Array):
            result[field.name] = rows(value, whole)
        elif isinstance(value, status_pb2.Status):
            result[field.name] = refusal(value)
        elif isinstance(value, Message):
            result[field.name] = told(value)
        elif isinstance(value, bytes):
            result[field.name] = digest(value)
        elif isinstance(value, str | int | float):
            result[field.name] = value
        elif not hasattr(value, "items"):  # maps are of those who look, and of `debug`
            result[field.name] = [told(one) if isinstance(one, Message) else one for one in value]
    return result


class Recorder:
    """Appends to a history."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._name = secrets.token_hex(4)
        self._numbers = count()
        self._tasks: set[asyncio.Task[None]] = set()

    def new_call(self) -> str:
        return f"{self._name}-{next(self._numbers)}"

    def write(self, **event: Any) -> None:
        os.write(self._file, json.dumps({"at": time.monotonic(), **event}).encode() + b"\n")

    def record(self, channel: Any) -> Any:
        """The channel, of gRPC's blocking or asyncio kind, whose calls are recorded from now on."""
        for kind in KINDS:
            setattr(channel, kind, partial(self._multicallable, getattr(channel, kind)))
        return channel

    def _multicallable(
        self, make: Callable[..., Any], method: str, request_serializer: Any = None, response_deserializer: Any = None,
        **options: Any,
    ) -> Callable[..., Any]:  # fmt: skip
        if not method.startswith(SERVICE):
            return make(method, request_serializer, response_deserializer, **options)

        def call(*args: Any, **how: Any) -> Any:
            recorded = _Call(self, method.removeprefix(SERVICE))

            def serialize(message: Message) -> bytes:
                recorded.sent(message)
                return request_serializer(message)

            def deserialize(data: bytes) -> Message:
                message: Message = response_deserializer(data)
                recorded.got(message)
                return message

            try:
                begun = make(method, serialize, deserialize)(*args, **how)
            except grpc.RpcError as error:
                recorded.ended(error.code(), error.trailing_metadata())
                raise
            if isinstance(begun, grpc.aio.Call):
                begun.add_done_callback(lambda call: self._keep(asyncio.ensure_future(_ended(recorded, call))))
            elif hasattr(begun, "add_done_callback"):
                begun.add_done_callback(lambda _: recorded.ended(begun.code(), begun.trailing_metadata()))
            return begun

        return call

    def _keep(self, task: "asyncio.Task[None]") -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _ended(recorded: "_Call", call: Any) -> None:
    recorded.ended(await call.code(), await call.trailing_metadata())


class _Call:
    def __init__(self, recorder: Recorder, method: str) -> None:
        self._write = partial(recorder.write, call=recorder.new_call(), method=method)
        self._blob = bytearray()
        self._blob_bytes = 0
        self._dumps: dict[tuple[str, int], dict[str, Any]] = {}

    def sent(self, message: Any) -> None:
        if isinstance(message, pb.StreamRequest):
            for one in message.batch.requests or [message]:
                self._write(sent=told(one))
        elif isinstance(message, pb.ImportSessionRequest):
            if message.session_id:
                self._write(sent={"session_id": message.session_id})
            if self._whole_blob(message):
                self._write(blob=described(bytes(self._blob)))
        else:
            self._write(sent=told(message))

    def got(self, message: Any) -> None:
        if isinstance(message, pb.StreamResponse):
            for one in message.batch.responses or [message]:
                if one.WhichOneof("message") == "dump":
                    self._got_part(one.dump)
                else:
                    self._write(got=told(one))
        elif isinstance(message, pb.DumpMemoryResponse):
            self._got_part(message.part)
        elif isinstance(message, pb.ExportSessionResponse):
            if self._whole_blob(message):
                self._write(got=described(bytes(self._blob)))
        else:
            self._write(got=told(message))

    def ended(self, code: grpc.StatusCode, trailing: Any) -> None:
        if code is not grpc.StatusCode.OK:
            details = dict(trailing or ()).get(STATUS_KEY)
            known = refusal(status_pb2.Status.FromString(details)) if details else {"reason": ""}
            self._write(end={"code": code.name, **known})

    def _got_part(self, part: pb.DumpPart) -> None:
        """A dump is told when it is whole."""
        name = part.session_id, part.request_id
        dump = self._dumps.setdefault(name, {"session_id": part.session_id, "request_id": part.request_id,
                                             "position": part.position, "experience": part.experience,
                                             "arrays": {}})  # fmt: skip
        array = dump["arrays"].setdefault(part.name, hashlib.blake2b(str([*part.shape]).encode(), digest_size=8))
        array.update(part.data)
        if part.last:
            del self._dumps[name]
            dump["arrays"] = {key: one.hexdigest() for key, one in dump["arrays"].items()}
            self._write(got={"dump": dump})

    def _whole_blob(self, part: Any) -> bool:
        self._blob_bytes = self._blob_bytes or part.total_bytes
        self._blob += part.data
        return len(self._blob) == self._blob_bytes


def described(blob: bytes) -> dict[str, Any]:
    """Of a session's safetensors file: the digests of all and of the state alone, position and experience."""
    state = HEADER_LENGTH_BYTES + int.from_bytes(blob[:HEADER_LENGTH_BYTES], "little")
    try:
        stands = json.loads(blob[HEADER_LENGTH_BYTES:state])["__metadata__"]
        where = {"position": int(stands["position"]), "experience": int(stands["experience"])}
    except (ValueError, KeyError, TypeError):  # an odd one, sent to be refused
        return {"blob": digest(blob)}
    return {"blob": digest(blob), "state": digest(blob[state:]), **where}


_recorders: list[Recorder] = []


@contextmanager
def may_lose(all_of_it: bool = False) -> Iterator[None]:
    """Meanwhile a server may lose, once, what was not durable, as when its power goes; or what was, too. For all that
    is recorded now."""
    calls = [(recorder, recorder.new_call()) for recorder in _recorders]
    for recorder, call in calls:
        recorder.write(call=call, method="loss", sent={"all": all_of_it})
    yield
    for recorder, call in calls:
        recorder.write(call=call, method="loss", got={})


@contextmanager
def recorded(path: Path) -> Iterator[Recorder]:
    """All channels that are opened meanwhile are recorded for as long as they live."""
    recorder = Recorder(path)
    openers = {(module, name): getattr(module, name) for module in (grpc, grpc.aio) for name in
               ("insecure_channel", "secure_channel")}  # fmt: skip

    def recording(opener: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return recorder.record(opener(*args, **options))

    for (module, name), opener in openers.items():
        setattr(module, name, partial(recording, opener))
    _recorders.append(recorder)
    try:
        yield recorder
    finally:
        _recorders.remove(recorder)
        for (module, name), opener in openers.items():
            setattr(module, name, opener)
