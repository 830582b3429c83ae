"""The operations on the sessions of one model, in the messages of the contract: what all endpoints do.

An endpoint decodes bytes, finds out who calls and, by `Models`, which model is meant, and calls these; refusals are
raised as `ServeError`.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from dnc_serve.handler.api.access import Grant, Holding
from dnc_serve.handler.api.arrays import decode_inputs
from dnc_serve.handler.api.descriptions import Descriptions, chunk_result
from dnc_serve.handler.api.siblings import Siblings
from dnc_serve.handler.api.state_seal import KeptState, StateSeal
from dnc_serve.handler.api.views import Shown, checked_names, thinned, whole
from dnc_serve.handler.arrays import Float32
from dnc_serve.handler.engine.engine import Engine
from dnc_serve.handler.engine.requests import Chunk, Delete, Done, Inspect, Request, Reset, StateView
from dnc_serve.handler.engine.session import Session, check_id, new_incarnation
from dnc_serve.handler.engine.session_table import not_found, tombstone_of
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.metrics import Metrics
from dnc_serve.handler.store.contract import Head
from dnc_serve.model.artifact import Artifact
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

DEFAULT_PAGE = 100
LARGEST_PAGE = 1000
PART_BYTES = 1 << 20
_SCOPES = {
    pb.RESET_SCOPE_UNSPECIFIED: "experience",
    pb.RESET_SCOPE_EXPERIENCE: "experience",
    pb.RESET_SCOPE_ALL: "all",
}


@dataclass(slots=True)
class Caller:
    """Who calls, at which endpoint, and until when (`time.monotonic()`) an answer is wanted."""

    grant: Grant = field(default_factory=Grant)
    endpoint: str = "unary"
    deadline: float | None = None
    # Whether something that the call asked for may have been applied.
    may_have_changed: Callable[[], bool] = lambda: False

    @property
    def owner(self) -> str:
        """The name that the caller's sessions belong to."""
        return self.grant.owner


