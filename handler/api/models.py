"""The models of a server, and which of them a call is for: the one that it names, or that has the session it names.

Each is an `Operations`; with one model, nothing is looked for.
"""

from collections.abc import Iterable, Sequence
from functools import reduce
from heapq import merge
from itertools import islice, takewhile

from dnc_serve.handler.api.access import Holding
from dnc_serve.handler.api.blob import check_size, digest_of
from dnc_serve.handler.api.operations import DEFAULT_PAGE, Caller, Operations, session_exists
from dnc_serve.handler.engine.session import check_id
from dnc_serve.handler.errors import ServeError
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb


class Models:
    """Every model that is served, the default first."""

    def __init__(self, served: Sequence[Operations]) -> None:
        self.all = tuple(served)
        self.default = served[0]
        self.metrics = self.default.metrics
        for one in served:
            one.others = tuple(other for other in served if other is not one)

    @property
    def draining(self) -> bool:
        """Whether the server is leaving."""
        return self.default.draining

    def drain(self) -> None:
        """Nothing new is taken from now on."""
        for one in self.all:
            one.draining = True

    @property
    def at_rest(self) -> bool:
        """Whether nothing is queued or under way."""
        return all(one.engine.at_rest for one in self.all)

    def named(self, name: str) -> Operations:
        """The model of a name, the default for none; raises MODEL_NOT_FOUND."""
        if not name:
            return self.default
        for one in self.all:
            if one.name == name:
                return one
        names = ", ".join(one.name for one in self.all)
        raise ServeError(
            "MODEL_NOT_FOUND", f"there is no model {name!r}, expected one of {names}", expected=names, got=name
        )

    async def of(self, session_id: str) -> Operations:
        """The model whose session it is, or was; the default where the id is unknown. Raises BAD_ID."""
        if len(self.all) == 1:
            return self.default
        return await self._living(check_id(session_id)) or await self._last_ended(session_id) or self.default

    async def _living(self, session_id: str) -> Operations | None:
        for one in self.all:
            session = one.engine.table.find(session_id)
            if session is not None and one.engine.ownership.holds(session):
                return one
        for one in self.all:
            if one.engine.ownership.shared:
                head = await one.engine.ownership.head(session_id)
                if head is not None and not head.ended:
                    return one
        return None

    async def _last_ended(self, session_id: str) -> Operations | None:
        ended: list[tuple[float, Operations]] = []
        for one in self.all:
            tombstone = one.engine.table.tombstone(session_id)
            if tombstone is not None:
                ended.append((tombstone.at, one))
            elif one.engine.ownership.shared and (head := await one.engine.ownership.head(session_id)) is not None:
                ended.append((head.ended_at, one))
        return max(ended, key=lambda at: at[0])[1] if ended else None

    async def create_session(self, request: pb.CreateSessionRequest, caller: Caller) -> pb.CreateSessionResponse:
        """A new session of the model that is named, or the one that is there, of whichever model if none is named.

        Raises MODEL_NOT_FOUND, and SESSION_EXISTS for one that is there of another model than the named one.
        """
        wanted = self.named(request.model)
        if len(self.all) > 1:
            present = await self._living(check_id(request.session_id))
            if present is not None and present is not wanted:
                if request.model:
                    raise session_exists(request.session_id)
                wanted = present
        return await wanted.create_session(request, caller)

    async def list_sessions(self, request: pb.ListSessionsRequest, caller: Caller) -> pb.ListSessionsResponse:
        """A page of one model's sessions, or of all models'."""
        if request.model or len(self.all) == 1:
            return await self.named(request.model).list_sessions(request, caller)
        return merged([await one.list_sessions(request, caller) for one in self.all], request.page_size)

    def list_models(self) -> pb.ListModelsResponse:
        """What there is."""
        models = [pb.ModelSummary(name=one.name, model_digest=one.engine.digest) for one in self.all]
        return pb.ListModelsResponse(models=models)

    def check_blob_size(self, size: int) -> None:
        """Raises BAD_BLOB for a size that a blob of none of the models can have."""
        sizes = [one.engine.layout.size for one in self.all]
        check_size(size, min(sizes), max(sizes))

    def of_blob(self, blob: bytes) -> Operations:
        """The model whose session a blob is. Raises BAD_BLOB, and MODEL_MISMATCH where it is none's."""
        if len(self.all) == 1:
            return self.default
        digest = digest_of(blob)
        for one in self.all:
            if one.engine.digest == digest:
                return one
        served = ", ".join(f"{one.name} ({one.engine.digest[:12]})" for one in self.all)
        raise ServeError(
            "MODEL_MISMATCH",
            f"the blob belongs to model {digest[:12]}, this server runs {served}",
            session_digest=digest,
            model_digest=self.default.engine.digest,
        )

    def held_by(self, owner: str) -> Holding:
        """What sessions of a token this worker has, of all models."""
        return reduce(Holding.plus, (one.held_by(owner) for one in self.all), Holding())


def merged(pages: Iterable[pb.ListSessionsResponse], size: int) -> pb.ListSessionsResponse:
    """One page of several. Its token is the last id on it, which all that were asked understand."""
    pages = list(pages)
    # Behind the last id of a page that goes on, nothing is known of whoever gave it.
    known_up_to = min((page.next_page_token for page in pages if page.next_page_token), default="")
    found = merge(*(page.sessions for page in pages), key=lambda session: session.session_id)
    known = takewhile(lambda session: not known_up_to or session.session_id <= known_up_to, found)
    sessions = list(islice(known, size or DEFAULT_PAGE))
    more = next(known, None) is not None
    return pb.ListSessionsResponse(sessions=sessions, next_page_token=sessions[-1].session_id if more else known_up_to)
