"""The standard health check of gRPC, for callers that do without the package that has its classes."""

from typing import Any

SERVING = "SERVING"
_STATUSES = ("UNKNOWN", SERVING, "NOT_SERVING", "SERVICE_UNKNOWN")


def ask(channel: Any) -> Any:
    """The call: takes an empty request, and answers with what `status` reads. The channel may be of asyncio."""
    return channel.unary_unary("/grpc.health.v1.Health/Check")


def status(answer: bytes) -> str:
    """The status that a HealthCheckResponse, whose one field is its number, holds."""
    return _STATUSES[answer[1] if len(answer) > 1 else 0]
