"""A bounded random load on any server, by its address: several writers on a few sessions, over bare stubs.

Inputs are of a few rows only, so that sessions go through equal histories, whose outputs the checker compares.
"""

import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import grpc
import numpy as np

from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from dnc_serve.proto.dnc.v1 import dnc_pb2_grpc
from dnc_serve.proto.targets import DIRECTLY
from tests.histories.recorder import DTYPES

WRITERS, SESSIONS, DISTINCT_ROWS, LONGEST_CHUNK = 4, 6, 2, 4
LARGEST_MESSAGE = 64 << 20
CALL_TIMEOUT_S = 60.0
# How often each is called; deletes are rare, so that sessions grow.
WEIGHTS = {
    "create": 3, "step": 24, "stream": 6, "again": 8, "ahead": 2, "conflict": 4, "blind": 1, "reset": 4, "fork": 4,
    "imitate": 6, "delete": 2, "get": 4, "list": 1, "dump": 4, "replay": 2, "export": 2, "import": 2, "late": 2,
}  # fmt: skip


def load(
    target: str, seed: int, calls: int, seconds: float = float("inf"), prefix: str = "load", writers: int = WRITERS
) -> None:
    """`calls` of each writer, or what fits into the seconds; returns when all are answered or given up. What one
    writer calls is the same for the same seed."""
    until = time.monotonic() + seconds
    options = [*DIRECTLY, ("grpc.max_receive_message_length", LARGEST_MESSAGE)]
    with grpc.insecure_channel(target, options=options) as channel:
        stub = dnc_pb2_grpc.DncServiceStub(channel)
        spec = stub.GetModel(pb.GetModelRequest(), timeout=CALL_TIMEOUT_S, wait_for_ready=True).inputs
        rows = np.random.default_rng(seed).choice([-1, 1], (DISTINCT_ROWS, *spec.shape))
        rows = rows.astype("<" + DTYPES[spec.data_type])
        failed: list[BaseException] = []

        def work(writer: int) -> None:
            try:
                one = Writer(stub, random.Random(f"{seed} {writer}"), rows, spec.data_type, writer + 1, prefix)
                for _ in range(calls):
                    if time.monotonic() > until:
                        return
                    one.call()
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(writer,), daemon=True) for writer in range(writers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]


