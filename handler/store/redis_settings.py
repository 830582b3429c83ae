"""What a Redis or Valkey must be set to, so that it loses no session; each connection asks before it is used."""

import logging
from typing import Any

import redis

from dnc_serve.handler.store.contract import StoreRefused

logger = logging.getLogger(__name__)

# Without these, what was acknowledged can be gone after a crash, or be thrown out when memory runs short.
REQUIRED = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
_IN_INFO = {"appendonly": "aof_enabled", "maxmemory-policy": "maxmemory_policy"}


def check_settings(connection: Any, where: str) -> None:
    """Raises `StoreRefused` if the server at a connection would lose sessions; warns of what it doesn't tell."""

    def ask(*command: str) -> Any:
        connection.send_command(*command)
        return connection.read_response()

    try:
        settings = {name: _setting(ask("CONFIG", "GET", name)) for name in REQUIRED}
    except redis.ResponseError:
        settings = _settings_from_info(ask("INFO", "persistence"), ask("INFO", "memory"))
    wrong = [
        f"{name} is {settings[name]!r} and must be {wanted!r}"
        for name, wanted in REQUIRED.items()
        if settings.get(name, wanted) != wanted
    ]
    if wrong:
        raise StoreRefused(
            f"{where} would lose sessions: {'; '.join(wrong)}. Set that in its configuration file, "
            f"or with CONFIG SET and CONFIG REWRITE"
        )
    unknown = sorted(REQUIRED.keys() - settings.keys())
    if unknown:
        logger.warning(
            "%s does not let us read its settings: see to it that %s",
            where,
            ", ".join(f"{name} is {REQUIRED[name]}" for name in unknown),
        )


def _setting(answer: Any) -> str:
    value = next(iter(answer.values())) if isinstance(answer, dict) else answer[1]  # by the version of the protocol
    return _text(value)


def _settings_from_info(*sections: Any) -> dict[str, str]:
    """What INFO tells where CONFIG is not allowed, as with most hosted servers."""
    lines = (line for section in sections for line in _text(section).splitlines())
    info = dict(line.split(":", 1) for line in lines if ":" in line)
    settings = {name: info[key] for name, key in _IN_INFO.items() if key in info}
    if "appendonly" in settings:
        settings["appendonly"] = "yes" if settings["appendonly"] == "1" else "no"
    return settings


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
