"""What a worker process runs, and what is pickled on the way to it."""

import itertools
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import reduction
from typing import Any, Generic, TypeVar

from .. import _rondel

_T = TypeVar("_T")

logger = logging.getLogger("concurrent.futures")


class Descriptors:
    """Descriptors that a new process inherits, whichever way it is started."""

    def __init__(self, numbers: list[int]) -> None:
        self._numbers = numbers
        self._duplicates: list[Any] | None = None

    def __getstate__(self) -> list[Any]:
        return [reduction.DupFd(number) for number in self._numbers]

    def __setstate__(self, duplicates: list[Any]) -> None:
        self._duplicates = duplicates

    def take(self) -> list[int]:
        """In the new process: its own descriptors."""
        if self._duplicates is None:  # forked
            return [os.dup(number) for number in self._numbers]
        return [duplicate.detach() for duplicate in self._duplicates]


def main(
    descriptors: Descriptors,
    berth: int,
    first: int,
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
    max_tasks: int,
) -> None:
    """The life of a worker process."""
    parent: Any = multiprocessing.parent_process()
    _rondel.ProcessWorker.end_with_parent(parent.pid, os.dup(parent.sentinel))
    file, thread_bell, loop_bell = descriptors.take()
    worker = _rondel.ProcessWorker((file, thread_bell, loop_bell), berth, first)
    if initializer is not None:
        try:
            initializer(*initargs)
        except BaseException:
            logger.critical("Exception in initializer:", exc_info=True)
            worker.unable()
            return
    del initializer, initargs
    worker.serve(max_tasks, pack_exception)


def pack_exception(error: BaseException) -> Any:
    """An exception as concurrent.futures sends it: with its traceback, as text, for a cause."""
    # Imported by the first exception: it takes longer than all else that a worker needs.
    from concurrent.futures.process import _ExceptionWithTraceback

    # It takes None for a traceback as well, which what this is given may have.
    traceback: Any = error.__traceback__
    return _ExceptionWithTraceback(error, traceback)


class Chunk(Generic[_T]):
    """A function that is called with each item of a chunk: what map() sends."""

    def __init__(self, function: Callable[..., _T]) -> None:
        self._function = function

    def __call__(self, chunk: Iterable[tuple[Any, ...]]) -> list[_T]:
        """Call the function with the arguments of each item."""
        function = self._function
        return [function(*args) for args in chunk]


def chunks(items: Iterable[_T], size: int) -> Iterator[tuple[_T, ...]]:
    """Items in tuples of ``size``; the last one may be shorter."""
    iterator = iter(items)
    while chunk := tuple(itertools.islice(iterator, size)):
        yield chunk
