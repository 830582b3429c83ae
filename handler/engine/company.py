"""Who is stepped together, and for how many ticks.

Continuous batching: each turn picks chunks under way whose rests are of a like length, so that a long chunk neither
holds up short ones nor is held up by them, and no row of a tile is stepped for nothing.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dnc_serve.handler.doors.codec import Float32
from dnc_serve.handler.engine.model_runner import ModelRunner
from dnc_serve.handler.engine.sessions import Session
from dnc_serve.handler.engine.work import Chunk, Replay

# More ticks in one turn than these save nothing.
MAX_TICKS = 64
# So many times longer may a turn be while there are only replays: their sessions wait for the last tick anyway.
LONGER_FOR_REPLAYS = 4


# How long after the latest arrival another one is waited for.
GAP_SECONDS = 0.0003
# Sessions that are usually away for longer than this are not waited for.
MOST_SECONDS_AWAY = 0.002
# So many times longer than usual a session may be away, and is still waited for.
PATIENCE = 1.5


@dataclass(eq=False, slots=True)
class Run:
    """A chunk under way: it works on a row of its own, which becomes the session's when it is committed."""

    session: Session
    work: Chunk | Replay
    outputs: Float32  # [T, O], filled as far as `done`
    work_row: int
    tiles: ModelRunner  # what it is stepped by
    done: int = 0
    kept_in: Tensor | None = None  # [B, S]: between two turns its state stays there
    kept_at: int = 0  # the row
    is_long: bool = False  # it is stepped in a thread
    debug: dict[str, Float32] | None = None
    finite: bool = True  # the state that it has come to; may be False where only a sum overflows
    place: int = 0  # in the order in which runs came to the rotation

    @property
    def rest(self) -> int:
        return len(self.work.inputs) - self.done

    @property
    def is_replay(self) -> bool:
        return isinstance(self.work, Replay)

    @property
    def resets_first(self) -> bool:
        """Whether a reset comes before the first timestep."""
        return bool(self.work.reset_experience if isinstance(self.work, Chunk) else self.work.reset)

    @property
    def source_row(self) -> int:
        """The row that holds the state before the next tick, unless it was kept elsewhere."""
        if self.done:
            return self.work_row
        assert self.session.row is not None
        return self.session.row


class Rotation:
    """Chunks under way, in turn; a turn takes about `turn_seconds` at most.

    Every other turn is for the oldest, which keep their place at the front until they are through, and every other one
    for those that have the least left: neither waits longer for the other than a turn. Replays keep to themselves,
    whatever they have left, in the largest tile, where a row costs least.
    """

    def __init__(self, turn_seconds: float, rows: Callable[[ModelRunner], int]) -> None:
        self._turn_seconds = turn_seconds
        self._rows = rows  # at most so many are stepped together
        self._runs: deque[Run] = deque()
        self._shortest_next = False
        self._added = 0

    def __len__(self) -> int:
        return len(self._runs)

    def add(self, run: Run) -> None:
        self._added += 1
        run.place = self._added
        self._runs.append(run)

    def put_back(self, runs: list[Run]) -> None:
        """Runs of a company that have ticks left: they go to their old places, not before those that came earlier."""
        if runs:
            self._runs = deque(sorted((*runs, *self._runs), key=lambda run: run.place))

    def take_back(self, company: list[Run]) -> None:
        """A company whose turn it isn't after all: it is the next one again."""
        self.put_back(company)
        self._shortest_next = not self._shortest_next

    def next_company(self) -> tuple[list[Run], int]:
        """The runs of the next turn, all stepped by the same tiles, and the ticks that all of them have left."""
        leads = min(self._runs, key=_magnitude) if self._shortest_next else self._runs[0]
        self._shortest_next = not self._shortest_next
        tiles, magnitude, is_replay = leads.tiles, _magnitude(leads), leads.is_replay
        alike = [run for run in self._runs if run.tiles is tiles and run.is_replay == is_replay]
        like = alike if is_replay else [run for run in alike if _magnitude(run) == magnitude]
        rows = tiles.largest if is_replay else self._rows(tiles)
        company = like[:rows]
        # Few rows cost almost as much as many: longer chunks come a bit further with them.
        if len(company) < rows and len(alike) > len(like):
            company += [run for run in alike if _magnitude(run) > magnitude][: rows - len(company)]
        longer = LONGER_FOR_REPLAYS if all(run.is_replay for run in self._runs) else 1
        if len(company) == len(self._runs):
            self._runs.clear()
        else:
            chosen = set(company)
            self._runs = deque(run for run in self._runs if run not in chosen)
        most_ticks = max(1, min(MAX_TICKS, int(longer * self._turn_seconds / tiles.seconds(len(company)))))
        rest = min(run.rest for run in company)
        turns = math.ceil(rest / most_ticks)
        return company, math.ceil(rest / turns)


def _magnitude(run: Run) -> int:
    """Rests are alike if they have this in common."""
    return run.rest.bit_length()


class Gathering:
    """Whether a turn waits for more sessions: one for few costs almost as much as one for many.

    It waits for as many as stepped together lately, as long as one came a moment ago; and for sessions that were
    answered a moment ago, if such usually come again soon: otherwise those that came meanwhile would step without them,
    and they without those, for ever.
    """

    def __init__(self) -> None:
        self.latest_arrival = 0.0  # as all times here: time.perf_counter()
        self.usual = 1
        self._away: dict[Session, float] = {}  # when each was answered, the earliest first
        self._usually_away = MOST_SECONDS_AWAY

    def answered(self, session: Session, now: float) -> None:
        """The session has nothing more to do until its client says so."""
        self._away.pop(session, None)  # it is the latest
        self._away[session] = now

    def arrived(self, session: Session, now: float) -> None:
        """A chunk of the session has come in."""
        self.latest_arrival = now
        answered = self._away.pop(session, None)
        if answered is not None:
            self._was_away(now - answered)

    def waits(self, waiting: int, now: float) -> bool:
        """Whether more are to be waited for, `waiting` being there."""
        while self._away and now - next(iter(self._away.values())) > MOST_SECONDS_AWAY:
            del self._away[next(iter(self._away))]
            self._was_away(MOST_SECONDS_AWAY)
        patience = PATIENCE * self._usually_away
        if self._away and now - next(reversed(self._away.values())) < patience < MOST_SECONDS_AWAY:
            return True
        return waiting < self.usual and now - self.latest_arrival < GAP_SECONDS

    def _was_away(self, seconds: float) -> None:
        self._usually_away += (min(seconds, MOST_SECONDS_AWAY) - self._usually_away) / 8

    def stepped(self, company: int) -> None:
        """So many have stepped together."""
        self.usual = max(company, self.usual * 7 // 8)


def gather_inputs(company: list[Run], ticks: int, tile: int, input_size: int) -> Float32:
    """The next inputs of each run [ticks, tile, I], zeros in rows of padding."""
    inputs = np.zeros((ticks, tile, input_size), np.float32)
    for place, run in enumerate(company):
        inputs[:, place] = run.work.inputs[run.done : run.done + ticks]
    return inputs
