"""Which sessions a shared Redis has, by owner and by when their time may be up, whoever serves them.

    dnc:owned:OWNER  sorted set  ids of the owner's sessions, all scores 0: in the order of the ids
    dnc:used         sorted set  ids by when they were last used, as far as anybody has looked
    dnc:born         sorted set  ids by when they were made

An id is entered before its session begins and leaves after it has ended, so none is missing. One that is there for
nothing, because a server died in between, is known by this: its session does not live, and nobody holds its lease. It
leaves when it is come upon.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from dnc_serve.handler.store.contract import Head
from dnc_serve.handler.store.redis_connection import RedisConnection, Script
from dnc_serve.handler.store.redis_keys import Keys, head_of

_AT_ONCE = 256
_RESERVE = Script("redis_reserve.lua")
_STATE = Script("redis_state.lua")


class RedisIndex:
    """Asked by every server for all sessions; each question costs what it finds. `holder` is this run of a server."""

    def __init__(self, redis: RedisConnection, holder: str, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._used, self._born = keys.index("used"), keys.index("born")
        # Is there once the sessions of servers that knew no index have been entered.
        self._entered = keys.index("entered")
        self._holder = holder.encode()

    def complete(self, heads: Iterable[Head]) -> None:
        """Enters all living sessions, unless that was done before."""
        if not self._redis.commands(("EXISTS", self._entered))[0]:
            self.enter(head for head in heads if not head.ended)
            self._redis.commands(("SET", self._entered, "1"))

    def enter(self, heads: Iterable[Head]) -> None:
        """Sessions are about to begin."""
        commands: list[Sequence[Any]] = []
        for head in heads:
            commands.append(("ZADD", self._owned(head.owner), 0, head.session_id))
            commands.append(("ZADD", self._used, repr(float(head.last_used_at)), head.session_id))
            commands.append(("ZADD", self._born, repr(float(head.created_at)), head.session_id))
        self._redis.commands(*commands)

    def leave(self, session_ids: Sequence[str]) -> None:
        """Sessions have ended."""
        owners = self._redis.commands(*(("HGET", self._keys.of(one, "head"), "owner") for one in session_ids))
        for session_id, owner in zip(session_ids, owners, strict=True):
            self._redis.commands(*self._leave(session_id, None if owner is None else owner.decode()))

    def reserve(self, session_id: str, owner: str, at_most: int | None) -> int:
        """Counts a session that is about to begin among its owner's, unless it has more than so many others; returns
        how many it has. The session's lease is to be held, or the place is as if it were free."""
        call = ([self._owned(owner)], [session_id, "" if at_most is None else at_most])
        (others,) = self._redis.run(_RESERVE, [call])
        if at_most is not None and others > at_most and self._tidy(owner):
            (others,) = self._redis.run(_RESERVE, [call])
        return int(others)

    def count_of(self, owner: str, at_most: int | None) -> int:
        """How many sessions of an owner's there are, as exactly as it matters for a bound."""
        (count,) = self._redis.commands(("ZCARD", self._owned(owner)))
        if at_most is not None and count > at_most and self._tidy(owner):
            (count,) = self._redis.commands(("ZCARD", self._owned(owner)))
        return int(count)

    def owned(self, owner: str, after: str, prefix: str, size: int) -> tuple[list[Head], str]:
        """Up to `size` of the owner's living sessions whose ids follow `after`, and the last id if there are more."""
        first = f"[{prefix}".encode() if after < prefix else f"({after}".encode() if after else b"-"
        last = f"[{prefix}".encode() + b"\xff" if prefix else b"+"
        found: list[Head] = []
        while True:
            wanted = size + 1 - len(found)
            (ids,) = self._redis.commands(("ZRANGEBYLEX", self._owned(owner), first, last, "LIMIT", 0, wanted))
            found += [head for head, _, _ in self._living(owner, ids)]
            if len(found) > size:
                return found[:size], found[size - 1].session_id
            if len(ids) < wanted:
                return found, ""
            first = b"(" + ids[-1]

    def overdue(self, used_before: float, born_before: float | None, at_most: int) -> list[tuple[Head, str]]:
        """Some sessions whose time is up, with the reason, that no other server holds."""
        found = self._due(self._used, used_before, at_most)
        overdue = {head.session_id: (head, "idle") for head in found if head.last_used_at <= used_before}
        if born_before is not None:
            for head in self._due(self._born, born_before, at_most):
                overdue.setdefault(head.session_id, (head, "age"))
        return list(overdue.values())

    def _due(self, name: str, before: float, at_most: int) -> list[Head]:
        """Those at the front of a set, as far as they are there rightly; others get their right place."""
        (ids,) = self._redis.commands(("ZRANGEBYSCORE", name, "-inf", repr(before), "LIMIT", 0, at_most))
        due: list[Head] = []
        moved: list[Sequence[Any]] = []
        for head, holder, rest_s in self._living(None, ids):
            at = head.last_used_at if name == self._used else head.created_at
            if rest_s and holder != self._holder:  # its time is that server's concern, as long as there is one
                at = before + rest_s
            if at > before:
                moved.append(("ZADD", name, "XX", repr(at), head.session_id))
            else:
                due.append(head)
        self._redis.commands(*moved)
        return due

    def _tidy(self, owner: str) -> bool:
        """Whether some of the owner's ids were there for nothing."""
        before = after = 0
        first = b"-"
        while True:
            (ids,) = self._redis.commands(("ZRANGEBYLEX", self._owned(owner), first, b"+", "LIMIT", 0, _AT_ONCE))
            before += len(ids)
            after += len(self._living(owner, ids))
            if len(ids) < _AT_ONCE:
                return after < before
            first = b"(" + ids[-1]

    def _living(self, owner: str | None, ids: Sequence[bytes]) -> list[tuple[Head, bytes, float]]:
        """Heads of those that live, with who holds the lease and for how many seconds; what is there for nothing
        leaves."""
        names = [one.decode() for one in ids]
        calls = [([self._keys.of(one, "head"), self._keys.of(one, "lease")], ()) for one in names]
        states = self._redis.run(_STATE, calls, lasting=True)
        living: list[tuple[Head, bytes, float]] = []
        leaving: list[Sequence[Any]] = []
        for session_id, (facts, holder, rest_ms) in zip(names, states, strict=True):
            head = head_of(session_id, dict(zip(facts[::2], facts[1::2], strict=True)))
            if head is not None and not head.ended:
                if owner is None or head.owner == owner:
                    living.append((head, holder, rest_ms / 1000))
                else:  # it began anew, as another's
                    leaving.append(("ZREM", self._owned(owner), session_id))
            elif not rest_ms:
                leaving += self._leave(session_id, head.owner if head is not None else owner)
        self._redis.commands(*leaving)
        return living

    def _owned(self, owner: str) -> str:
        return self._keys.index(f"owned:{owner}")

    def _leave(self, session_id: str, owner: str | None) -> list[Sequence[Any]]:
        """Of an id whose owner isn't known, the rest leaves when its owner is asked about."""
        names = [self._used, self._born, *([] if owner is None else [self._owned(owner)])]
        return [("ZREM", name, session_id) for name in names]
