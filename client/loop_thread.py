"""An event loop in a thread of its own, for callers that have none."""

import asyncio
import os
import threading
import weakref
from collections.abc import Coroutine
from typing import Any, TypeVar

from dnc_serve.client.errors import ClientClosed, DncError
from dnc_serve.client.process import check_process

Result = TypeVar("Result")


class LoopThread:
    """Runs coroutines for any number of other threads."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._loop.run_forever, name="dnc-client", daemon=True)
        self._thread.start()
        # Also at the interpreter's exit, if nobody stops it before.
        self._finalizer = weakref.finalize(self, _stop, self._loop, self._thread, self._pid)

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """The coroutine's result; it is cancelled if the waiting thread is interrupted. Raises ClientClosed."""
        if not self.is_here:
            coroutine.close()
            check_process()
            raise ClientClosed("this client belongs to the process that forked this one: make a new one after the fork")
        if self.stopped:
            coroutine.close()
            raise ClientClosed("the client was closed")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except DncError as error:
            # Where it came from on the client's own thread tells the caller nothing.
            raise error.with_traceback(None) from error.__cause__
        except BaseException:
            future.cancel()
            raise

    def start(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Begins the coroutine and doesn't wait for it; it comes to nothing where the client was closed or forked."""
        if not self.is_here or self.stopped:
            coroutine.close()
        else:
            asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    @property
    def is_here(self) -> bool:
        """Whether this is the process that the thread belongs to; a fork leaves it behind."""
        return os.getpid() == self._pid

    @property
    def stopped(self) -> bool:
        """Whether nothing can be run any more."""
        return not self._finalizer.alive

    def stop(self) -> None:
        """Ends the thread, and what still runs on it."""
        self._finalizer()


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread, pid: int) -> None:
    if os.getpid() != pid:
        return  # the thread did not come along through the fork
    asyncio.run_coroutine_threadsafe(_wind_up(loop), loop)
    if thread is threading.current_thread():
        return  # dropped by what runs on it
    thread.join(timeout=5.0)
    if not loop.is_running():
        loop.close()


async def _wind_up(loop: asyncio.AbstractEventLoop) -> None:
    """Lets all tasks come to their end, so that none is destroyed under way."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await loop.shutdown_asyncgens()
    loop.stop()
