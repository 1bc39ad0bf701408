"""The process pool.

Submitting, the memory between the processes, and the delivery of results are native
(``crates/rondel/src/pools`` and ``crates/pool``); here is what happens once per pool or once per
process. Processes are started by :mod:`multiprocessing`.
"""

import concurrent.futures
import logging
import multiprocessing
import multiprocessing.context
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from .. import _rondel
from ..cores import usable
from . import process_worker
from .spawning import WorkerProcess

if TYPE_CHECKING:
    import asyncio
    from multiprocessing.process import BaseProcess

_P = ParamSpec("_P")
_T = TypeVar("_T")

logger = logging.getLogger("concurrent.futures")

#: The most worker processes that a pool can have.
MAX_WORKERS = 256


class WorkerDied(BrokenProcessPool):
    """The worker process that ran a call has ended in the middle of it.

    The text says how: which signal killed it, or with which status it exited. Only the call that it
    ran is lost; the pool has a new worker and goes on. (Its base class is what a pool of
    concurrent.futures raises in this case, where the whole pool is lost.)

    Attributes:
        exitcode: The worker's exit status; a signal's number, negated; None when it is not known.

    """

    exitcode: int | None = None


class PoolFuture(concurrent.futures.Future[_T]):
    """The future of a call in a process pool."""

    _call: "_rondel.ProcessCall | None" = None

    def cancel(self) -> bool:
        """Cancel the call if no worker has begun it; False if one has, or it is done.

        In a pool that was made with ``cancel_running=True``, as :meth:`kill`.
        """
        call = self._call
        return self._end(kill=call is not None and call.kills)

    def kill(self) -> bool:
        """Cancel the call even if it runs: its worker is killed, and replaced.

        Returns False when the call is done already. The future is cancelled then, as by
        :meth:`cancel`; what the call was about to do to files and the like stays half done.
        """
        return self._end(kill=True)

    def running(self) -> bool:
        """Whether a worker runs the call at this moment."""
        call = self._call
        return not self.done() and call is not None and call.running()

    def _end(self, *, kill: bool) -> bool:
        if self.done():
            return self.cancelled()
        call = self._call
        if call is None or not call.withdraw(kill):
            return self.cancelled()
        self._cancelled_by_pool()
        return True

    def _cancelled_by_pool(self) -> None:
        if super().cancel() and self._state == "CANCELLED":
            self.set_running_or_notify_cancel()


#: The exit status of a new process in which the interpreter could not be executed, where
#: multiprocessing itself starts it: in a context that is not its own "spawn" (for which there is
#: :mod:`rondel.pools.spawning`). With "forkserver" it also stands for a server that has gone.
NOT_EXECUTED = 255


class Workers:
    """A pool's processes, for the native part, which decides when to start one."""

    def __init__(
        self,
        context: multiprocessing.context.BaseContext,
        descriptors: list[int],
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        max_tasks: int | None,
    ) -> None:
        self._context = context
        self._descriptors = descriptors
        self._initializer = initializer
        self._initargs = initargs
        self._max_tasks = max_tasks or 0
        self._main_file: str | None = getattr(sys.modules["__main__"], "__file__", None)
        self.processes: dict[int, BaseProcess] = {}

    def start(self, berth: int, first: int) -> int:
        """Start a process for a berth; return its pid."""
        main = sys.modules["__main__"]
        # The interpreter forgets the main module's file when it has run, and a worker that is
        # started for one of the last calls still has to import it.
        is_known = self._main_file is None or hasattr(main, "__file__")
        if not is_known:
            main.__file__ = self._main_file
        process = self._process(berth, first)
        try:
            process.start()
        finally:
            if not is_known:
                del main.__file__
        if is_known and self._main_file is not None and not hasattr(main, "__file__"):
            # It was forgotten in this moment, and the worker may not have been told.
            process.kill()
            process.join()
            return self.start(berth, first)
        assert process.pid is not None
        self.processes[berth] = process
        return process.pid

    def _process(self, berth: int, first: int) -> "BaseProcess":
        target, args = process_worker.entry(
            self._context.get_start_method() == "fork",
            _rondel.__file__,
            process_worker.Descriptors(self._descriptors),
            berth,
            first,
            self._initializer,
            self._initargs,
            self._max_tasks,
        )
        make = self._context.Process  # type: ignore[attr-defined]
        if make is multiprocessing.context.SpawnProcess:
            make = WorkerProcess
        process: BaseProcess = make(target=target, args=args, name=f"RondelWorker-{berth}")
        return process

    def ended(self, berth: int) -> tuple[tuple[str, int | None], bool]:
        """Bury a process that has ended: how it did, and whether another one may do better.

        One that was killed before it took a call, or that the system did not start, is replaced
        a few times. One that ended by itself would do so again.
        """
        process = self.processes.pop(berth)
        process.join(60)
        code = process.exitcode
        return (_how(code), code), code is not None and (code < 0 or code == NOT_EXECUTED)

    def abandon(self, berth: int) -> tuple[str, int | None]:
        """End a process that cannot be watched, and bury it."""
        self.processes[berth].kill()
        return self.ended(berth)[0]

    def error(self, what: str, detail: Any) -> BaseException:
        """The exception for a call, or for the pool, that cannot go on."""
        error: BaseException
        if what == "unstarted":
            error = BrokenProcessPool(f"A worker process could not be started: {detail}")
            error.__cause__ = detail
            return error
        how, code = detail
        if what == "limit":
            return TimeoutError("The call took longer than its time limit; its worker was killed")
        if what == "initializer":
            return BrokenProcessPool(
                "A process initializer failed, the process pool is not usable anymore"
            )
        if what == "start":
            return BrokenProcessPool(
                f"A worker process ended before it could take a call: it {how}. "
                '(Does the main module start the pool under `if __name__ == "__main__"`?)'
            )
        by = " by the call's kill()" if what == "killed" else ""
        error = WorkerDied(f"The worker process that ran the call {how}{by}")
        error.exitcode = code
        return error


