"""What a program's archive may hold, looked at before torch loads it: a file of a stranger must execute nothing.

torch unpickles what isn't raw bytes, has Python evaluate sizes, and writes names into the code that it compiles.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export.pt2_archive import PT2ArchiveReader

_GRAPH = "models/model.json"
_SAMPLE = "data/sample_inputs/model.pt"
_FILE = re.compile(
    r"models/model\.json|data/sample_inputs/model\.pt|archive_(format|version)|byteorder|version"
    r"|\.data/(version|serialization_id)|data/(weights/weight|constants/tensor)_\d+"
    r"|data/(weights|constants)/model_\w+_config\.json"
)

# Strings of a graph by the key under which they stand; under any other stands a name.
_NAME = re.compile(r"[\w.-]*")
_TARGET = re.compile(
    r"torch\.ops\.(aten|prims)\.(?!from_file\b|save\b)\w+\.[a-zA-Z]\w*|torch\.sym_\w+|math\.[a-z]\w*"
    r"|_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_|not_)"
)
# How inputs and outputs nest: other types are imported by their name.
_TREE = re.compile(
    r'(\[1, |\{"type": (null|"builtins\.(tuple|list|dict)"), "context": (null|"null"|"\[\]"), '
    r'"children_spec": \[|\]\}|, |\])*'
)
_ANY = re.compile(r".*", re.DOTALL)
_STRINGS = {
    "target": _TARGET,
    "as_operator": _TARGET,
    "expr_str": re.compile(
        r"(Symbol\('[a-z]+\d+'(, \w+=(True|False))*\)"
        r"|(Integer|Rational|Add|Mul|Pow|Max|Min|Mod|\w*Div)\(|\d+|[-+*/(), ])*"
    ),
    "in_spec": _TREE,
    "out_spec": _TREE,
    "path_name": re.compile(r"(weight|tensor)_\d+"),
    # Quoted where they are written into code.
    "as_string": _ANY,
    "as_strings": _ANY,
    "torch_version": _ANY,
}


class ProgramError(Exception):
    """A file that isn't a program, or holds what isn't executed here; the message says what."""


def check_archive(path: Path) -> None:
    """Raises ProgramError for what could execute anything but operators; other errors for what is no archive."""
    with zipfile.ZipFile(path) as archive:  # torch reads old archives by it
        _check_files(name.partition("/")[2] for name in archive.namelist())
    # By the reader that torch loads it with: two readers may see two things in one file.
    reader = PT2ArchiveReader(str(path))
    files = reader.get_file_names()
    _check_files(files)
    if _GRAPH not in files:
        raise ProgramError(f"it holds no {_GRAPH}")
    for name in files:
        if name == _SAMPLE:
            _check_pickle(reader.read_bytes(name))
        elif name.endswith(".json"):
            document = json.loads(reader.read_bytes(name))
            if name == _GRAPH and isinstance(document, dict):
                document.pop("guards_code", None)  # isn't executed: see `Program`
            for key, text in _strings(document):
                if _STRINGS.get(key, _NAME).fullmatch(text) is None:
                    raise ProgramError(f"its {name} has the {key} {text[:200]!r}, which isn't one of a program's own")


def _check_files(names: Any) -> None:
    for name in names:
        if _FILE.fullmatch(name) is None:
            raise ProgramError(f"it holds {name!r}, which isn't part of a program of weights and operators")


def _check_pickle(data: bytes) -> None:
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception as exc:  # torch raises what it likes
        raise ProgramError(f"its sample input isn't one of tensors only: {str(exc).splitlines()[0]}") from exc


def _strings(value: Any, key: str = "key") -> Iterator[tuple[str, str]]:
    """All strings of a JSON document, each with the key under which it stands; keys are strings too."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each, key)
    elif isinstance(value, dict):
        if value.get("use_pickle"):
            raise ProgramError("it holds pickled tensors, which could execute anything")
        for inner, each in value.items():
            yield "key", inner
            told = (
                inner == "metadata" and isinstance(each, dict) and all(isinstance(text, str) for text in each.values())
            )
            if not told:  # lines and names for tracebacks
                yield from _strings(each, inner)
