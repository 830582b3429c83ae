"""Which sessions there are, and which there were."""

import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from sortedcontainers import SortedList

from dnc_serve.handler.clock import CLOCK
from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.engine.replies import Replies
from dnc_serve.handler.engine.session import Session, Status
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.store.contract import Head


@dataclass(frozen=True, slots=True)
class Tombstone:
    """Why and when a session ended."""

    incarnation: int
    owner: str
    why: str
    at: float

    def refusal(self, session_id: str) -> ServeError:
        """What whoever asks for the session is told."""
        ended_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.at))
        return ServeError(
            "SESSION_NOT_FOUND" if self.why == "deleted" else "SESSION_EXPIRED",
            f"session {session_id!r} ended at {ended_at}: {self.why}",
            ended_at=ended_at,
            why=self.why,
            incarnation=self.incarnation,
        )


def tombstone_of(head: Head) -> Tombstone:
    """Of a session that the store has ended."""
    return Tombstone(head.incarnation, head.owner, head.ended, head.ended_at)


def not_found(session_id: str) -> ServeError:
    """What is said of an id that is unknown, and of another owner's alike."""
    return ServeError("SESSION_NOT_FOUND", f"there is no session {session_id!r}", session_id=session_id)


class SessionTable:
    """Living sessions by id, and tombstones, bounded in number.

    Nothing here walks over all sessions: a page costs what it holds, and a look for those whose time is up what it
    finds.
    """

    def __init__(self, config: ServeConfig, digest: str, fingerprint: str) -> None:
        self._config = config
        self._digest = digest
        self._fingerprint = fingerprint
        # By last commit, the oldest first: what ends for idleness stands in front.
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._tombstones: OrderedDict[str, Tombstone] = OrderedDict()
        self._ids_of: dict[str, SortedList] = {}  # by owner
        self._by_age = SortedList()  # (created_at, id)

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def find(self, session_id: str) -> Session | None:
        return self._sessions.get(session_id)

    def tombstone(self, session_id: str) -> Tombstone | None:
        return self._tombstones.get(session_id)

    def count_of(self, owner: str) -> int:
        """How many sessions a token has made."""
        return len(self._ids_of.get(owner, ()))

    def get(self, session_id: str, owner: str) -> Session:
        """The session, if the caller may see it; raises SESSION_NOT_FOUND or SESSION_EXPIRED, and STORE_UNAVAILABLE
        while it is not known whether it has ended."""
        session = self._sessions.get(session_id)
        if session is not None and session.owner == owner:
            if session.end_unknown:
                raise session.may_have_ended()
            return session
        tombstone = self._tombstones.get(session_id)
        if session is None and tombstone is not None and tombstone.owner == owner:
            raise tombstone.refusal(session_id)
        raise not_found(session_id)

    def new_session(
        self, session_id: str, owner: str, incarnation: int, *, position: int = 0, experience: int = 0
    ) -> Session:
        """A session of the present model that is not in the table yet."""
        replies = Replies(self._config.reply_window_chunks, self._config.reply_window_bytes)
        session = Session(session_id, incarnation, self._digest, owner, CLOCK.steady(), replies)
        session.position, session.experience = position, experience
        session.fingerprint = self._fingerprint
        return session

    def register(self, head: Head) -> Session | None:
        """Knows a session that the store has, or how it ended (then None). Its state is loaded when it is needed."""
        if head.ended:
            self.bury(head.session_id, tombstone_of(head))
            return None
        session = self.new_session(
            head.session_id, head.owner, head.incarnation, position=head.position, experience=head.experience
        )
        session.digest, session.ordinal = head.digest, head.ordinal
        session.created_at, session.last_used_at = CLOCK.known(head.created_at), CLOCK.known(head.last_used_at)
        session.durable_position = head.position
        session.replies.clear()
        self.add(session)
        return session

    def check_room(self) -> None:
        """Raises SESSION_LIMIT when there are as many sessions as may be."""
        if len(self._sessions) >= self._config.max_sessions:
            raise ServeError(
                "SESSION_LIMIT",
                f"{len(self._sessions)} sessions are open, at most {self._config.max_sessions} may be",
                retry_after_s=10.0,
                limit=self._config.max_sessions,
            )

    def add(self, session: Session) -> None:
        assert session.session_id not in self._sessions, session.session_id
        self._tombstones.pop(session.session_id, None)
        self._sessions[session.session_id] = session
        self._ids_of.setdefault(session.owner, SortedList()).add(session.session_id)
        self._by_age.add((session.created_at, session.session_id))

    def touch(self, session: Session, now: float) -> None:
        """The session committed something just now, by `CLOCK.steady`."""
        session.last_used_at = now
        if session.session_id in self._sessions:
            self._sessions.move_to_end(session.session_id)

    def remove(self, session: Session) -> None:
        """The session is not served here any more."""
        if self._sessions.get(session.session_id) is not session:
            return
        del self._sessions[session.session_id]
        self._by_age.remove((session.created_at, session.session_id))
        ids = self._ids_of[session.owner]
        ids.remove(session.session_id)
        if not ids:
            del self._ids_of[session.owner]

    def bury(self, session_id: str, tombstone: Tombstone) -> None:
        """Remembers how a session ended."""
        self._tombstones[session_id] = tombstone
        while len(self._tombstones) > self._config.max_tombstones:
            self._tombstones.popitem(last=False)

    def page(self, owner: str, after: str, prefix: str, size: int) -> tuple[list[Session], str]:
        """Up to `size` of the owner's sessions whose ids follow `after`, and the last id if there are more."""
        ids = self._ids_of.get(owner, SortedList())
        found: list[Session] = []
        for session_id in ids.irange(max(after, prefix), inclusive=(after < prefix, True)):
            if not session_id.startswith(prefix):
                break
            if len(found) == size:
                return found, found[-1].session_id
            found.append(self._sessions[session_id])
        return found, ""

    def overdue(self, now: float, idle_s: float, age_s: float) -> Iterator[tuple[Session, str]]:
        """Sessions whose time is up, with the reason; those with work are not idle. No session may come or go before
        the last one is taken."""
        if idle_s:
            for session in self._sessions.values():
                if session.last_used_at > now - idle_s:
                    break
                if session.status is Status.IDLE:
                    yield session, "idle"
        if age_s:
            for _, session_id in self._by_age.irange(maximum=(now - age_s, "\U0010ffff")):
                yield self._sessions[session_id], "age"
