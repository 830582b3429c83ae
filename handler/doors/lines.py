"""The order of a stream's messages and answers: for each session, its own.

A message joins its session's line; its answer leaves when all that were before it in the line have been answered.
"""

from collections import deque
from collections.abc import Callable, Iterator

from dnc_serve.handler.engine.work import Course, Work
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

Encode = Callable[[], Iterator[pb.StreamResponse]]


class Line(Course):
    """What one stream asks of one session: broken from when a refusal leaves it, see `Course`."""

    __slots__ = ("places", "session_id")

    def __init__(self, session_id: str) -> None:
        super().__init__()
        self.session_id = session_id
        self.places: deque[Place] = deque()


class Place:
    """One message in its line."""

    __slots__ = ("answer", "failed", "line", "nbytes", "request_id", "start", "work")

    def __init__(self, line: Line, request_id: int, nbytes: int) -> None:
        self.line = line
        self.request_id = request_id
        self.nbytes = nbytes  # of the message and of its answer
        self.work: Work | None = None  # what the engine was asked for it
        self.start: Callable[[], None] | None = None  # what is to be done once it stands first
        self.answer: Encode | None = None
        self.failed = False


class Lines:
    """The lines of one stream; `put` takes the answers that may leave, and how many bytes that frees."""

    def __init__(self, put: Callable[[Encode, int], None]) -> None:
        self._put = put
        self._lines: dict[str, Line] = {}

    def __len__(self) -> int:
        """How many have something in them, or are broken."""
        return len(self._lines)

    def join(self, session_id: str, request_id: int, nbytes: int) -> Place:
        """The last place of the session's line."""
        line = self._lines.get(session_id)
        if line is None:
            line = self._lines[session_id] = Line(session_id)
        place = Place(line, request_id, nbytes)
        line.places.append(place)
        return place

    def start_when_first(self, place: Place, start: Callable[[], None]) -> None:
        """Calls `start` when all before the place have been answered."""
        if place.line.places[0] is place:
            start()
        else:
            place.start = start

    def answer(self, place: Place, answer: Encode, *, failed: bool = False) -> None:
        """The place has its answer; `failed` means that what follows may not be applied in its stead."""
        place.answer, place.failed = answer, failed
        line = place.line
        while line.places and (leaving := line.places[0].answer) is not None:
            left = line.places.popleft()
            line.broken |= left.failed
            self._put(leaving, left.nbytes)
            if line.places and (start := line.places[0].start) is not None:
                line.places[0].start = None
                start()
        if not line.places and not line.broken:
            self._lines.pop(line.session_id, None)

    def abandon(self) -> None:
        """Nobody waits for what is unanswered."""
        for line in self._lines.values():
            for place in line.places:
                if place.work is not None:
                    place.work.cancelled = True
