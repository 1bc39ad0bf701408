"""The pool of interpreters: threads, each with an interpreter and a GIL of its own (3.14+)."""

import asyncio
import concurrent.futures
import contextlib
import importlib
import platform
import sys
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from .. import _rondel
from .threads import IDLE_TIMEOUT, ThreadPool, work

_P = ParamSpec("_P")
_T = TypeVar("_T")

# Run first in each interpreter, so that modules can be imported there which import rondel.
_STAND_IN = """
def stand_in():
    import sys, types

    def missing(name):
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(cls, *args, **kwargs):
            raise RuntimeError(f"rondel.{name} cannot be used outside the main interpreter")

        return type(name, (), {"__new__": refuse})

    module = types.ModuleType("rondel", "Stands for rondel where it cannot be.")
    module.__getattr__ = missing
    sys.modules["rondel"] = module

stand_in()
del stand_in
"""

# The interpreter of each thread, and the queue on which it reports exceptions.
_here = threading.local()


class InterpreterPool(ThreadPool):
    """Interpreters that call functions side by side, each in a thread and with a GIL of its own.

    The interface is that of :class:`rondel.ThreadPool`, and so are the queue and its cost; the work
    is done by ``concurrent.interpreters`` (PEP 734). As with processes, functions, arguments and
    results are copied or pickled on their way, and what a function changes stays in its
    interpreter. Modules are imported by each interpreter anew; those whose extensions do not
    support that (NumPy among them) cannot be. Nor can rondel's: a module of the program may import
    rondel, but what it does with it in an interpreter of the pool raises RuntimeError.

    Args:
        max_workers: The most interpreters; by default the number of processors + 4, at most 32.
        thread_name_prefix: Threads are named ``prefix_0``, ``prefix_1`` and so on.
        initializer: Called as ``initializer(*initargs)`` in each interpreter before its first call.
            If it raises, the pool is broken: queued and later calls raise BrokenThreadPool.
        initargs: Arguments for the initializer.
        idle_timeout: Seconds after which an interpreter without a call ends; None for never.

    Raises:
        RuntimeError: This Python is older than 3.14.
        ValueError: ``max_workers`` or ``idle_timeout`` is out of range.
        TypeError: ``initializer`` cannot be called.

    """

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        idle_timeout: float | None = IDLE_TIMEOUT,
    ) -> None:
        if sys.version_info < (3, 14):
            raise RuntimeError(
                "rondel.InterpreterPool needs Python 3.14 or newer, which brings "
                f"concurrent.interpreters; this is Python {platform.python_version()}"
            )
        super().__init__(
            max_workers, thread_name_prefix, initializer, initargs, idle_timeout=idle_timeout
        )

    def submit(
        self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> concurrent.futures.Future[_T]:
        """Schedule ``fn(*args, **kwargs)`` and return its future.

        What cannot be brought into the interpreter, or back, raises when the future is asked:
        NotShareableError, or an error of pickle.
        """
        return super().submit(_call, fn, args, kwargs)

    _direct_submit = submit

    def _run_for(
        self,
        event_loop: _rondel.Loop,
        function: Callable[..., _T],
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
        carry: bool = False,
    ) -> "asyncio.Future[_T]":
        # A context cannot go to another interpreter.
        return super()._run_for(event_loop, _call, (function, args, kwargs or {}))

    @staticmethod
    def _work(
        worker: _rondel.ThreadWorker,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
    ) -> None:
        """What a thread runs: it makes its interpreter, and closes it in the end."""

        def enter() -> None:
            interpreters = _interpreters()
            _here.interpreter = interpreters.create()
            _here.interpreter.exec(_STAND_IN)
            # Modules are found there as they are here.
            path = [entry for entry in sys.path if isinstance(entry, str)]
            _here.interpreter.exec(f"import sys; sys.path[:] = {path!r}")
            _here.errors = interpreters.create_queue()
            if initializer is not None:
                _call(initializer, initargs, {})

        try:
            work(worker, enter, ())
        finally:
            interpreter = getattr(_here, "interpreter", None)
            _here.__dict__.clear()
            if interpreter is not None:
                # Refused while a thread runs that a call has started and left behind.
                with contextlib.suppress(RuntimeError):
                    interpreter.close()


def _interpreters() -> Any:
    return importlib.import_module("concurrent.interpreters")


def _call(function: Callable[..., _T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _T:
    """Call in the interpreter of this thread, and raise what is raised there."""
    try:
        result: _T = _here.interpreter.call(_report, _here.errors, function, args, kwargs)
        return result
    except _interpreters().ExecutionFailed as failed:
        error = _here.errors.get_nowait()
        if error is None:  # it cannot be pickled: `failed` tells of it
            raise
        raise error from failed


# Runs in the other interpreter. It goes there as code, not by name (that would import rondel), for
# which it must know nothing but builtins.
def _report(errors, function, args, kwargs):  # type: ignore[no-untyped-def]
    try:
        return function(*args, **kwargs)
    except BaseException as error:
        try:
            errors.put(error)
        except BaseException:
            errors.put(None)
        raise
