"""How a session's keys in Redis are called, and its head as it stands there."""

from collections.abc import Mapping

from dnc_serve.handler.store.contract import Head

_SPACE = "dnc"
LEASE = "lease"
_PARTS = ("head", "marks", "bodies", "infos", "states", LEASE)


class Keys:
    """The keys of one model's sessions; those of a model that was given a name bear it. A session's lease alone is the
    same for all models, so that an id is one session's at a time."""

    def __init__(self, part: str = "") -> None:
        self._space = f"{_SPACE}@{part}" if part else _SPACE

    def of(self, session_id: str, part: str) -> str:
        """One key of a session."""
        return f"{_SPACE if part == LEASE else self._space}:{{{session_id}}}:{part}"

    def all(self, session_id: str) -> list[str]:
        """All of them."""
        return [self.of(session_id, part) for part in _PARTS]

    def id_of_head(self, name: bytes) -> str:
        """The session whose head is under this key."""
        return name.decode()[len(self._space) + len(":{") : -len("}:head")]

    def index(self, name: str) -> str:
        """A key of the index of all sessions."""
        return f"{self._space}:{name}"


def head_of(session_id: str, found: Mapping[bytes, bytes]) -> Head | None:
    """The head that the fields of a hash tell; None if there are none."""
    if not found:
        return None
    facts = {name.decode(): value.decode() for name, value in found.items()}
    return Head(
        session_id=session_id,
        incarnation=int(facts["incarnation"]),
        digest=facts["digest"],
        owner=facts["owner"],
        created_at=float(facts["created_at"]),
        last_used_at=float(facts["last_used_at"]),
        position=int(facts["position"]),
        experience=int(facts["experience"]),
        ordinal=int(facts["ordinal"]),
        ended=facts["ended"],
        ended_at=float(facts["ended_at"]),
    )
