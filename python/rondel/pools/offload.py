"""One way to have a function called elsewhere, and to have it called for many items."""

import asyncio
import collections
import importlib
import inspect
import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Sized,
)
from concurrent.futures import Executor
from typing import Any, Literal, TypeAlias, TypeVar

from ..cores import usable
from . import choice
from .interpreters import InterpreterPool
from .threads import to_thread

_T = TypeVar("_T")
_Item = TypeVar("_Item")

#: Where calls go: a kind of pool, or a pool.
Where: TypeAlias = Literal["auto", "threads", "processes", "interpreters"] | Executor

#: Called on the loop's thread with the number of items that are done, and of all, if that is known.
Progress: TypeAlias = Callable[[int, int | None], object]

# The pools of this process that offload() has made, by kind.
_shared: dict[str, Executor] = {}
os.register_at_fork(after_in_child=_shared.clear)


async def offload(
    fn: Callable[..., _T], /, *args: Any, to: Where = "auto", timeout: float | None = None
) -> _T:
    """Call ``fn(*args)`` elsewhere, without blocking the loop, and return its result.

    Args:
        fn: The function; no coroutine function.
        args: Its arguments. For keywords, use ``functools.partial``.
        to: Where to call it:

            * ``"threads"``: in the loop's default executor, in a copy of the current context;
            * ``"processes"``: in a :class:`rondel.ProcessPool` that all such calls of the program
              share, for what computes in Python; function, arguments and result must be picklable,
              and what the function changes stays in the process;
            * ``"interpreters"``: likewise, in a :class:`rondel.InterpreterPool` (Python 3.14+);
            * ``"auto"``: in threads, until the first calls of the function have shown that it
              computes for long while it keeps the GIL to itself; then, if it can be pickled, in
              processes. On a free-threaded Python threads suffice for everything;
            * a ``concurrent.futures.Executor``: there.
        timeout: Seconds after which TimeoutError is raised. A call that no worker has begun does
            not run then. One that runs in one of the shared processes is killed; one that runs in a
            thread or an interpreter cannot be: it goes on, and its result is dropped. The same
            holds when the task that waits is cancelled.

    Raises:
        TimeoutError: The time was over.
        TypeError: ``fn`` is a coroutine function, or cannot be called.
        ValueError: ``to`` is none of the above.
        RuntimeError: There is no running loop, or no pool of interpreters on this Python.

    """
    check_function(fn, "offload")
    async with asyncio.timeout(timeout):
        return await start(fn, args, to)


def offload_map(
    fn: Callable[[_Item], _T],
    items: Iterable[_Item] | AsyncIterable[_Item],
    /,
    *,
    to: Where = "auto",
    limit: int | None = None,
    ordered: bool = True,
    timeout: float | None = None,
    progress: Progress | None = None,
) -> AsyncIterator[_T]:
    """Call ``fn(item)`` elsewhere for each item: ``async for result in offload_map(fn, items)``.

    Items are taken only as fast as results are: there are never more than ``limit`` that were taken
    and whose results were not. An exception of a call is raised where its result would be, and ends
    the iteration; so does leaving it early (with ``contextlib.aclosing`` at once, else when the
    iterator is collected). Calls that are under way are cancelled then.

    Args:
        fn: The function, as for :func:`rondel.offload`.
        items: What to call it with: any iterable, also an asynchronous one.
        to: Where, as for :func:`rondel.offload`.
        limit: The most items under way; by default twice the workers of the pool.
        ordered: Give results in the order of the items, rather than as they come.
        timeout: Seconds for each single call.
        progress: Called as ``progress(done, total)`` after each call that has ended well;
            ``total`` is None if ``items`` has no length.

    Raises:
        ValueError: ``limit`` is less than 1, or ``to`` is unknown.
        TypeError: ``fn`` is a coroutine function, or cannot be called.

    """
    check_function(fn, "offload_map")
    if limit is None:
        limit = 2 * _workers(to)
    elif limit < 1:
        raise ValueError("limit must be at least 1")
    progressing = _counting(progress, len(items) if isinstance(items, Sized) else None)

    async def call(item: _Item) -> _T:
        result = await offload(fn, item, to=to, timeout=timeout)
        progressing()
        return result

    give = _in_order if ordered else _as_they_come
    return give(_each(items), lambda item: asyncio.ensure_future(call(item)), limit)


