"""Whether a client's servers answer: how long it waits for them, and what it says of one that is silent."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from dnc_serve.client.errors import Cancelled, DeadlineExceeded, DncError, Unavailable

logger = logging.getLogger(__package__)

DEFAULT_TIMEOUT_S = 60.0
DEFAULT_CONNECT_TIMEOUT_S = 10.0


class Contact:
    """What one client knows of its servers.

    A server that has answered and then doesn't is restarting, as a rule, and worth the whole timeout. Where none has
    ever answered, the address is wrong, or nothing was started there: whoever waits is better told soon.
    """

    def __init__(self, targets: Sequence[str], timeout_s: float, connect_timeout_s: float) -> None:
        self.made = False
        self._targets = targets
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._silent: set[str] = set()

    def patience_s(self) -> float:
        """How long attempts are repeated."""
        return self._timeout_s if self.made else min(self._timeout_s, self._connect_timeout_s)

    @contextmanager
    def attempt(self, target: str) -> Iterator[None]:
        """Notes whether the server answers, be it with an error; warns of the first attempt that it doesn't."""
        try:
            yield
        except DncError as error:
            if is_silence(error):
                self.missed(target, error)
            elif not isinstance(error, DeadlineExceeded | Cancelled):
                self.heard(target)
            raise
        self.heard(target)

    def unreachable(self, error: Unavailable) -> Unavailable:
        """What the last error amounts to where no server has ever answered."""
        return Unavailable(f"no server answers at {', '.join(self._targets)}: {_why(error)}", metadata=error.metadata)

    def heard(self, target: str) -> None:
        """The server answered."""
        self.made = True
        self._silent.discard(target)

    def missed(self, target: str, error: DncError) -> None:
        """The server didn't answer; that is told once, until it does."""
        if target not in self._silent:
            self._silent.add(target)
            logger.warning("%s doesn't answer: %s", target, _why(error))


def is_silence(error: DncError) -> bool:
    """Whether nobody answered; the reasons that a server has for being unavailable are classes below this one."""
    return type(error) is Unavailable


def _why(error: DncError) -> str:
    """The cause of a silence where it is known, else a question."""
    return error.message if "cause" in error.metadata else f"is `dnc serve` running there? ({error.message})"
