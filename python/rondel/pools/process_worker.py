"""What a worker process runs, and what is pickled on the way to it.

A worker runs this file by :func:`runpy.run_path`, so that it imports neither rondel nor asyncio,
which would take longer than everything else in its start; see :func:`entry`. It must therefore
import nothing of the package.
"""

import importlib.machinery
import importlib.util
import itertools
import logging
import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import reduction
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")

logger = logging.getLogger("concurrent.futures")

_EXTENSION = "rondel._rondel"
#: The name in this file's globals under which a new process finds what it is to do.
_JOB = "rondel_job"


class Descriptor:
    """A descriptor that a forked process has by inheritance."""

    def __init__(self, number: int) -> None:
        self._number = number

    def detach(self) -> int:
        """The new process's own."""
        return os.dup(self._number)


class Descriptors(list[Any]):
    """Descriptors for a new process; there, a list of objects whose ``detach()`` gives them."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._numbers = list(numbers)
        super().__init__(map(Descriptor, self._numbers))

    def __reduce__(self) -> Any:
        # Pickled for spawn and forkserver, while multiprocessing starts a process.
        return list, ([reduction.DupFd(number) for number in self._numbers],)


def entry(is_forked: bool, extension: str, *job: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """What a new process is to call, and with which arguments, to do a job of :func:`main`."""
    if is_forked:
        return main, (extension, *job)
    return runpy.run_path, (__file__, {_JOB: (extension, *job)}, __name__)


def main(
    extension: str,
    descriptors: list[Any],
    berth: int,
    first: int,
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
    max_tasks: int,
) -> None:
    """The life of a worker process."""
    native = load(extension)
    parent: Any = multiprocessing.parent_process()
    native.ProcessWorker.end_with_parent(parent.pid, os.dup(parent.sentinel))
    worker = native.ProcessWorker(tuple(each.detach() for each in descriptors), berth, first)
    if initializer is not None:
        try:
            initializer(*initargs)
        except BaseException:
            logger.critical("Exception in initializer:", exc_info=True)
            worker.unable()
            return
    del initializer, initargs
    worker.serve(max_tasks, pack_exception)


def load(path: str) -> Any:
    """The extension module, without the package that it is in."""
    module = sys.modules.get(_EXTENSION)
    if module is None:
        loader = importlib.machinery.ExtensionFileLoader(_EXTENSION, path)
        spec = importlib.util.spec_from_file_location(_EXTENSION, path, loader=loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        # Should the program's functions import rondel, it finds this one.
        sys.modules[_EXTENSION] = module
    return module


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


if _JOB in globals():
    main(*globals()[_JOB])
