"""What chunks were answered with: a chunk that comes again gets the same."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from dnc_serve.handler.arrays import Array
from dnc_serve.handler.engine.requests import Chunk


@dataclass(slots=True)
class Reply:
    """What an applied chunk was answered with, and what tells the same chunk from another. A reset is kept as one
    without timesteps."""

    start: int  # the position that the chunk named
    inputs: Array  # [T, *shape]
    reset_experience: bool
    experience: int  # after the chunk
    outputs: Array  # [T, *shape]
    writer_id: int
    debug: dict[str, Array] | None = None

    @property
    def nbytes(self) -> int:
        debug_bytes = sum(array.nbytes for array in self.debug.values()) if self.debug else 0
        return self.inputs.nbytes + self.outputs.nbytes + debug_bytes

    def answers(self, chunk: Chunk) -> bool:
        """Whether the chunk is the one that this reply was given to."""
        return (
            self.writer_id == chunk.writer_id
            and self.reset_experience == chunk.reset_experience
            and self.inputs.shape == chunk.inputs.shape
            and self.inputs.tobytes() == chunk.inputs.tobytes()
        )


class Replies:
    """The latest replies of a session, bounded in number and bytes.

    `recalled` says whether the store has no more of these: else what is missing here may still be there.
    """

    __slots__ = ("_bytes", "_max_bytes", "_replies", "max_replies", "recalled")

    def __init__(self, max_replies: int, max_bytes: int) -> None:
        self._replies: deque[Reply] = deque()
        self._bytes = 0
        self.max_replies = max_replies
        self.recalled = True
        self._max_bytes = max_bytes

    def add(self, reply: Reply) -> None:
        self._replies.append(reply)
        self._bytes += reply.nbytes
        while len(self._replies) > self.max_replies or (self._bytes > self._max_bytes and len(self._replies) > 1):
            self._bytes -= self._replies.popleft().nbytes

    def clear(self) -> None:
        """Forgets them all; the store has them still."""
        self._replies.clear()
        self._bytes = 0
        self.recalled = False

    def recall(self, replies: Iterable[Reply]) -> None:
        """Takes the latest ones, as the store has them."""
        self.clear()
        for reply in replies:
            self.add(reply)
        self.recalled = True

    def reaches(self, start: int) -> bool:
        """Whether replies from this position on are all kept."""
        return bool(self._replies) and self._replies[0].start <= start

    def find(self, start: int) -> Reply | None:
        for reply in reversed(self._replies):
            if reply.start == start and len(reply.inputs):
                return reply
            if reply.start < start:
                break
        return None

    def of_writer(self, writer_id: int) -> Reply | None:
        """The latest that a writer's chunk got."""
        return next((one for one in reversed(self._replies) if one.writer_id == writer_id and len(one.inputs)), None)

    def ended_by(self, experience: int) -> int | None:
        """The writer that ended an experience, if that is kept."""
        for reply in reversed(self._replies):
            if reply.experience <= experience:
                break
            if reply.experience == experience + 1 and reply.reset_experience:
                return reply.writer_id
        return None
