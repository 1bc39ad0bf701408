"""Running a loop where one runs already: in notebooks, and where ``Loop.nesting`` allows it.

asyncio knows one running loop and one current task per thread. While another run goes on inside a
callback, both are put aside, by the functions that asyncio has for event loops; nothing of asyncio
is replaced. ``crates/rondel/src/event_loop/nesting.rs`` is what drives this.
"""

import asyncio
import functools
import signal
import sys
import threading
import types
from asyncio.tasks import _enter_task, _leave_task
from contextvars import Context
from typing import Any

from . import waiting_for


def in_notebook() -> bool:
    """Whether this process is a Jupyter kernel, in whose cells a loop always runs."""
    shell = sys.modules.get("IPython.core.getipython")
    return shell is not None and getattr(shell.get_ipython(), "kernel", None) is not None


class _Thread(threading.local):
    """What is put aside in this thread."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[Any] | None] = []


_thread = _Thread()


def check_room(frames: int = 40) -> None:
    """Raise RecursionError now rather than half-way through putting things aside, or back."""
    if len(_thread.tasks) >= sys.getrecursionlimit() // 4:
        raise RecursionError(
            "maximum recursion depth exceeded: too many nested runs of event loops"
        )
    if frames:
        check_room(frames - 1)


class Aside:
    """The running loop and the current task of this thread, put aside until :meth:`restore`.

    So is what a run that stands still now would do about Ctrl-C: KeyboardInterrupt is raised.
    """

    def __init__(self) -> None:
        check_room(25)
        self._running = running = asyncio._get_running_loop()
        #: The task that is put aside, if any.
        self.task = None if running is None else asyncio.current_task(running)
        if running is not None and self.task is not None:
            _leave_task(running, self.task)
        asyncio._set_running_loop(None)
        _thread.tasks.append(self.task)
        self._handler: Any = None
        self._replaced: Any = None
        if (handler := _interrupt_handler()) and _stands_still(handler):
            self._replace_handler(handler, signal.default_int_handler)

    def _replace_handler(self, old: Any, new: Any) -> None:
        signal.signal(signal.SIGINT, new)
        self._handler = new
        if self._replaced is None:
            self._replaced = old

    def restore(self) -> None:
        """Put everything back."""
        _thread.tasks.pop()
        asyncio._set_running_loop(self._running)
        if self._running is not None and self.task is not None:
            _enter_task(self._running, self.task)
        if self._handler is not None and signal.getsignal(signal.SIGINT) == self._handler:
            signal.signal(signal.SIGINT, self._replaced)


def _interrupt_handler() -> Any:
    """What Python does about Ctrl-C; None outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.getsignal(signal.SIGINT)


def _stands_still(handler: Any) -> bool:
    """Whether a handler acts on a run: asyncio.Runner's, ipykernel's for a cell, or ours."""
    if isinstance(handler, functools.partial):
        on_sigint = asyncio.Runner._on_sigint  # type: ignore[attr-defined]
        return getattr(handler.func, "__func__", None) is on_sigint
    if isinstance(getattr(handler, "__self__", None), NestedRun):
        return True
    return str(getattr(handler, "__module__", None)).startswith("ipykernel.")


class NestedRun(Aside):
    """A run of a loop inside one of its own callbacks.

    Ctrl-C raises KeyboardInterrupt out of this run, not in whichever callback of the loop happens
    to run then, and cancels the future before if it is a task of this run alone. A second Ctrl-C
    raises it at once.
    """

    def __init__(self, loop: Any, future: asyncio.Future[Any] | None, own: bool) -> None:
        super().__init__()
        self._loop = loop
        self._future = future
        self._own = own
        self._interrupts = 0
        #: The context of the task that is put aside, where Python tells it (3.12+).
        self.context: Context | None = None
        task = self.task
        if sys.version_info >= (3, 12) and task is not None and hasattr(task, "get_context"):
            self.context = task.get_context()
        self._hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(loop._asyncgen_firstiter_hook, loop._asyncgen_finalizer_hook)
        asyncio._set_running_loop(loop)
        if (handler := _interrupt_handler()) is signal.default_int_handler:
            self._replace_handler(handler, self._on_interrupt)

    def _on_interrupt(self, signum: int, frame: types.FrameType | None) -> None:
        self._interrupts += 1
        if self._interrupts > 1 or self._future is None:
            raise KeyboardInterrupt
        if self._own:
            self._future.cancel()
        else:
            self._loop.stop()
        # Awake, the loop notices.
        self._loop.call_soon_threadsafe(lambda: None)

    def restore(self) -> None:
        """Put everything back; raises KeyboardInterrupt if the run was interrupted."""
        sys.set_asyncgen_hooks(*self._hooks)
        super().restore()
        future = self._future
        if self._interrupts and future is not None and (not self._own or future.cancelled()):
            raise KeyboardInterrupt

    def is_stuck(self, idle: bool) -> bool:
        """Whether the future waits for a task that is suspended; asked before the loop waits.

        Raises RuntimeError when nothing at all is left that could happen: the loop has neither
        timers nor descriptors to wait for (``idle``), and there is no other thread.
        """
        if self._future is None:
            return False
        self._chain = waiting_for.chain(self._future, _thread.tasks)
        if idle and not self._chain and threading.active_count() == 1:
            raise RuntimeError(
                f"{self._future!r} would be waited for forever: the loop has nothing else to do "
                f"but what is suspended until it is done"
            )
        return bool(self._chain)

    def check_rescue(self, timers: list[Any]) -> None:
        """Raise RuntimeError unless a timer may end the waiting: a timeout, usually."""
        if not waiting_for.is_known_to(timers, self._chain):
            raise RuntimeError(
                f"{self._future!r} would be waited for forever: it waits for {self._chain[-1]!r}, "
                f"which is suspended until it is done"
            )
