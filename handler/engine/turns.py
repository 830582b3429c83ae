"""When what is stepped: turns of the loop that begin work, choose a company, and take what it gave to its commit.

A short step is taken in the loop itself, which is faster than waking a thread. A long one is taken in a thread, and the
loop goes on: while one company is stepped, answers to the last one go out and the chunks of the next one come in. As
many companies are stepped at once as there are threads.
"""

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch

from dnc_serve.handler.engine.company import Gathering, Rotation, Run
from dnc_serve.handler.engine.sessions import Session
from dnc_serve.handler.engine.stepper import Stepped
from dnc_serve.handler.errors import ServeError

if TYPE_CHECKING:
    from dnc_serve.handler.engine.engine import Engine

# A turn takes about as long as this at most, so that nobody waits long for the next one.
TURN_SECONDS = 0.004
# One that takes longer than this is worth waking a thread for.
THREAD_SECONDS = 0.002


class Turns:
    """Sessions whose FIFO is to be looked at, chunks under way, and the threads that step them."""

    def __init__(self, engine: "Engine", max_runs: int, threads: int) -> None:
        self._engine = engine
        self._max_runs = max_runs
        self._waiting: deque[Session] = deque()
        self._rotation = Rotation(TURN_SECONDS, THREAD_SECONDS)
        self._gathering = Gathering()
        self._turn_pending = False
        self._idle_threads = threads
        # Whether denormal numbers are flushed is set for each thread.
        self._threads = ThreadPoolExecutor(threads, "dnc-step", torch.set_flush_denormal, (True,))
        self.runs = 0  # chunks under way

    def close(self) -> None:
        """Ends the threads."""
        self._threads.shutdown()

    def arrived(self, at: float) -> None:
        """Work has come in, at `time.perf_counter()`."""
        self._gathering.latest_arrival = at

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

    def add(self, run: Run) -> None:
        """A chunk is under way from now on."""
        self.runs += 1
        self._rotation.add(run)

    def _wake(self) -> None:
        if not self._turn_pending and self._idle_threads:
            self._turn_pending = True
            self._engine.loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_pending = False
        if self._gathers():
            self._wake()
            return
        if not self._step_ahead() and self._rotation and self._idle_threads:
            company, ticks = self._rotation.next_company()
            self._gathering.stepped(len(company))
            self._settle(company, ticks, self._engine.stepper.step(company, ticks))

    def _gathers(self) -> bool:
        return self._gathering.waits(len(self._waiting) + len(self._rotation))

    def _step_ahead(self) -> bool:
        """Begins work, and gives idle threads companies that are worth it; False if a short step comes next."""
        self._begin_runs()
        while self._rotation and self._idle_threads:
            company, ticks = self._rotation.next_company()
            if company[0].tiles.seconds(len(company), ticks) <= THREAD_SECONDS:
                self._rotation.take_back(company)
                return False
            self._step_in_thread(company, ticks)
        return True

    def _step_in_thread(self, company: list[Run], ticks: int) -> None:
        self._idle_threads -= 1
        self._gathering.stepped(len(company))
        stepped = self._engine.loop.run_in_executor(self._threads, self._engine.stepper.step, company, ticks)
        stepped.add_done_callback(lambda future: self._stepped_in_thread(company, ticks, future))

    def _stepped_in_thread(self, company: list[Run], ticks: int, future: "asyncio.Future[Stepped | None]") -> None:
        self._idle_threads += 1
        self._settle(company, ticks, future.result())

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
            self._rotation.put_back([run for run in company if run.rest])
        # The threads get the next companies, if they are complete, before the loop turns to what the last one left.
        if (self._waiting or self._rotation) and not self._gathers():
            self._step_ahead()
        if through:
            self._engine.commits.commit(through)
        if self._rotation or self._waiting:
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