def _how(code: int | None) -> str:
    if code is None:
        return "ended"
    if code >= 0:
        return f"exited with status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = ", as the kernel does when memory runs out" if code == -signal.SIGKILL else ""
    return f"was killed by {name}{hint}"


class ProcessPool(concurrent.futures.Executor):
    """Processes that call functions: a ``concurrent.futures.Executor`` driven from Rust.

    It has the interface of ``concurrent.futures.ProcessPoolExecutor``: functions, arguments and
    results are pickled, and the main module must be importable (``if __name__ == "__main__":``).
    What differs:

    * Small calls travel through shared memory and cost a fraction. Large buffers (``bytes``, NumPy
      arrays and whatever pickles by protocol 5 with out-of-band buffers) are copied once. What
      :meth:`share` returns is not copied at all.
    * When a worker dies, only the call that it ran fails, with :exc:`WorkerDied`, and another
      worker takes its place. The pool is broken (BrokenProcessPool) only when workers cannot
      start, or the initializer fails.
    * A call may have a time limit, and a running call may be killed.
    * A call whose function, arguments or result cannot be pickled fails alone.
    * Workers end when their parent has, however that ended.

    Args:
        max_workers: The most processes, up to 256; by default the number of processors.
        mp_context: A multiprocessing context; what it says about how to start a process.
        initializer: Called as ``initializer(*initargs)`` in each worker before its first call.
        initargs: Arguments for the initializer.
        max_tasks_per_child: Calls after which a worker ends and another takes its place; not with
            fork.
        start_method: "spawn" (the default), "forkserver" or "fork", instead of ``mp_context``.
        call_timeout: Seconds that a call may run. Its worker is killed then, and the call fails
            with TimeoutError. None for no limit; see :meth:`with_options` for single calls.
        cancel_running: Whether cancelling the future of a running call kills its worker. That
            holds for ``future.cancel()``, and for tasks that await ``loop.run_in_executor()`` on
            a rondel loop.

    Raises:
        NotImplementedError: On systems other than Linux.
        ValueError: ``max_workers``, ``max_tasks_per_child`` or ``start_method`` is out of range.
        TypeError: ``initializer`` cannot be called.
        OSError: The system has no more memory or descriptors.

    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: multiprocessing.context.BaseContext | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        start_method: str | None = None,
        call_timeout: float | None = None,
        cancel_running: bool = False,
    ) -> None:
        if sys.platform != "linux":
            raise NotImplementedError("rondel.ProcessPool needs Linux")
        if max_workers is None:
            max_workers = min(usable(), MAX_WORKERS)
        elif max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        elif max_workers > MAX_WORKERS:
            raise ValueError(f"max_workers must be <= {MAX_WORKERS}")
        if mp_context is None:
            mp_context = multiprocessing.get_context(start_method or "spawn")
        elif start_method is not None:
            raise ValueError("mp_context and start_method cannot both be given")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
            if mp_context.get_start_method(allow_none=False) == "fork":
                raise ValueError(
                    "max_tasks_per_child is incompatible with the 'fork' multiprocessing start "
                    "method; supply a different mp_context."
                )
        self._max_workers = max_workers
        self._limit = _checked_limit(call_timeout)
        self._kills = cancel_running
        self._mp_context = mp_context
        self._native = _rondel.ProcessPool(max_workers)
        self._workers = Workers(
            mp_context, self._native.descriptors(), initializer, initargs, max_tasks_per_child
        )
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        server = self._native.server()
        self._server = server
        # A pool that the program forgets does what was submitted, and ends.
        weakref.finalize(self, server.close).atexit = False

    def submit(
        self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> PoolFuture[_T]:
        """Schedule ``fn(*args, **kwargs)`` and return its future.

        Raises:
            RuntimeError: The pool is shut down, or belongs to the parent of this forked process.
            BrokenProcessPool: The pool is broken.

        """
        return self._submit(fn, args, kwargs, self._limit, self._kills)

    def _submit(
        self,
        fn: Callable[..., _T],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        limit: float | None,
        kills: bool,
    ) -> PoolFuture[_T]:
        future: PoolFuture[_T] = PoolFuture()
        future._call = self._native.submit(future, fn, args, kwargs, limit, kills)
        if self._thread is None:
            self._start_thread()
        return future

    def _run_for(
        self, loop: "_rondel.Loop", fn: Callable[..., Any], args: tuple[Any, ...]
    ) -> "asyncio.Future[Any]":
        """``loop.run_in_executor()``, without a concurrent.futures.Future in between."""
        return self._run_with(loop, fn, args, self._limit, self._kills)

    def _run_with(
        self,
        loop: "_rondel.Loop",
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        limit: float | None,
        kills: bool,
    ) -> "asyncio.Future[Any]":
        future = self._native.run_for(loop, fn, args, limit, kills)
        if self._thread is None:
            self._start_thread()
        return future

    def _start_thread(self) -> None:
        with self._lock:
            if self._thread is not None:
                return
            server, workers = self._server, self._workers
            thread = threading.Thread(
                target=_serve, args=(server, workers), name="rondel-process-pool", daemon=True
            )
            _serving[thread] = server
            thread.start()
            self._thread = thread

    def map(
        self,
        fn: Callable[..., _T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        **options: Any,
    ) -> Iterator[_T]:
        """As the built-in ``map(fn, *iterables)``, in the workers.

        So many calls at once as ``chunksize`` says are sent as one.

        Args:
            fn: What to call.
            *iterables: Where its arguments come from.
            timeout: Seconds from now on after which the iterator raises TimeoutError.
            chunksize: How many calls make one call of a worker.
            **options: ``buffersize`` on Python 3.14+: how many chunks are submitted ahead.

        Raises:
            ValueError: ``chunksize`` is less than 1.

        """
        return _map(self, fn, iterables, timeout, chunksize, options)

    def with_options(
        self, *, timeout: float | None = None, cancel_running: bool | None = None
    ) -> "PoolView":
        """The same pool with other options for the calls that are made through what is returned.

        Args:
            timeout: Seconds that a call may run, as the pool's ``call_timeout``.
            cancel_running: As the pool's; None for what the pool has.

        """
        kills = self._kills if cancel_running is None else cancel_running
        return PoolView(self, _checked_limit(timeout), kills)

    def share(self, obj: _T) -> _T:
        """Put an object's buffers into the pool's shared memory, and return an equal object there.

        Calls that have it (or a contiguous part of it) as an argument do not copy its buffers: the
        workers see the same memory, **and what either side writes the other one sees**. The memory
        is kept until the object has gone here and in the workers. Works for what pickles by
        protocol 5 with out-of-band buffers of 16 KiB and more, as NumPy arrays do.

        Raises:
            TypeError: The object has no such buffers.

        """
        shared: _T = self._native.share_object(obj)
        return shared

    def buffer(self, size: int) -> "_rondel.SharedBuffer":
        """A writable bytes-like object of ``size`` bytes in the pool's shared memory.

        For example ``numpy.frombuffer(pool.buffer(8 * n), dtype="f8")``: an array that calls do not
        copy. Its content is not known until something is written to it.
        """
        return self._native.share_bytes(size)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; end the workers when those that were made are done.

        Args:
            wait: Return when the workers have ended, rather than at once.
            cancel_futures: Cancel the calls that no worker has begun.

        """
        self._native.close(cancel_futures)
        thread = self._thread
        if wait and thread is not None and thread is not threading.current_thread():
            thread.join()

    def terminate_workers(self) -> None:
        """Terminate the workers at once (SIGTERM), and shut the pool down. Calls fail."""
        self._end_workers(signal.SIGTERM)

    def kill_workers(self) -> None:
        """Kill the workers at once (SIGKILL), and shut the pool down. Calls fail."""
        self._end_workers(signal.SIGKILL)

    def _end_workers(self, number: int) -> None:
        self._native.end_workers(
            number, BrokenProcessPool("The process pool's workers have been ended")
        )
        self.shutdown(wait=False, cancel_futures=True)

    @property
    def _processes(self) -> "dict[int, BaseProcess]":
        return {
            process.pid: process
            for process in self._workers.processes.copy().values()
            if process.pid is not None
        }

    @property
    def _broken(self) -> Any:
        return self._native._broken


