"""What the server says when it refuses.

    ServeError                 reason, message, metadata, retry_after_s
    ├── StoreUnavailable       raised by stores; the reason is STORE_UNAVAILABLE
    └── Overtaken              another server owns the session now; the reason is NOT_READY, for whoever asks again
                               is told the owner

Every refusal is one class, because callers tell them apart by `reason`; the table of reasons is `proto/reasons.py`.
"""

from typing import Any


class ServeError(Exception):
    """A request is refused. Nothing of it was applied, but for INTERNAL and STORE_UNAVAILABLE, where that isn't known.

    `metadata` holds what a program needs to go on (`expected_position`, `owner`, …); `retry_after_s` is set where
    coming again later makes sense.
    """

    def __init__(self, reason: str, message: str, *, retry_after_s: float | None = None, **metadata: Any) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s
        self.metadata = {key: str(value) for key, value in metadata.items()}


class StoreUnavailable(ServeError):
    """The store can't be written or read now; nothing that was acknowledged is lost."""

    def __init__(self, message: str) -> None:
        super().__init__("STORE_UNAVAILABLE", message, retry_after_s=1.0)


class Overtaken(ServeError):
    """Another server has taken a session over; nothing was applied here."""

    def __init__(self, session_id: str) -> None:
        super().__init__(
            "NOT_READY", f"another server has taken session {session_id!r} over: ask again", retry_after_s=0.05
        )


def internal_error() -> ServeError:
    """What is told of a mistake of ours; whoever catches it has logged it."""
    return ServeError("INTERNAL", "the server made a mistake; its log says which")
