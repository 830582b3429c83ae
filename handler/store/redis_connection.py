"""A connection to Redis or Valkey that is as durable as sessions need, and scripts on it."""

import contextlib
import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import redis
import redis.backoff
import redis.retry
import redis.sentinel

from dnc_serve.handler.errors import StoreUnavailable
from dnc_serve.handler.store.contract import StoreRefused
from dnc_serve.handler.store.redis_settings import check_settings
from dnc_serve.handler.store.redis_url import parse_redis_url

_PIPELINED = 256
_BARRIER = "dnc:barrier"
_TRIED = "dnc:{tried}"
# Refusals that concern everybody, and for which the client of Redis has no class of their own.
_OF_THE_SERVER = re.compile(r"\b(MISCONF|NOREPLICAS|OOM|BUSY|UNKILLABLE|READONLY|LOADING)\b")

Call = tuple[Sequence[str], Sequence[Any]]  # keys and arguments of one script
Command = Sequence[Any]


class Script:
    """A Lua script beside this file."""

    def __init__(self, name: str) -> None:
        self.text = Path(__file__).with_name(name).read_text()
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


_PERMITTED = Script("redis_permitted.lua")


class TooFewReplicas(StoreUnavailable):
    """What was read or written may last or not: fewer replicas than asked for have synced it in time."""


