"""Process pools side by side: ``python benches/process_pools.py [--quick] [--workers N]``.

Measures rondel.ProcessPool, concurrent.futures.ProcessPoolExecutor and, where they are installed,
pebble and loky, on the interpreter that runs this, and prints a table: the median of each row, and
in brackets how many times as fast as ProcessPoolExecutor that is. Every pool is measured in a
process of its own, all start their workers by spawn (loky by its own way), and each is awaited on
the loop that suits it: rondel's pool on rondel's loop, the others on asyncio's. Two figures without
a pool stand above: what a bare ping-pong of one byte through pipes costs, and a copy of 64 MiB.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import importlib.util
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

MIB = 1 << 20
LARGE = 64 * MIB

ROWS = {
    "start": "start to first results of all workers",
    "one": "await a no-op, one after the other",
    "result": "submit(no-op).result(), one after the other",
    "gather": "1,000 no-ops gathered, each",
    "kib": "64 KiB of bytes there and back",
    "bytes": "64 MiB of bytes to a worker",
    "array": "64 MiB NumPy array to a worker",
    "returned": "64 MiB NumPy array from a worker",
    "shared": "64 MiB NumPy array in the pool's memory",
}
PEERS = ("concurrent.futures", "rondel", "pebble", "loky")

clock = time.perf_counter


def nothing() -> None:
    pass


def same(value: Any) -> Any:
    return value


def length(value: Any) -> int:
    return len(value)


def nap(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def ones(count: int) -> Any:
    import numpy

    return numpy.ones(count)


def make_pool(peer: str, workers: int) -> Any:
    if peer == "rondel":
        import rondel

        return rondel.ProcessPool(workers)
    if peer == "pebble":
        import pebble

        return pebble.ProcessPool(workers, context=multiprocessing.get_context("spawn"))
    if peer == "loky":
        import loky

        return loky.ProcessPoolExecutor(workers)
    spawn = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn)


class Bench:
    """One pool, and its rows."""

    def __init__(self, peer: str, workers: int, quick: bool) -> None:
        self.peer = peer
        self.workers = workers
        self.passes = 3 if quick else 7
        self.calls = 500 if quick else 3000
        self.pool = make_pool(peer, workers)

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.pool.submit(function, *self._options(), *args)

    def _options(self) -> tuple[None, ...]:
        return (None,) if self.peer == "pebble" else ()  # pebble's timeout

    def end(self, pool: Any) -> None:
        if self.peer == "pebble":
            pool.close()
            pool.join()
        else:
            pool.shutdown()

    def medians(self, function: Callable[[], Any], count: int) -> float:
        times = []
        for _ in range(count):
            start = clock()
            function()
            times.append(clock() - start)
        return statistics.median(times)

    def start(self) -> float:
        times = []
        for _ in range(self.passes):
            start = clock()
            pool = make_pool(self.peer, self.workers)
            futures = [pool.submit(nap, *self._options(), 0.05) for _ in range(self.workers)]
            concurrent.futures.wait(futures)
            times.append(clock() - start)
            self.end(pool)
        return statistics.median(times)

    def on_loop(self, main: Callable[[], Any]) -> float:
        if self.peer == "rondel":
            import rondel

            return float(rondel.run(main()))
        return float(asyncio.run(main()))

    def awaitable(self) -> Any:
        loop = asyncio.get_running_loop()
        if self.peer == "pebble":
            return asyncio.wrap_future(self.submit(nothing))
        return loop.run_in_executor(self.pool, nothing)

    def one(self) -> float:
        async def main() -> float:
            times = []
            for _ in range(self.calls):
                start = clock()
                await self.awaitable()
                times.append(clock() - start)
            return statistics.median(times)

        return self.on_loop(main)

    def result(self) -> float:
        return self.medians(lambda: self.submit(nothing).result(), self.calls)

    def gather(self) -> float:
        async def main() -> float:
            times = []
            for _ in range(self.passes):
                start = clock()
                await asyncio.gather(*(self.awaitable() for _ in range(1000)))
                times.append((clock() - start) / 1000)
            return statistics.median(times)

        return self.on_loop(main)

    def kib(self) -> float:
        data = os.urandom(64 * 1024)
        return self.medians(lambda: self.submit(same, data).result(), self.calls // 5)

    def bytes(self) -> float:
        data = b"x" * LARGE
        return self.medians(lambda: self.submit(length, data).result(), self.passes)

    def array(self) -> float:
        numbers = ones(LARGE // 8)
        return self.medians(lambda: self.submit(length, numbers).result(), self.passes)

    def returned(self) -> float:
        return self.medians(lambda: self.submit(ones, LARGE // 8).result(), self.passes)

    def shared(self) -> float | None:
        if self.peer != "rondel":
            return None
        numbers = self.pool.share(ones(LARGE // 8))
        return self.medians(lambda: self.submit(length, numbers).result(), 10 * self.passes)

    def run(self) -> dict[str, float | None]:
        for _ in range(20):  # all workers are there, and have imported what they need
            concurrent.futures.wait([self.submit(nap, 0.01) for _ in range(self.workers)])
        self.submit(ones, 10).result()
        figures = {name: getattr(self, name)() for name in ROWS}
        self.end(self.pool)
        return figures


def ping_pong() -> float:
    """One byte there and back through two pipes."""
    (there, to), (back, fro) = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.close(to)
        while os.read(there, 1):
            os.write(fro, b"x")
        os._exit(0)
    times = []
    for _ in range(5000):
        start = clock()
        os.write(to, b"x")
        os.read(back, 1)
        times.append(clock() - start)
    os.close(to)
    os.wait()
    return statistics.median(times)


def copy() -> float:
    """64 MiB into memory that has been touched before."""
    data = b"x" * LARGE
    into = bytearray(LARGE)
    times = []
    for _ in range(7):
        start = clock()
        into[:] = data
        times.append(clock() - start)
    return statistics.median(times)


def show(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} us"
    return f"{seconds * 1e3:.1f} ms"


def table(figures: dict[str, dict[str, float | None]]) -> str:
    lines = ["| row | " + " | ".join(figures) + " |", "|---" * (len(figures) + 1) + "|"]
    for name, label in ROWS.items():
        base = figures["concurrent.futures"][name]
        cells = []
        for row in figures.values():
            seconds = row[name]
            if seconds is None:
                cells.append("")
            elif base is None or row is figures["concurrent.futures"]:
                cells.append(show(seconds))
            else:
                cells.append(f"{show(seconds)} ({base / seconds:.1f})")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer passes")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        figures = Bench(arguments.peer, arguments.workers, arguments.quick).run()
        print(json.dumps(figures))
        return
    print(f"Python {sys.version.split()[0]}, {arguments.workers} workers, {os.cpu_count()} CPUs")
    print(f"bare ping-pong of a byte: {show(ping_pong())}; a copy of 64 MiB: {show(copy())}\n")
    measured: dict[str, dict[str, float | None]] = {}
    for peer in PEERS:
        if importlib.util.find_spec(peer) is None:
            print(f"{peer} is not installed", file=sys.stderr)
            continue
        command = [sys.executable, __file__, "--peer", peer, "--workers", str(arguments.workers)]
        command += ["--quick"] if arguments.quick else []
        result = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=1800)
        measured[peer] = json.loads(result.stdout)
    print(table(measured))


if __name__ == "__main__":
    main()
