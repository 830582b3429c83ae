"""Sessions in a Redis or Valkey that several servers share.

    dnc:{ID}:head    hash    the session's facts, and `bytes`
    dnc:{ID}:marks   list    "ordinal position experience at size" of each record
    dnc:{ID}:bodies  list    their bodies
    dnc:{ID}:infos   hash    ordinal → "position experience at size" of each snapshot
    dnc:{ID}:states  hash    ordinal → its state
    dnc:{ID}:lease   hash    token, sequence, holder, address, until_ms

and an index of them all (`redis_index.py`). Where models have names, each has keys of its own: `dnc@NAME:…`.

The braces put a session's keys into one slot of a cluster. A session is written by one script that checks the lease's
token first, so a server that was taken over from, however late it wakes, changes nothing. With `appendfsync always`,
which is checked, what was acknowledged survives a power loss of the Redis host.

A failover to a replica takes what that had not got yet. With `replicas`, commits, leases, and what is told of where
sessions stand are answered once so many replicas have synced them; or, for commits of a store that `answers_first`,
`sync` waits for that. A primary that is cut off from its replicas can't promise anything then.
"""

import logging
import math
import secrets
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from dnc_serve.handler.errors import StoreUnavailable
from dnc_serve.handler.store.contract import (
    Append,
    Begin,
    End,
    Fenced,
    Head,
    Keep,
    Lease,
    LeaseHeld,
    Mutation,
    Outcome,
    Prune,
    Record,
    Rejected,
    Snapshot,
    SnapshotInfo,
    by_session,
)
from dnc_serve.handler.store.prunable import Step, choose, is_step
from dnc_serve.handler.store.redis_connection import Call, RedisConnection, Script
from dnc_serve.handler.store.redis_index import RedisIndex
from dnc_serve.handler.store.redis_keys import Keys, head_of

logger = logging.getLogger(__name__)

_PAGE = 64  # records in one answer
_SCAN = 1000
_REMEMBERED_MS = 24 * 3600 * 1000  # a lease that nobody renews
_COMMIT = Script("redis_commit.lua")
_RECORDS = Script("redis_records.lua")
_ACQUIRE = Script("redis_acquire.lua")
_RENEW = Script("redis_renew.lua")
_FORGET = Script("redis_forget.lua")
_REASONS = {
    b"lease": b"another server has taken the session over, or this one never acquired it",
    b"late": b"a later commit of the session has overtaken this one",
}


