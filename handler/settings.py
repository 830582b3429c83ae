"""Where the settings of a server come from: flags, the environment, a TOML file.

A value comes from a flag, else from `DNC_…` in the environment, else from the file, else it is the default. They are
read once, in `dnc serve`; the worker is given the result.
"""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource, TomlConfigSettingsSource

from dnc_serve.handler.config import ENVIRONMENT_PREFIX, TOKENS_VARIABLE, ServeConfig, flag
from dnc_serve.handler.store.redis_url import without_password

DEFAULT_FILE = Path("dnc.toml")
# Variables of the settings' prefix that are read elsewhere: by the commands that call a server, and by a worker.
OTHER_VARIABLES = (TOKENS_VARIABLE, "DNC_TARGET", "DNC_TOKEN", "DNC_SERVE_RUN_FOLDER")


class ConfigError(ValueError):
    """A setting is wrong; the message is one line that names the setting, its value, and what was expected."""


@dataclass(frozen=True)
class LoadedConfig:
    """A configuration and, for each setting, where its value came from."""

    config: ServeConfig
    origins: Mapping[str, str]

    def show(self) -> str:
        """The configuration as TOML, each line with its origin; the password of the store is hidden."""
        lines = []
        for name in ServeConfig.model_fields:
            value = getattr(self.config, name)
            shown = without_password(value) if name == "store" else value
            setting = f"# {name} is not set" if shown in (None, "") else f"{name} = {_toml(shown)}"
            lines.append(f"{setting:<60} # {self.origins[name]}")
        return "\n".join(lines)


def load_config(flags: Mapping[str, Any], file: Path | None = None) -> LoadedConfig:
    """The configuration from flags, environment and file (`./dnc.toml` if there is one).

    Raises ConfigError with one line that names what is wrong.
    """
    sources = _sources(flags, file)
    values: dict[str, Any] = {}
    origins = dict.fromkeys(ServeConfig.model_fields, "default")
    for origin, found in sources:
        for name, value in found.items():
            if name not in ServeConfig.model_fields:
                raise ConfigError(
                    f"{origin} sets {name!r}, which is no setting; expected one of those that --help lists"
                )
            if any(isinstance(one, str) and not one.strip() for one in (value if isinstance(value, list) else [value])):
                raise ConfigError(f"{name} is {value!r} ({_origin(origin, name)}); expected a value, or to be left out")
            if name not in values:
                values[name] = value
                origins[name] = _origin(origin, name)
    if not os.environ.get(TOKENS_VARIABLE, "unset").strip():
        raise ConfigError(f"{TOKENS_VARIABLE} is empty; expected the text of a tokens file, or to be left out")
    try:
        return LoadedConfig(ServeConfig(**values), origins)
    except ValidationError as exc:
        raise ConfigError(_one_line(exc, origins)) from exc


def unknown_variables() -> list[str]:
    """A sentence for each `DNC_…` variable that sets nothing, with the one that may have been meant.

    They are not refused: Kubernetes adds some for each service that it knows.
    """
    known = [*OTHER_VARIABLES, *(ENVIRONMENT_PREFIX + name.upper() for name in ServeConfig.model_fields)]
    sentences = []
    for name in sorted(os.environ):
        if name.startswith(ENVIRONMENT_PREFIX) and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            meant = f"; did you mean {close[0]}?" if close else ""
            sentences.append(f"{name} in the environment is no setting{meant}")
    return sentences


def _sources(flags: Mapping[str, Any], file: Path | None) -> list[tuple[str, Mapping[str, Any]]]:
    """What each source says, the strongest first."""
    sources: list[tuple[str, Mapping[str, Any]]] = [("flag", flags), ("environment", EnvSettingsSource(ServeConfig)())]
    if file is not None and not file.is_file():
        raise ConfigError(f"--config is {str(file)!r}; expected a TOML file")
    file = file or DEFAULT_FILE
    if file.is_file():
        try:
            sources.append((str(file), TomlConfigSettingsSource(ServeConfig, file)()))
        except ValueError as exc:  # tomllib.TOMLDecodeError, UnicodeDecodeError
            raise ConfigError(f"{file} is not TOML: {exc}") from exc
    return sources


def _origin(source: str, name: str) -> str:
    return {"flag": flag(name), "environment": ENVIRONMENT_PREFIX + name.upper()}.get(source, source)


def _one_line(error: ValidationError, origins: Mapping[str, str]) -> str:
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:  # the settings don't fit together; the message says which
        return message
    name = str(first["loc"][0])
    value = first["input"]
    if name == "store" and isinstance(value, str):
        value = without_password(value)
    template = _EXPECTATIONS.get(first["type"])
    expected = template.format(**first.get("ctx", {})) if template else message.removeprefix("Input should be ")
    return f"{name} is {value!r} ({origins[name]}); expected {expected.removeprefix('expected ')}"


_SIZE = 'a size such as 4096 or "256MiB"'
_EXPECTATIONS = {
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "byte_size": _SIZE,
    "byte_size_unit": _SIZE,
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than_equal": "at most {le:.16g}",
    "string_too_short": "some text",
}


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return _toml(value[0]) if len(value) == 1 else f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(int(value)) if isinstance(value, int) else repr(value)
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