class PoolView(concurrent.futures.Executor):
    """A process pool with other options for calls; see :meth:`ProcessPool.with_options`.

    Shutting it down shuts the pool down.
    """

    def __init__(self, pool: ProcessPool, limit: float | None, kills: bool) -> None:
        self._pool = pool
        self._limit = limit
        self._kills = kills

    def submit(
        self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> PoolFuture[_T]:
        """As :meth:`ProcessPool.submit`."""
        return self._pool._submit(fn, args, kwargs, self._limit, self._kills)

    def _run_for(
        self, loop: "_rondel.Loop", fn: Callable[..., Any], args: tuple[Any, ...]
    ) -> "asyncio.Future[Any]":
        return self._pool._run_with(loop, fn, args, self._limit, self._kills)

    def map(
        self,
        fn: Callable[..., _T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        **options: Any,
    ) -> Iterator[_T]:
        """As :meth:`ProcessPool.map`; a time limit is that of a chunk."""
        return _map(self, fn, iterables, timeout, chunksize, options)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As :meth:`ProcessPool.shutdown`."""
        self._pool.shutdown(wait, cancel_futures=cancel_futures)


def is_process_pool(executor: concurrent.futures.Executor) -> bool:
    """Whether this is a pool (or a view of one) whose submit() nobody has replaced."""
    return type(executor).__dict__.get("submit") in _SUBMITS and "submit" not in executor.__dict__


_SUBMITS = (ProcessPool.submit, PoolView.submit)
_rondel.ProcessPool.set_front(ProcessPool)


def _map(
    pool: concurrent.futures.Executor,
    fn: Callable[..., _T],
    iterables: tuple[Iterable[Any], ...],
    timeout: float | None,
    chunksize: int,
    options: dict[str, Any],
) -> Iterator[_T]:
    if chunksize < 1:
        raise ValueError("chunksize must be >= 1.")
    chunks = process_worker.chunks(zip(*iterables, strict=False), chunksize)
    call = process_worker.Chunk(fn)
    results: Iterator[list[_T]] = concurrent.futures.Executor.map(
        pool, call, chunks, timeout=timeout, **options
    )
    return _flattened(results)


def _flattened(results: Iterator[list[_T]]) -> Iterator[_T]:
    for chunk in results:
        chunk.reverse()
        while chunk:
            yield chunk.pop()


def _checked_limit(seconds: float | None) -> float | None:
    if seconds is not None and not seconds > 0:
        raise ValueError("a time limit must be a number of seconds > 0, or None")
    return seconds


def _serve(server: "_rondel.ProcessServer", workers: Workers) -> None:
    try:
        server.serve(workers)
    finally:
        for process in list(workers.processes.values()):
            process.join()
        _serving.pop(threading.current_thread(), None)
        # The error of a process that could not be started has this frame, and the pool has it.
        del server


_serving: "dict[threading.Thread, _rondel.ProcessServer]" = {}


def _at_exit() -> None:
    """Let all calls end before the interpreter does, as concurrent.futures does."""
    for server in list(_serving.values()):
        server.close()
    for thread in list(_serving):
        thread.join()


# Called just before the interpreter joins all threads.
threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
os.register_at_fork(after_in_child=_serving.clear)
