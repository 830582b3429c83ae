"""Who may come in, and how much they may take.

Tokens stand in a TOML file, or in the environment, by their SHA-256 only:

    [[token]]
    name = "ward-3"                       # sessions belong to this name, so they outlive a new token of it
    sha256 = "9f86d081…"                  # of the bearer token: `dnc token ward-3` makes both
    expires = 2027-06-30T00:00:00Z        # the rest is optional
    read_only = true
    admin = true                          # may load and unload models
    max_sessions = 100
    max_state_bytes = 1_000_000_000
    max_timesteps_per_second = 5000

Tokens are random and long, so that a plain hash is enough; hashes are compared in constant time. The file is read again
when it changes.
"""

import asyncio
import hashlib
import hmac
import secrets
import time
import tomllib
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from dnc_serve.handler.api.watched_file import WatchedFile
from dnc_serve.handler.clock import CLOCK
from dnc_serve.handler.errors import ServeError

Result = TypeVar("Result")

HEADER = "authorization"
SCHEME = "Bearer "
# A bucket holds this many seconds' worth of timesteps, so that a burst after a pause passes.
BURST_SECONDS = 2.0
MAX_LIMIT = 1 << 50  # of sessions, bytes, timesteps: more than any server has


class Token(BaseModel):
    """One entry of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    expires: datetime | None = None
    read_only: bool = False
    admin: bool = False
    max_sessions: int | None = Field(None, ge=1, le=MAX_LIMIT)
    max_state_bytes: int | None = Field(None, ge=1, le=MAX_LIMIT)
    # The least is a chunk of usual length in a day or so: "come again" must be a time that can be told.
    max_timesteps_per_second: float | None = Field(None, ge=0.01, le=MAX_LIMIT, allow_inf_nan=False)


class TokenFile(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid")

    token: list[Token]


class Holding(NamedTuple):
    """What an owner has: so many sessions, whose states take so many bytes."""

    sessions: int = 0
    state_bytes: int = 0

    def plus(self, other: "Holding") -> "Holding":
        return Holding(self.sessions + other.sessions, self.state_bytes + other.state_bytes)


@dataclass(slots=True, eq=False)
class Grant:
    """What a caller may do. One that a token has stays the same object as long as the token is good."""

    owner: str = ""
    read_only: bool = False
    admin: bool = True
    max_sessions: int | None = None
    max_state_bytes: int | None = None
    max_timesteps_per_second: float | None = None
    workers: int = 1  # each of which lets an equal part of them in
    expires: datetime | None = None
    revoked: bool = False
    _timesteps: float = field(default=0.0, repr=False)  # in the bucket
    _filled_at: float = field(default_factory=time.monotonic, repr=False)
    _calls: set[asyncio.Timeout] = field(default_factory=set, repr=False)

    @property
    def good(self) -> bool:
        """Whether the token that it was given for still opens the endpoint."""
        return not self.revoked and (self.expires is None or CLOCK.now() < self.expires.timestamp())

    async def while_good(self, call: Awaitable[Result]) -> Result:
        """Awaits a call that may last; raises UNAUTHENTICATED when `end_calls` finds that the token has ended."""
        try:
            async with asyncio.timeout(None) as until:
                self._calls.add(until)
                try:
                    return await call
                finally:
                    self._calls.discard(until)
        except TimeoutError:
            if not until.expired():
                raise
            raise ServeError("UNAUTHENTICATED", "the token was revoked or has expired") from None

    def end_calls(self) -> None:
        """Ends the calls that last, unless the token is still good."""
        if self._calls and not self.good:
            for until in self._calls:
                until.reschedule(0.0)
            self._calls.clear()

    def check_writes(self) -> None:
        """Raises PERMISSION_DENIED for a token that may only look."""
        if self.read_only:
            raise ServeError("PERMISSION_DENIED", f"the token of {self.owner!r} may only look, not change anything")

    def check_admin(self) -> None:
        """Raises PERMISSION_DENIED for a token that may not change what is served."""
        if not self.admin:
            raise ServeError(
                "PERMISSION_DENIED",
                f"the token of {self.owner!r} may not load or unload models: admin isn't set for it",
            )

    @property
    def limits_sessions(self) -> bool:
        """Whether there is a bound to what its owner may have."""
        return self.max_sessions is not None or self.max_state_bytes is not None

    def most_others(self, row_bytes: int) -> int | None:
        """How many sessions of the same model there may be beside a new one; None for any number."""
        limits = []
        if self.max_sessions is not None:
            limits.append(self.max_sessions - 1)
        if self.max_state_bytes is not None:
            limits.append(max(-1, self.max_state_bytes // row_bytes - 1))
        return min(limits, default=None)

    def check_new_session(self, others: Holding, row_bytes: int) -> None:
        """Raises SESSION_LIMIT or STATE_TOO_LARGE if one more session is more than the token's share."""
        if self.max_sessions is not None and others.sessions >= self.max_sessions:
            raise ServeError(
                "SESSION_LIMIT",
                f"{self.owner!r} has {others.sessions} sessions, at most {self.max_sessions} may be",
                retry_after_s=10.0,
                limit=self.max_sessions,
            )
        if self.max_state_bytes is not None and others.state_bytes + row_bytes > self.max_state_bytes:
            raise ServeError(
                "STATE_TOO_LARGE",
                f"the states of {self.owner!r} would take {others.state_bytes + row_bytes} bytes, "
                f"at most {self.max_state_bytes} may be",
                retry_after_s=10.0,
                limit=self.max_state_bytes,
            )

    def spend(self, timesteps: int) -> None:
        """Raises RATE_LIMIT, saying when to come again, if the token's timesteps per second are used up."""
        rate = self.max_timesteps_per_second
        if rate is None:
            return
        share = "" if self.workers == 1 else f", to each of {self.workers} workers an equal part of them"
        rate /= self.workers
        now = time.monotonic()
        # The bucket holds a whole chunk at least, however long, and may go below zero for one.
        self._timesteps = min(rate * BURST_SECONDS, self._timesteps + (now - self._filled_at) * rate)
        self._filled_at = now
        if self._timesteps <= 0:
            raise ServeError(
                "RATE_LIMIT",
                f"{self.owner!r} may send {self.max_timesteps_per_second:g} timesteps a second{share}",
                retry_after_s=-self._timesteps / rate + 0.05,
                limit=self.max_timesteps_per_second,
            )
        self._timesteps -= timesteps


