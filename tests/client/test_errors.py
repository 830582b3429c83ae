"""Every reason of the server arrives as its class, through a real call."""

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from dnc_serve.client import errors
from dnc_serve.client.errors import BY_REASON, ClientClosed, Internal, Unavailable, from_status, translated
from dnc_serve.proto.reasons import DOMAIN, REASONS
from tests.waiting import PATIENCE_S

METHOD = "/test.Test/Fail"
# Classes that only group others, and the one error that no server sends.
OUR_OWN = {
    "DNC_ERROR", "INVALID_REQUEST", "SESSION_ERROR", "POSITION_ERROR", "RESULT_ERROR", "LIMIT_ERROR", "UNAVAILABLE",
    "ACCESS_ERROR", "CLIENT_CLOSED",
}  # fmt: skip


def packed(message: Any) -> any_pb2.Any:
    detail = any_pb2.Any()
    detail.Pack(message)
    return detail


def status_of(reason: str, domain: str = DOMAIN, **metadata: str) -> status_pb2.Status:
    info = error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata)
    retry = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1, nanos=500_000_000))
    code = REASONS.get(reason, grpc.StatusCode.ABORTED).value[0]
    return status_pb2.Status(code=code, message=f"says {reason}", details=[packed(info), packed(retry)])


@pytest.fixture
async def fail() -> AsyncIterator[Any]:
    """A call that fails in the way that its request, "CODE" or a status, asks for."""

    async def handler(request: bytes, context: Any) -> bytes:
        status = status_pb2.Status.FromString(request)
        code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
        trailer = (("grpc-status-details-bin", request),) if status.details else ()
        await context.abort(code, status.message, trailer)
        return b""

    server = grpc.aio.server()
    handlers = {"Fail": grpc.unary_unary_rpc_method_handler(handler)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(METHOD)

        async def failing(status: status_pb2.Status) -> None:
            with translated():
                await call(status.SerializeToString(), timeout=PATIENCE_S)

        yield failing
    await server.stop(None)


def test_one_class_for_each_reason() -> None:
    assert set(BY_REASON) == set(REASONS) | OUR_OWN
    assert BY_REASON["STEP_GAP"] is errors.StepGap


async def test_reasons_arrive(fail: Any) -> None:
    for reason in REASONS:
        with pytest.raises(BY_REASON[reason]) as caught:
            await fail(status_of(reason, expected_position="7"))
        error = caught.value
        assert type(error) is BY_REASON[reason]
        assert (error.reason, error.message, error.metadata) == (reason, f"says {reason}", {"expected_position": "7"})
        assert error.retry_after_s == 1.5
        assert isinstance(error.__cause__, grpc.aio.AioRpcError)
        assert str(error) == f"{reason}: says {reason}"


async def test_what_grpc_itself_says(fail: Any) -> None:
    expected = {
        grpc.StatusCode.UNAVAILABLE: Unavailable,
        grpc.StatusCode.INTERNAL: Unavailable,
        grpc.StatusCode.UNKNOWN: Unavailable,
        grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
        grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
        grpc.StatusCode.RESOURCE_EXHAUSTED: errors.LimitError,
    }
    for code, error_class in expected.items():
        with pytest.raises(error_class) as caught:
            await fail(status_pb2.Status(code=code.value[0], message="from the way"))
        assert type(caught.value) is error_class
        assert caught.value.message == "from the way"


def test_unknown_reasons_keep_their_name() -> None:
    error = from_status(status_of("OF_A_LATER_VERSION"))
    assert (type(error), error.reason) == (Internal, "OF_A_LATER_VERSION")
    assert from_status(status_of("STEP_GAP", domain="elsewhere")).reason == "INTERNAL"


def test_notes_keep_everything_and_name_the_cause() -> None:
    error = errors.StepGap("ahead", metadata={"expected_position": "3"}, retry_after_s=2.0)
    noted = error.with_note("nothing was applied", position=3)
    assert (type(noted), noted.message) == (errors.StepGap, "ahead; nothing was applied")
    assert noted.metadata == {"expected_position": "3", "position": "3"}
    assert (noted.retry_after_s, noted.__cause__) == (2.0, error)


def test_transient_is_what_may_pass() -> None:
    passing = {error_class.__name__ for error_class in BY_REASON.values() if error_class.transient}
    assert passing == {"Unavailable", "Draining", "NotReady", "StoreUnavailable", "QueueFull", "RateLimit"}
    assert not ClientClosed.transient
