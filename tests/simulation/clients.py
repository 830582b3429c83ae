"""Clients: small programs that keep what they sent and what they were answered, go on after whatever happens, and
object to every answer that an uninterrupted session would not have given."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dnc_serve.handler.errors import ServeError
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.simulation.model import Moment, tick
from tests.simulation.network import Network

# After these a client asks again: nothing is known, or nothing was applied.
PASSING = {"STORE_UNAVAILABLE", "NOT_READY", "QUEUE_FULL", "SESSION_MOVED"}
GONE = {"SESSION_NOT_FOUND", "SESSION_REPLACED"}
BEGINNING = Moment(0, 0, (0, 0))


class Violation(AssertionError):
    """The server broke a promise."""


@dataclass(frozen=True, slots=True)
class Step:
    values: tuple[int, ...]
    resets: bool = False


Op = Step | None  # None: a reset of the experience


@dataclass(slots=True)
class Story:
    """One life of a session, as its client knows it."""

    session_id: str
    base: Moment
    sent_at: float  # when it was asked to begin
    incarnation: int = 0
    ops: list[Op] = field(default_factory=list)
    rivals: dict[int, Op] = field(default_factory=dict)  # what was sent before, at the same place
    path: list[Moment] = field(default_factory=list)  # before each op, and after the last
    times: list[float] = field(default_factory=list)  # when each op was first sent
    done: int = 0  # ops that were answered
    durable: int = -1  # the highest position that was said to be so

    def __post_init__(self) -> None:
        self.path = [self.base]

    def add(self, op: Op) -> None:
        self.ops.append(op)
        self.path.append(after(self.path[-1], op)[0])

    def instead(self, index: int, op: Op) -> None:
        """The last op was, or is to be, another one."""
        assert index == len(self.ops) - 1
        self.ops[index], self.rivals[index] = op, self.ops[index]
        self.path[index + 1] = after(self.path[index], op)[0]

    def find(self, position: int, experience: int) -> int | None:
        """After how many ops it stands there."""
        for index in reversed(range(len(self.times) + 1)):
            if self.path[index][:2] == (position, experience):
                return index
            rival = self.rivals.get(index - 1, 0)
            if rival != 0 and after(self.path[index - 1], rival)[0][:2] == (position, experience):
                self.instead(index - 1, rival)
                return index
        return None

    def last_at(self, position: int) -> Moment | None:
        """As it was when it last stood there, by what was answered."""
        for start, op in reversed(list(zip(self.path, self.ops[: self.done], strict=False))):
            if op is None:
                if start.position == position:
                    return after(start, op)[0]
            elif start.position < position <= start.position + len(op.values):
                return after(start, Step(op.values[: position - start.position], op.resets))[0]
        return self.base if position == self.base.position else None


def after(start: Moment, op: Op) -> tuple[Moment, list[tuple[int, int]]]:
    """Where a session stands after an operation, and the outputs."""
    position, experience, state = start
    if op is None or op.resets:
        experience, state = experience + 1, (state[0], 0)
    outputs = []
    for value in op.values if op is not None else ():
        state = tick(state, value)
        outputs.append(state)
    return Moment(position + len(outputs), experience, state), outputs


class Client:
    """Writes to sessions of its own. `forgets(since)` says whether what was done since may be lost with its answers;
    `patient` whether it never gives an operation up for another one."""

    def __init__(self, number: int, network: Network, patient: bool) -> None:
        self.number = number
        self.network = network
        self.loop, self.chance = network.loop, network.loop.chance
        self._patient = patient
        self._server = self.chance.randrange(len(network.machines))
        self.story: Story | None = None

    async def run(self, lives: int, ops: int) -> None:
        """Begins a session so many times, and deletes all but the last."""
        for life in range(lives):
            # Where a delete may be forgotten, the former session could be met again.
            name = f"s{self.number}.{life}" if self._patient else f"s{self.number}"
            story = self.story = Story(name, BEGINNING, self.loop.now)
            await self._begin(story)
            await self._write(story, self.chance.randint(1, ops))
            if self.chance.random() < 0.5:
                await self._fork(story, f"{story.session_id}-{life}")
                await self._write(story, self.chance.randint(1, ops))
            if life < lives - 1:
                await self._delete(story)

    async def check(self) -> None:
        """All that was answered is there, and the state is an uninterrupted one's."""
        assert self.story is not None
        await self._read(self.story, with_state=True)
        if self.story.done < len(self.story.ops):
            await self._write(self.story, 0)
            await self._read(self.story, with_state=True)

    # Operations.

    async def _begin(self, story: Story) -> None:
        request = pb.CreateSessionRequest(session_id=story.session_id, allow_existing=True)
        story.sent_at = self.loop.now
        session = (await self._ask("create_session", request, story.session_id)).session
        self._expect((session.position, session.experience) == (0, 0), "a new session has a past", session)
        self._expect(session.incarnation != story.incarnation, "a lost session is back", session)
        story.incarnation, story.durable = session.incarnation, -1
        story.done = 0

    async def _write(self, story: Story, count: int) -> None:
        """So many operations more."""
        chance, wanted = self.chance, len(story.ops) + count
        while story.done < wanted:
            if story.done == len(story.ops):
                for _ in range(min(chance.choice((1, 1, 2, 3)), wanted - len(story.ops))):
                    story.add(self._new_op())
            ops = range(story.done, len(story.ops))
            answers = await asyncio.gather(*(self._send(story, index) for index in ops))
            for index, answer in zip(ops, answers, strict=True):
                if not await self._take(story, index, answer, ops.start):
                    break
            if chance.random() < 0.2:
                await self._read(story, with_state=chance.random() < 0.5)
            if chance.random() < 0.3:
                await self._glance(story)
            if chance.random() < 0.3:
                await asyncio.sleep(chance.random() ** 2)

    def _new_op(self) -> Op:
        chance = self.chance
        if chance.random() < 0.15:
            return None
        return Step(tuple(chance.randrange(1, 100) for _ in range(chance.randint(1, 5))), chance.random() < 0.1)

    async def _send(self, story: Story, index: int) -> Any:
        if index == len(story.times):
            story.times.append(self.loop.now)
        op, (position, experience, _) = story.ops[index], story.path[index]
        common = {
            "session_id": story.session_id, "incarnation": story.incarnation, "position": position,
            "experience": experience, "writer_id": self.number + 1,
        }  # fmt: skip
        if op is None:
            return await self._try("reset_session", pb.ResetSessionRequest(reset=pb.Reset(**common)), story.session_id)
        inputs = pb.Array(shape=[len(op.values), 1], data=np.array(op.values, np.float32).tobytes())
        request = pb.StepRequest(chunk=pb.Chunk(**common, inputs=inputs, reset_experience=op.resets))
        return await self._try("step", request, story.session_id)

    async def _take(self, story: Story, index: int, answer: Any, done: int) -> bool:
        """Whether the operation was answered; else the story's `done` says where to go on. When it was sent, so many
        were done."""
        op = story.ops[index]
        if isinstance(answer, pb.ResetSessionResponse):
            session = answer.result.session
            at = story.find(session.position, session.experience)  # another one may have followed already
            self._expect(at is not None and at > index, f"reset {index} was answered elsewhere", answer)
            self._durable(story, session)
        elif isinstance(answer, pb.StepResponse):
            assert op is not None
            result = answer.result
            moment, outputs = after(story.path[index], op)
            self._expect(
                (result.position, result.experience, result.incarnation) == (*moment[:2], story.incarnation),
                f"chunk {index} leads to {moment}", answer,
            )  # fmt: skip
            self._expect(
                result.outputs.data == np.array(outputs, np.float32).tobytes(), f"chunk {index} gave others", answer
            )
            self._durable(story, result)
        elif isinstance(answer, ServeError):
            await self._refused(story, index, answer, done)
            return False
        else:  # none came
            last = index == len(story.ops) - 1 and index not in story.rivals
            if last and not self._patient and self.chance.random() < 0.3:
                longer = Step((*op.values, 1)) if op is not None else Step((1,))
                story.instead(index, None if op is not None and self.chance.random() < 0.5 else longer)
            return False
        story.done = max(story.done, index + 1)
        return True

    async def _refused(self, story: Story, index: int, error: ServeError, done: int) -> None:
        if error.reason in ("STEP_GAP", "STEP_CONFLICT"):
            applied_once = error.reason == "STEP_GAP" or story.rivals
            self._expect(applied_once, f"op {index} has no answer any more", error.message)
            facts = error.metadata
            self._stands(story, int(facts["expected_position"]), int(facts["experience"]), error.message, done)
        elif error.reason in GONE:
            lost = self.network.may_forget(story.sent_at) and (
                self.network.lies or story.durable <= story.base.position
            )
            self._expect(lost, "the session is gone", error.message)
            if story.base is BEGINNING:
                await self._begin(story)
            else:
                raise Forgotten
        else:
            self._expect(error.reason in PASSING, f"op {index} was refused: {error.reason}", error.message)

    def _stands(self, story: Story, position: int, experience: int, told: Any, done: int) -> None:
        """The session is said to stand there, to who had so many answers when asking."""
        at = story.find(position, experience)
        self._expect(at is not None, f"it stands at {position}, {experience}, where nobody took it", told)
        assert at is not None
        if at < done:
            self._expect(self.network.may_forget(story.times[at]), f"op {at} of {done} is lost", told)
            kept = position >= story.durable or self.network.lies
            self._expect(kept, f"position {story.durable} was durable, {position} is left", told)
            story.done = at
        story.done = max(story.done, at)

    async def _read(self, story: Story, with_state: bool) -> None:
        while True:
            done = story.done
            if with_state:
                answer = await self._try("dump", pb.Dump(session_id=story.session_id), story.session_id)
            else:
                answer = await self._try(
                    "get_session", pb.GetSessionRequest(session_id=story.session_id), story.session_id
                )
            if isinstance(answer, ServeError) and answer.reason not in PASSING:
                await self._refused(story, done, answer, done)
            elif answer is not None and not isinstance(answer, ServeError):
                break
        if not with_state:
            if answer.session.incarnation == story.incarnation:
                self._stands(story, answer.session.position, answer.session.experience, answer, done)
                self._durable(story, answer.session)
            return
        head, state = answer
        if head.incarnation == story.incarnation:
            self._stands(story, head.position, head.experience, head, done)
            self._expect(state == story.path[story.done].state, "its state is another", answer)

    async def _glance(self, story: Story) -> None:
        """Any server tells where it stands, and that it is there."""
        done, any_server = story.done, self.chance.randrange(len(self.network.machines))
        if self.chance.random() < 0.7:
            answer = await self.network.call(
                any_server, "get_session", pb.GetSessionRequest(session_id=story.session_id)
            )
            told = [answer.session] if isinstance(answer, pb.GetSessionResponse) else []
        else:
            answer = await self.network.call(
                any_server, "list_sessions", pb.ListSessionsRequest(prefix=story.session_id)
            )
            if not isinstance(answer, pb.ListSessionsResponse):
                return
            told = [one for one in answer.sessions if one.session_id == story.session_id]
            if not self.network.may_forget(story.sent_at):
                self._expect(len(told) == 1, "it is not listed once", answer)
        for one in told:
            if one.incarnation == story.incarnation:
                self._stands(story, one.position, one.experience, one, done)

    async def _fork(self, story: Story, fork_id: str) -> None:
        """A fork, at the present or an earlier position, goes on by itself."""
        position = self.chance.randint(0, story.path[story.done].position)
        moment, sent_at = story.last_at(position), self.loop.now
        request = pb.ForkSessionRequest(
            session_id=story.session_id, incarnation=story.incarnation, fork_session_id=fork_id, position=position
        )
        assert moment is not None
        try:
            answer = await self._ask("fork", request, story.session_id)
        except ServeError as error:
            if error.reason in ("POSITION_GONE", "STEP_GAP", *GONE) and (
                error.reason == "POSITION_GONE" or self.network.may_forget(story.sent_at)
            ):
                return
            raise Violation(f"no fork at {position}: {error.reason}: {error.message}") from None
        fork = Story(fork_id, moment, sent_at, answer.session.incarnation)
        if answer.created or not self.network.may_forget(story.sent_at):
            self._expect(answer.session.position == position, "the fork is elsewhere", answer)
        try:
            if not self.network.may_forget(story.sent_at):
                await self._read(fork, with_state=True)
                await self._write(fork, self.chance.randint(1, 3))
        except Forgotten:
            pass

    async def _delete(self, story: Story) -> None:
        request = pb.DeleteSessionRequest(session_id=story.session_id, incarnation=story.incarnation)
        sent_at, tries = self.loop.now, 0
        while True:
            answer = await self._try("delete_session", request, story.session_id)
            forgotten = self.network.may_forget(story.sent_at)
            if isinstance(answer, ServeError):
                if answer.reason in GONE:
                    known = answer.reason == "SESSION_REPLACED" or "ended_at" in answer.metadata
                    self._expect((known and tries) or forgotten, "nobody knows how it ended", answer.message)
                    return
                self._expect(answer.reason in PASSING, "not deleted", answer.message)
            elif answer is not None:
                doubled = tries or self.network.loss  # the other copy of the request may have done it
                self._expect(answer.deleted or doubled or forgotten, "somebody else deleted it", answer)
                if self.chance.random() < 0.5:
                    break
            tries += 1
        if not self.network.may_forget(sent_at):
            story.add(Step((1,)))
            answer = await self._send(story, len(story.ops) - 1)
            applied = answer is not None and not isinstance(answer, ServeError)
            self._expect(not applied, "it was deleted, and went on", answer)
            answer = await self._try("list_sessions", pb.ListSessionsRequest(prefix=story.session_id), story.session_id)
            listed = [] if answer is None or isinstance(answer, ServeError) else answer.sessions
            there = any(one.incarnation == story.incarnation for one in listed)
            self._expect(not there or self.network.may_forget(sent_at), "it was deleted, and is listed", answer)

    # Asking.

    async def _ask(self, call: str, request: Any, session_id: str) -> Any:
        """Until there is an answer; raises refusals that are none of the moment."""
        while True:
            answer = await self._try(call, request, session_id)
            if isinstance(answer, ServeError) and answer.reason not in PASSING:
                raise answer
            if answer is not None and not isinstance(answer, ServeError):
                return answer

    async def _try(self, call: str, request: Any, session_id: str) -> Any:
        """An answer, a refusal, or None if there is none in time."""
        answer = await self.network.call(self._server, call, request)
        if answer is None or self.chance.random() < 0.15:  # a client may ask any server
            self._server = self.chance.randrange(len(self.network.machines))
        elif isinstance(answer, ServeError):
            if answer.reason == "SESSION_MOVED" and self.chance.random() < 0.8:
                self._server = self.network.address_of(answer.metadata["owner"])
            elif answer.reason in PASSING:
                await asyncio.sleep(0.05 + 0.3 * self.chance.random())
                self._server = self.chance.randrange(len(self.network.machines))
        return answer

    def _durable(self, story: Story, told: Any) -> None:
        sent = max(moment.position for moment in story.path[: len(story.times) + 1])
        self._expect(told.durable_position <= sent, "more is durable than was sent", told)
        story.durable = max(story.durable, told.durable_position)

    def _expect(self, holds: object, what: str, told: Any) -> None:
        if not holds:
            raise Violation(f"client {self.number}: {what}: {str(told).replace(chr(10), ' ')}")


class Forgotten(Exception):
    """A fork was lost with the power."""


def everything_of(clients: Sequence[Client]) -> int:
    """Operations that were answered in their last sessions."""
    return sum(client.story.done for client in clients if client.story is not None)
