"""A connection to Redis or Valkey that is as durable as sessions need, and scripts on it."""

import contextlib
import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dnc_serve.handler.errors import StoreUnavailable
from dnc_serve.handler.store.contract import StoreRefused

try:
    import redis
    import redis.backoff
    import redis.retry
except ModuleNotFoundError as exc:
    raise ModuleNotFoundError("a store in Redis needs its client: pip install 'dnc-serve[redis]'") from exc

logger = logging.getLogger(__name__)

# Without these, what was acknowledged can be gone after a crash, or be thrown out when memory runs short.
REQUIRED = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
_IN_INFO = {"appendonly": "aof_enabled", "maxmemory-policy": "maxmemory_policy"}
_PIPELINED = 256
# Refusals that concern everybody, and for which the client of Redis has no class of their own.
_OF_THE_SERVER = re.compile(r"\b(MISCONF|NOREPLICAS|OOM|BUSY|UNKILLABLE|READONLY|LOADING)\b")

Call = tuple[Sequence[str], Sequence[Any]]  # keys and arguments of one script


class Script:
    """A Lua script beside this file."""

    def __init__(self, name: str) -> None:
        self.text = Path(__file__).with_name(name).read_text()
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class RedisConnection:
    """Runs commands, and turns what fails into `StoreUnavailable`. `where` names the server without its password."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = url
        self._options = {
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            # Once, for connections that a restarted server left behind. All that is sent may be sent twice.
            "retry": redis.retry.Retry(redis.backoff.NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
        }
        try:
            parts = urlsplit(url)
            port = "" if parts.port is None else f":{parts.port}"
            self.where = f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"
            self.client: Any = redis.Redis.from_url(url, **self._options)
        except ValueError:
            # Its message may quote a piece of the password.
            raise ValueError("the URL of the store can't be read: are odd characters percent-encoded?") from None
        self._clustered = False
        self._checked = False

    def open(self) -> None:
        """Raises `StoreRefused` if the server's settings would lose sessions."""
        with self.guard():
            if self.client.info("server").get("redis_mode") == "cluster":
                self.client.close()
                self.client = redis.RedisCluster.from_url(self._url, **self._options)
                self._clustered = True
            self._check()

    def close(self) -> None:
        self.client.close()
        self._checked = False

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Failures come out as `StoreUnavailable`; after a lost connection the settings are checked again, because
        it may be another server that answers."""
        try:
            yield
        except (redis.RedisError, OSError) as exc:
            if isinstance(exc, redis.ConnectionError | redis.TimeoutError | OSError):
                self._checked = False
            raise StoreUnavailable(f"{self.where} can't be used: {exc}") from exc

    @contextlib.contextmanager
    def ready(self) -> Iterator[Any]:
        """The client, with settings that were checked since the connection was last lost."""
        with self.guard():
            if not self._checked:
                try:
                    self._check()
                except StoreRefused as refusal:
                    raise StoreUnavailable(str(refusal)) from refusal
            yield self.client

    def run(self, script: Script, calls: Sequence[Call], *, at_once: bool = False, each: bool = False) -> list[Any]:
        """Results of a script for each of the calls, pipelined. A session's keys lie in one slot of a cluster.

        Calls `at_once` are synced once, instead of once for each 16 KB that the server reads. A server without memory
        refuses them all, whatever they do; a cluster, whose transactions have one slot, runs them one by one. With
        `each`, a call that fails for what its keys hold has its exception as its result, and the others have theirs.
        """
        results: list[Any] = []
        with self.ready() as client:
            for start in range(0, len(calls), _PIPELINED):
                pipeline = client.pipeline(transaction=at_once and not self._clustered)
                results += self._run(pipeline, script, calls[start : start + _PIPELINED], each)
        return results

    def commands(self, *commands: Sequence[Any]) -> list[Any]:
        """Results of plain commands, pipelined."""
        results: list[Any] = []
        with self.ready() as client:
            for start in range(0, len(commands), _PIPELINED):
                pipeline = client.pipeline(transaction=False)
                for command in commands[start : start + _PIPELINED]:
                    pipeline.execute_command(*command)
                results += pipeline.execute()
        return results

    def _run(self, pipeline: Any, script: Script, calls: Sequence[Call], each: bool) -> list[Any]:
        results = _evaluate(pipeline, script, calls)
        unknown = [place for place, result in enumerate(results) if isinstance(result, redis.exceptions.NoScriptError)]
        if unknown:
            # A server forgets scripts when it restarts. Those that were not run have changed nothing.
            self.client.script_load(script.text)
            again = _evaluate(pipeline, script, [calls[place] for place in unknown])
            for place, result in zip(unknown, again, strict=True):
                results[place] = result
        for result in results:
            if isinstance(result, Exception) and not (each and _is_its_own(result)):
                raise result
        return results

    def _check(self) -> None:
        try:
            settings = {name: self._setting(name) for name in REQUIRED}
        except redis.ResponseError:
            settings = self._settings_from_info()
        wrong = [
            f"{name} is {settings[name]!r} and must be {wanted!r}"
            for name, wanted in REQUIRED.items()
            if settings.get(name, wanted) != wanted
        ]
        if wrong:
            raise StoreRefused(
                f"{self.where} would lose sessions: {'; '.join(wrong)}. Set that in its configuration file, "
                f"or with CONFIG SET and CONFIG REWRITE"
            )
        unknown = sorted(REQUIRED.keys() - settings.keys())
        if unknown:
            logger.warning(
                "%s does not let us read its settings: see to it that %s",
                self.where,
                ", ".join(f"{name} is {REQUIRED[name]}" for name in unknown),
            )
        self._checked = True

    def _setting(self, name: str) -> str:
        found = self.client.config_get(name)
        return str(next(_text(value) for key, value in found.items() if _text(key) == name))

    def _settings_from_info(self) -> dict[str, str]:
        """What INFO tells where CONFIG is not allowed, as with most hosted servers."""
        info = {**self.client.info("persistence"), **self.client.info("memory")}
        settings = {name: str(info[key]) for name, key in _IN_INFO.items() if key in info}
        if "appendonly" in settings:
            settings["appendonly"] = "yes" if settings["appendonly"] == "1" else "no"
        return settings


def _evaluate(pipeline: Any, script: Script, calls: Sequence[Call]) -> list[Any]:
    for keys, arguments in calls:
        # Not `pipeline.evalsha`, which pipelines on a cluster refuse.
        pipeline.execute_command("EVALSHA", script.sha, len(keys), *keys, *arguments)
    return list(pipeline.execute(raise_on_error=False))


def _is_its_own(exc: Exception) -> bool:
    """Whether a script failed for what its keys hold, which the client has no class for, and not for the state that the
    server is in."""
    return type(exc) is redis.ResponseError and _OF_THE_SERVER.search(str(exc)) is None


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
