"""The order of a stream's messages and replies: for each session, its own.

A message joins its session's queue; its reply leaves when all that were before it in the queue have theirs.
"""

from collections import deque
from collections.abc import Callable, Iterator

from dnc_serve.handler.api.arrays import wire_type
from dnc_serve.handler.api.operations import Operations
from dnc_serve.handler.engine.requests import Applied, ErrorState, Request
from dnc_serve.handler.engine.session import Session
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

# What leaves: one encoded message, or several.
Encoded = bytes | Iterator[bytes]


class SessionQueue(ErrorState):
    """What one stream asks of one session; failed from when a refusal leaves it, see `ErrorState`."""

    __slots__ = ("_result", "_template", "operations", "pending", "session", "session_id")

    def __init__(self, session_id: str, operations: Operations) -> None:
        super().__init__()
        self.session_id = session_id
        self.operations = operations  # of the session's model, as far as it was looked for
        self.session: Session | None = None  # as it was last found
        self.pending: deque[PendingReply] = deque()
        self._template: pb.StreamResponse | None = None
        self._result = pb.ChunkResult()

    def encode_chunk(self, applied: Applied, request_id: int, *, in_batch: bool) -> bytes:
        """A chunk's result; most of it is the same from one to the next, and is kept."""
        if self._template is None:
            self._template = template = pb.StreamResponse()
            self._result = (template.batch.responses.add() if in_batch else template).chunk
            self._result.session_id = self.session_id
            self._result.outputs.dtype = wire_type(applied.outputs)
        result, array, outputs = self._result, self._result.outputs, applied.outputs
        result.incarnation = applied.incarnation
        result.position = applied.position
        result.durable_position = applied.durable_position
        result.experience = applied.experience
        result.replayed = applied.replayed
        result.request_id = request_id
        array.data = outputs.tobytes()
        if not array.shape or array.shape[0] != len(outputs):
            array.shape[:] = outputs.shape
        return self._template.SerializeToString()

    def forget_template(self) -> None:
        """The stream's replies look different from now on."""
        self._template = None


class PendingReply:
    """One message in its session's queue."""

    __slots__ = ("failed", "nbytes", "queue", "reply", "request", "request_id", "start")

    def __init__(self, queue: SessionQueue, request_id: int | str, nbytes: int) -> None:
        self.queue = queue
        self.request_id = request_id
        self.nbytes = nbytes  # of the message and its reply
        self.request: Request | None = None  # what the engine was asked for it
        self.start: Callable[[], None] | None = None  # what is to be done once it stands first
        self.reply: Encoded | None = None
        self.failed = False


class SessionQueues:
    """The queues of one stream; `put` takes the replies that may leave. A session that wasn't looked for is taken to
    be of the default model, whose `operations` these are."""

    def __init__(self, put: Callable[[Encoded, int], None], operations: Operations) -> None:
        self._put = put
        self._operations = operations
        self.by_id: dict[str, SessionQueue] = {}

    def add(self, session_id: str) -> SessionQueue:
        """A new one."""
        queue = self.by_id[session_id] = SessionQueue(session_id, self._operations)
        return queue

    def forget_templates(self) -> None:
        """Replies look different from now on."""
        for queue in self.by_id.values():
            queue.forget_template()

    def forget_idle(self) -> None:
        """Drops the queues in which nothing is pending and nothing failed."""
        self.by_id = {name: queue for name, queue in self.by_id.items() if queue.pending or queue.failed}

    def start_when_first(self, pending: PendingReply, start: Callable[[], None]) -> None:
        """Calls `start` when all before it have their replies."""
        if pending.queue.pending[0] is pending:
            start()
        else:
            pending.start = start

    def reply(self, pending: PendingReply, reply: Encoded, *, failed: bool = False) -> None:
        """There is a reply; `failed` means that what follows may not be applied in its stead."""
        pending.reply, pending.failed = reply, failed
        pending.request = None  # which knows the message too: a cycle, as in `abandon`
        queue = pending.queue
        waiting = queue.pending
        while waiting and (leaving := waiting[0].reply) is not None:
            first = waiting.popleft()
            if first.failed:
                queue.fail()
            self._put(leaving, first.nbytes)
            if waiting and (start := waiting[0].start) is not None:
                waiting[0].start = None
                start()

    def abandon(self) -> None:
        """Nobody waits for what is pending. The stream, its call and its sessions are let go: in a cycle with these
        queues they would stay until the next full collection, which is a rare one."""
        for queue in self.by_id.values():
            for pending in queue.pending:
                if pending.request is not None:
                    pending.request.cancelled = True
                    pending.request = None
            queue.pending.clear()
        self.by_id = {}
        self._put = lambda reply, nbytes: None
