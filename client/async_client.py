"""`AsyncClient`: the calls that belong to no session, and the way to sessions."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any, Self
from weakref import WeakSet
from zlib import crc32

from dnc_serve.client.arrays import Array, as_inputs, joined, to_wire
from dnc_serve.client.calls import DEFAULT_CONNECT_TIMEOUT_S, DEFAULT_TIMEOUT_S, Calls, Retry
from dnc_serve.client.checks import (
    UINT32,
    checked_bytes,
    checked_count,
    checked_flag,
    checked_id,
    checked_model,
    checked_number,
    checked_seconds,
    checked_text,
    checked_version,
)
from dnc_serve.client.errors import BadRequest, DncError, SessionError
from dnc_serve.client.info import ModelInfo, ModelSummary, SessionInfo, StateAfter
from dnc_serve.client.ledger import Entry
from dnc_serve.client.session import AsyncSession
from dnc_serve.client.stream import Stream
from dnc_serve.client.tls import TLS
from dnc_serve.client.transport import DEFAULT_TARGET, Hosts, Route, Token
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

Blob = bytes | bytearray | memoryview

BLOB_PART_BYTES = 1 << 20
DEFAULT_STREAMS = 8


class Opener:
    """Opens sessions; the base of `AsyncClient` and `AsyncMultiplex`."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self.handles: WeakSet[AsyncSession] = WeakSet()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.calls.hosts}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Leaves all its sessions; they stay on the server."""
        for session in list(self.handles):
            await session.close()

    def session(
        self,
        id: str | None = None,
        *,
        allow_existing: bool = True,
        create: bool = True,
        model: str | None = None,
        writer_id: int | None = None,
        position: int | None = None,
        experience: int | None = None,
    ) -> AsyncSession:
        """A session with a stream of its own, or one of a multiplex's; one with a random id if none is given.

        Enter it with `async with`, or await it; it is created, or taken up where it was left. Without
        `allow_existing` one that is there raises SessionExists, without `create` one that isn't SessionNotFound. A
        new one is of the default model, or of the one that is named; one that is there of another than the named one
        raises SessionExists.
        `writer_id`, `position` and `experience`, as an earlier handle had them, go on in its place.
        """
        return AsyncSession(
            self.calls, self.open_stream, self.handles, id, allow_existing=allow_existing, create=create,
            model=model, writer_id=writer_id, position=position, experience=experience,
        )  # fmt: skip

    def open_stream(self, route: Route, session_id: str) -> Stream:
        """A stream for one session."""
        return Stream(self.calls.hosts, route.target, self.calls.hosts.metadata(session_id, route.owner))


