"""Triton's sequences: each is the session of its id, of the model that its first request names, and a request of it a
chunk.

`sequence_start` begins the session anew, `sequence_end` answers and ends it. A request is applied once, however often
it is sent: by its `position`, or else by its `id`, for which the hash of the id is the chunk's writer.
"""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from dnc_serve.handler.api.operations import Caller, Operations, settle
from dnc_serve.handler.api.ordered_stream import FEW_UNANSWERED
from dnc_serve.handler.api.siblings import Siblings
from dnc_serve.handler.api.tensors import check_outputs, parameter, read_input, tensors_of
from dnc_serve.handler.engine.requests import Applied, Chunk, Delete, Done
from dnc_serve.handler.engine.session import Session, check_id
from dnc_serve.handler.errors import ServeError
from dnc_serve.proto.dnc.v1 import dnc_pb2
from dnc_serve.proto.inference import inference_pb2 as pb

# Answers of sequences that have ended, for whoever asks again because the answer didn't arrive.
MAX_LAST_ANSWERS = 1024
MAX_LAST_ANSWER_BYTES = 16 << 10
# Within which calls of different sequences may be stepped together: several times what all of them take.
JUST_NOW_S = 0.02
# What a first chunk is refused with that meets another session than the one that it began.
_ANOTHER = ("STEP_CONFLICT", "REPLY_GONE", "SESSION_REPLACED", "MODEL_MISMATCH", "CORRUPT_STATE")


@dataclass(slots=True)
class SequenceRequest:
    """A request, read."""

    message: pb.ModelInferRequest
    session_id: str
    start: bool
    end: bool
    chunk: dnc_pb2.Chunk
    repeatable: bool  # it says which one it is, so that it can be told from others