class RedisConnection:
    """Runs commands, and turns what fails into `StoreUnavailable`. `where` names the server without its password.

    What is `lasting` is answered once the server and `replicas` replicas have synced all that it read or wrote, so a
    primary that a failover has left behind answers nothing. Each new connection is looked at before it is used: it
    may lead to another server than the last one.
    """

    def __init__(self, url: str, timeout_s: float, replicas: int = 0) -> None:
        self._url = parse_redis_url(url)
        self.where = self._url.where
        self.replicas = replicas
        self._timeout_s = timeout_s
        # WAITAOF waits for what its own connection wrote. It ends before the client gives up.
        wait_ms = math.ceil(timeout_s * 750)
        self._barrier: list[Command] = [("SET", _BARRIER, ""), ("WAITAOF", 1, replicas, wait_ms)] if replicas else []
        self._options = {
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            # Once, for connections that a restarted server left behind. All that is sent may be sent twice.
            "retry": redis.retry.Retry(redis.backoff.NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
        }
        try:
            self.client: Any = self._connect()
        except ValueError:
            # Its message may quote a piece of the password.
            raise ValueError("the URL of the store can't be read: are odd characters percent-encoded?") from None
        self._clustered = False

    def open(self) -> None:
        """Raises `StoreRefused` if the server's settings would lose sessions, or it can't do what is asked of it."""
        try:
            with self.guard() as client:
                clustered = client.info("server").get("redis_mode") == "cluster"
            if clustered:
                self._open_cluster()
            (denied,) = self.run(_PERMITTED, [([_TRIED], ())], at_once=True)
            if denied:
                names = ", ".join(name.decode() for name in denied)
                raise StoreRefused(f"{self.where} does not let this user call {names}: docs/security.md has the rule")
            if self._barrier:
                self.commands(lasting=True)
        except StoreUnavailable as error:
            raise self._refusal(error) from error

    def _connect(self) -> Any:
        def connected(connection: Any) -> None:
            connection.on_connect()
            self._look_at(connection)

        url, options = self._url, {**self._options, "redis_connect_func": connected}
        if not url.sentinels:
            return redis.Redis.from_url(url.url, **options)
        # A Sentinel that is silent leaves time to ask the others.
        brief = dict.fromkeys(("socket_timeout", "socket_connect_timeout"), max(0.2, self._timeout_s / 4))
        sentinels = redis.sentinel.Sentinel(
            url.sentinels, sentinel_kwargs={**self._options, **brief, **url.tls, **url.sentinel_credentials}
        )
        return sentinels.master_for(url.service, db=url.db, **options, **url.tls, **url.credentials)

    def _open_cluster(self) -> None:
        if self.replicas:
            raise StoreUnavailable(
                f"{self.where} is a cluster, and store_replicas is {self.replicas}; expected one primary with its "
                "replicas, and Sentinels that know which one it is"
            ) from StoreRefused()
        self.client.close()
        with self.guard():
            self.client = redis.RedisCluster.from_url(self._url.url, **self._options, redis_connect_func=self._look_at)
        self._clustered = True

    def _look_at(self, connection: Any) -> None:
        try:
            check_settings(connection, self.where)
        except StoreRefused:
            connection.disconnect()  # or it would be taken for one that was looked at
            raise

    def _refusal(self, error: StoreUnavailable) -> Exception:
        """The same, as `StoreRefused` where waiting won't help."""
        cause = error.__cause__
        if isinstance(cause, StoreRefused):
            return StoreRefused(str(error))
        if isinstance(cause, redis.exceptions.NoPermissionError) or "NOPERM" in str(cause):  # of a transaction
            return StoreRefused(f"{error}: docs/security.md has the rule of what sessions need")
        if isinstance(error, TooFewReplicas):
            return StoreRefused(f"{error}. Are they connected, each with appendonly yes and appendfsync always?")
        if isinstance(cause, redis.ResponseError) and "unknown command" in str(cause):
            return StoreRefused(
                f"{self.where} knows no WAITAOF, and store_replicas is {self.replicas}; expected Redis or Valkey 7.2 "
                "or later, or store_replicas 0"
            )
        return error

    def close(self) -> None:
        self.client.close()

    @contextlib.contextmanager
    def guard(self) -> Iterator[Any]:
        """The client; failures come out as `StoreUnavailable`."""
        try:
            yield self.client
        except StoreRefused as refusal:  # by a server that has come back, or taken another's place
            raise StoreUnavailable(str(refusal)) from refusal
        except redis.sentinel.MasterNotFoundError as exc:  # whose message is about the client's insides
            raise StoreUnavailable(
                f"{self.where} can't be used: no Sentinel could be asked that knows a primary of this name that is up"
            ) from exc
        except redis.exceptions.ReadOnlyError as exc:
            self._leave()
            raise StoreUnavailable(f"{self.where} is a replica now, which writes nothing: {exc}") from exc
        except (redis.RedisError, OSError) as exc:
            raise StoreUnavailable(f"{self.where} can't be used: {exc}") from exc

    def run(
        self,
        script: Script,
        calls: Sequence[Call],
        *,
        at_once: bool = False,
        each: bool = False,
        lasting: bool = False,
        mark: Command | None = None,
    ) -> list[Any]:
        """Results of a script for each of the calls, pipelined. A session's keys lie in one slot of a cluster.

        Calls `at_once` are synced once, instead of once for each 16 KB that the server reads. A server without memory
        refuses them all, whatever they do; a cluster, whose transactions have one slot, runs them one by one. With
        `each`, a call that fails for what its keys hold has its exception as its result, and the others have theirs.
        With `mark`, a command, all of it goes to one server, and the mark last.
        """
        size = _PIPELINED if mark is None else max(1, len(calls))
        last = [] if mark is None else [mark]
        results: list[Any] = []
        with self.guard() as client:
            for start in range(0, len(calls), size):
                commands = [_evaluation(script, call) for call in calls[start : start + size]]
                page = self._send(commands, at_once, lasting, last)
                unknown = [
                    place for place, result in enumerate(page) if isinstance(result, redis.exceptions.NoScriptError)
                ]
                if unknown:
                    # A server forgets scripts when it restarts. Those that were not run have changed nothing.
                    client.script_load(script.text)
                    again = self._send([commands[place] for place in unknown], at_once, lasting, last)
                    for place, result in zip(unknown, again, strict=True):
                        page[place] = result
                for result in page:
                    if isinstance(result, Exception) and not (each and _is_its_own(result)):
                        raise result
                results += page
        return results

    def commands(self, *commands: Command, lasting: bool = False) -> list[Any]:
        """Results of plain commands, pipelined."""
        results: list[Any] = []
        with self.guard():
            for start in range(0, max(1, len(commands)), _PIPELINED):
                page = self._send(commands[start : start + _PIPELINED], False, lasting, ())
                for result in page:
                    if isinstance(result, Exception):
                        raise result
                results += page
        return results

    def _send(self, commands: Sequence[Command], at_once: bool, lasting: bool, last: Sequence[Command]) -> list[Any]:
        """Results, or exceptions in their place, of what one server was sent at once."""
        together = at_once and not self._clustered
        sent = [("MULTI",), *commands, ("EXEC",)] if together else list(commands)
        barrier = self._barrier if lasting else []
        ended = len(sent)
        sent += [*last, *barrier]
        if not sent:
            return []
        pipeline = self.client.pipeline(transaction=False)
        for command in sent:
            # Not `pipeline.evalsha`, which pipelines on a cluster refuse.
            pipeline.execute_command(*command)
        results = list(pipeline.execute(raise_on_error=False))
        results, after = results[:ended], results[ended:]
        if together:
            *queued, results = results
            if isinstance(results, Exception):
                raise next((answer for answer in queued if isinstance(answer, Exception)), results)
        for answer in after:
            if isinstance(answer, Exception):
                raise answer
        if barrier:
            synced, replicas = after[-1]
            if not synced or replicas < self.replicas:
                self._leave()
                raise TooFewReplicas(
                    f"{self.where} can't be used: {replicas} of its replicas have synced in time what was written "
                    f"last, and store_replicas is {self.replicas}"
                )
        return results

    def _leave(self) -> None:
        """A failover may have left the server behind: what follows looks for the primary again."""
        if not self._clustered:
            self.client.connection_pool.disconnect(inuse_connections=False)


def _evaluation(script: Script, call: Call) -> Command:
    keys, arguments = call
    return ("EVALSHA", script.sha, len(keys), *keys, *arguments)


def _is_its_own(exc: Exception) -> bool:
    """Whether a script failed for what its keys hold, which the client has no class for, and not for the state that the
    server is in."""
    return type(exc) is redis.ResponseError and _OF_THE_SERVER.search(str(exc)) is None
