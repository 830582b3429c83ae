"""A client's stream at a worker that has some of its sessions, or none: each message goes to the worker whose it is.

`SessionStream` reads its worker's own messages here, as from a client, and writes its answers. The others' go through
pipes, one to each worker, and their answers are passed on as they come: for each session in order, since it is in one
worker. Where a worker ends, what it has not answered is refused, in-band, and everything else goes on.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Any

from google.rpc import status_pb2
from grpc.aio import EOF

from dnc_serve.handler.api.door import opening_of
from dnc_serve.handler.api.refusals import note_message_refusal
from dnc_serve.handler.api.relay import Broken, Pipe, Refused
from dnc_serve.handler.api.siblings import Siblings, unreachable
from dnc_serve.handler.api.status import error_of, status_of
from dnc_serve.handler.errors import ServeError
from dnc_serve.handler.metrics import Metrics
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb


class Switch:
    """Stands where a `SessionStream` expects its client."""

    def __init__(self, context: Any, siblings: Siblings, metrics: Metrics) -> None:
        self._context = context
        self._siblings = siblings
        self._metrics = metrics
        self._place = siblings.place
        self._opening = opening_of(context)
        self._branches: dict[int, Branch] = {}
        self._writing = asyncio.Lock()  # gRPC takes one message at a time
        self._batches = False
        self._failed: set[str] = set()  # sessions of which a message was lost, and whose sender may not know
        self._refusal: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def read(self) -> Any:
        """The next message for this worker."""
        while True:
            message = await self._context.read()
            if message is EOF or isinstance(message, ServeError):
                return message
            kind = message.WhichOneof("message")
            if kind == "batch":
                self._batches = True
                if (own := await self._split(message)) is not None:
                    return own
            elif kind is None or self._place.owns(getattr(message, kind).session_id):
                return message
            else:
                await self._forward(self._place.owner_of(getattr(message, kind).session_id), [message])

    async def write(self, message: bytes) -> None:
        """An answer for the client."""
        async with self._writing:
            await self._context.write(message)

    async def until_answered(self, serving: "asyncio.Task[None]") -> None:
        """Returns when this worker's part of the stream is served, and all others' are answered. Raises what another
        worker refused the stream with."""
        try:
            await asyncio.wait((serving, self._refusal), return_when=asyncio.FIRST_COMPLETED)
            if self._refusal.done():
                self._refusal.result()
            await serving
            for branch in self._branches.values():
                branch.pipe.finish()
            await asyncio.gather(*(branch.reading for branch in self._branches.values()))
            if self._refusal.done():
                self._refusal.result()
        finally:
            serving.cancel()
            self._refusal.cancel()
            for branch in self._branches.values():
                branch.reading.cancel()
                branch.pipe.cancel()

    async def _split(self, message: pb.StreamRequest) -> pb.StreamRequest | None:
        """Passes on what is others', in a batch for each; returns what is left."""
        parts: dict[int, list[pb.StreamRequest]] = {}
        for one in message.batch.requests:
            kind = one.WhichOneof("message")
            asked = getattr(one, kind) if kind not in (None, "batch") else None
            owner = self._place.worker if asked is None else self._place.owner_of(asked.session_id)
            parts.setdefault(owner, []).append(one)
        own = parts.pop(self._place.worker, None)
        for owner, requests in parts.items():
            await self._forward(owner, requests)
        if own is None or not parts:
            return message if own else None
        return pb.StreamRequest(batch=pb.RequestBatch(requests=own))

    async def _forward(self, owner: int, requests: Iterable[pb.StreamRequest]) -> None:
        sent = []
        for one in requests:
            asked = getattr(one, one.WhichOneof("message") or "")
            if self._failed and not self._may_follow(asked):
                await self._refuse(asked.session_id, asked.request_id, unreachable(owner))
            else:
                sent.append((one, asked.session_id, asked.request_id))
        if not sent:
            return
        branch = self._branches.get(owner)
        if branch is None or branch.ended:
            branch = self._branches[owner] = Branch(self, owner, self._siblings.pipe(owner, self._opening))
        for _, session_id, request_id in sent:
            branch.unanswered.setdefault(session_id, deque()).append(request_id)
        whole = [one for one, _, _ in sent]
        message = pb.StreamRequest(batch=pb.RequestBatch(requests=whole)) if self._batches else whole[0]
        try:
            await branch.pipe.send(message.SerializeToString())
        except (Broken, Refused):
            await branch.reading  # it refuses what was not answered

    def _may_follow(self, asked: Any) -> bool:
        """Whether a message may be passed on although one before it may not have been applied: as `ErrorState`, the
        worker then judges the position."""
        if asked.session_id not in self._failed:
            return True
        if isinstance(asked, pb.Dump) or not asked.HasField("position") or asked.pipelined:
            return False
        self._failed.discard(asked.session_id)
        return True

    async def _refuse(self, session_id: str, request_id: int, error: ServeError) -> None:
        note_message_refusal(session_id, request_id, error, self._metrics)
        refusal = pb.StreamResponse(
            error=pb.StreamError(session_id=session_id, request_id=request_id, status=status_of(error))
        )
        if self._batches:
            refusal = pb.StreamResponse(batch=pb.ResponseBatch(responses=[refusal]))
        await self.write(refusal.SerializeToString())

    async def lose(self, branch: "Branch", why: ServeError) -> None:
        """The worker is gone: what it has not answered is refused."""
        self._failed |= branch.unanswered.keys()  # at once: while this is told, more may come
        for session_id, request_ids in branch.unanswered.items():
            for request_id in request_ids:
                await self._refuse(session_id, request_id, why)

    def end(self, refusal: ServeError) -> None:
        """A worker refuses the stream as a whole, as for a token that has ended."""
        if not self._refusal.done():
            self._refusal.set_exception(refusal)


class Branch:
    """The part of a client's stream that another worker serves."""

    def __init__(self, switch: Switch, worker: int, pipe: Pipe) -> None:
        self.worker = worker
        self.pipe = pipe
        self.ended = False
        self.unanswered: dict[str, deque[int]] = {}  # request ids by session, in order
        self._switch = switch
        self.reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        why = unreachable(self.worker)
        try:
            while (message := await self.pipe.receive()) is not None:
                response = pb.StreamResponse.FromString(message)
                if response.HasField("go_away"):
                    continue  # one worker drains: the client's stream stays, and this part of it is opened anew
                self._settle(response)
                await self._switch.write(message)
        except Broken:
            pass
        except Refused as refused:
            why = error_of(status_pb2.Status.FromString(refused.status))
            if why.reason != "DRAINING":
                self._switch.end(why)
        self.ended = True
        self.pipe.close()
        await self._switch.lose(self, why)

    def _settle(self, response: pb.StreamResponse) -> None:
        kind = response.WhichOneof("message")
        if kind == "batch":
            for one in response.batch.responses:
                self._settle(one)
        elif kind is not None and not (kind == "dump" and not response.dump.last):
            answer = getattr(response, kind)
            session_id = answer.session.session_id if kind == "reset" else answer.session_id
            waiting = self.unanswered.get(session_id)
            if waiting:
                waiting.popleft()
                if not waiting:
                    del self.unanswered[session_id]
