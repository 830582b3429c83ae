"""What a real server writes at level debug: each chunk and call with its ids and times, and no secret anywhere."""

import hashlib
import json
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from opentelemetry.sdk.trace import TracerProvider

from dnc_serve.client import Client
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from dnc_serve.proto.dnc.v1 import dnc_pb2_grpc
from tests.end_to_end.servers import Server, running
from tests.end_to_end.test_torchserve_door import post
from tests.folders import temp_folder
from tests.handler.door import TIMEOUT, chunk
from tests.handler.harness import INPUT_SIZE
from tests.waiting import wait_until

TOKEN, WRONG = "4f0c-a-token-of-the-test", "9b1e-a-wrong-token"
INPUTS = np.ones((3, INPUT_SIZE), np.float32)


def lines(server: Server) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]


def of_session(server: Server, session_id: str, message: str) -> list[dict[str, Any]]:
    return [line for line in lines(server) if line.get("session") == session_id and message in line["message"]]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    file.write_text(f'[[token]]\nname = "ward-3"\nsha256 = "{digest}"\n')
    return file


def test_each_chunk_and_call_is_logged_with_its_ids_and_no_secret(
    small_artifact: Path, tokens: Path, tmp_path: Path
) -> None:
    flags = ("--log-level", "debug", "--tokens", str(tokens))
    with running(small_artifact, tmp_path, *flags) as server:
        tracer = TracerProvider().get_tracer("test")
        with Client(server.grpc, token=TOKEN) as client, client.session("streamed") as session:
            session.step(INPUTS)
            with tracer.start_as_current_span("the caller") as span:
                session.step(INPUTS)
        metadata = [("authorization", f"Bearer {TOKEN}")]
        with grpc.insecure_channel(server.grpc) as channel:
            stub = dnc_pb2_grpc.DncServiceStub(channel)
            asked = pb.StepRequest(chunk=chunk("streamed", INPUTS, position=6, request_id=4711))
            for _ in range(2):  # the second time it is answered again
                stub.Step(asked, metadata=metadata, timeout=TIMEOUT)
            for who in ([("authorization", f"Bearer {WRONG}")], metadata):
                asked.chunk.position = 99
                with pytest.raises(grpc.RpcError):
                    stub.Step(asked, metadata=who, timeout=TIMEOUT)
        step = {"session_id": "streamed", "position": 9, "inputs": INPUTS.tolist(), "request_id": 12}
        assert post(server, {"step": step}, authorization=f"Bearer {TOKEN}")[0] == 200
        assert post(server, {"step": step, "token": TOKEN})[0] == 200
        assert post(server, {"step": step, "token": WRONG})[0] == 401
        assert post(server, {"step": step}, authorization=f"Bearer {WRONG}")[0] == 401

        wait_until(lambda: len(of_session(server, "streamed", "refused")) == 4, "the refusals are logged")
        answered = of_session(server, "streamed", "a chunk was answered")
        refused = of_session(server, "streamed", "refused")
        calls = of_session(server, "streamed", "a call was answered")
        # In no log, and in nothing else that the server keeps while it runs.
        for file in (one for kept in (tmp_path, temp_folder(tmp_path)) for one in kept.rglob("*") if one.is_file()):
            for secret in (TOKEN, WRONG):
                assert secret.encode() not in file.read_bytes(), file

    assert [line["position"] for line in answered] == [3, 6, 9, 9, 12, 12]
    assert [line["replayed"] for line in answered] == [False, False, False, True, False, True]
    assert [line["endpoint"] for line in answered] == ["stream", "stream", "unary", "unary", "torchserve", "torchserve"]
    assert [line["request_id"] for line in answered[2:]] == [4711, 4711, 12, 12]
    for line in answered:
        assert (line["owner"], line["timesteps"], line["level"]) == ("ward-3", 3, "debug")
        if not line["replayed"]:
            parts = [line[name] for name in ("queue_ms", "ticks_ms", "journal_ms")]
            assert all(part >= 0 for part in parts)
            assert sum(parts) == pytest.approx(line["total_ms"], abs=0.01)
    assert [line.get("trace") for line in answered[:2]] == [None, f"{span.get_span_context().trace_id:032x}"]
    assert {line["call"] for line in calls} >= {"CreateSession", "Step"}
    assert [line["reason"] for line in refused] == ["UNAUTHENTICATED", "STEP_GAP", "UNAUTHENTICATED", "UNAUTHENTICATED"]
    assert [line["request_id"] for line in refused] == [4711, 4711, 12, 12]


def test_without_debug_nothing_is_logged_of_chunks(server: Server) -> None:
    with Client(server.grpc) as client, client.session("quiet") as session:
        session.step(INPUTS)
        session.delete()
    assert "quiet" not in server.log