def check_function(fn: object, name: str) -> None:
    """Refuse what no pool can call."""
    if not callable(fn):
        raise TypeError(f"the first argument of {name}() must be callable, not {fn!r}")
    if inspect.iscoroutinefunction(fn):
        raise TypeError(f"{name}() calls functions; a coroutine function runs on the loop: {fn!r}")


async def start(fn: Callable[..., _T], args: tuple[Any, ...], to: Where) -> _T:
    """Make the call, wherever it is to go."""
    if to == "auto":
        return await choice.call(fn, args, start)
    if to == "threads":
        return await to_thread(fn, *args)
    pool = executor(to)
    return await asyncio.get_running_loop().run_in_executor(pool, fn, *args)


def executor(to: Where) -> Executor:
    """The pool for calls that do not go to the loop's default executor."""
    if isinstance(to, Executor):
        return to
    pool = _shared.get(to)
    if pool is None or getattr(pool, "_broken", False):
        pool = _shared[to] = _make(to)
    return pool


def _make(kind: str) -> Executor:
    if kind == "interpreters":
        return InterpreterPool()
    if kind == "processes":
        # Imported here, since multiprocessing takes as long to import as all of rondel.
        processes: Any = importlib.import_module("rondel.pools.processes")
        # A call that nobody waits for any more is killed, so that its worker is free.
        pool: Executor = processes.ProcessPool(cancel_running=True)
        return pool
    raise ValueError(
        f'to must be "auto", "threads", "processes", "interpreters" or an executor, not {kind!r}'
    )


def _workers(to: Where) -> int:
    if isinstance(to, str) and to != "interpreters":
        return usable() if to == "processes" else min(32, usable() + 4)
    workers: int = getattr(executor(to), "_max_workers", usable())
    return workers


def _counting(progress: Progress | None, total: int | None) -> Callable[[], None]:
    done = 0

    def one_more() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return one_more


async def _each(
    items: Iterable[_Item] | AsyncIterable[_Item],
) -> AsyncGenerator[_Item, None]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


async def _in_order(
    items: AsyncGenerator[_Item, None], begin: "Callable[[_Item], asyncio.Future[_T]]", limit: int
) -> AsyncIterator[_T]:
    window: collections.deque[asyncio.Future[_T]] = collections.deque()
    try:
        async for item in items:
            window.append(begin(item))
            if len(window) >= limit:
                yield await window.popleft()
        while window:
            yield await window.popleft()
    finally:
        await _abandon(items, window)


async def _as_they_come(
    items: AsyncGenerator[_Item, None], begin: "Callable[[_Item], asyncio.Future[_T]]", limit: int
) -> AsyncIterator[_T]:
    window: set[asyncio.Future[_T]] = set()
    ended: asyncio.Queue[asyncio.Future[_T]] = asyncio.Queue()

    async def next_one() -> _T:
        call = await ended.get()
        window.discard(call)
        return call.result()

    try:
        async for item in items:
            call = begin(item)
            window.add(call)
            call.add_done_callback(ended.put_nowait)
            if len(window) >= limit:
                yield await next_one()
        while window:
            yield await next_one()
    finally:
        await _abandon(items, window)


async def _abandon(
    items: AsyncGenerator[Any, None], window: "Collection[asyncio.Future[Any]]"
) -> None:
    """The iteration has ended, perhaps early: nobody is interested in what is under way."""
    for call in window:
        call.cancel()
    if window:
        await asyncio.gather(*window, return_exceptions=True)
    await items.aclose()
