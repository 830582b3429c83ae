"""Refusals as they go over the wire."""

from typing import Any

from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc import StatusCode

from dnc_serve.handler.errors import ServeError
from dnc_serve.proto.reasons import DOMAIN, REASONS

# The HTTP status of each gRPC code, as google.rpc.Code documents it; 499 and 504 as its gateways do.
HTTP_STATUS = {
    code_pb2.OK: 200,
    code_pb2.CANCELLED: 499,
    code_pb2.INVALID_ARGUMENT: 400,
    code_pb2.DEADLINE_EXCEEDED: 504,
    code_pb2.NOT_FOUND: 404,
    code_pb2.ALREADY_EXISTS: 409,
    code_pb2.PERMISSION_DENIED: 403,
    code_pb2.RESOURCE_EXHAUSTED: 429,
    code_pb2.FAILED_PRECONDITION: 400,
    code_pb2.ABORTED: 409,
    code_pb2.OUT_OF_RANGE: 400,
    code_pb2.UNAVAILABLE: 503,
    code_pb2.DATA_LOSS: 500,
    code_pb2.UNAUTHENTICATED: 401,
}


def http_status_of(error: ServeError) -> int:
    """The HTTP status that carries a refusal."""
    return HTTP_STATUS.get(code_of(error).value[0], 500)


DETAILS = "grpc-status-details-bin"  # the trailer that carries the status


def code_of(error: ServeError) -> StatusCode:
    """The gRPC code that carries a refusal."""
    return REASONS[error.reason]


def status_of(error: ServeError) -> status_pb2.Status:
    """The `google.rpc.Status` of a refusal: its reason in an `ErrorInfo`, and when to come again."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    details = [_packed(info)]
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(error.retry_after_s * 1000))
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status_pb2.Status(code=code_of(error).value[0], message=error.message, details=details)


def error_of(status: status_pb2.Status) -> ServeError:
    """The inverse: what another worker of this server refuses."""
    reason, metadata, retry_after_s = "INTERNAL", {}, None
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
    return ServeError(reason, status.message, retry_after_s=retry_after_s, **metadata)


def _packed(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
