"""Rows of process pools that one process measures by itself, for ``pools.py``.

Every pool has as many workers as there are cores and starts them by spawn (loky by its own way).
Each is awaited on the loop that suits it: rondel's on rondel's loop, the others on asyncio's.
``bare`` is what the machine takes for the same without a pool. One JSON object goes to standard
output, as from ``micro.py``.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import importlib
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import loops
import pools

LARGE = 64 << 20
SEQUENTIAL, GATHERED = 2000, 1000
#: A pool's start is measured with so many workers.
STARTED = 4

clock = time.perf_counter


class Unsupported(NotImplementedError):
    """The pool has not got what the row needs."""


class Pool:
    """A pool whose calls give a concurrent.futures.Future."""

    def __init__(self, name: str, workers: int) -> None:
        self.name = name
        spawn = multiprocessing.get_context("spawn")
        if name == loops.STDLIB_POOL:
            self.pool: Any = concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn)
            return
        module: Any = importlib.import_module(loops.OURS if name == loops.BASELINE else name)
        if name == "pebble":
            self.pool = module.ProcessPool(workers, context=spawn)
        elif name == "loky":
            self.pool = module.ProcessPoolExecutor(workers)
        elif name == "mpire":
            self.pool = module.WorkerPool(workers, start_method="spawn")
        else:
            self.pool = module.ProcessPool(workers)

    @property
    def is_ours(self) -> bool:
        return self.name in (loops.OURS, loops.BASELINE)

    def submit(self, function: Callable[..., Any], *args: Any) -> concurrent.futures.Future[Any]:
        if self.name == "pebble":
            options: tuple[None, ...] = (None,)  # no time limit
            found: concurrent.futures.Future[Any] = self.pool.submit(function, *options, *args)
            return found
        if self.name == "mpire":
            future: concurrent.futures.Future[Any] = concurrent.futures.Future()
            self.pool.apply_async(
                function, args, callback=future.set_result, error_callback=future.set_exception
            )
            return future
        found = self.pool.submit(function, *args)
        return found

    def awaitable(self, function: Callable[..., Any]) -> asyncio.Future[Any]:
        if self.name in ("pebble", "mpire"):
            return asyncio.wrap_future(self.submit(function))
        return asyncio.get_running_loop().run_in_executor(self.pool, function)

    def run(self, main: Any) -> Any:
        """Runs a coroutine on the loop that suits the pool."""
        with asyncio.Runner(
            loop_factory=loops.factory(self.name) if self.is_ours else None
        ) as runner:
            return runner.run(main)

    def warm_up(self, workers: int) -> None:
        """All workers are there, and have imported what they need."""
        for _ in range(10):
            concurrent.futures.wait([self.submit(pools.nap) for _ in range(workers)])
        self.submit(pools.ones, 10).result()

    def end(self) -> None:
        if self.name == "pebble":
            self.pool.close()
            self.pool.join()
        elif self.name == "mpire":
            self.pool.stop_and_join()
        else:
            self.pool.shutdown()


def median(passes: int, function: Callable[[], Any]) -> float:
    """Seconds."""
    times = []
    for _ in range(passes):
        start = clock()
        function()
        times.append(clock() - start)
    return statistics.median(times)


# --- the rows -----------------------------------------------------------------------------------


def pool_start(name: str, workers: int, passes: int) -> float:
    took = []
    for _ in range(passes):
        start = clock()
        pool = Pool(name, STARTED)
        pool.submit(pools.nothing).result()
        took.append(clock() - start)
        pool.end()
    return statistics.median(took)


def pool_one(pool: Pool, passes: int) -> float:
    async def main() -> float:
        start = clock()
        for _ in range(SEQUENTIAL):
            await pool.awaitable(pools.nothing)
        return (clock() - start) / SEQUENTIAL

    return statistics.median(pool.run(main()) for _ in range(passes))


def pool_gathered(pool: Pool, passes: int) -> float:
    async def main() -> float:
        start = clock()
        await asyncio.gather(*(pool.awaitable(pools.nothing) for _ in range(GATHERED)))
        return (clock() - start) / GATHERED

    return statistics.median(pool.run(main()) for _ in range(passes))


def pool_bytes(pool: Pool, passes: int) -> float:
    data = b"x" * LARGE
    return median(passes, lambda: pool.submit(pools.length, data).result())


def pool_array(pool: Pool, passes: int) -> float:
    numbers = pools.ones(LARGE // 8)
    return median(passes, lambda: pool.submit(pools.length, numbers).result())


def pool_returned(pool: Pool, passes: int) -> float:
    return median(passes, lambda: pool.submit(pools.ones, LARGE // 8).result())


def pool_shared(pool: Pool, passes: int) -> float:
    if not pool.is_ours:
        raise Unsupported("no memory that its workers share")
    numbers = pool.pool.share(pools.ones(LARGE // 8))
    return median(20 * passes, lambda: pool.submit(pools.length, numbers).result())


ROWS = {
    function.__name__: function
    for function in (pool_one, pool_gathered, pool_bytes, pool_array, pool_returned, pool_shared)
}


# --- without a pool -----------------------------------------------------------------------------


def ping_pong(passes: int) -> float:
    """One byte to another process and back, through two pipes."""
    (there, to), (back, fro) = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.close(to)
        while os.read(there, 1):
            os.write(fro, b"x")
        os._exit(0)
    took = []
    for _ in range(passes):
        start = clock()
        for _ in range(SEQUENTIAL):
            os.write(to, b"x")
            os.read(back, 1)
        took.append((clock() - start) / SEQUENTIAL)
    os.close(to)
    os.wait()
    return statistics.median(took)


def copy(passes: int) -> float:
    """64 MiB into memory that has been touched before."""
    data = memoryview(b"x" * LARGE)
    into = memoryview(bytearray(LARGE))

    def once() -> None:
        into[:] = data

    once()
    return median(passes, once)


BARE = {"pool_one": ping_pong, "pool_bytes": copy, "pool_array": copy, "pool_returned": copy}


# --- the child process --------------------------------------------------------------------------


def measure(row: str, name: str, passes: int) -> float:
    if name == loops.BARE:
        return BARE[row](passes)
    workers = len(os.sched_getaffinity(0))
    if row == "pool_start":
        return pool_start(name, workers, min(passes, 3))
    pool = Pool(name, workers)
    pool.warm_up(workers)
    try:
        ROWS[row](pool, 1)
        return ROWS[row](pool, passes)
    finally:
        pool.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("row", choices=["pool_start", *ROWS])
    parser.add_argument("--pool", default=loops.OURS)
    parser.add_argument("--passes", type=int, default=5)
    options = parser.parse_args()
    cpu = time.process_time()
    try:
        seconds = measure(options.row, options.pool, options.passes)
    except Exception as error:
        kind = "unsupported" if loops.is_missing_feature(error) else "failed"
        print(json.dumps({kind: loops.reason(error)}), flush=True)
        return
    used = (time.process_time() - cpu) * 1e9
    found = {"ns": seconds * 1e9, "cpu_ns": used, "loop": options.pool}
    print(json.dumps(found), flush=True)
