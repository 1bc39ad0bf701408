"""Running a call under one option, in batches that grow until they can be timed."""

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from ..pools import ProcessPool, ThreadPool
from ..running import run
from .recommendation import Trial
from .rule import Option

T = TypeVar("T")

#: A call that is sent to a worker should keep it busy for this many seconds.
CHUNK_SECONDS = 0.005

#: More calls than this in one batch say nothing more.
MOST_CALLS = 100_000

#: Seconds that a pool's workers may take until they have answered for the first time.
START_LIMIT = 60.0


def in_own_thread(function: Callable[[], T]) -> T:
    """Return function(), called in a new thread: event loops can run there, whoever calls."""
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()

    def body() -> None:
        try:
            outcome.set_result(function())
        except BaseException as exc:
            outcome.set_exception(exc)

    thread = threading.Thread(target=body, name="rondel-choose")
    thread.start()
    thread.join()
    return outcome.result()


def repeat(fn: Callable[..., Any], args: tuple[Any, ...], count: int) -> None:
    """Make the call `count` times; where it gives an awaitable, each on an event loop."""
    for _ in range(count):
        result = fn(*args)
        if asyncio.iscoroutine(result):
            run(result)


def try_direct(fn: Callable[..., Any], args: tuple[Any, ...], seconds: float) -> Trial:
    """Call it plainly, one call after the other."""

    def batch(calls: int) -> float:
        began = time.perf_counter()
        for _ in range(calls):
            fn(*args)
        return time.perf_counter() - began

    calls, taken = _grow(batch, 1, seconds)
    return Trial("direct", calls=calls, seconds=taken)


def try_loop(
    fn: Callable[..., Awaitable[Any]], args: tuple[Any, ...], workers: int, seconds: float
) -> Trial:
    """Keep `workers` calls in flight on one event loop."""

    async def lane(calls: int) -> None:
        for _ in range(calls):
            await fn(*args)

    async def batch(calls: int) -> float:
        began = time.perf_counter()
        await asyncio.gather(*(lane(calls // workers) for _ in range(workers)))
        return time.perf_counter() - began

    calls, taken = in_own_thread(lambda: _grow(lambda calls: run(batch(calls)), workers, seconds))
    return Trial("asyncio", workers, calls, taken)


def try_pool(
    option: Option,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    workers: int,
    seconds: float,
    wall: float,
) -> Trial:
    """Call it in a pool of threads or processes; `wall` is what one call takes on its own.

    Raises what the first call raises there.
    """
    chunk = max(1, int(CHUNK_SECONDS / wall)) if wall < CHUNK_SECONDS / 2 else 1
    began = time.perf_counter()
    with _open(option, workers) as pool:

        def submit(count: int) -> list[concurrent.futures.Future[None]]:
            return [pool.submit(repeat, fn, args, chunk) for _ in range(count)]

        def batch(calls: int) -> float:
            began = time.perf_counter()
            for future in submit(calls // chunk):
                future.result()
            return time.perf_counter() - began

        # Workers start with the first calls, and import what the function needs.
        for future in submit(workers):
            future.result(START_LIMIT)
        startup = time.perf_counter() - began
        calls, taken = _grow(batch, workers * chunk, seconds)
    return Trial(option, workers, calls, taken, chunk, startup)


def _open(option: Option, workers: int) -> concurrent.futures.Executor:
    if option == "threads":
        return ThreadPool(workers)
    return ProcessPool(workers)


def _grow(batch: Callable[[int], float], unit: int, seconds: float) -> tuple[int, float]:
    """Make batches of multiples of `unit` calls until one takes about `seconds`; return that."""
    calls = unit
    began = time.perf_counter()
    while True:
        taken = batch(calls)
        left = seconds - (time.perf_counter() - began)
        if taken >= seconds / 3 or calls >= MOST_CALLS or left < 2 * taken:
            return calls, taken
        # Never more than fits; a first short batch is no good guide to a long one.
        fits = int(min(10, max(2, left * 0.8 / max(taken, 1e-9))))
        calls = min(calls * fits, MOST_CALLS // unit * unit or unit)
