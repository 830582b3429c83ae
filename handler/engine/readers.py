"""Worker threads that read the store, so that the loop never waits for a disk or a network.

Waking a thread, and the loop again, costs more than reading a state that the page cache has. So what is asked for at
about the same moment is read by one thread, one after the other.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from dnc_serve.handler.errors import ServeError

logger = logging.getLogger(__name__)

THREADS = 4
AT_ONCE = 16
# Answers wait for those of the same thread no longer than this: a long history must not hold up a short one.
PATIENCE_S = 0.003

Result = TypeVar("Result")
Read = Callable[[], Any]
Then = Callable[[Any, ServeError | None], None]
Answer = tuple[Then, Any, ServeError | None]


class Readers:
    """Asked on the loop; every question is answered there once, with a result or an error."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._threads = ThreadPoolExecutor(THREADS, "dnc-store-reader")
        self._asked: deque[tuple[Read, Then]] = deque()
        self._free = THREADS

    def close(self) -> None:
        """Returns when nothing is read any more."""
        self._threads.shutdown()

    def ask(self, questions: Iterable[tuple[Read, Then]]) -> None:
        """Runs each `read` in a worker thread, and its `then` in the loop."""
        self._asked.extend(questions)
        self._start()

    async def run(self, read: Callable[[], Result]) -> Result:
        """What `read` returns in a worker thread; raises what it raises."""
        return await self._loop.run_in_executor(self._threads, read)

    def _start(self) -> None:
        while self._asked and self._free:
            self._free -= 1
            some = [self._asked.popleft() for _ in range(min(AT_ONCE, len(self._asked)))]
            self._threads.submit(self._read, some)

    def _read(self, questions: list[tuple[Read, Then]]) -> None:
        """In a thread."""
        answers: list[Answer] = []
        since = time.perf_counter()
        for read, then in questions:
            if answers and time.perf_counter() - since > PATIENCE_S:
                self._loop.call_soon_threadsafe(self._deliver, answers)
                answers, since = [], time.perf_counter()
            answers.append((then, *_result_of(read)))
        self._loop.call_soon_threadsafe(self._finish, answers)

    def _finish(self, answers: list[Answer]) -> None:
        self._free += 1
        self._start()
        self._deliver(answers)

    def _deliver(self, answers: list[Answer]) -> None:
        for then, result, error in answers:
            try:
                then(result, error)
            except Exception:  # a mistake in what one answer leads to must not keep the others from theirs
                logger.exception("what follows a read failed")


def _result_of(read: Read) -> tuple[Any, ServeError | None]:
    try:
        return read(), None
    except ServeError as error:
        return None, error
    except Exception as exc:  # whatever it was, whoever asked is to be answered
        logger.exception("reading the store failed")
        return None, ServeError("INTERNAL", f"reading the store failed: {exc}")
