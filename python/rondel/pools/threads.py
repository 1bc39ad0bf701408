"""The thread pool, and calls in threads.

The queue, the waiting and the delivery of results are native (``crates/rondel/src/pools``); here is
what happens once per pool or once per thread.
"""

import asyncio
import concurrent.futures
import logging
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeGuard, TypeVar

from .. import _rondel
from ..cores import usable

_P = ParamSpec("_P")
_T = TypeVar("_T")

logger = logging.getLogger("concurrent.futures")

#: Seconds for which a thread waits for another call before it ends.
IDLE_TIMEOUT = 60.0

_next_number: Callable[[], int] = ThreadPoolExecutor._counter  # type: ignore[attr-defined]

_pools: "weakref.WeakSet[ThreadPool]" = weakref.WeakSet()
_all_threads: "weakref.WeakSet[threading.Thread]" = weakref.WeakSet()


class _Queue:
    """What programs that watch a pool look at: ``pool._work_queue.qsize()``."""

    def __init__(self, pool: "ThreadPool") -> None:
        self._pool = weakref.ref(pool)

    def qsize(self) -> int:
        pool = self._pool()
        return 0 if pool is None else pool._queued

    def empty(self) -> bool:
        return self.qsize() == 0


class ThreadPool(_rondel.ThreadPool, ThreadPoolExecutor):
    """Threads that call functions: a ``concurrent.futures.ThreadPoolExecutor`` written in Rust.

    It has the interface of the standard library's pool and passes for one. What differs: a call
    costs a fraction; when it is made by ``loop.run_in_executor()`` of a rondel loop, or by
    :func:`rondel.to_thread`, its result goes to the loop directly; a cancelled call leaves the
    queue at once; threads that have nothing to do end; and after ``os.fork()`` the child can go on
    to use the pool, with threads of its own and without the parent's calls.

    Args:
        max_workers: The most threads; by default the number of processors + 4, at most 32.
        thread_name_prefix: Threads are named ``prefix_0``, ``prefix_1`` and so on.
        initializer: Called as ``initializer(*initargs)`` by each thread before its first call.
            If it raises, the pool is broken: queued and later calls raise BrokenThreadPool.
        initargs: Arguments for the initializer.
        idle_timeout: Seconds after which a thread without a call ends; None for never.

    Raises:
        ValueError: ``max_workers`` or ``idle_timeout`` is out of range.
        TypeError: ``initializer`` cannot be called.

    """

    # A submit() that calls may go past, to _run_for(); other ones must be called.
    _direct_submit = _rondel.ThreadPool.submit

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        idle_timeout: float | None = IDLE_TIMEOUT,
    ) -> None:
        if max_workers is None:
            max_workers = min(32, usable() + 4)
        if max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._open(max_workers, idle_timeout)
        self._thread_name_prefix = (
            # Named and counted as the standard library's pools.
            thread_name_prefix or f"ThreadPoolExecutor-{_next_number()}"
        )
        self._initializer: Callable[..., Any] | None = initializer
        self._initargs = initargs
        self._started: set[threading.Thread] = set()
        # Held while a thread starts: one that has not cannot be joined.
        self._starting = threading.RLock()
        self._work_queue = _Queue(self)  # type: ignore[assignment]
        _pools.add(self)

    @property
    def _threads(self) -> set[threading.Thread]:  # type: ignore[override]
        return {thread for thread in self._started if thread.is_alive() or thread.ident is None}

    def _start_thread(self, worker: _rondel.ThreadWorker) -> None:
        """Called by submit() when one more thread is worth having."""
        thread = threading.Thread(
            name=f"{self._thread_name_prefix}_{worker.number}",
            target=self._work,
            args=(worker, self._initializer, self._initargs),
        )
        with self._starting:
            self._started = self._threads  # without those that have ended
            self._started.add(thread)
            _all_threads.add(thread)
            try:
                thread.start()
            except RuntimeError:
                self._started.discard(thread)
                _all_threads.discard(thread)
                worker.dismiss()
                raise

    @staticmethod
    def _work(
        worker: _rondel.ThreadWorker,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
    ) -> None:
        work(worker, initializer, initargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; end the threads when those that were made are done.

        Args:
            wait: Return when the threads have ended, rather than at once.
            cancel_futures: Cancel the calls that no thread has begun.

        """
        self._close(cancel_futures)
        if wait:
            with self._starting:
                threads = list(self._started)
            for thread in threads:
                thread.join()


def work(
    worker: _rondel.ThreadWorker,
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
) -> None:
    """What a thread runs, from its start to its end."""
    if initializer is not None:
        try:
            initializer(*initargs)
        except BaseException:
            logger.critical("Exception in initializer:", exc_info=True)
            worker.fail()
            return
    del initializer, initargs
    worker.run()


def _at_exit() -> None:
    """Let all calls end before the interpreter does, as concurrent.futures does."""
    _rondel.ThreadPool._interpreter_exits()
    for pool in list(_pools):
        pool._close(False)
    for thread in list(_all_threads):
        thread.join()


def _after_fork() -> None:
    """In a child, which has none of the threads."""
    _all_threads.clear()
    for pool in list(_pools):
        pool._after_fork()
        pool._started = set()
        pool._starting = threading.RLock()


# Called just before the interpreter joins all threads.
threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
os.register_at_fork(after_in_child=_after_fork)


def is_thread_pool(executor: concurrent.futures.Executor) -> TypeGuard[ThreadPool]:
    """Whether calls may go past ``executor.submit()``: it is a thread pool of ours whose submit()
    nobody has replaced.
    """
    return (
        isinstance(executor, ThreadPool)
        and type(executor).submit is type(executor)._direct_submit
        and "submit" not in executor.__dict__
    )


async def to_thread(func: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call ``func(*args, **kwargs)`` in a thread of the loop's default executor.

    As ``asyncio.to_thread()``, in a copy of the current context; on a rondel loop at less cost.
    """
    loop = asyncio.get_running_loop()
    start = getattr(loop, "_call_in_thread", None)
    if start is None:
        return await asyncio.to_thread(func, *args, **kwargs)
    result: _T = await start(func, args, kwargs)
    return result
