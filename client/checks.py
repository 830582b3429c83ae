"""Arguments, checked where they come in: what is wrong is named, with what was expected.

What makes a client raises ValueError, as constructors do; what is asked of one, an InvalidRequest, as the server does.
"""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from dnc_serve.client.errors import BadBlob, BadId, BadRequest, BadState

UINT64 = 1 << 64
UINT32 = 1 << 32
# gRPC counts deadlines in nanoseconds of 64 bits.
LONGEST_S = 1e9
FASTEST = 1e9
_NUMBERS = (int, float, np.integer, np.floating)


def checked_seconds(name: str, value: Any) -> float:
    """A time, in seconds. Raises ValueError."""
    if isinstance(value, _NUMBERS) and not isinstance(value, bool) and 0 < value <= LONGEST_S:
        return float(value)
    raise ValueError(f"{name} is {_shortly(value)}; expected seconds, more than 0 and at most {LONGEST_S:g}")


def checked_count(name: str, value: Any) -> int:
    """How many, at least one. Raises ValueError."""
    if isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 1:
        return int(value)
    raise ValueError(f"{name} is {_shortly(value)}; expected a whole number of at least 1")


def checked_id(value: Any) -> str:
    """A session's id, as far as a request can hold it: the server says what it may be. Raises BadId."""
    if not isinstance(value, str):
        raise BadId(f"the session's id is {_shortly(value)}, expected a string", metadata={"got": type(value).__name__})
    if not _is_unicode(value):
        raise BadId(f"the session's id is {_shortly(value)}, which is no Unicode")
    return value


def checked_text(name: str, value: Any) -> str:
    """A string that a request can hold. Raises BadRequest."""
    if not isinstance(value, str) or not _is_unicode(value):
        raise BadRequest(f"{name} is {_shortly(value)}, expected a string")
    return value


def checked_model(value: Any) -> str:
    """The name of a model as a request has it; None is the default. Raises BadRequest."""
    return "" if value is None else checked_text("model", value)


def checked_version(value: Any) -> str:
    """The version of a model as a request has it; None is that of new sessions. Raises BadRequest."""
    return "" if value is None else checked_text("version", value)


def checked_names(value: Any) -> list[str]:
    """Names of arrays. Raises BadRequest."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise BadRequest(f"names is {_shortly(value)}, expected a list of names")
    return [checked_text("a name", name) for name in value]


def checked_number(name: str, value: Any, least: int, limit: int) -> int:
    """A whole number from `least` to below `limit`, numpy's included. Raises BadRequest."""
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not least <= number < limit:
        raise BadRequest(f"{name} is {_shortly(value)}, expected a whole number from {least} to {limit - 1}")
    return number


def checked_position(value: Any) -> int | None:
    """A position, or None for the present. Raises BadRequest."""
    return None if value is None else checked_number("position", value, 0, UINT64)


def checked_rate(name: str, value: Any) -> float:
    """How often a second. Raises BadRequest."""
    if isinstance(value, _NUMBERS) and not isinstance(value, bool) and 0 < value <= FASTEST:
        return float(value)
    raise BadRequest(f"{name} is {_shortly(value)}, expected a number of more than 0 and at most {FASTEST:g}")


def checked_flag(name: str, value: Any) -> bool:
    """True or False. Raises BadRequest."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise BadRequest(f"{name} is {_shortly(value)}, expected True or False")


def checked_bytes(name: str, value: Any) -> bytes:
    """The bytes of a blob or a state, of whatever holds some. Raises BadBlob or BadState."""
    try:
        return bytes(memoryview(value))
    except TypeError:
        error, giver = (
            (BadBlob, "`export` gives them")
            if name == "blob"
            else (BadState, "`step_with_state` gives them; b'' for a new session's")
        )
        raise error(f"the {name} is {_shortly(value)}, expected bytes, as {giver}") from None


def token_fault(value: Any) -> str:
    """What is wrong with a token, without showing it; empty for a good one."""
    if not isinstance(value, str):
        return f"is of type {type(value).__name__}, expected a string"
    if not value:
        return "is empty"
    place = next((place for place, character in enumerate(value) if not " " <= character <= "~"), None)
    if place is not None:
        return f"has {value[place]!r} as character {place + 1} of {len(value)}, expected printable ASCII"
    return "begins or ends with a blank" if value != value.strip() else ""


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold it: surrogates without a pair it can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shortly(value: Any) -> str:
    shown = repr(value)
    return f"{shown[:40]}… of type {type(value).__name__}" if len(shown) > 40 else shown