class Writer:
    """One that knows of a session what it was last told."""

    def __init__(
        self, stub: dnc_pb2_grpc.DncServiceStub, chance: random.Random, rows: np.ndarray, dtype: int, number: int,
        prefix: str,
    ) -> None:  # fmt: skip
        self._stub, self._chance, self._rows, self._dtype = stub, chance, rows, dtype
        self._id, self._prefix = number, prefix
        self._known: dict[str, tuple[int, int, int]] = {}  # incarnation, position, experience
        self._sent: list[pb.Chunk] = []
        self._before: dict[str, tuple[int, int, int]] = {}  # of a life that was over
        self._blob: bytes | None = None
        self._kinds, self._weights = list(WEIGHTS), list(WEIGHTS.values())

    def call(self) -> None:
        """Something random; refusals and lost servers are part of it."""
        kind = self._chance.choices(self._kinds, self._weights)[0]
        name = f"{self._prefix}-{self._chance.randrange(SESSIONS)}"
        with suppress(grpc.RpcError):
            if name not in self._known and kind != "create":
                self._learn(self._do(self._stub.GetSession, pb.GetSessionRequest(session_id=name)).session)
            made: Callable[[str], None] = getattr(self, f"_{kind}")
            made(name)

    def _do(self, call: Callable, request: object) -> object:  # type: ignore[type-arg]
        return call(request, timeout=CALL_TIMEOUT_S, wait_for_ready=True)

    def _learn(self, told: pb.Session | pb.ChunkResult) -> None:
        before = self._known.get(told.session_id)
        if before is not None and before[0] != told.incarnation:
            self._before[told.session_id] = before
        self._known[told.session_id] = told.incarnation, told.position, told.experience

    def _chunk(self, name: str, ahead: int = 0) -> pb.Chunk:
        incarnation, position, experience = self._known[name]
        rows = self._rows[
            [self._chance.randrange(DISTINCT_ROWS) for _ in range(self._chance.randint(1, LONGEST_CHUNK))]
        ]
        chunk = pb.Chunk(
            session_id=name, incarnation=incarnation, position=position + ahead, writer_id=self._id,
            inputs=pb.Array(shape=rows.shape, data=rows.tobytes(), dtype=self._dtype),
        )  # fmt: skip
        if self._chance.random() < 0.3:
            chunk.experience = experience
        chunk.reset_experience = self._chance.random() < 0.1
        return chunk

    def _send(self, chunk: pb.Chunk) -> None:
        self._sent = [*self._sent[-9:], chunk]
        try:
            self._learn(self._do(self._stub.Step, pb.StepRequest(chunk=chunk)).result)
        except grpc.RpcError:
            self._learn(self._do(self._stub.GetSession, pb.GetSessionRequest(session_id=chunk.session_id)).session)

    def _create(self, name: str) -> None:
        request = pb.CreateSessionRequest(session_id=name, allow_existing=self._chance.random() < 0.7)
        self._learn(self._do(self._stub.CreateSession, request).session)

    def _step(self, name: str) -> None:
        self._send(self._chunk(name))

    def _ahead(self, name: str) -> None:
        self._send(self._chunk(name, ahead=self._chance.randint(1, 5)))

    def _blind(self, name: str) -> None:
        chunk = self._chunk(name)
        chunk.ClearField("position")
        chunk.ClearField("experience")
        self._send(chunk)

    def _again(self, name: str) -> None:
        if self._sent:
            self._send(self._chance.choice(self._sent))

    def _conflict(self, name: str) -> None:
        """Another writer's chunk, or another chunk, where one was applied."""
        if self._sent:
            chunk = pb.Chunk()
            chunk.CopyFrom(self._chance.choice(self._sent))
            chunk.writer_id += 100
            self._send(chunk)

    def _late(self, name: str) -> None:
        """What was meant for a life that is over."""
        if name in self._before:
            incarnation, position, _ = self._before[name]
            chunk = self._chunk(name)
            chunk.incarnation, chunk.position = incarnation, position
            self._send(chunk)

    def _stream(self, name: str) -> None:
        """Some chunks, each sent before the answer to the one before, perhaps with a reset or a dump between them."""
        messages, ahead = [], 0
        for number in range(self._chance.randint(2, 5)):
            chunk = self._chunk(name, ahead)
            chunk.ClearField("experience")
            chunk.request_id, chunk.pipelined = number + 1, number > 0
            ahead += chunk.inputs.shape[0]
            messages.append(pb.StreamRequest(chunk=chunk))
        if self._chance.random() < 0.3:
            messages.append(pb.StreamRequest(dump=pb.Dump(session_id=name, names=[], request_id=90)))
        if self._chance.random() < 0.3:
            messages.append(pb.StreamRequest(reset=pb.Reset(session_id=name, request_id=91, writer_id=self._id)))
        for response in self._stub.Stream(iter(messages), timeout=CALL_TIMEOUT_S):
            if response.HasField("chunk"):
                self._learn(response.chunk)
        self._get(name)

    def _reset(self, name: str) -> None:
        incarnation, position, experience = self._known[name]
        reset = pb.Reset(
            session_id=name, incarnation=incarnation, position=position, writer_id=self._id,
            experience=experience if self._chance.random() < 0.8 else max(0, experience - 1),
            scope=pb.RESET_SCOPE_ALL if self._chance.random() < 0.5 else pb.RESET_SCOPE_EXPERIENCE,
        )  # fmt: skip
        for _ in range(self._chance.randint(1, 2)):
            self._learn(self._do(self._stub.ResetSession, pb.ResetSessionRequest(reset=reset)).result.session)

    def _fork(self, name: str) -> None:
        request = pb.ForkSessionRequest(session_id=name, fork_session_id=self._new(name))
        if self._chance.random() < 0.7:
            request.position = self._chance.randint(0, self._known[name][1])
        for _ in range(self._chance.randint(1, 2)):
            self._learn(self._do(self._stub.ForkSession, request).session)

    def _imitate(self, name: str) -> None:
        """A copy of the moment before a chunk gets that chunk too: its outputs must be the same bits."""
        if not self._sent:
            return
        chunk = self._chance.choice(self._sent)
        request = pb.ForkSessionRequest(
            session_id=chunk.session_id, fork_session_id=self._new(f"{self._prefix}-imitation"),
            incarnation=chunk.incarnation, position=chunk.position,
        )  # fmt: skip
        fork = self._do(self._stub.ForkSession, request).session
        same = pb.Chunk()
        same.CopyFrom(chunk)
        same.session_id, same.incarnation = fork.session_id, fork.incarnation
        same.ClearField("experience")
        self._do(self._stub.Step, pb.StepRequest(chunk=same))
        self._do(self._stub.DeleteSession, pb.DeleteSessionRequest(session_id=fork.session_id))

    def _new(self, name: str) -> str:
        return f"{name}.{self._id}{self._chance.randrange(1000):03}"[:128]

    def _delete(self, name: str) -> None:
        request = pb.DeleteSessionRequest(session_id=name)
        if self._chance.random() < 0.5:
            request.incarnation = self._known[name][0]
        for _ in range(2):
            self._do(self._stub.DeleteSession, request)
        self._before[name] = self._known.pop(name)

    def _get(self, name: str) -> None:
        self._learn(self._do(self._stub.GetSession, pb.GetSessionRequest(session_id=name)).session)

    def _list(self, name: str) -> None:
        self._do(self._stub.ListSessions, pb.ListSessionsRequest(prefix=self._prefix))

    def _dump(self, name: str) -> None:
        dump = pb.Dump(session_id=name)
        if self._chance.random() < 0.5:
            dump.position = self._chance.randint(0, self._known[name][1])
        for _ in range(2):
            list(self._do(self._stub.DumpMemory, pb.DumpMemoryRequest(dump=dump)))

    def _replay(self, name: str) -> None:
        after = self._chance.randint(0, self._known[name][1])
        list(self._do(self._stub.ReplaySession, pb.ReplaySessionRequest(session_id=name, after=after)))

    def _export(self, name: str) -> None:
        for _ in range(2):
            parts = list(self._do(self._stub.ExportSession, pb.ExportSessionRequest(session_id=name)))
            self._blob = b"".join(part.data for part in parts)

    def _import(self, name: str) -> None:
        if self._blob is not None:
            request = pb.ImportSessionRequest(
                session_id=self._new(f"{self._prefix}-import"), total_bytes=len(self._blob), data=self._blob
            )
            for _ in range(self._chance.randint(1, 2)):
                self._learn(self._do(self._stub.ImportSession, iter([request])).session)
