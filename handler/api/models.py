"""The models of a server, and which of them a call is for: the one that it names, or that has the session it names.

Each version of each is an `Operations`; with one, nothing is looked for.
"""

import hashlib
from collections.abc import Iterable, Sequence
from functools import reduce
from heapq import merge
from itertools import islice, takewhile

from dnc_serve.handler.api.access import Holding
from dnc_serve.handler.api.blob import check_size, digest_of
from dnc_serve.handler.api.operations import DEFAULT_PAGE, Caller, Operations, session_exists
from dnc_serve.handler.api.state_seal import sealed_digest
from dnc_serve.handler.engine.session import check_id
from dnc_serve.handler.errors import ServeError
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb


class Models:
    """Every model that is served, and every version of it; the default model is the first, unless it is named."""

    def __init__(self, served: Sequence[Operations], default: str = "") -> None:
        self.all: tuple[Operations, ...] = tuple(served)
        self._default = default or served[0].name
        self.metrics = served[0].metrics
        self.draining = False  # the server is leaving
        self.changed()

    def changed(self) -> None:
        """What new sessions get, or which models there are, is otherwise from now on."""
        self.default = self._stable(self._default)
        for one in self.all:
            one.others = tuple(other for other in self.all if other is not one)

    def add(self, operations: Operations) -> None:
        """One more is served."""
        self.all = (*self.all, operations)
        operations.draining = self.draining
        self.changed()

    def remove(self, name: str, version: str) -> None:
        """A version, which has no session any more, takes nothing from now on."""
        self._one(name, version).retired = True
        self.all = tuple(one for one in self.all if (one.name, one.version) != (name, version))
        self.changed()

    def drain(self) -> None:
        """Nothing new is taken from now on."""
        self.draining = True
        for one in self.all:
            one.draining = True

    @property
    def at_rest(self) -> bool:
        """Whether nothing is queued or under way."""
        return all(one.engine.at_rest for one in self.all)

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the models, the default first."""
        return tuple(dict.fromkeys((self._default, *(one.name for one in self.all))))

    def has(self, name: str, version: str) -> bool:
        """Whether it is served."""
        return any((one.name, one.version) == (name, version) for one in self.all)

    def versions(self, name: str) -> list[Operations]:
        """Those of a model, in the order in which they were loaded."""
        return [one for one in self.all if one.name == name]

    def named(self, name: str, version: str = "") -> Operations:
        """The model of a name, the default for none; of several versions the one that new sessions are of, if none is
        named. Raises MODEL_NOT_FOUND."""
        if not name and not version:
            return self.default
        name = name or self._default
        return self._one(name, version) if version else self._stable(name)

    def for_new(self, name: str, version: str, session_id: str) -> Operations:
        """The same for a new session: versions with a share of them get it, of the same ids at every worker. Raises
        MODEL_NOT_FOUND."""
        if version:
            found = self.named(name, version)
            if found.retiring:
                raise _not_found(found.name, version, "one that isn't about to be unloaded")
            return found
        stable = self.named(name)
        if len(self.all) > 1:
            point = _point(session_id)
            for one in reversed(self.versions(stable.name)):
                if one.share is not None and not one.retiring and one is not stable:
                    if point < one.share:
                        return one
                    point -= one.share
        return stable

    def _one(self, name: str, version: str) -> Operations:
        versions = self._known(name)
        for one in versions:
            if one.version == version:
                return one
        raise _not_found(name, version, f"one of {', '.join(one.version for one in versions)}")

    def _stable(self, name: str) -> Operations:
        """What new sessions are of that no share takes: the version that was loaded last, of those without one."""
        versions = [one for one in self._known(name) if not one.retiring] or self._known(name)
        return ([one for one in versions if one.share is None] or versions)[-1]

    def _known(self, name: str) -> list[Operations]:
        versions = self.versions(name)
        if not versions:
            names = ", ".join(self.names)
            raise ServeError(
                "MODEL_NOT_FOUND", f"there is no model {name!r}, expected one of {names}", expected=names, got=name
            )
        return versions

    async def of(self, session_id: str) -> Operations:
        """The model whose session it is, or was; the default where the id is unknown. Raises BAD_ID."""
        if len(self.all) == 1:
            return self.default
        return await self.living(check_id(session_id)) or await self._last_ended(session_id) or self.default

    async def living(self, session_id: str) -> Operations | None:
        """The model whose session lives under the id."""
        for one in self.all:
            session = one.engine.table.find(session_id)
            if session is not None and one.engine.ownership.holds(session):
                return one
        if self.default.engine.ownership.shared:
            for name in self.names:
                head = await self._stable(name).engine.ownership.head(session_id)
                if head is not None and not head.ended:
                    return self._of_digest(name, head.digest)
        return None

    def _of_digest(self, name: str, digest: str) -> Operations:
        found = [one for one in self.versions(name) if one.engine.digest == digest]
        return found[0] if found else self._stable(name)

    def of_state(self, name: str, version: str, state: bytes) -> Operations:
        """The model for a state that its caller keeps: the version that it is of, where none is named. Raises
        MODEL_NOT_FOUND."""
        if version or not state:
            return self.named(name, version)
        return self._of_digest(self.named(name).name, sealed_digest(state))

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
        wanted = self.for_new(request.model, request.model_version, request.session_id)
        if len(self.all) > 1:
            present = await self.living(check_id(request.session_id))
            if present is not None and present is not wanted:
                if request.model not in ("", present.name) or request.model_version not in ("", present.version):
                    raise session_exists(request.session_id)
                wanted = present
        return await wanted.create_session(request, caller)

    async def list_sessions(self, request: pb.ListSessionsRequest, caller: Caller) -> pb.ListSessionsResponse:
        """A page of one model's sessions, or of all models'."""
        asked = self.all if not request.model else self._known(request.model)
        if self.default.engine.ownership.shared:  # all versions have one store, and any of them lists it
            asked = [self._stable(name) for name in dict.fromkeys(one.name for one in asked)]
        pages = [await one.list_sessions(request, caller) for one in asked]
        page = pages[0] if len(pages) == 1 else merged(pages, request.page_size)
        if self.default.engine.ownership.shared and len(self.all) > 1:
            for session in page.sessions:
                session.model_version = self._of_digest(session.model, session.model_digest).version
        return page

    def list_models(self) -> pb.ListModelsResponse:
        """What there is."""
        models = []
        for name in self.names:
            newest = self._stable(name)
            models += [newest, *(one for one in reversed(self.versions(name)) if one is not newest)]
        return pb.ListModelsResponse(models=[one.descriptions.summary(one.share) for one in models])

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
            if one.engine.digest == digest and not one.retiring:
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


def _point(session_id: str) -> float:
    """Where an id stands between 0 and 1."""
    return int.from_bytes(hashlib.blake2b(session_id.encode(), digest_size=8).digest(), "big") / 2**64


def _not_found(name: str, version: str, expected: str) -> ServeError:
    return ServeError(
        "MODEL_NOT_FOUND", f"{name!r} has no version {version!r}, expected {expected}", expected=expected, got=version
    )


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
