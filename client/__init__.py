"""The client: `Client` and `Session`, `AsyncClient` and `AsyncSession`, and everything that they raise.

```python
with Client("localhost:8500") as client, client.session("patient-17") as session:
    outputs = session.step(inputs)  # [T, I] → [T, O]
```
"""

from dnc_serve.client.async_client import AsyncClient, AsyncMultiplex
from dnc_serve.client.calls import Retry
from dnc_serve.client.client import Client, Multiplex, Session
from dnc_serve.client.errors import (
    AccessError,
    BadBlob,
    BadDtype,
    BadId,
    BadRequest,
    BadShape,
    BadState,
    Cancelled,
    ChunkTooLong,
    ClientClosed,
    CorruptState,
    DeadlineExceeded,
    DncError,
    Draining,
    Internal,
    InvalidRequest,
    LimitError,
    ModelMismatch,
    ModelNotFound,
    NonFiniteResult,
    NotFinite,
    NotReady,
    PermissionDenied,
    PositionError,
    PositionGone,
    QueueFull,
    RateLimit,
    ReplyGone,
    ResultError,
    SessionError,
    SessionExists,
    SessionExpired,
    SessionLimit,
    SessionMoved,
    SessionNotFound,
    SessionReplaced,
    StateExpired,
    StateTooLarge,
    StepConflict,
    StepGap,
    StoreUnavailable,
    Unauthenticated,
    Unavailable,
)  # fmt: skip
from dnc_serve.client.info import (
    MemoryFrame,
    MemoryLook,
    ModelInfo,
    ModelSummary,
    PastTimestep,
    SessionInfo,
    StateAfter,
)
from dnc_serve.client.session import AsyncSession
from dnc_serve.client.tls import TLS

__all__ = [
    "TLS", "AccessError", "AsyncClient", "AsyncMultiplex", "AsyncSession", "BadBlob", "BadDtype", "BadId",
    "BadRequest", "BadShape", "BadState", "Cancelled", "ChunkTooLong", "Client", "ClientClosed", "CorruptState",
    "DeadlineExceeded", "DncError", "Draining", "Internal", "InvalidRequest", "LimitError", "MemoryFrame",
    "MemoryLook", "ModelInfo", "ModelMismatch", "ModelNotFound", "ModelSummary", "Multiplex", "NonFiniteResult",
    "NotFinite", "NotReady", "PastTimestep", "PermissionDenied", "PositionError", "PositionGone", "QueueFull",
    "RateLimit", "ReplyGone", "ResultError", "Retry", "Session", "SessionError", "SessionExists", "SessionExpired",
    "SessionInfo", "SessionLimit", "SessionMoved", "SessionNotFound", "SessionReplaced", "StateAfter",
    "StateExpired", "StateTooLarge", "StepConflict", "StepGap", "StoreUnavailable", "Unauthenticated",
    "Unavailable",
]  # fmt: skip