def read_tokens(text: str, origin: str) -> list[Token]:
    """The tokens of a TOML text; raises ValueError that names the origin, the entry and what was expected."""
    try:
        read = tomllib.loads(text)
    except (ValueError, RecursionError) as exc:  # not only its own errors: also a number with too many digits
        raise ValueError(f"{origin} is not TOML: {exc}") from exc
    try:
        return TokenFile.model_validate(read).token
    except ValidationError as exc:
        # pydantic would show the value, and that may be a token that was put where its hash belongs.
        first = exc.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{origin}: {place}: {first['msg']}") from exc


class Access:
    """Finds out what a caller may do. Without tokens everybody may do everything, as one owner.

    Raises ValueError or OSError for a file of tokens that can't be read.
    """

    def __init__(self, tokens_file: str = "", tokens_text: str = "", workers: int = 1) -> None:
        self._workers = workers
        self._grants: dict[bytes, Grant] = {}  # by the token's SHA-256
        self._everybody = Grant()
        # The server's own self-test comes in with a token that lives as long as the process.
        self._own = secrets.token_urlsafe(32)
        self.required = bool(tokens_file or tokens_text)
        if tokens_text:
            self._take(read_tokens(tokens_text, "the tokens in the environment"))
        self._file = WatchedFile(Path(tokens_file), "tokens", self._read) if tokens_file else None

    def refresh(self) -> None:
        """Reads the file again if it has changed, and ends the calls that last of those whose token has expired."""
        if self._file is not None:
            self._file.refresh()
        for grant in self._grants.values():
            grant.end_calls()

    def grant_of(self, metadata: Iterable[Any] | None) -> Grant:
        """The grant of a gRPC caller; raises UNAUTHENTICATED."""
        if not self.required:
            return self._everybody
        for key, value in metadata or ():
            if key == HEADER and isinstance(value, str) and value.startswith(SCHEME):
                return self.grant_of_token(value[len(SCHEME) :])
        raise ServeError(
            "UNAUTHENTICATED",
            "this server asks for a bearer token in the authorization metadata (in our client `token`, in its "
            "command `--token-file` or DNC_TOKEN)",
        )

    def grant_of_token(self, token: str) -> Grant:
        """The grant of a token; raises UNAUTHENTICATED, without saying what is wrong with it."""
        if not self.required:
            return self._everybody
        digest = hashlib.sha256(token.encode()).digest()
        found: Grant | None = None
        for expected, grant in self._grants.items():  # all of them, so that the time tells nothing
            if hmac.compare_digest(digest, expected):
                found = grant
        if hmac.compare_digest(token.encode(), self._own.encode()):
            return Grant(owner="self-test")
        if found is None or not found.good:
            raise ServeError("UNAUTHENTICATED", "the token is unknown or has expired")
        return found

    def own_metadata(self) -> tuple[tuple[str, str], ...]:
        """What the server's own self-test identifies itself with."""
        return ((HEADER, SCHEME + self._own),)

    def _read(self, path: Path) -> None:
        self._take(read_tokens(path.read_text(), str(path)))

    def _take(self, tokens: list[Token]) -> None:
        """Knows these tokens from now on, and ends the calls of those that are gone."""
        before = self._grants
        buckets = {grant.owner: grant for grant in before.values()}
        self._grants = {}
        for token in tokens:
            digest = bytes.fromhex(token.sha256)
            grant = before.get(digest)
            if grant is None or grant.owner != token.name:
                grant = Grant(token.name, workers=self._workers)
                if (known := buckets.get(token.name)) is not None:  # a rotation does not fill the bucket
                    grant._timesteps, grant._filled_at = known._timesteps, known._filled_at
                elif token.max_timesteps_per_second is not None:
                    grant._timesteps = token.max_timesteps_per_second / self._workers * BURST_SECONDS
            expires = token.expires
            grant.expires = expires.replace(tzinfo=UTC) if expires is not None and expires.tzinfo is None else expires
            grant.read_only, grant.admin = token.read_only, token.admin
            grant.max_sessions, grant.max_state_bytes = token.max_sessions, token.max_state_bytes
            grant.max_timesteps_per_second = token.max_timesteps_per_second
            self._grants[digest] = grant
        present = set(self._grants.values())
        for grant in before.values():
            if grant not in present:
                grant.revoked = True
                grant.end_calls()