class RedisStore:
    """The `Store` of a server among others, for one model. `owner` is the address that clients of its sessions are sent
    to; `part` is the name that the model was given."""

    shared = True

    def __init__(
        self, url: str, owner: str, lease_s: float, part: str = "", *, replicas: int = 0, answers_first: bool = False
    ) -> None:
        if not owner:
            raise ValueError("a shared store needs the address that this server advertises: owner is empty")
        self._redis = RedisConnection(url, timeout_s=min(2.0, lease_s / 3), replicas=replicas)
        self._answers_first = answers_first and replicas > 0
        self._owner = owner
        self._keys = Keys(part)
        self._lease_s = lease_s
        self._holder = secrets.token_hex(8)  # this run of this server
        self._index = RedisIndex(self._redis, self._holder, self._keys)
        self._sequence = 0
        self._mark = f"dnc:committed:{self._holder}"  # the sequence of the latest commit that waits for `sync`
        self._tokens: dict[str, int] = {}  # of the sessions that this server holds
        self._tokens_lock = threading.Lock()

    def open(self) -> None:
        self._redis.open()
        self._index.complete(self.heads())

    def close(self) -> None:
        with self._tokens_lock:
            leases = [Lease(session_id, token, self._lease_s) for session_id, token in self._tokens.items()]
        try:
            self.release(leases)
        finally:
            self._redis.close()

    def commit(self, mutations: Sequence[Mutation]) -> list[Outcome]:
        self._sequence += 1
        outcomes: list[Outcome] = [None] * len(mutations)
        calls: list[Call] = []
        called: list[tuple[str, list[int]]] = []
        growing = False
        for session_id, own in by_session(mutations).items():
            grows = any(isinstance(mutations[place], Append | Begin | Keep) for place in own)
            with self._tokens_lock:
                arguments: list[Any] = [self._tokens.get(session_id, 0), self._sequence, "1" if grows else ""]
            for place in own:
                arguments += _arguments(mutations[place])
            growing |= grows
            calls.append((self._keys.all(session_id), arguments))
            called.append((session_id, own))
        self._index.enter(mutation.head for mutation in mutations if isinstance(mutation, Begin))
        mark = ("SET", self._mark, self._sequence, "PX", _REMEMBERED_MS) if self._answers_first else None
        lasting = not self._answers_first
        results = self._redis.run(_COMMIT, calls, at_once=growing, each=True, lasting=lasting, mark=mark)
        for (session_id, own), reasons in zip(called, results, strict=True):
            if isinstance(reasons, Exception):
                logger.error("session %r could not be written: %s", session_id, reasons)
                rejected = Rejected(f"session {session_id!r} can't be written: {reasons}")
                for place in own:
                    outcomes[place] = rejected
                continue
            if reasons[0] in _REASONS:
                reasons = [_REASONS[reasons[0]]] * len(own)
            for place, reason in zip(own, reasons, strict=True):
                outcomes[place] = Fenced(f"session {session_id!r}: {reason.decode()}") if reason else None
        ended = [
            session_id
            for session_id, own in called
            if isinstance(mutations[own[-1]], End) and outcomes[own[-1]] is None
        ]
        try:
            self._index.leave(ended)
        except StoreUnavailable as error:  # what was written counts
            logger.warning("sessions that ended will be found so: %s", error)
        return outcomes

    def sync(self) -> None:
        """The server has synced what it acknowledged; its replicas are waited for, if `commit` has not."""
        if self._answers_first and self._sequence:
            (marked,) = self._redis.commands(("GET", self._mark), lasting=True)
            if marked != str(self._sequence).encode():
                raise StoreUnavailable(f"{self._redis.where} has failed over and lost what was committed last")

    def head(self, session_id: str) -> Head | None:
        """It is lasting, because it is told to clients, and what is loaded goes on from it."""
        (found,) = self._redis.commands(("HGETALL", self._keys.of(session_id, "head")), lasting=True)
        return head_of(session_id, found)

    def heads(self) -> Iterator[Head]:
        for ids in self._pages_of_ids():
            facts = self._redis.commands(*(("HGETALL", self._keys.of(one, "head")) for one in ids))
            for session_id, found in zip(ids, facts, strict=True):
                head = head_of(session_id, found)
                if head is not None:
                    yield head

    def records(self, session_id: str, incarnation: int, after: int, up_to: int | None = None) -> Iterator[Record]:
        end = -1 if up_to is None else up_to
        lists = self._keys.all(session_id)[:3]
        expected: int | None = None
        while True:
            ((marks, bodies),) = self._redis.run(_RECORDS, [(lists, (incarnation, after, end, _PAGE))])
            for mark, body in zip(marks, bodies, strict=False):
                ordinal, position, experience, at, size = mark.split()
                if len(body) != int(size) or int(ordinal) != (expected or int(ordinal)):
                    return
                after = int(ordinal)
                expected = after + 1
                yield Record(session_id, incarnation, after, int(position), int(experience), float(at), body)
            if len(marks) < _PAGE:
                return

    def snapshots(self, session_id: str, incarnation: int) -> list[SnapshotInfo]:
        present, infos = self._redis.commands(
            ("HGET", self._keys.of(session_id, "head"), "incarnation"), ("HGETALL", self._keys.of(session_id, "infos"))
        )
        if present != str(incarnation).encode():
            return []
        return sorted((_info(int(ordinal), info) for ordinal, info in infos.items()), key=lambda info: -info.ordinal)

    def snapshot(self, session_id: str, incarnation: int, ordinal: int) -> Snapshot | None:
        present, found, state = self._redis.commands(
            ("HGET", self._keys.of(session_id, "head"), "incarnation"),
            ("HGET", self._keys.of(session_id, "infos"), ordinal),
            ("HGET", self._keys.of(session_id, "states"), ordinal),
        )
        if present != str(incarnation).encode() or found is None or state is None:
            return None
        info = _info(ordinal, found)
        if len(state) != info.state_bytes:
            return None
        return Snapshot(session_id, incarnation, ordinal, info.position, info.experience, info.at, state)

    def forget_tombstones(self, before: float, at_most: int) -> int:
        tombstones = sorted((head for head in self.heads() if head.ended), key=lambda head: head.ended_at)
        excess = len(tombstones) - at_most
        leaving = [head for place, head in enumerate(tombstones) if head.ended_at < before or place < excess]
        calls = [([self._keys.of(head.session_id, "head")], [head.incarnation]) for head in leaving]
        return sum(self._redis.run(_FORGET, calls))

    def prunable(self, before: float, excess_bytes: int) -> list[Prune]:
        with self._tokens_lock:
            held = list(self._tokens)
        heads = self._redis.commands(
            *(("HMGET", self._keys.of(one, "head"), "incarnation", "ordinal", "bytes") for one in held)
        )
        counts = self._redis.commands(*(("LLEN", self._keys.of(one, "marks")) for one in held))
        infos = self._redis.commands(*(("HGETALL", self._keys.of(one, "infos")) for one in held))
        steps: list[Step] = []
        for session_id, facts, count, own in zip(held, heads, counts, infos, strict=True):
            if facts[0] is None:
                continue
            incarnation, ordinal, nbytes = (int(fact or 0) for fact in facts)
            snapshots = sorted(
                (_info(int(number), info) for number, info in own.items()), key=lambda info: info.ordinal
            )
            former = pruned = ordinal - count
            for place, info in enumerate(snapshots):
                if is_step(place, len(snapshots), info.ordinal, pruned):
                    # Records are about alike in size.
                    freed = nbytes * max(0, info.ordinal - former) // max(1, count)
                    steps.append(Step(info.at, session_id, incarnation, info.ordinal, freed))
                    former = info.ordinal
        return choose(sorted(steps), before, excess_bytes)

    def size_bytes(self) -> int:
        """Of all servers' sessions."""
        return sum(
            int(size or 0)
            for ids in self._pages_of_ids()
            for size in self._redis.commands(*(("HGET", self._keys.of(one, "head"), "bytes") for one in ids))
        )

    def reserve(self, session_id: str, owner: str, at_most: int | None) -> int:
        return self._index.reserve(session_id, owner, at_most)

    def count_of(self, owner: str, at_most: int | None) -> int:
        return self._index.count_of(owner, at_most)

    def owned(self, owner: str, after: str, prefix: str, size: int) -> tuple[list[Head], str]:
        return self._index.owned(owner, after, prefix, size)

    def overdue(self, used_before: float, born_before: float | None, at_most: int) -> list[tuple[Head, str]]:
        return self._index.overdue(used_before, born_before, at_most)

    def acquire(self, session_id: str) -> Lease:
        arguments = (self._holder, self._owner, math.ceil(self._lease_s * 1000), _REMEMBERED_MS)
        calls = [([self._keys.of(session_id, "lease")], arguments)]
        ((verdict, *rest),) = self._redis.run(_ACQUIRE, calls, lasting=True)
        if verdict != b"granted":
            raise LeaseHeld(session_id, rest[0].decode(), rest[1] / 1000)
        token = int(rest[0])
        with self._tokens_lock:
            self._tokens[session_id] = token
        return Lease(session_id, token, self._lease_s)

    def renew(self, leases: Sequence[Lease]) -> list[Lease | None]:
        results = self._renew(leases, math.ceil(self._lease_s * 1000), lasting=True)
        renewed = [
            Lease(lease.session_id, lease.token, self._lease_s) if result else None
            for lease, result in zip(leases, results, strict=True)
        ]
        self._drop([lease for lease, result in zip(leases, results, strict=True) if not result])
        return renewed

    def release(self, leases: Sequence[Lease]) -> None:
        self._drop(leases)
        self._renew(leases, 0, lasting=False)

    def _renew(self, leases: Sequence[Lease], lease_ms: int, *, lasting: bool) -> list[int]:
        calls = [
            ([self._keys.of(lease.session_id, "lease")], (lease.token, lease_ms, _REMEMBERED_MS)) for lease in leases
        ]
        return self._redis.run(_RENEW, calls, lasting=lasting)

    def _drop(self, leases: Sequence[Lease]) -> None:
        with self._tokens_lock:
            for lease in leases:
                if self._tokens.get(lease.session_id) == lease.token:
                    del self._tokens[lease.session_id]

    def _pages_of_ids(self) -> Iterator[list[str]]:
        """Ids of all sessions, each once, though SCAN may find a key twice."""
        seen: set[str] = set()
        page: list[str] = []
        with self._redis.guard() as client:
            for name in client.scan_iter(match=self._keys.of("*", "head"), count=_SCAN):
                session_id = self._keys.id_of_head(name)
                if session_id not in seen:
                    seen.add(session_id)
                    page.append(session_id)
                if len(page) == _SCAN:
                    yield page
                    page = []
        if page:
            yield page


