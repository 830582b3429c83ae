"""The caller's trace, where it has one. OpenTelemetry is optional: without it, nothing is traced."""

try:
    from opentelemetry import trace
except ImportError:
    trace = None  # type: ignore[assignment]


def traceparent() -> str:
    """The current span as W3C Trace Context writes it; empty if there is none, or it is not sampled."""
    if trace is None:
        return ""
    context = trace.get_current_span().get_span_context()
    if not (context.is_valid and context.trace_flags.sampled):
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-01"
