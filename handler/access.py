"""Who may come in."""

from collections.abc import Iterable
from typing import Any


class Access:
    """Finds the name under which a caller's sessions are kept."""

    def owner_of(self, metadata: Iterable[Any] | None) -> str:
        """The name of the caller's token; empty where the server asks for none."""
        return ""

    def owner_of_token(self, token: str) -> str:
        """The same at TorchServe's door, where the token travels in the message."""
        return ""

    def own_metadata(self) -> tuple[tuple[str, str], ...]:
        """What the server's own self-test identifies itself with."""
        return ()