def _arguments(mutation: Mutation) -> list[Any]:
    """What `redis_commit.lua` takes for it. Floats go as the shortest text that reads back as the same number."""
    if isinstance(mutation, Append):
        record = mutation.record
        return [
            *("append", record.incarnation, record.ordinal, record.position, record.experience),
            *(repr(float(record.at)), mutation.digest or "", record.body),
        ]
    if isinstance(mutation, Begin):
        head = mutation.head
        return [
            *("begin", head.incarnation, head.digest, head.owner, repr(float(head.created_at))),
            *(repr(float(head.last_used_at)), head.position, head.experience, head.ordinal),
            *(head.ended, repr(float(head.ended_at))),
            *(("", "", "") if mutation.snapshot is None else _snapshot_arguments(mutation.snapshot)),
        ]
    if isinstance(mutation, Keep):
        instead_of = " ".join(map(str, mutation.instead_of))
        return ["keep", mutation.snapshot.incarnation, *_snapshot_arguments(mutation.snapshot), instead_of]
    if isinstance(mutation, End):
        return ["end", mutation.incarnation, mutation.why, repr(float(mutation.at))]
    return ["prune", mutation.incarnation, mutation.ordinal]


def _snapshot_arguments(snapshot: Snapshot) -> tuple[int, str, bytes]:
    info = f"{snapshot.position} {snapshot.experience} {float(snapshot.at)!r}"
    return snapshot.ordinal, info, snapshot.state


def _info(ordinal: int, info: bytes) -> SnapshotInfo:
    position, experience, at, size = info.split()
    return SnapshotInfo(ordinal, int(position), int(experience), float(at), int(size))
