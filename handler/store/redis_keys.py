"""How a session's keys in Redis are called, and its head as it stands there."""

from collections.abc import Mapping

from dnc_serve.handler.store.contract import Head

_PREFIX = "dnc:{"
_PARTS = ("head", "marks", "bodies", "infos", "states", "lease")


def key(session_id: str, part: str) -> str:
    return f"{_PREFIX}{session_id}}}:{part}"


def keys(session_id: str) -> list[str]:
    return [key(session_id, part) for part in _PARTS]


def id_of_head(name: bytes) -> str:
    """The session whose head is under this key."""
    return name.decode()[len(_PREFIX) : -len("}:head")]


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
