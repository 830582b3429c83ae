"""Where a shared store is, as a URL says it: one Redis or Valkey, or the Sentinels that know which of several is the
primary.

    redis://USER:PASSWORD@HOST:PORT/DB       also rediss:// (TLS), and unix://PATH
    redis+sentinel://USER:PASSWORD@HOST:PORT,HOST:PORT/SERVICE/DB       also rediss+sentinel://, TLS to all of them

The former take the options that the client of Redis has for its URLs, the latter those of OPTIONS. No message quotes a
piece of a URL: where something odd stands in it, any piece may be one of the password.
"""

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from dnc_serve.handler.addresses import host_port, split_address

SENTINELS = "+sentinel"
SCHEMES = ("redis", "rediss", "unix", f"redis{SENTINELS}", f"rediss{SENTINELS}")
EXPECTED = "redis://HOST:PORT/DB, rediss://…, unix://PATH or redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB"
# The Sentinels' own credentials, if they ask for any; and what TLS trusts and shows.
OPTIONS = ("sentinel_user", "sentinel_password", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


@dataclass(frozen=True)
class RedisURL:
    """What a URL says, without connecting. `where` names the store for people, and has no password."""

    url: str = field(repr=False)
    where: str
    sentinels: tuple[tuple[str, int], ...] = ()  # (host, port); none: the URL itself leads to the store
    # The rest is said of a URL of Sentinels; the last three, as the client of Redis calls it.
    service: str = ""
    db: int = 0
    tls: dict[str, Any] = field(default_factory=dict)
    credentials: dict[str, str] = field(default_factory=dict, repr=False)
    sentinel_credentials: dict[str, str] = field(default_factory=dict, repr=False)


def parse_redis_url(url: str) -> RedisURL:
    """What the URL says. Raises ValueError that says what was expected, and quotes nothing."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in SCHEMES:
        raise ValueError(f"expected {EXPECTED}")
    if scheme.endswith(SENTINELS):
        return _of_sentinels(url, scheme, rest)
    try:
        parts = urlsplit(url)
        port = "" if parts.port is None else f":{parts.port}"
        return RedisURL(url, f"{scheme}://{parts.hostname or ''}{port}{parts.path}")
    except ValueError:
        raise ValueError("the URL of the store can't be read: are odd characters percent-encoded?") from None


def without_password(url: str) -> str:
    """The URL as it may be shown: whatever may be a password is hidden, also where the URL is wrong."""
    scheme, separator, rest = url.partition("://")
    credentials, _, rest = rest.rpartition("@") if separator else ("", "", url)
    user, colon, _ = credentials.partition(":")
    shown = f"{scheme}://{user}:***@{rest}" if colon else url
    return re.sub(r"(password=)[^&]*", r"\1***", shown)


def _of_sentinels(url: str, scheme: str, rest: str) -> RedisURL:
    def wrong(what: str) -> ValueError:
        return ValueError(
            f"expected {scheme}://USER:PASSWORD@HOST:PORT,HOST:PORT/SERVICE/DB, odd characters percent-encoded; {what}"
        )

    place, _, query = rest.partition("?")
    authority, _, path = place.partition("/")
    credentials, _, hosts = authority.rpartition("@")
    try:
        sentinels = tuple(split_address(host) for host in hosts.split(","))
    except ValueError:
        raise wrong("the Sentinels can't be read from the URL of the store") from None
    service, _, db = path.partition("/")
    if not service:
        raise wrong("the URL of the store names no service")
    if db and not (db.isascii() and db.isdecimal()):
        raise wrong("the number of the database can't be read from the URL of the store")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if not options.keys() <= set(OPTIONS) or not all(options.values()):
        raise wrong(f"an option in the URL of the store is unknown or empty, there are {', '.join(OPTIONS)}")
    user, _, password = credentials.partition(":")
    files = {name: value for name, value in options.items() if name.startswith("ssl_")}
    if files and not scheme.startswith("rediss"):
        raise wrong("the URL of the store has options of TLS, and its scheme has none")
    return RedisURL(
        url,
        f"{scheme}://{','.join(host_port(*sentinel) for sentinel in sentinels)}/{service}/{db or 0}",
        sentinels,
        unquote(service),
        int(db or 0),
        {"ssl": True, **files} if scheme.startswith("rediss") else {},
        _credentials(unquote(user), unquote(password)),
        _credentials(options.get("sentinel_user", ""), options.get("sentinel_password", "")),
    )


def _credentials(user: str, password: str) -> dict[str, str]:
    return {name: value for name, value in (("username", user), ("password", password)) if value}
