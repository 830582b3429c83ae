"""What the browser may ask for: the page, and a small JSON interface in front of the client library.

Frames and memories travel as `encode` writes them, everything else as JSON. A `DncError` becomes
`{"reason": …, "message": …}` with a status of its kind.
"""

import asyncio
import json
import secrets
import struct
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import web
from aiohttp.typedefs import Handler

from dnc_serve.client import errors
from dnc_serve.client.arrays import Array, TensorSpec
from dnc_serve.client.async_client import AsyncClient
from dnc_serve.client.axes import has_dense_memory
from dnc_serve.client.cli.timesteps import BadFile, Source
from dnc_serve.client.info import MemoryFrame, MemoryLook, ModelInfo, SessionInfo
from dnc_serve.client.session import AsyncSession
from dnc_serve.client.watch.guard import add_policy, guarded

MAX_SESSIONS = 500
MAX_BODY_BYTES = 16 << 20
FRAMES_PER_SECOND = 30.0
# Cells of an array that the page shows: a screen has no more to give.
MAX_CELLS = 1 << 15
# Of an array at each of many timesteps.
MAX_PAST_CELLS = 1 << 14
RECONNECT_PAUSE_S = 0.5
# Of a dense DNC at each of many timesteps: what it did. Of another model that is its whole state.
OVER_TIME = ("write_weights", "read_weights", "usage_vector", "interface")
Shape = tuple[int, ...]
_MEDIA_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_STATUSES: tuple[tuple[type[errors.DncError], int], ...] = (
    (errors.InvalidRequest, 400),
    (errors.AccessError, 403),
    (errors.SessionNotFound, 404),
    (errors.SessionExpired, 404),
    (errors.LimitError, 429),
    (errors.Unavailable, 503),
    (errors.DeadlineExceeded, 504),
    (errors.Internal, 502),
)