class Sequences:
    """Applies the requests of one model's sequences, by the operations that the contract's endpoints use."""

    def __init__(self, operations: Operations) -> None:
        self.operations = operations
        self._engine = operations.engine
        self.name, self.version = operations.name, operations.version
        self.input, self.output = tensors_of(operations.descriptions.model())
        self._under_way = 0  # calls, without those on streams
        self._latest: OrderedDict[str, float] = OrderedDict()  # sequences that called, the last ones, and when
        self._last_answers: OrderedDict[bytes, pb.ModelInferResponse] = OrderedDict()

    def answer_bytes(self, request: pb.ModelInferRequest) -> int:
        """About how large the answer to a request will be."""
        if len(request.inputs) != 1 or not request.inputs[0].shape:
            return 0
        timesteps = min(max(0, request.inputs[0].shape[0]), self._engine.config.max_chunk_timesteps)
        return timesteps * self.operations.artifact.outputs.nbytes

    def read(self, request: pb.ModelInferRequest) -> SequenceRequest:
        """Reads a request; whether its inputs suit the model is checked when it is submitted.

        Raises BAD_REQUEST, BAD_ID, BAD_SHAPE or BAD_DTYPE.
        """
        session_id = session_id_of(request)
        check_outputs(request, self.output)
        start = starts(request)
        position = parameter(request, "position", _number, "a whole number")
        incarnation = parameter(request, "incarnation", _number, "a whole number, as the answers say it")
        if start and position:
            raise ServeError("BAD_REQUEST", f"position is {position} with sequence_start, expected 0", got=position)
        chunk = dnc_pb2.Chunk(
            session_id=session_id,
            inputs=read_input(request, self.input),
            position=position,
            incarnation=None if start else incarnation,
            writer_id=_writer_of(request.id) if request.id and (position is None or start) else 0,
        )
        return SequenceRequest(
            request,
            session_id,
            start,
            bool(parameter(request, "sequence_end", _flag, "true or false")),
            chunk,
            bool(request.id) or position is not None,
        )

    async def submit(
        self, asked: SequenceRequest, caller: Caller, done: Done, *, more_to_come: bool = False
    ) -> tuple[Session | None, Chunk]:
        """Hands the chunk to the engine, in the session that it begins or goes on with; `done` gets the answer.

        The session is None where the answer was at hand. `more_to_come` is the engine's. Raises what the request is
        refused for.
        """
        chunk = self.operations.chunk(asked.chunk, caller, self._answering(asked, caller, done))
        chunk.known_by_writer = bool(chunk.writer_id)
        if asked.start:
            session = await self._begin(asked, chunk, caller)
            if session is None:
                return None, chunk
        else:
            try:
                session = await self.operations.known(asked.session_id, caller)
            except ServeError as error:
                if error.reason not in ("SESSION_NOT_FOUND", "SESSION_EXPIRED"):
                    raise
                if asked.repeatable and (answer := self._last_answers.get(_key(asked.message, caller))) is not None:
                    done(answer, None)
                    return None, chunk
                raise self._missing_start(asked) from None
        self._engine.submit(session, chunk, more_to_come=more_to_come)
        return session, chunk

    async def infer(self, request: pb.ModelInferRequest, caller: Caller) -> pb.ModelInferResponse:
        """The answer to one request."""
        answered, asked = self._engine.loop.create_future(), self.read(request)
        self._under_way += 1
        try:
            crowded = self._under_way > FEW_UNANSWERED or self._calls_of_many(asked.session_id)
            _, chunk = await self.submit(asked, caller, settle(answered), more_to_come=crowded)
            caller.may_have_changed = lambda: chunk.written
            try:
                answer: pb.ModelInferResponse = await answered
            except BaseException:
                chunk.cancelled = True
                raise
            return answer
        finally:
            self._under_way -= 1

    def _calls_of_many(self, session_id: str) -> bool:
        """Whether more than a few sequences have called just now. gRPC hands calls over one by one, and so few are ever
        under way where each is stepped at once; where there are many, they are stepped together."""
        now, latest = self._engine.loop.time(), self._latest
        latest[session_id] = now
        latest.move_to_end(session_id)
        if len(latest) <= FEW_UNANSWERED:
            return False
        if len(latest) > FEW_UNANSWERED + 1:
            latest.popitem(last=False)
        return now - next(iter(latest.values())) < JUST_NOW_S

    async def _begin(self, asked: SequenceRequest, chunk: Chunk, caller: Caller) -> Session | None:
        """The new session of a sequence that starts, where its first chunk is to be applied.

        None if that chunk was the first and only one of the present session: sent again, it is answered again.
        """
        operations, session_id = self.operations, asked.session_id
        chunk.position = 0
        await self._engine.ownership.adopt(session_id, caller.owner)
        present = self._engine.table.find(session_id)
        if present is not None and present.owner == caller.owner:
            may_be_its_first = bool(asked.message.id) and present.position in (0, len(chunk.inputs))
            if may_be_its_first and await self._applied_first(present, chunk):
                return None
            await operations.delete_session(dnc_pb2.DeleteSessionRequest(session_id=session_id), caller)
        # Raises SESSION_EXISTS for another's.
        await operations.create_session(dnc_pb2.CreateSessionRequest(session_id=session_id), caller)
        session = operations.session(session_id, caller)
        chunk.incarnation = session.incarnation
        return session

    async def _applied_first(self, present: Session, chunk: Chunk) -> bool:
        """Whether the chunk is the first of the present session, now or since earlier; then it is answered."""
        done, chunk.experience = chunk.done, 0
        first = self._engine.loop.create_future()
        chunk.done = settle(first)
        self._engine.submit(present, chunk)
        try:
            applied = await first
        except ServeError as error:
            if error.reason not in _ANOTHER:
                raise
            chunk.done = done
            return False
        except BaseException:
            chunk.cancelled = True
            raise
        done(applied, None)
        return True

    def _answering(self, asked: SequenceRequest, caller: Caller, done: Done) -> Done:
        """Makes the answer of what was applied; one that ends its sequence leaves when the session has ended."""

        def answered(applied: Applied | None, error: ServeError | None) -> None:
            if error is not None or applied is None:
                done(None, error)
                return
            answer = self._answer(asked.message, applied)
            if not asked.end or self._engine.config.sequence_end == "keep":
                done(answer, None)
                return
            if asked.repeatable:
                self._keep_last(asked, caller, answer)
            session = self._engine.table.find(asked.session_id)
            # What ends a session may fail; what was applied is answered, and who starts the sequence anew ends it too.
            delete = Delete(lambda deleted, failure: done(answer, None), incarnation=applied.incarnation)
            try:
                if session is None:
                    done(answer, None)
                else:
                    self._engine.submit(session, delete)
            except ServeError:
                done(answer, None)

        return answered

    def _answer(self, request: pb.ModelInferRequest, applied: Applied) -> pb.ModelInferResponse:
        answer = pb.ModelInferResponse(model_name=self.name, model_version=self.version, id=request.id)
        answer.parameters["position"].int64_param = applied.position
        answer.parameters["incarnation"].string_param = str(applied.incarnation)
        if applied.replayed:
            answer.parameters["replayed"].bool_param = True
        answer.outputs.add(name=self.output.name, datatype=self.output.datatype, shape=applied.outputs.shape)
        answer.raw_output_contents.append(applied.outputs.tobytes())
        return answer

    def _keep_last(self, asked: SequenceRequest, caller: Caller, answer: pb.ModelInferResponse) -> None:
        if answer.ByteSize() <= MAX_LAST_ANSWER_BYTES:
            self._last_answers[_key(asked.message, caller)] = answer
            if len(self._last_answers) > MAX_LAST_ANSWERS:
                self._last_answers.popitem(last=False)

    def _missing_start(self, asked: SequenceRequest) -> ServeError:
        """In Triton's words, by which its users may know it."""
        return ServeError(
            "BAD_REQUEST",
            f"inference request for sequence {asked.session_id} to model '{self.name}' must specify the START flag on "
            "the first request of the sequence",
            session_id=asked.session_id,
        )