class AsyncClient(Opener):
    """A client of one server, or of several that share a store.

    - `targets`: host:port, or a list of them; a session's calls go to no other host.
    - `token`: the bearer token, or a function that returns the present one.
    - `tls`: True for the system's authorities, or a `TLS` with files.
    - `timeout_s`: how long a call waits for its answer, all attempts together; a stream, for its next output.
    - `connect_timeout_s`: how long attempts are repeated until a server has answered for the first time.
    - `retry`: how it waits between attempts; None makes one attempt only.

    A server that doesn't answer is told by a warning of the logger `dnc_serve.client`, at the first attempt.
    """

    def __init__(
        self,
        targets: str | Sequence[str] = DEFAULT_TARGET,
        *,
        token: Token | None = None,
        tls: TLS | bool | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        connect_timeout_s: float = DEFAULT_CONNECT_TIMEOUT_S,
        retry: Retry | None = Retry(),  # noqa: B008  frozen
    ) -> None:
        if not (retry is None or isinstance(retry, Retry)):
            raise ValueError(f"retry is {retry!r}; expected a Retry or None")
        hosts = Hosts(targets, token, tls)
        timeout_s = checked_seconds("timeout_s", timeout_s)
        super().__init__(Calls(hosts, retry, timeout_s, checked_seconds("connect_timeout_s", connect_timeout_s)))
        self._multiplexes: WeakSet[AsyncMultiplex] = WeakSet()

    async def close(self) -> None:
        """Leaves all sessions and closes the connections; the sessions stay on the server. Again, it does nothing."""
        for opener in list(self._multiplexes):
            await opener.close()
        await super().close()
        await self.calls.hosts.close()

    def multiplex(self, streams: int = DEFAULT_STREAMS) -> "AsyncMultiplex":
        """Many sessions on a few streams, for whoever has more sessions than a server takes streams.

        One stream carries one message at a time each way, so a few are faster than one, and as many as there are
        sessions are fastest.
        """
        multiplex = AsyncMultiplex(self.calls, checked_count("streams", streams))
        self._multiplexes.add(multiplex)
        return multiplex

    async def model(self, name: str | None = None, version: str | None = None) -> ModelInfo:
        """The model of this name, or the default one, in a version, or that of new sessions; asked for once. Raises
        ModelNotFound."""
        return await self.calls.model(checked_model(name), checked_version(version))

    async def models(self) -> list[ModelSummary]:
        """All models that the server has, the default first, and all versions of each, first that of new sessions."""
        answer = await self.calls.unary("ListModels", pb.ListModelsRequest(), self.calls.hosts.route(""))
        return [ModelSummary.from_wire(model) for model in answer.models]

    async def load_model(
        self, name: str, source: str | None = None, version: str | None = None, *, share: float | None = None
    ) -> ModelSummary:
        """Has the server serve a version of a model from a folder, or a file, of its own machine; from then on new
        sessions are of it, or a share of them. Without a source, a version that was loaded gets another share.

        Raises ModelUnusable, ModelInUse or PermissionDenied, and all is as before.
        """
        request = pb.LoadModelRequest(
            model=checked_text("name", name), source="" if source is None else checked_text("source", source),
            version=checked_version(version), share=share,
        )  # fmt: skip
        answer = await self.calls.unary("LoadModel", request, self.calls.hosts.route(""))
        return ModelSummary.from_wire(answer.model)

    async def unload_model(self, name: str, version: str, *, carry_over: bool = False) -> int:
        """Has the server drop a version that was loaded; returns how many of its sessions go on with that of new ones.
        Raises ModelInUse where it has sessions and they aren't to be carried over."""
        request = pb.UnloadModelRequest(
            model=checked_text("name", name), version=checked_version(version),
            carry_over=checked_flag("carry_over", carry_over),
        )  # fmt: skip
        answer = await self.calls.unary("UnloadModel", request, self.calls.hosts.route(""))
        return int(answer.carried_over)

    async def sessions(
        self, prefix: str = "", page_size: int = 100, *, model: str | None = None
    ) -> AsyncGenerator[SessionInfo, None]:
        """All sessions that this client may see, or those of one model, by id."""
        checked_text("prefix", prefix)
        model = checked_model(model)
        page_size = checked_number("page_size", page_size, 1, UINT32)
        token = ""
        while True:
            request = pb.ListSessionsRequest(page_size=page_size, page_token=token, prefix=prefix, model=model)
            page = await self.calls.unary("ListSessions", request, self.calls.hosts.route(""))
            for session in page.sessions:
                yield SessionInfo.from_wire(session)
            token = page.next_page_token
            if not token:
                return

    async def step_with_state(
        self, inputs: Any, state: Blob = b"", *, reset_experience: bool = False, model: str | None = None
    ) -> StateAfter:
        """Outputs [T, O] for inputs [T, I] of any length, and the state after them, from a state that this caller
        keeps; none begins as new. It is the default model's, or that of the named one.

        The server stores nothing, and any one with the same model and keys answers. The same call again, from an older
        state too, gives the same outputs. Raises BadState, StateExpired or ModelMismatch.
        """
        name, kept = checked_model(model), checked_bytes("state", state)
        info = await self.calls.model(name)
        reset_experience = checked_flag("reset_experience", reset_experience)
        array = as_inputs(inputs, info.inputs)
        at_most, results = info.chunk_timesteps(), []
        for start in range(0, len(array), at_most):
            piece = to_wire(array[start : start + at_most])
            chunk = pb.Chunk(inputs=piece, reset_experience=reset_experience and not start)
            request = pb.StepWithStateRequest(chunk=chunk, state=kept, model=name)
            answer = await self.calls.unary("StepWithState", request, self.calls.hosts.route(""))
            results.append(answer.result)
            kept = answer.state
        outputs = joined([result.outputs for result in results])
        return StateAfter(outputs, kept, results[-1].position, results[-1].experience)

    async def import_session(self, id: str, blob: Blob) -> AsyncSession:
        """An exported session under the given id, opened. Raises BadBlob, ModelMismatch or SessionExists."""
        session = self.session(checked_id(id))
        exported = checked_bytes("blob", blob)
        response = await self.calls.made(
            lambda stub, **how: stub.ImportSession(_parts(id, exported), **how), self.calls.hosts.route(id), id
        )
        session.created = True
        await session.take_up(SessionInfo.from_wire(response.session))
        return session


class AsyncMultiplex(Opener):
    """Sessions that share a few streams to each server."""

    def __init__(self, calls: Calls, streams: int) -> None:
        super().__init__(calls)
        self._number = streams
        self.streams: dict[tuple[str, str, int], Stream] = {}

    async def step(self, inputs: Mapping[AsyncSession, Any]) -> dict[AsyncSession, Array | DncError]:
        """Outputs [T, O] for inputs [T, I] of several sessions at once; in the place of what failed, its error."""
        if not isinstance(inputs, Mapping) or not all(isinstance(session, AsyncSession) for session in inputs):
            raise BadRequest(f"inputs is of type {type(inputs).__name__}, expected a mapping of sessions to inputs")
        groups: dict[AsyncSession, list[Entry]] = {}
        outputs: dict[AsyncSession, Array | DncError] = {}
        for session, values in inputs.items():
            try:
                if session.calls is not self.calls:
                    raise SessionError(f"session {session.id!r} belongs to another client", reason="NOT_OPEN")
                groups[session] = session.enter(values)
            except DncError as error:
                outputs[session] = error
        for session, group in groups.items():
            try:
                outputs[session] = await session.outputs(group)
            except DncError as error:
                outputs[session] = error
        return outputs

    def open_stream(self, route: Route, session_id: str) -> Stream:
        """One of the common streams."""
        key = (route.target, route.owner, crc32(session_id.encode()) % self._number)
        self.streams = {one: stream for one, stream in self.streams.items() if stream.is_open}
        stream = self.streams.get(key)
        if stream is not None and session_id in stream.members:  # another handle of the session gets one of its own
            return super().open_stream(route, session_id)
        if stream is None:
            hosts = self.calls.hosts
            stream = self.streams[key] = Stream(hosts, route.target, hosts.metadata(owner=route.owner))
        return stream


async def _parts(session_id: str, blob: bytes) -> AsyncIterator[pb.ImportSessionRequest]:
    yield pb.ImportSessionRequest(session_id=session_id, total_bytes=len(blob), data=blob[:BLOB_PART_BYTES])
    for offset in range(BLOB_PART_BYTES, len(blob), BLOB_PART_BYTES):
        yield pb.ImportSessionRequest(data=blob[offset : offset + BLOB_PART_BYTES])
