"""The reasons for which the server refuses, each with the gRPC status code that carries it.

A refusal is a `google.rpc.Status` with an `ErrorInfo{reason, domain: "dnc-serve"}`, in a trailer for unary calls and
in-band on streams. Server and client read the same table.
"""

from grpc import StatusCode

DOMAIN = "dnc-serve"

REASONS: dict[str, StatusCode] = {
    # What was sent is wrong: `expected` and `got` say how.
    "BAD_SHAPE": StatusCode.INVALID_ARGUMENT,
    "BAD_DTYPE": StatusCode.INVALID_ARGUMENT,
    "NOT_FINITE": StatusCode.INVALID_ARGUMENT,
    "CHUNK_TOO_LONG": StatusCode.INVALID_ARGUMENT,
    "BAD_ID": StatusCode.INVALID_ARGUMENT,
    "BAD_REQUEST": StatusCode.INVALID_ARGUMENT,
    "BAD_BLOB": StatusCode.INVALID_ARGUMENT,
    "BAD_STATE": StatusCode.INVALID_ARGUMENT,
    "STATE_EXPIRED": StatusCode.FAILED_PRECONDITION,
    "MODEL_NOT_FOUND": StatusCode.NOT_FOUND,
    # What is served: it can't be loaded, or not as it is asked for.
    "MODEL_UNUSABLE": StatusCode.INVALID_ARGUMENT,
    "MODEL_IN_USE": StatusCode.FAILED_PRECONDITION,
    # Which session: unknown, ended and present are different answers.
    "SESSION_NOT_FOUND": StatusCode.NOT_FOUND,
    "SESSION_EXPIRED": StatusCode.NOT_FOUND,
    "SESSION_EXISTS": StatusCode.ALREADY_EXISTS,
    "SESSION_REPLACED": StatusCode.FAILED_PRECONDITION,
    "SESSION_MOVED": StatusCode.FAILED_PRECONDITION,
    # Which position: `expected_position` says where the session stands.
    "STEP_GAP": StatusCode.FAILED_PRECONDITION,
    "STEP_CONFLICT": StatusCode.ABORTED,
    "REPLY_GONE": StatusCode.OUT_OF_RANGE,
    "POSITION_GONE": StatusCode.OUT_OF_RANGE,
    # What came out.
    "NON_FINITE_RESULT": StatusCode.FAILED_PRECONDITION,
    "MODEL_MISMATCH": StatusCode.FAILED_PRECONDITION,
    "CORRUPT_STATE": StatusCode.DATA_LOSS,
    # Too much at once: RetryInfo says when to come again.
    "SESSION_LIMIT": StatusCode.RESOURCE_EXHAUSTED,
    "QUEUE_FULL": StatusCode.RESOURCE_EXHAUSTED,
    "STATE_TOO_LARGE": StatusCode.RESOURCE_EXHAUSTED,
    "RATE_LIMIT": StatusCode.RESOURCE_EXHAUSTED,
    # Not now: RetryInfo says when to come again.
    "DRAINING": StatusCode.UNAVAILABLE,
    "NOT_READY": StatusCode.UNAVAILABLE,
    "STORE_UNAVAILABLE": StatusCode.UNAVAILABLE,
    # Given up, before anything was applied.
    "DEADLINE_EXCEEDED": StatusCode.DEADLINE_EXCEEDED,
    "CANCELLED": StatusCode.CANCELLED,
    # Who.
    "UNAUTHENTICATED": StatusCode.UNAUTHENTICATED,
    "PERMISSION_DENIED": StatusCode.PERMISSION_DENIED,
    # Our own mistake.
    "INTERNAL": StatusCode.INTERNAL,
}
