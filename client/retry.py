"""How long a client tries again, and how it waits in between."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, stop_before_delay
from tenacity import wait_random_exponential as random_exponential

from dnc_serve.client.checks import checked_seconds
from dnc_serve.client.errors import DncError

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Retry:
    """Random waits that double from `first_wait_s` to `longest_wait_s`, and start after what the server asks for."""

    first_wait_s: float = 0.05
    longest_wait_s: float = 2.0

    def __post_init__(self) -> None:
        checked_seconds("first_wait_s", self.first_wait_s)
        if not self.first_wait_s <= checked_seconds("longest_wait_s", self.longest_wait_s):
            raise ValueError(
                f"first_wait_s is {self.first_wait_s} and longest_wait_s {self.longest_wait_s}; "
                "expected 0 < first_wait_s <= longest_wait_s"
            )

    def wait_s(self, state: RetryCallState) -> float:
        """The wait before the next attempt."""
        backoff: float = random_exponential(multiplier=self.first_wait_s, max=self.longest_wait_s)(state)
        error = state.outcome.exception() if state.outcome is not None else None
        return backoff + (getattr(error, "retry_after_s", None) or 0.0)


async def persist(
    attempt: Callable[[], Awaitable[Result]],
    retry: Retry | None,
    patience_s: Callable[[], float],
    first_failure: DncError | None = None,
) -> Result:
    """The result of the first attempt that doesn't end in a transient error; raises the last one when no further
    attempt would begin within the time for which patience lasts. A `first_failure` counts as an attempt already made.
    """
    failures = [first_failure] if first_failure is not None else []

    async def next_attempt() -> Result:
        if failures:
            raise failures.pop()
        return await attempt()

    def patience_ends(state: RetryCallState) -> bool:
        return stop_before_delay(patience_s())(state)

    retrying = AsyncRetrying(
        retry=retry_if_exception(may_pass),
        wait=(retry or Retry()).wait_s,
        stop=patience_ends if retry is not None else stop_after_attempt(1),
        reraise=True,
    )
    return await retrying(next_attempt)


def may_pass(error: BaseException) -> bool:
    """Whether the same call may succeed later, or at the host that was found in its error."""
    return isinstance(error, DncError) and error.transient
