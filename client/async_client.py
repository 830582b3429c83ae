"""`AsyncClient`: the calls that belong to no session, and the way to sessions."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any, Self
from weakref import WeakSet
from zlib import crc32

from dnc_serve.client.arrays import Float32
from dnc_serve.client.calls import Calls
from dnc_serve.client.checks import (
    UINT32,
    checked_blob,
    checked_count,
    checked_id,
    checked_number,
    checked_seconds,
    checked_text,
)
from dnc_serve.client.contact import DEFAULT_CONNECT_TIMEOUT_S, DEFAULT_TIMEOUT_S
from dnc_serve.client.delivery import OpenPipe
from dnc_serve.client.errors import BadRequest, DncError, SessionError
from dnc_serve.client.hosts import DEFAULT_TARGET, Hosts, Metadata, Route, Token
from dnc_serve.client.info import ModelInfo, SessionInfo
from dnc_serve.client.pipe import Pipe
from dnc_serve.client.resume import Entry
from dnc_serve.client.retry import Retry
from dnc_serve.client.session import AsyncSession
from dnc_serve.client.tls import TLS
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

Blob = bytes | bytearray | memoryview

BLOB_PART_BYTES = 1 << 20
DEFAULT_STREAMS = 8


class AsyncClient:
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
        self.calls = Calls(
            Hosts(targets, token, tls),
            retry,
            checked_seconds("timeout_s", timeout_s),
            checked_seconds("connect_timeout_s", connect_timeout_s),
        )
        self._model: ModelInfo | None = None
        self._sessions: WeakSet[AsyncSession] = WeakSet()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Leaves all sessions and closes the connections; the sessions stay on the server. Again, it does nothing."""
        for session in list(self._sessions):
            await session.close()
        await self.calls.hosts.close()

    def session(
        self,
        id: str | None = None,
        *,
        allow_existing: bool = True,
        create: bool = True,
        writer_id: int | None = None,
        position: int | None = None,
        experience: int | None = None,
    ) -> AsyncSession:
        """A session with a stream of its own; one with a random id if none is given.

        Enter it with `async with`, or await it; it is created, or taken up where it was left. Without
        `allow_existing` one that is there raises SessionExists, without `create` one that isn't SessionNotFound.
        `writer_id`, `position` and `experience`, as an earlier handle had them, go on in its place.
        """
        return AsyncSession(
            self, id, self.open_pipe, allow_existing=allow_existing, create=create, writer_id=writer_id,
            position=position, experience=experience,
        )  # fmt: skip

    def multiplex(self, streams: int = DEFAULT_STREAMS) -> "AsyncMultiplex":
        """Many sessions on a few streams, for whoever has more sessions than a server takes streams.

        One stream carries one message at a time each way, so a few are faster than one, and as many as there are
        sessions are fastest.
        """
        return AsyncMultiplex(self, streams)

    async def model(self) -> ModelInfo:
        """What the server serves; asked for once."""
        if self._model is None:
            self._model = ModelInfo.from_wire(await self._unary("GetModel", pb.GetModelRequest()))
        return self._model

    async def sessions(self, prefix: str = "", page_size: int = 100) -> AsyncGenerator[SessionInfo, None]:
        """All sessions that this client may see, by id."""
        checked_text("prefix", prefix)
        page_size = checked_number("page_size", page_size, 1, UINT32)
        token = ""
        while True:
            request = pb.ListSessionsRequest(page_size=page_size, page_token=token, prefix=prefix)
            page = await self._unary("ListSessions", request)
            for session in page.sessions:
                yield SessionInfo.from_wire(session)
            token = page.next_page_token
            if not token:
                return

    async def import_session(self, id: str, blob: Blob) -> AsyncSession:
        """An exported session under the given id, opened. Raises BadBlob, ModelMismatch or SessionExists."""
        session = self.session(checked_id(id))
        exported = checked_blob(blob)
        route = self.calls.hosts.route(id)

        async def attempt(stub: Any, timeout_s: float, metadata: Metadata) -> Any:
            return await stub.ImportSession(_parts(id, exported), timeout=timeout_s, metadata=metadata)

        response = await self.calls.persist(attempt, route, id)
        session.created = True
        await session.take_up(SessionInfo.from_wire(response.session))
        return session

    def opened(self, session: AsyncSession) -> None:
        """The session is to be closed with the client."""
        self._sessions.add(session)

    def open_sessions(self, open_pipe: OpenPipe) -> list[AsyncSession]:
        """Those that are open, and get their pipes in that way."""
        return [session for session in list(self._sessions) if session.open_pipe == open_pipe]

    def forget(self, session: AsyncSession) -> None:
        """The session was closed."""
        self._sessions.discard(session)

    def open_pipe(self, route: Route, session_id: str) -> Pipe:
        """A stream for one session."""
        hosts = self.calls.hosts
        return Pipe(hosts, route.target, hosts.metadata(session_id, route.owner))

    async def _unary(self, method: str, request: Any) -> Any:
        return await self.calls.unary(method, request, self.calls.hosts.route(""))


class AsyncMultiplex:
    """Sessions that share a few streams to each server."""

    def __init__(self, client: AsyncClient, streams: int) -> None:
        self._client = client
        self._streams = checked_count("streams", streams)
        self._pipes: dict[tuple[str, str, int], Pipe] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Leaves all its sessions and ends the streams."""
        for session in self._client.open_sessions(self._open_pipe):
            await session.close()

    def session(
        self,
        id: str | None = None,
        *,
        allow_existing: bool = True,
        create: bool = True,
        writer_id: int | None = None,
        position: int | None = None,
        experience: int | None = None,
    ) -> AsyncSession:
        """As `AsyncClient.session`, on one of the common streams."""
        return AsyncSession(
            self._client, id, self._open_pipe, allow_existing=allow_existing, create=create, writer_id=writer_id,
            position=position, experience=experience,
        )  # fmt: skip

    async def step(self, inputs: Mapping[AsyncSession, Any]) -> dict[AsyncSession, Float32 | DncError]:
        """Outputs [T, O] for inputs [T, I] of several sessions at once; in the place of what failed, its error."""
        if not isinstance(inputs, Mapping) or not all(isinstance(session, AsyncSession) for session in inputs):
            raise BadRequest(f"inputs is of type {type(inputs).__name__}, expected a mapping of sessions to inputs")
        groups: dict[AsyncSession, list[Entry]] = {}
        outputs: dict[AsyncSession, Float32 | DncError] = {}
        for session, values in inputs.items():
            try:
                if session.client is not self._client:
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

    def _open_pipe(self, route: Route, session_id: str) -> Pipe:
        key = (route.target, route.owner, crc32(session_id.encode()) % self._streams)
        self._pipes = {one: pipe for one, pipe in self._pipes.items() if pipe.is_open}
        pipe = self._pipes.get(key)
        if pipe is not None and pipe.carries(session_id):  # another handle of the session gets a stream of its own
            return self._client.open_pipe(route, session_id)
        if pipe is None:
            hosts = self._client.calls.hosts
            metadata = hosts.metadata(owner=route.owner)
            pipe = self._pipes[key] = Pipe(hosts, route.target, metadata)
        return pipe


async def _parts(session_id: str, blob: bytes) -> AsyncIterator[pb.ImportSessionRequest]:
    first = pb.ImportSessionRequest(session_id=session_id, total_bytes=len(blob), data=blob[:BLOB_PART_BYTES])
    yield first
    for offset in range(BLOB_PART_BYTES, len(blob), BLOB_PART_BYTES):
        yield pb.ImportSessionRequest(data=blob[offset : offset + BLOB_PART_BYTES])
