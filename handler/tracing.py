"""Spans of traced chunks, sent to an OpenTelemetry collector.

A chunk that names its caller's span in `traceparent` gets four spans in that trace: the chunk at its endpoint and, in
it, the wait in the queue, the ticks, and the journal. Chunks without one cost nothing.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dnc_serve import __version__
from dnc_serve.handler.engine.observer import Committed, Observer
from dnc_serve.handler.engine.requests import Applied, Chunk
from dnc_serve.handler.engine.session import Session
from dnc_serve.proto.targets import channel_options

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


class Tracing(Observer):
    """Makes spans out of a chunk's times; leaves the trace's id with the chunk, for exemplars."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("dnc_serve", __version__)
        self._in_span = trace.set_span_in_context
        self._propagator = TraceContextTextMapPropagator()
        # Chunks keep times of the performance counter; spans want those of the wall clock.
        self._epoch_ns = time.time_ns() - time.perf_counter_ns()

    def committed(self, group: Sequence[Committed]) -> None:
        for session, request, applied in group:
            if isinstance(request, Chunk) and request.traceparent and applied is not None:
                self._record(request, session.session_id, applied.position)

    def replied_again(self, session: Session, chunk: Chunk, applied: Applied) -> None:
        if chunk.traceparent:
            self._record(chunk, session.session_id, applied.position)

    def _record(self, chunk: Chunk, session_id: str, position: int) -> None:
        caller = self._propagator.extract({"traceparent": chunk.traceparent})
        times = [chunk.arrived_at, chunk.started_at, chunk.stepped_at, time.perf_counter()]
        stamps = [self._epoch_ns + int(at * 1e9) for at in times]
        span = self._tracer.start_span("dnc.chunk", caller, start_time=stamps[0])
        span.set_attributes(
            {
                "dnc.session": session_id,
                "dnc.position": position,
                "dnc.timesteps": len(chunk.inputs),
                "dnc.endpoint": chunk.endpoint,
            }
        )
        inside = self._in_span(span)
        for name, start, end in zip(("dnc.queue", "dnc.ticks", "dnc.journal"), stamps, stamps[1:], strict=False):
            if start >= stamps[0] and end >= start:
                self._tracer.start_span(name, inside, start_time=start).end(end)
        span.end(stamps[-1])
        chunk.trace_id = f"{span.get_span_context().trace_id:032x}"

    def close(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()


def make_tracing(endpoint: str) -> Tracing | None:
    """Tracing to an OTLP collector (gRPC); None without an endpoint.

    Raises ModuleNotFoundError with a hint where OpenTelemetry is not installed.
    """
    if not endpoint:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as exc:
        raise ModuleNotFoundError(f"{exc}: tracing needs `pip install 'dnc-serve[tracing]'`") from exc
    provider = TracerProvider(resource=Resource.create({"service.name": "dnc-serve"}))
    options: Any = channel_options(urlsplit(endpoint).netloc or endpoint)  # described as pairs of strings
    exporter = OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https"), channel_options=options)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider)
