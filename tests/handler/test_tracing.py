"""One trace from the client through door, queue, ticks and journal, into a real OTLP collector."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import TracerProvider

from dnc_serve.client import Client
from tests.handler.door import TIMEOUT, open_door
from tests.handler.harness import random_inputs
from tests.waiting import wait_until


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans that it is sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()


def test_client_door_queue_ticks_and_journal_are_one_trace(
    artifact_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = Collector()
    receiver = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, receiver)
    port = receiver.add_insecure_port("127.0.0.1:0")
    receiver.start()
    tracer = TracerProvider().get_tracer("test")
    try:
        endpoint = f"http://127.0.0.1:{port}"
        monkeypatch.setenv("grpc_proxy", "http://127.0.0.1:9")  # not for a collector on this machine
        with open_door(artifact_folder, tmp_path, otlp_endpoint=endpoint) as door:
            monkeypatch.delenv("grpc_proxy")
            with Client(door.addresses.grpc) as client, client.session("traced") as session:
                session.step(random_inputs(0, 3))  # outside of any span: not traced
                with tracer.start_as_current_span("the caller") as span:
                    session.step(random_inputs(1, 3))
            accepts = {"Accept": "application/openmetrics-text; version=1.0.0"}
            with urlopen(Request(f"http://{door.addresses.metrics}/metrics", headers=accepts), timeout=TIMEOUT) as page:
                assert f'trace_id="{span.get_span_context().trace_id:032x}"' in page.read().decode()
        wait_until(lambda: len(collector.spans) >= 4, "the spans have come")
    finally:
        receiver.stop(0)
    spans = {one.name: one for one in collector.spans}
    assert len(collector.spans) == 4
    context = span.get_span_context()
    assert {one.trace_id.hex() for one in collector.spans} == {f"{context.trace_id:032x}"}
    chunk = spans["dnc.chunk"]
    assert chunk.parent_span_id.hex() == f"{context.span_id:016x}"
    inside = [spans["dnc.queue"], spans["dnc.ticks"], spans["dnc.journal"]]
    assert {one.parent_span_id for one in inside} == {chunk.span_id}
    for before, after in pairwise(inside):
        assert before.end_time_unix_nano == after.start_time_unix_nano
    assert chunk.start_time_unix_nano == inside[0].start_time_unix_nano
    attributes = {one.key: one.value for one in chunk.attributes}
    assert attributes["dnc.session"].string_value == "traced"
    assert attributes["dnc.position"].int_value == 6
