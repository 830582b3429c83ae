"""When what is stepped: turns of the loop that begin work, choose companies, and take what they gave to its commit.

What is short is stepped in the loop itself, which is faster than waking a thread. What takes longer is stepped in
threads, as many companies at once, and the loop goes on: while one company is stepped, answers to the last one go out
and the chunks of the next one come in; and a complete one is handed over ahead, so that no thread waits for the loop.
"""

import asyncio
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import torch

from dnc_serve.handler.engine.company import Gathering, Rotation, Run
from dnc_serve.handler.engine.sessions import Session
from dnc_serve.handler.engine.stepper import Stepped
from dnc_serve.handler.errors import ServeError

if TYPE_CHECKING:
    from dnc_serve.handler.engine.engine import Engine

# What takes longer than this is worth waking a thread for.
SHORT_SECONDS = 0.002
# A turn takes about as long as this at most: in the loop, where nobody else is served meanwhile, and in a thread.
TURN_SECONDS = 0.004
THREAD_TURN_SECONDS = 0.008
# A company of so few, if it is complete, is stepped before the loop does anything else.
FEW_SESSIONS = 8
# So few come again so soon that the loop stays awake for them.
FEW_ROWS = 2


class Turns:
    """Sessions whose FIFO is to be looked at, chunks under way, and the threads that step them."""

    def __init__(self, engine: "Engine", max_runs: int) -> None:
        threads = engine.config.step_threads
        self._engine = engine
        self._max_runs = max_runs
        self._waiting: deque[Session] = deque()
        self._short = Rotation(TURN_SECONDS, lambda tiles: tiles.largest)
        # No larger than pays, so that one company can be stepped while another one is answered.
        self._long = Rotation(THREAD_TURN_SECONDS, lambda tiles: tiles.worthwhile)
        self._gathering = Gathering()
        self._turn_pending = False  # the loop will call it
        self._others_first = False
        self._threads = threads
        self._in_threads = 0  # companies
        # Whether denormal numbers are flushed is set for each thread.
        self._pool = ThreadPoolExecutor(threads, "dnc-step", torch.set_flush_denormal, (True,))
        self.runs = 0  # chunks under way
        self._busy_poll_s = engine.config.busy_poll_ms / 1000
        self._awake_until = 0.0
        self._polls = False

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()

    def arrived(self, session: Session, at: float) -> None:
        """A chunk for the session has come in, at `time.perf_counter()`; it is the last in its FIFO.

        If nobody is about to join a company of few, its turn is now, before all that the loop has to do for others;
        they come before the next one.
        """
        self._gathering.arrived(session, at)
        self.schedule(session)
        waiting = len(self._waiting)
        complete = self._gathering.usual <= waiting <= FEW_SESSIONS and not self._gathering.waits(waiting, at)
        if complete and session.scheduled and not (self.runs or self._others_first):
            self._turn()
            self._others_first = True
            self._wake()

    def schedule(self, session: Session) -> None:
        """Looks at the session's FIFO in the next turn, unless something else will."""
        if session.fifo and not (session.scheduled or session.running or session.busy):
            session.scheduled = True
            self._waiting.append(session)
            self._wake()

    def go_on(self) -> None:
        """There may be room that somebody waits for."""
        if self._waiting:
            self._wake()

    def released(self, session: Session) -> None:
        """A chunk of the session is no longer under way."""
        self.runs -= 1
        if not session.fifo:
            self._gathering.answered(session, time.perf_counter())

    def add(self, run: Run) -> None:
        """A chunk is under way from now on."""
        self.runs += 1
        run.is_long = run.is_replay or self._seconds(run) > SHORT_SECONDS
        (self._long if run.is_long else self._short).add(run)

    def _seconds(self, run: Run) -> float:
        """How long the run will take, in such company as is usual."""
        return run.tiles.seconds(min(self._gathering.usual, run.tiles.largest), run.rest)

    def _wake(self) -> None:
        if not self._turn_pending:
            self._turn_pending = True
            self._engine.loop.call_soon(self._turn_of_loop)

    def _turn_of_loop(self) -> None:
        self._turn_pending = self._others_first = False
        self._turn()

    def _turn(self) -> None:
        self._begin_runs()
        self._fill_threads()
        if not self._short:
            return
        if self._gathering.waits(len(self._short), time.perf_counter()):
            self._wake()
            return
        company, ticks = self._short.next_company()
        self._gathering.stepped(len(company))
        self._settle(company, ticks, self._engine.stepper.step(company, ticks))
        if len(company) <= FEW_ROWS:
            self._stay_awake()

    def _stay_awake(self) -> None:
        """Whoever steps alone comes again in a fraction of a millisecond; a core that slept until then wakes slowly."""
        self._awake_until = time.perf_counter() + self._busy_poll_s
        if not self._polls:
            self._polls = True
            self._poll()

    def _poll(self) -> None:
        self._polls = time.perf_counter() < self._awake_until
        if self._polls:
            self._engine.loop.call_soon(self._poll)

    def _fill_threads(self) -> None:
        """An idle thread gets a company as soon as nobody else is about to come, a busy one a complete one ahead."""
        while self._long and self._in_threads <= self._threads:
            if self._in_threads < self._threads and self._gathering.waits(len(self._long), time.perf_counter()):
                self._wake()
                return
            company, ticks = self._long.next_company()
            if self._in_threads == self._threads and len(company) < company[0].tiles.worthwhile:
                self._long.take_back(company)
                return
            self._in_threads += 1
            self._gathering.stepped(len(company))
            stepped = self._engine.loop.run_in_executor(self._pool, self._engine.stepper.step, company, ticks)
            stepped.add_done_callback(partial(self._stepped_in_thread, company, ticks))

    def _stepped_in_thread(self, company: list[Run], ticks: int, stepped: "asyncio.Future[Stepped | None]") -> None:
        self._in_threads -= 1
        self._settle(company, ticks, stepped.result())

    def _settle(self, company: list[Run], ticks: int, stepped: Stepped | None) -> None:
        """Keeps what a step gave; runs that are through go on to their commit."""
        through: list[Run] = []
        if stepped is None:
            for run in company:
                self._engine.drop(run, ServeError("INTERNAL", "the model could not be stepped; nothing was applied"))
        else:
            outputs, finite = stepped
            for place, run in enumerate(company):
                run.outputs[run.done : run.done + ticks] = outputs[:, place]
                run.done += ticks
                run.finite = finite[place]
            through = [run for run in company if not run.rest]
            rotation = self._long if company[0].is_long else self._short
            rotation.put_back([run for run in company if run.rest])
        # Before the loop turns to what this company left behind.
        self._begin_runs()
        self._fill_threads()
        if through:
            self._engine.commits.commit(through)
        if self._short:
            self._wake()

    def _begin_runs(self) -> None:
        """Looks at the sessions whose turn it is; those that find no room wait for the next turn."""
        for _ in range(len(self._waiting)):
            session = self._waiting.popleft()
            session.scheduled = False
            while session.fifo and not (session.running or session.busy):
                if self.runs >= self._max_runs or not self._engine.begin(session, session.fifo[0]):
                    session.scheduled = True
                    self._waiting.append(session)
                    break
        self._engine.loading.go_on()
