"""Processes of their own for what is measured: neither shares an interpreter with the other."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class Aside:
    """A process that does one thing after the other."""

    def __init__(self, executor: ProcessPoolExecutor) -> None:
        self._executor = executor

    def run(self, work: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        """What `work` returns there; raises what it raises."""
        return self.start(work, *args, **kwargs).result()

    def start(
        self, work: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> "Future[Result]":
        """The same, not waited for."""
        return self._executor.submit(work, *args, **kwargs)


@contextmanager
def aside() -> Iterator[Aside]:
    """A fresh process, which ends with the block."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        yield Aside(executor)


@contextmanager
def background(work: Callable[..., None], *args: Any) -> Iterator[Any]:
    """A fresh process that runs `work(say, *args)` until the block ends; yields the first thing that it says."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, *args), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()
