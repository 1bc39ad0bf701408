"""What a call costs in each kind of pool: ``python options.py [--dask]`` prints a table.

Every figure is the median of several passes in one process; the standard library's pools run on
asyncio's loop, rondel's on rondel's. The function does nothing, so this is the price of going there
and back.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import contextlib
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import rondel

PASSES = 7
SEQUENTIAL = 300
GATHERED = 1000


def nothing() -> None:
    pass


async def measure(make: Callable[[], Any]) -> tuple[float, float, float]:
    """Seconds to the first result, for one of several calls in a row, for one of many at once."""
    loop = asyncio.get_running_loop()
    begun = time.perf_counter()
    with make() as pool:
        await loop.run_in_executor(pool, nothing)
        first = time.perf_counter() - begun
        rows: list[float] = []
        gathered: list[float] = []
        for _ in range(PASSES):
            begun = time.perf_counter()
            for _ in range(SEQUENTIAL):
                await loop.run_in_executor(pool, nothing)
            rows.append((time.perf_counter() - begun) / SEQUENTIAL)
            begun = time.perf_counter()
            await asyncio.gather(*[loop.run_in_executor(pool, nothing) for _ in range(GATHERED)])
            gathered.append((time.perf_counter() - begun) / GATHERED)
    return first, statistics.median(rows), statistics.median(gathered)


@contextlib.contextmanager
def dask_cluster() -> Iterator[str]:
    """A scheduler and two workers of two threads each, on this machine."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        file = directory / "scheduler.json"

        def start(module: str, *arguments: str) -> None:
            process = subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.{module}", *arguments],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=Path(__file__).parent,
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)

        host = ("--host", "127.0.0.1", "--no-dashboard")
        start("dask_scheduler", *host, "--port", "0", "--scheduler-file", str(file))
        address = ""
        for _ in range(600):
            with contextlib.suppress(OSError, ValueError):
                address = json.loads(file.read_text())["address"]
                break
            time.sleep(0.1)
        local = ("--local-directory", str(directory))
        for _ in range(2):
            start("dask_worker", address, *host, *local, "--no-nanny", "--nthreads", "2")
        yield address


def options(dask: str | None) -> dict[str, tuple[Callable[..., Any], Callable[[], Any]]]:
    """How to run, and how to make the pool, by the row's name."""
    stock, ours = asyncio.run, rondel.run
    futures: Any = concurrent.futures
    own: Any = rondel
    rows: dict[str, tuple[Callable[..., Any], Callable[[], Any]]] = {
        "threads, ThreadPoolExecutor on asyncio": (stock, futures.ThreadPoolExecutor),
        "threads, rondel": (ours, own.ThreadPool),
    }
    if sys.version_info >= (3, 14):
        rows["interpreters, InterpreterPoolExecutor on asyncio"] = (
            stock,
            lambda: futures.InterpreterPoolExecutor(2),
        )
        rows["interpreters, rondel"] = (ours, lambda: own.InterpreterPool(2))
    rows["processes, ProcessPoolExecutor on asyncio"] = (
        stock,
        lambda: futures.ProcessPoolExecutor(2),
    )
    if importlib.util.find_spec("rondel.pools.processes"):
        rows["processes, rondel"] = (ours, lambda: own.ProcessPool(2))
    if dask:
        rows["machines, Dask through rondel"] = (ours, lambda: own.DaskPool(dask))
    return rows


def duration(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:,.1f} us"


def main() -> None:
    parser = argparse.ArgumentParser(description="What a call costs in each kind of pool.")
    parser.add_argument("--dask", action="store_true", help="a Dask cluster of two workers too")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        dask = stack.enter_context(dask_cluster()) if arguments.dask else None
        print(f"Python {platform.python_version()}\n")
        print("| pool | start to first result | one after the other | 1,000 gathered, each |")
        print("| --- | --- | --- | --- |")
        for name, (run, make) in options(dask).items():
            cells = " | ".join(duration(seconds) for seconds in run(measure(make)))
            print(f"| {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
