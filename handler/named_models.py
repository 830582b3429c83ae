"""What `--model` says: one model, or several by their names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_EXPECTED_NAME = "1 to 64 of A-Z a-z 0-9 . _ -, a letter or a digit first"
# Of a text in the environment, a comma divides models only before a name: a path may hold commas too.
_DIVIDER = re.compile(r",(?=[A-Za-z0-9][A-Za-z0-9._-]*=)")


@dataclass(frozen=True, slots=True)
class NamedModel:
    """A model as it is asked for.

    `name` is what it is called by clients. `part` is where its sessions are kept: under the name that it was given, or,
    where none was, in the state folder itself; so each finds its own whatever stands beside it.
    """

    name: str
    source: str
    part: str


def read_models(value: Any) -> tuple[str, ...]:
    """The models of a setting, each `SOURCE` or `NAME=SOURCE`; raises ValueError."""
    if isinstance(value, str):
        value = _DIVIDER.split(value)
    if not isinstance(value, list | tuple) or not value or not all(isinstance(one, str) and one for one in value):
        raise ValueError("expected [NAME=]SOURCE, once or more")
    named_models(value)
    return tuple(value)


def named_models(values: Sequence[str]) -> tuple[NamedModel, ...]:
    """The same, read. Raises ValueError for a name that can't be one, or that two have."""
    models: list[NamedModel] = []
    for value in values:
        model = _named(value)
        for other in models:
            if not model.part and not other.part:
                raise ValueError(
                    f"expected a NAME= for all but one: {other.source!r} and {model.source!r} have none, and by it a "
                    "model's sessions are found again"
                )
            if model.name == other.name:
                raise ValueError(f"expected another name for one of the two models that are called {model.name!r}")
        models.append(model)
    return tuple(models)


def check_name(name: str) -> str | None:
    """What was expected of a name, or of a version's, that can't be one."""
    return None if _NAME.fullmatch(name) else _EXPECTED_NAME


def _named(value: str) -> NamedModel:
    name, separator, source = value.partition("=")
    if not separator or "/" in name:  # a path may hold that sign too
        return NamedModel(value.rstrip("/").rpartition("/")[2].removesuffix(".mar"), value, "")
    if not _NAME.fullmatch(name):
        raise ValueError(f"expected a name of {_EXPECTED_NAME}, got {name!r}; a path with = in it begins with ./")
    if not source.strip():
        raise ValueError(f"expected a source for {name!r}: a bundled name, a run, an artifact folder or a .mar")
    return NamedModel(name, source, name)