class Site:
    """The page's server on loopback; `client` should make single attempts, so that a lost server shows at once."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._secret = secrets.token_urlsafe(24)
        application = web.Application(
            middlewares=[guarded(self._secret), _answer_errors], client_max_size=MAX_BODY_BYTES
        )
        application.on_response_prepare.append(add_policy)
        application.add_routes(
            [
                web.get("/", self._asset),
                web.get(r"/{name:[a-z_]+\.(?:js|css|svg)}", self._asset),
                web.get("/api/model", self._model),
                web.get("/api/sessions", self._sessions),
                web.post("/api/sessions", self._create),
                web.get("/api/sessions/{id}", self._session),
                web.get("/api/sessions/{id}/frames", self._frames),
                web.get("/api/sessions/{id}/memory", self._memory),
                web.get("/api/sessions/{id}/past", self._past),
                web.post("/api/inputs", self._inputs),
                web.post("/api/sessions/{id}/steps", self._step),
                web.post("/api/sessions/{id}/reset", self._reset),
                web.post("/api/sessions/{id}/fork", self._fork),
            ]
        )
        # A frame that nobody waits for any more must not be waited for here.
        self._runner = web.AppRunner(application, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)

    async def start(self, port: int, session_id: str = "") -> str:
        """Listens, and returns the page's address, with its secret; raises OSError if the port is taken."""
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        port = self._runner.addresses[0][1]
        return f"http://127.0.0.1:{port}/#secret={self._secret}/{f'session/{session_id}' if session_id else ''}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _asset(self, request: web.Request) -> web.Response:
        name = request.match_info.get("name", "index.html")
        file = resources.files("dnc_serve.client.watch") / "page" / name
        if not file.is_file():
            raise web.HTTPNotFound
        media_type = _MEDIA_TYPES[name.rpartition(".")[2]]
        return web.Response(text=file.read_text("utf-8"), content_type=media_type, charset="utf-8")

    # The server and its sessions.

    async def _model(self, request: web.Request) -> web.Response:
        """The model of a session, or the default one, and the names of all."""
        model = await self._model_of(request.query.get("session", ""))
        names = [*dict.fromkeys(one.name for one in await self._client.models())]
        return _json(
            {**_described(model), "names": names, "input_size": model.input_size, "output_size": model.output_size}
        )

    async def _model_of(self, session_id: str) -> ModelInfo:
        """That of a session; of none, and of one that isn't there, the default."""
        if not session_id:
            return await self._client.model()
        try:
            async with self._client.session(session_id, create=False) as session:
                return await self._client.model(session.model, session.model_version)
        except (errors.SessionError, errors.BadId):
            return await self._client.model()

    async def _sessions(self, request: web.Request) -> web.Response:
        """The first sessions by id; `more` says that there are others, which a longer prefix would show."""
        sessions: list[dict[str, Any]] = []
        more = False
        async for session in self._client.sessions(request.query.get("prefix", ""), page_size=MAX_SESSIONS):
            more = len(sessions) == MAX_SESSIONS
            if more:
                break
            sessions.append(_described(session))
        return _json({"sessions": sessions, "more": more})

    async def _create(self, request: web.Request) -> web.Response:
        wanted = await _body(request)
        wanted_id, model = (str(wanted[name]) if wanted.get(name) else None for name in ("id", "model"))
        async with self._client.session(wanted_id, model=model) as session:
            return _json(_described(await session.info()))

    async def _session(self, request: web.Request) -> web.Response:
        async with self._client.session(request.match_info["id"], create=False) as session:
            return _json(_described(await session.info()))

    # Looks.

    async def _names(self, session: AsyncSession) -> list[str]:
        """All that can be seen of a session: the fields of its state, and what follows from them."""
        model = await self._client.model(session.model, session.model_version)
        return [*(field.name for field in model.state), *model.derived]

    async def _frames(self, request: web.Request) -> web.StreamResponse:
        """Frames while the session works, without end; `lost` in a head says that there is no server at the moment."""
        session_id = request.match_info["id"]
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        await response.prepare(request)
        while True:
            try:
                async with self._client.session(session_id, create=False) as session:
                    async for frame in session.watch(await self._names(session), FRAMES_PER_SECOND, MAX_CELLS):
                        await response.write(encode(_facts(frame), frame.arrays, frame.full_shapes))
            except (errors.Unavailable, errors.DeadlineExceeded) as error:
                await response.write(encode({"lost": error.message}, {}, {}))
                await asyncio.sleep(RECONNECT_PAUSE_S)
            except errors.DncError as error:
                await response.write(encode({"ended": str(error)}, {}, {}))
                return response
            except ConnectionError:  # the page was closed
                return response

    async def _memory(self, request: web.Request) -> web.Response:
        """The session's memory at the present or an earlier position, thinned like a frame."""
        wanted = request.query.get("position", "")
        position = _number(wanted) if wanted else None
        async with self._client.session(request.match_info["id"], create=False) as session:
            look = await session.look(await self._names(session), position, MAX_CELLS)
        message = encode(_facts(look), look.arrays, look.full_shapes)
        return web.Response(body=message, content_type="application/octet-stream")

    async def _past(self, request: web.Request) -> web.Response:
        """Messages of the timesteps behind a position, up to another; of `every` so many the last.

        Their arrays are what each left in the state, `@inputs` and `@outputs`.
        """
        after, until, every = (_number(request.query.get(name, ""), name) for name in ("after", "until", "every"))
        async with self._client.session(request.match_info["id"], create=False) as session:
            model = await self._client.model(session.model, session.model_version)
            names = OVER_TIME if has_dense_memory(model.config) else await self._names(session)
            timesteps = await session.replay(after, until, names, every=max(1, every), max_cells=MAX_PAST_CELLS)
        messages = (
            encode(
                {"position": timestep.position, "experience": timestep.experience},
                {**timestep.arrays, "@inputs": timestep.inputs, "@outputs": timestep.outputs},
                timestep.full_shapes,
            )
            for timestep in timesteps
        )
        return web.Response(body=b"".join(messages), content_type="application/octet-stream")

    # Changes.

    async def _step(self, request: web.Request) -> web.Response:
        wanted = await _body(request)
        async with self._client.session(request.match_info["id"], create=False) as session:
            model = await self._client.model(session.model, session.model_version)
            inputs = _timesteps(wanted.get("inputs"), model.inputs)
            outputs = await session.step(inputs, reset_experience=bool(wanted.get("reset_experience")))
            return _json({"outputs": outputs.tolist(), "position": session.position})

    async def _inputs(self, request: web.Request) -> web.Response:
        """The timesteps of a file whose content is sent, each as a row of numbers; of the kind that `name` tells."""
        spec = (await self._client.model(request.query.get("model") or None)).inputs
        name = Path(request.query.get("name", "")).name or "timesteps.csv"
        content = await request.read()
        return _json({"inputs": await asyncio.to_thread(_read, name, content, spec)})

    async def _reset(self, request: web.Request) -> web.Response:
        scope = (await _body(request)).get("scope", "experience")
        async with self._client.session(request.match_info["id"], create=False) as session:
            await session.reset(scope)
            return _json(_described(await session.info()))

    async def _fork(self, request: web.Request) -> web.Response:
        wanted = await _body(request)
        position = _number(wanted["position"]) if wanted.get("position") is not None else None
        async with self._client.session(request.match_info["id"], create=False) as session:
            fork = await session.fork(str(wanted["id"]) if wanted.get("id") else None, position)
            try:
                return _json(_described(await fork.info()))
            finally:
                await fork.close()


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except errors.DncError as error:
        status = next((status for kind, status in _STATUSES if isinstance(error, kind)), 409)
        return _json({"reason": error.reason, "message": error.message}, status)


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError as exc:
        raise errors.BadRequest(f"the request's body is not JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise errors.BadRequest(f"the request's body is {type(body).__name__}, expected an object")
    return body


def _number(text: object, name: str = "position") -> int:
    try:
        number = int(str(text))
    except ValueError as exc:
        raise errors.BadRequest(f"{name} is {text!r}, expected a whole number") from exc
    if number < 0:
        raise errors.BadRequest(f"{name} is {number}, expected at least 0")
    return number


def _timesteps(rows: Any, spec: TensorSpec) -> Any:
    """Rows of all numbers of a timestep as [T, *shape]; what is none is left for the client library to refuse."""
    try:
        array = np.asarray(rows)
    except ValueError:  # ragged
        return rows
    flat = array.ndim == 2 and array.shape[1] == spec.size
    return array.reshape(len(array), *spec.shape) if flat else rows


def _read(name: str, content: bytes, spec: TensorSpec) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            with closing(Source(str(path))) as source:
                chunks = list(source.chunks(1 << 16, spec))
        except BadFile as exc:
            raise errors.BadRequest(str(exc).replace(str(path), name)) from exc
    return [row.reshape(-1).tolist() for chunk in chunks for row in chunk]


def _facts(look: MemoryLook) -> dict[str, Any]:
    facts: dict[str, Any] = {"position": look.position, "experience": look.experience}
    if isinstance(look, MemoryFrame):
        facts |= {"tier": look.tier, "skipped_frames": look.skipped_frames}
    return facts


def _described(info: ModelInfo | SessionInfo) -> dict[str, Any]:
    described = asdict(info)
    # A number of 64 bits is more than JavaScript can count to.
    return {name: str(value) if name == "incarnation" else value for name, value in described.items()}


def _json(value: Mapping[str, Any], status: int = 200) -> web.Response:
    def plain(other: Any) -> Any:
        if isinstance(other, datetime):
            return other.isoformat()
        return dict(other)

    return web.json_response(text=json.dumps(value, default=plain), status=status)


def encode(facts: Mapping[str, Any], arrays: Mapping[str, Array], full_shapes: Mapping[str, Shape]) -> bytes:
    """One message: facts for the head, and arrays with the shapes that they were thinned from.

    It is two little-endian uint32, the bytes of the head and of the body; the head as JSON, padded with blanks to a
    multiple of 4; the body, float32 arrays one after the other in the order of the head's `arrays`.
    """
    described = [
        {"name": name, "shape": array.shape, "full_shape": full_shapes.get(name, array.shape)}
        for name, array in arrays.items()
    ]
    head = json.dumps({**facts, "arrays": described}).encode()
    head += b" " * (-len(head) % 4)
    body = b"".join(np.ascontiguousarray(array, "<f4").tobytes() for array in arrays.values())
    return struct.pack("<II", len(head), len(body)) + head + body