def session_id_of(request: pb.ModelInferRequest) -> str:
    """The session that a request's sequence is: of the number or the text itself. Raises BAD_REQUEST or BAD_ID."""
    named = parameter(request, "sequence_id", _sequence_id, "a number or a text")
    if not named:
        raise ServeError(
            "BAD_REQUEST",
            f"inference request to model {request.model_name!r} must specify a non-zero or non-empty correlation "
            "ID: the parameter sequence_id",
        )
    return check_id(named)


def starts(request: pb.ModelInferRequest) -> bool:
    """Whether a request begins its sequence. Raises BAD_REQUEST."""
    return bool(parameter(request, "sequence_start", _flag, "true or false"))


def other_owner(request: pb.ModelInferRequest | ServeError, siblings: Siblings | None) -> int | None:
    """The other worker that has a request's sequence; None for one of this worker, or that is refused here."""
    if siblings is None or isinstance(request, ServeError):
        return None
    try:
        session_id = session_id_of(request)
    except ServeError:
        return None
    return None if siblings.place.owns(session_id) else siblings.place.owner_of(session_id)


def _writer_of(request_id: str) -> int:
    """A writer's id that is the request's own; never 0, which is everybody's."""
    return int.from_bytes(hashlib.blake2b(request_id.encode(), digest_size=8).digest(), "little") or 1


def _key(request: pb.ModelInferRequest, caller: Caller) -> bytes:
    """What a request and the same one sent again have in common."""
    asked = request.SerializeToString(deterministic=True)
    return hashlib.blake2b(asked, digest_size=16, key=caller.owner.encode()).digest()


def _sequence_id(value: Any) -> str:
    if isinstance(value, str):
        return value
    number = _number(value)
    return str(number) if number else ""


def _number(value: Any) -> int:
    """A whole number of 64 bits without a sign, which may come as one with a sign, or as text."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError
    number = int(value)
    if not -(2**63) <= number < 2**64:
        raise ValueError
    return number % 2**64


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value