class Operations:
    """What a caller may ask for."""

    def __init__(
        self, engine: Engine, artifact: Artifact, server_epoch: str, metrics: Metrics, siblings: Siblings | None = None,
        seal: StateSeal | None = None, name: str = "", version: str = "1",
    ) -> None:  # fmt: skip
        self.engine = engine
        self._seal = seal or StateSeal()
        self._siblings = siblings
        self._begins: Counter[str] = Counter()  # by owner: sessions that are counted before the table has them
        self.metrics = metrics
        self.draining = False
        place = siblings.place if siblings is not None else None
        self.descriptions = Descriptions(engine, artifact, server_epoch, place, name, version)
        self.artifact = artifact
        self.version = version
        self.share: float | None = None  # of new sessions, if it gets only some
        self.retiring = False  # gets no new sessions
        self.retired = False  # is served no more
        self.others: tuple[Operations, ...] = ()  # of the server's other models, and versions

    @property
    def name(self) -> str:
        """What the model is called."""
        return self.descriptions.name

    # Sessions.

    async def create_session(self, request: pb.CreateSessionRequest, caller: Caller) -> pb.CreateSessionResponse:
        session_id = check_id(request.session_id)
        await self.engine.ownership.adopt(session_id, caller.owner)
        while (present := self.engine.table.find(session_id)) is None:
            try:
                session = await self.begin(session_id, caller, new_incarnation(), None)
            except ServeError as error:
                if error.reason != "SESSION_EXISTS" or self.engine.table.find(session_id) is None:
                    raise
                continue  # another call was faster
            return pb.CreateSessionResponse(session=await self.descriptions.session(session), created=True)
        if not request.allow_existing or present.owner != caller.owner:
            raise session_exists(session_id)
        present = self.session(session_id, caller)
        return pb.CreateSessionResponse(session=await self.descriptions.session(present), created=False)

    async def get_session(self, request: pb.GetSessionRequest, caller: Caller) -> pb.GetSessionResponse:
        session_id, leases = check_id(request.session_id), self.engine.ownership
        session = self.engine.table.find(session_id)
        if leases.shared and (session is None or not leases.holds(session)):
            # To be asked about, a session need not come here.
            head = await leases.head(session_id)
            if head is None or head.owner != caller.owner:
                raise not_found(session_id)
            if head.ended:
                raise tombstone_of(head).refusal(session_id)
            return pb.GetSessionResponse(session=await self.descriptions.elsewhere(head))
        return pb.GetSessionResponse(session=await self.descriptions.session(self.session(session_id, caller)))

    async def list_sessions(self, request: pb.ListSessionsRequest, caller: Caller) -> pb.ListSessionsResponse:
        size = request.page_size or DEFAULT_PAGE
        if size > LARGEST_PAGE:
            raise ServeError(
                "BAD_REQUEST", f"page_size is {size}, expected at most {LARGEST_PAGE}", expected=LARGEST_PAGE, got=size
            )
        if self.engine.ownership.shared:
            heads, more = await self.engine.ownership.owned(caller.owner, request.page_token, request.prefix, size)
            return pb.ListSessionsResponse(sessions=[self._listed(head) for head in heads], next_page_token=more)
        sessions, more = self.engine.table.page(caller.owner, request.page_token, request.prefix, size)
        return pb.ListSessionsResponse(
            sessions=[
                self.descriptions.brief(one)
                for one in sessions
                if self.engine.lifecycle.has_begun(one) and not one.end_unknown
            ],
            next_page_token=more,
        )

    def _listed(self, head: Head) -> pb.Session:
        session = self.engine.table.find(head.session_id)
        if session is None or not self.engine.ownership.holds(session) or session.incarnation != head.incarnation:
            return self.descriptions.of_head(head)
        return self.descriptions.brief(session)

    async def delete_session(self, request: pb.DeleteSessionRequest, caller: Caller) -> pb.DeleteSessionResponse:
        session_id = check_id(request.session_id)
        caller.grant.check_writes()
        await self.engine.ownership.adopt(session_id, caller.owner)
        incarnation = request.incarnation if request.HasField("incarnation") else None
        if self._has_ended(session_id, caller):
            return pb.DeleteSessionResponse(deleted=False)
        session = self.engine.table.find(session_id)
        if session is None or not session.end_unknown or session.owner != caller.owner:
            session = self.session(session_id, caller)
        try:
            await self._do(session, caller, lambda done: Delete(done, incarnation=incarnation))
        except ServeError:
            if self._has_ended(session_id, caller):  # by what stood before it
                return pb.DeleteSessionResponse(deleted=False)
            raise
        return pb.DeleteSessionResponse(deleted=True)

    def _has_ended(self, session_id: str, caller: Caller) -> bool:
        registry = self.engine.table
        tombstone = registry.tombstone(session_id)
        return registry.find(session_id) is None and tombstone is not None and tombstone.owner == caller.owner

    # Steps.

    async def step(self, request: pb.StepRequest, caller: Caller) -> pb.StepResponse:
        await self.engine.ownership.adopt(check_id(request.chunk.session_id), caller.owner)
        session = self.session(request.chunk.session_id, caller)
        future = self.engine.loop.create_future()
        chunk = self.chunk(request.chunk, caller, settle(future))
        caller.may_have_changed = lambda: chunk.written
        self.engine.submit(session, chunk)
        return pb.StepResponse(result=await self._result(request.chunk, chunk, future))

    async def step_with_state(self, request: pb.StepWithStateRequest, caller: Caller) -> pb.StepWithStateResponse:
        """Steps a state that the caller keeps; nothing of it stays here."""
        self._seal.check_has_keys()
        self._check_fits_a_message()
        digest, owner = self.engine.digest, caller.owner
        kept = KeptState(digest, 0, 0, None)
        if request.state:
            kept = self._seal.opened(request.state, owner, digest, self.engine.layout.size)
        future = self.engine.loop.create_future()
        chunk = self.chunk(request.chunk, caller, settle(future))
        if chunk.incarnation is not None:
            raise ServeError("BAD_REQUEST", f"incarnation is {chunk.incarnation}, expected none: no session is meant")
        kept.check_stands_at(chunk.position, chunk.experience)
        self.engine.submit_stateless(chunk, kept.state, kept.position, kept.experience)
        result = await self._result(request.chunk, chunk, future)
        state = future.result().state
        return pb.StepWithStateResponse(
            result=result, state=self._seal.sealed(KeptState(digest, result.position, result.experience, state), owner)
        )

    async def _result(self, message: pb.Chunk, chunk: Chunk, future: "asyncio.Future[Any]") -> pb.ChunkResult:
        """The answer to a chunk; it is not stepped any more when nobody waits for that."""
        try:
            return chunk_result(message.session_id, message.request_id, await future)
        except BaseException:
            chunk.cancelled = True
            raise

    def chunk(self, message: pb.Chunk, caller: Caller, done: Done) -> Chunk:
        """Decodes and checks a chunk; it is not submitted yet."""
        config = self.engine.config
        inputs = decode_inputs(message.inputs, self.engine.runner.inputs, config.max_chunk_timesteps)
        if message.debug:
            self._check_debug(len(inputs))
        if message.reset_experience:
            self._check_experience()
        grant = caller.grant
        if self.draining or self.retired:
            self._check_serving()
        if grant.read_only:
            grant.check_writes()
        if grant.max_timesteps_per_second is not None:
            grant.spend(len(inputs))
        return Chunk(
            inputs,
            done,
            incarnation=message.incarnation if message.HasField("incarnation") else None,
            position=message.position if message.HasField("position") else None,
            experience=message.experience if message.HasField("experience") else None,
            reset_experience=message.reset_experience,
            debug=message.debug,
            traceparent=message.traceparent,
            writer_id=message.writer_id,
            pipelined=message.pipelined,
            endpoint=caller.endpoint,
            deadline=caller.deadline,
            owner=grant.owner,
            request_id=message.request_id,
        )

    async def reset_session(self, request: pb.ResetSessionRequest, caller: Caller) -> pb.ResetSessionResponse:
        message = request.reset
        session = await self.known(message.session_id, caller)
        changed = await self._do(session, caller, lambda done: self.reset(message, caller, done))
        return pb.ResetSessionResponse(result=self.reset_result(message, session, changed))

    def reset(self, message: pb.Reset, caller: Caller, done: Done) -> Reset:
        """Decodes a reset; it is not submitted yet."""
        self._check_serving()
        caller.grant.check_writes()
        scope = _SCOPES.get(message.scope)
        if scope is None:
            raise ServeError(
                "BAD_REQUEST", f"scope is {message.scope}, expected RESET_SCOPE_EXPERIENCE or RESET_SCOPE_ALL"
            )
        if scope == "experience":
            self._check_experience()
        return Reset(
            scope,
            done,
            incarnation=message.incarnation if message.HasField("incarnation") else None,
            position=message.position if message.HasField("position") else None,
            experience=message.experience if message.HasField("experience") else None,
            writer_id=message.writer_id,
            pipelined=message.pipelined,
            endpoint=caller.endpoint,
            deadline=caller.deadline,
        )

    def reset_result(self, message: pb.Reset, session: Session, changed: bool) -> pb.ResetResult:
        return pb.ResetResult(session=self.descriptions.brief(session), changed=changed, request_id=message.request_id)

    # Looks.

    async def dump(self, message: pb.Dump, caller: Caller) -> tuple[StateView, dict[str, Shown]]:
        """The chosen arrays of a session, at the present or an earlier position."""
        session = await self.known(message.session_id, caller)
        position = message.position if message.HasField("position") else None
        seen = await self.seen(session, position, caller)
        return seen, await self.shown(message, seen)

    async def shown(self, message: pb.Dump, seen: StateView) -> dict[str, Shown]:
        """The arrays that a dump asks for, made in a thread.

        Raises BAD_REQUEST for a name that the model has not, and for thinning to nothing.
        """
        names = checked_names(self.artifact, message.names)
        assert seen.state is not None
        if not message.HasField("max_cells"):
            return await asyncio.to_thread(whole, self.artifact, seen.state, names)
        if message.max_cells == 0:
            raise ServeError("BAD_REQUEST", "max_cells is 0, expected at least 1, or none at all", got=0)
        return await asyncio.to_thread(thinned, self.artifact, seen.state, names, message.max_cells)

    # Helpers.

    def session(self, session_id: str, caller: Caller) -> Session:
        """The caller's session; raises BAD_ID, SESSION_NOT_FOUND or SESSION_EXPIRED."""
        return self.engine.table.get(check_id(session_id), caller.owner)

    async def seen(self, session: Session, position: int | None, caller: Caller) -> StateView:
        """Head and state of a session, at the present or an earlier position."""
        if position is not None and position != session.position:
            return await self.engine.view_at(session, position)
        seen: StateView = await self._do(session, caller, lambda done: Inspect(done, deadline=caller.deadline))
        if position is not None and seen.head.position != position:
            return await self.engine.view_at(session, position)
        return seen

    async def known(self, session_id: str, caller: Caller) -> Session:
        """The caller's session, taken up from a shared store if need be; raises SESSION_MOVED too."""
        await self.engine.ownership.adopt(check_id(session_id), caller.owner)
        return self.session(session_id, caller)

    async def begin(
        self,
        session_id: str,
        caller: Caller,
        incarnation: int,
        state: Float32 | None,
        position: int = 0,
        experience: int = 0,
    ) -> Session:
        """A new session of the caller's; None is the state that every one begins with.

        Raises DRAINING or what the token's limits say.
        """
        self._check_serving()
        caller.grant.check_writes()
        engine, grant = self.engine, caller.grant
        session = engine.table.new_session(
            session_id, caller.owner, incarnation, position=position, experience=experience
        )
        begun = engine.loop.create_future()
        resolve = settle(begun)
        try:
            if engine.ownership.shared:
                held = await self._begun_among_servers(session, grant)
            else:
                held = await self._held_besides(caller)
            grant.check_new_session(held, engine.row_bytes)
            caller.may_have_changed = lambda: True
            if self.find(session_id) is not None:  # another call was faster, while the workers were asked
                raise session_exists(session_id)
            self.engine.lifecycle.begin(session, state, lambda error: resolve(None, error))
        except ServeError:
            self.engine.ownership.ended(session)
            raise
        await begun
        return session

    def find(self, session_id: str) -> Session | None:
        """The session of this id, of whichever model."""
        found = self.engine.table.find(session_id)
        for other in self.others:
            found = found or other.engine.table.find(session_id)
        return found

    async def _begun_among_servers(self, session: Session, grant: Grant) -> Holding:
        """Takes the lease of a new session, which is one for all models, and a place among its owner's; returns what
        the owner has besides."""
        row_bytes, leases = self.engine.row_bytes, self.engine.ownership
        count = await leases.begin(session, grant.most_others(row_bytes))
        held = Holding(count, count * row_bytes)
        for other in self.others:
            head = await other.engine.ownership.head(session.session_id)
            if head is not None and not head.ended:
                raise session_exists(session.session_id)
            if grant.limits_sessions:
                row_bytes = other.engine.row_bytes
                count = await other.engine.ownership.count_of(session.owner, grant.most_others(row_bytes))
                held = held.plus(Holding(count, count * row_bytes))
        return held

    async def _held_besides(self, caller: Caller) -> Holding:
        """What the caller has beside a new session, at all workers. Of two that begin at once at different ones, each
        counts the other."""
        owner = caller.owner
        if not caller.grant.limits_sessions:
            return Holding()
        if self._siblings is None:
            return self._held_here(owner)
        self._begins[owner] += 1
        try:
            elsewhere = await self._siblings.held_by(owner)
            return elsewhere.plus(self._held_here(owner)).plus(Holding(-1, -self.engine.row_bytes))
        finally:
            self._begins[owner] -= 1

    def _held_here(self, owner: str) -> Holding:
        return reduce(Holding.plus, (other.held_by(owner) for other in self.others), self.held_by(owner))

    def held_by(self, owner: str) -> Holding:
        """What sessions of the model a token has at this worker."""
        count = self.engine.table.count_of(owner) + self._begins[owner]
        return Holding(count, count * self.engine.row_bytes)

    async def _do(self, session: Session, caller: Caller, make: Callable[[Done], Request]) -> Any:
        future = self.engine.loop.create_future()
        work = make(settle(future))
        caller.may_have_changed = lambda: work.written
        self.engine.submit(session, work)
        try:
            return await future
        except BaseException:
            work.cancelled = True
            raise

    def _check_serving(self) -> None:
        if self.retired:
            raise ServeError("NOT_READY", "this version of the model has just been unloaded", retry_after_s=0.05)
        if self.draining:
            raise ServeError("DRAINING", "the server is leaving", retry_after_s=1.0)

    def answer_bytes(self, asked: pb.Chunk | pb.Reset | pb.Dump) -> int:
        """About how large the answer to a message of a stream will be."""
        if isinstance(asked, pb.Dump):
            return self.engine.row_bytes
        if isinstance(asked, pb.Reset) or not asked.inputs.shape:
            return 0
        timesteps = min(asked.inputs.shape[0], self.engine.config.max_chunk_timesteps)
        return timesteps * (self.artifact.outputs.nbytes + asked.debug * self.artifact.debug_bytes)

    def _check_experience(self) -> None:
        if self.artifact.layout.experience_offset is None:
            raise ServeError(
                "BAD_REQUEST",
                "the model doesn't say which fields of its state are the experience, expected a reset of all "
                "(scope 'all')",
                expected="RESET_SCOPE_ALL",
            )

    def _check_fits_a_message(self) -> None:
        row_bytes, most = self.engine.row_bytes, self.engine.config.max_message_bytes
        if row_bytes + (64 << 10) > most:
            raise ServeError(
                "STATE_TOO_LARGE",
                f"a state takes {row_bytes} bytes, more than fits into a message of {most:d}: use a session",
                limit=int(most),
            )

    def _check_debug(self, timesteps: int) -> None:
        config = self.engine.config
        at_most = max(1, (config.max_message_bytes - (64 << 10)) // self.artifact.debug_bytes)
        if timesteps > at_most:
            raise ServeError(
                "CHUNK_TOO_LONG",
                f"a chunk of {timesteps} timesteps with debug, expected at most {at_most}: its answer would not fit "
                f"into {config.max_message_bytes} bytes",
                expected=f"at most {at_most} with debug",
                got=timesteps,
            )


def session_exists(session_id: str) -> ServeError:
    """What is said where an id is a session's already."""
    return ServeError("SESSION_EXISTS", f"session {session_id!r} exists already", session_id=session_id)


def settle(future: Any) -> Done:
    """What settles a future, unless nobody waits for it any more."""

    def done(result: Any, error: ServeError | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    return done
