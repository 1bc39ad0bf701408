"""Rows that one process measures by itself: ``python micro.py ROW --loop NAME``.

Each function does its work ``count`` times on the loop it gets and returns the seconds it took;
set-up is not timed. One JSON object goes to standard output: ``ns`` and ``cpu_ns`` per operation.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import loops

Loop = asyncio.AbstractEventLoop
clock = time.perf_counter

BATCH = 1000
#: 256 MiB in chunks of 64 KiB.
STREAM_CHUNK = 64 * 1024
STREAM_CHUNKS_PER_MIB = 16
LINE = b"x" * 63 + b"\n"


@dataclass(frozen=True)
class Task:
    """A row's function, how often it works per pass, and how many passes there are."""

    function: Callable[[Loop, int, str], float]
    count: int
    passes: int = 3


TASKS: dict[str, Task] = {}


def row(name: str, count: int, passes: int = 3) -> Callable[[Any], Any]:
    """Registers a plain function, or a coroutine function that the loop then runs."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(loop: Loop, count: int, peer: str) -> float:
            result = function(loop, count, peer)
            if isinstance(result, Coroutine):
                result = loop.run_until_complete(result)
            return float(result)

        TASKS[name] = Task(call, count, passes)
        return function

    return register


# --- scheduling ---------------------------------------------------------------------------------


@row("call_soon_chain", 200_000)
def call_soon_chain(loop: Loop, count: int, peer: str) -> float:
    left = count

    def step() -> None:
        nonlocal left
        left -= 1
        if left:
            loop.call_soon(step)
        else:
            loop.stop()

    loop.call_soon(step)
    start = clock()
    loop.run_forever()
    return clock() - start


@row("call_soon_args", 200_000)
def call_soon_args(loop: Loop, count: int, peer: str) -> float:
    batches = count // BATCH

    def work(first: int, second: int) -> None:
        pass

    def batch() -> None:
        nonlocal batches
        if not batches:
            loop.stop()
            return
        batches -= 1
        call_soon = loop.call_soon
        for _ in range(BATCH):
            call_soon(work, 1, 2)
        call_soon(batch)

    loop.call_soon(batch)
    start = clock()
    loop.run_forever()
    return clock() - start


@row("call_soon_threadsafe", 100_000)
def call_soon_threadsafe(loop: Loop, count: int, peer: str) -> float:
    left = count

    def work() -> None:
        nonlocal left
        left -= 1
        if not left:
            loop.stop()

    def submit() -> None:
        call = loop.call_soon_threadsafe
        for _ in range(count):
            call(work)

    thread = threading.Thread(target=submit)
    start = clock()
    loop.call_soon(thread.start)
    loop.run_forever()
    took = clock() - start
    thread.join()
    return took


@row("call_later_cancel", 100_000)
def call_later_cancel(loop: Loop, count: int, peer: str) -> float:
    batches = count // BATCH

    def work() -> None:
        raise AssertionError("a cancelled timer fired")

    def batch() -> None:
        nonlocal batches
        if not batches:
            loop.stop()
            return
        batches -= 1
        call_later = loop.call_later
        for _ in range(BATCH):
            call_later(60, work).cancel()
        loop.call_soon(batch)

    loop.call_soon(batch)
    start = clock()
    loop.run_forever()
    return clock() - start


@row("timers_fire", 100_000, passes=1)
def timers_fire(loop: Loop, count: int, peer: str) -> float:
    left = count

    def work() -> None:
        nonlocal left
        left -= 1
        if not left:
            loop.stop()

    def schedule() -> None:
        # Deadlines in no order, within the 10 ms that scheduling them takes anyway: what is timed
        # is the heap and the dispatch, not the wait.
        for index in range(count):
            loop.call_later(index * 7919 % 10_007 * 1e-6, work)

    loop.call_soon(schedule)
    start = clock()
    loop.run_forever()
    return clock() - start


@row("gil_wait", 500, passes=1)
def gil_wait(loop: Loop, count: int, peer: str) -> float:
    """How much longer than it asked for another thread sleeps beside callbacks without end.

    That is its wait for the GIL, and what the system takes to wake it.
    """
    late = 0.0

    napping = True

    def spin() -> None:
        if napping:
            loop.call_soon(spin)

    def nap() -> None:
        nonlocal late, napping
        for _ in range(count):
            start = clock()
            time.sleep(0.001)
            late += clock() - start - 0.001
        napping = False
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=nap)
    loop.call_soon(spin)
    loop.call_soon(thread.start)
    loop.run_forever()
    thread.join()
    return late


# --- tasks and what asyncio builds on them ------------------------------------------------------


@row("sleep0", 100_000)
async def sleep0(loop: Loop, count: int, peer: str) -> float:
    sleep = asyncio.sleep
    start = clock()
    for _ in range(count):
        await sleep(0)
    return clock() - start


async def gather(count: int) -> float:
    async def work() -> None:
        await asyncio.sleep(0)

    start = clock()
    await asyncio.gather(*[work() for _ in range(count)])
    return clock() - start


@row("gather_10k", 10_000, passes=3)
async def gather_10k(loop: Loop, count: int, peer: str) -> float:
    return await gather(count)


@row("gather_50k", 50_000, passes=1)
async def gather_50k(loop: Loop, count: int, peer: str) -> float:
    return await gather(count)


@row("futures", 50_000)
async def futures(loop: Loop, count: int, peer: str) -> float:
    start = clock()
    for _ in range(count):
        future = loop.create_future()
        loop.call_soon(future.set_result, None)
        await future
    return clock() - start


@row("timeout", 30_000)
async def timeout(loop: Loop, count: int, peer: str) -> float:
    start = clock()
    for _ in range(count):
        async with asyncio.timeout(60):
            await asyncio.sleep(0)
    return clock() - start


@row("queue", 50_000)
async def queue(loop: Loop, count: int, peer: str) -> float:
    passed: asyncio.Queue[int] = asyncio.Queue(maxsize=64)

    async def produce() -> None:
        for index in range(count):
            await passed.put(index)

    async def consume() -> None:
        for _ in range(count):
            await passed.get()

    start = clock()
    await asyncio.gather(produce(), consume())
    return clock() - start


@row("lock", 50_000)
async def lock(loop: Loop, count: int, peer: str) -> float:
    held = asyncio.Lock()
    start = clock()
    for _ in range(count):
        async with held:
            pass
    return clock() - start


# --- threads, names, connections, processes -----------------------------------------------------


def nothing() -> None:
    pass


@row("executor_sequential", 3_000)
async def executor_sequential(loop: Loop, count: int, peer: str) -> float:
    start = clock()
    for _ in range(count):
        await loop.run_in_executor(None, nothing)
    return clock() - start


@row("executor_gathered", 5_000)
async def executor_gathered(loop: Loop, count: int, peer: str) -> float:
    start = clock()
    for _ in range(count // BATCH):
        await asyncio.gather(*[loop.run_in_executor(None, nothing) for _ in range(BATCH)])
    return clock() - start


@row("getaddrinfo", 2_000)
async def getaddrinfo(loop: Loop, count: int, peer: str) -> float:
    start = clock()
    for _ in range(count):
        await loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)
    return clock() - start


class Ended(asyncio.Protocol):
    """Tells when its connection is lost."""

    def __init__(self, loop: Loop) -> None:
        self.ended = loop.create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set_result(None)


@row("connect", 500)
async def connect(loop: Loop, count: int, peer: str) -> float:
    host, port = peer.rsplit(":", 1)
    start = clock()
    for _ in range(count):
        transport, protocol = await loop.create_connection(lambda: Ended(loop), host, int(port))
        transport.close()
        await protocol.ended
    return clock() - start


@row("spawn", 30)
async def spawn(loop: Loop, count: int, peer: str) -> float:
    start = clock()
    for _ in range(count):
        process = await asyncio.create_subprocess_exec("/bin/true")
        if await process.wait() != 0:
            raise AssertionError("/bin/true failed")
    return clock() - start


# --- streams ------------------------------------------------------------------------------------


async def over_streams(
    send: Callable[[asyncio.StreamWriter], Coroutine[Any, Any, None]],
    receive: Callable[[asyncio.StreamReader], Coroutine[Any, Any, None]],
) -> float:
    """Seconds from the start of reading to its end, with the sender in the same loop."""
    sent: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        await send(writer)
        writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent.append(asyncio.get_running_loop().create_task(serve(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    reader, writer = await asyncio.open_connection(host, port)
    start = clock()
    writer.write(b"!")
    await receive(reader)
    took = clock() - start
    await sent[0]
    writer.close()
    server.close()
    return took


@row("streams_256mib", 256, passes=1)
async def streams_256mib(loop: Loop, count: int, peer: str) -> float:
    chunk = bytes(STREAM_CHUNK)
    total = count * STREAM_CHUNKS_PER_MIB * STREAM_CHUNK

    async def send(writer: asyncio.StreamWriter) -> None:
        for _ in range(count * STREAM_CHUNKS_PER_MIB):
            writer.write(chunk)
            await writer.drain()

    async def receive(reader: asyncio.StreamReader) -> None:
        received = 0
        while received < total:
            data = await reader.read(STREAM_CHUNK)
            if not data:
                raise AssertionError(f"{received} of {total} bytes arrived")
            received += len(data)

    return await over_streams(send, receive)


@row("readline", 100_000, passes=1)
async def readline(loop: Loop, count: int, peer: str) -> float:
    per_chunk = STREAM_CHUNK // len(LINE)
    chunk = LINE * per_chunk

    async def send(writer: asyncio.StreamWriter) -> None:
        left = count
        while left:
            lines = min(left, per_chunk)
            writer.write(chunk[: lines * len(LINE)])
            await writer.drain()
            left -= lines

    async def receive(reader: asyncio.StreamReader) -> None:
        for _ in range(count):
            if len(await reader.readline()) != len(LINE):
                raise AssertionError("a line came back cut")

    return await over_streams(send, receive)


# --- files --------------------------------------------------------------------------------------


def files_for(loop: Loop) -> Any:
    """What a program on this loop reads and writes files with."""
    if type(loop).__module__.partition(".")[0] == "rondel":
        from rondel import files

        return files
    import aiofiles

    return aiofiles


@contextlib.contextmanager
def file_of(content: bytes) -> Iterator[str]:
    """The name of a file that is in memory, since it has just been written."""
    with tempfile.TemporaryDirectory(prefix="bench-files-") as folder:
        name = os.path.join(folder, "file")
        with open(name, "wb") as file:
            file.write(content)
        yield name


@row("file_read", 3_000)
async def file_read(loop: Loop, count: int, peer: str) -> float:
    with file_of(bytes(64 * 1024)) as name:
        async with files_for(loop).open(name, "rb") as file:
            start = clock()
            for _ in range(count):
                await file.seek(0)
                if len(await file.read(64 * 1024)) != 64 * 1024:
                    raise AssertionError("the file is short")
            return clock() - start


@row("file_whole", 2_000)
async def file_whole(loop: Loop, count: int, peer: str) -> float:
    files = files_for(loop)
    with file_of(bytes(4096)) as name:
        start = clock()
        for _ in range(count):
            if hasattr(files, "read_bytes"):
                data = await files.read_bytes(name)
            else:
                async with files.open(name, "rb") as file:
                    data = await file.read()
            if len(data) != 4096:
                raise AssertionError("the file is short")
        return clock() - start


@row("file_write", 20_000)
async def file_write(loop: Loop, count: int, peer: str) -> float:
    chunk = bytes(1024)
    with file_of(b"") as name:
        start = clock()
        async with files_for(loop).open(name, "wb") as file:
            for _ in range(count):
                await file.write(chunk)
        took = clock() - start
        if os.path.getsize(name) != count * 1024:
            raise AssertionError("the file is short")
        return took


@row("file_lines", 20_000)
async def file_lines(loop: Loop, count: int, peer: str) -> float:
    with file_of(LINE * count) as name:
        start = clock()
        lines = 0
        async with files_for(loop).open(name) as file:
            async for _ in file:
                lines += 1
        took = clock() - start
        if lines != count:
            raise AssertionError(f"{lines} lines of {count}")
        return took


# --- the loop itself ----------------------------------------------------------------------------


@row("idle_cpu", 2, passes=1)
async def idle_cpu(loop: Loop, count: int, peer: str) -> float:
    """CPU seconds used in ``count`` seconds of a server that nobody talks to."""
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    start = time.process_time()
    await asyncio.sleep(count)
    used = time.process_time() - start
    server.close()
    return used


@row("aiohttp_client", 2_000, passes=1)
async def aiohttp_client(loop: Loop, count: int, peer: str) -> float:
    """CPU seconds: the server is a process of its own, on another core."""
    import aiohttp

    workers = 16
    url = f"http://{peer}/plaintext"

    async def work(session: aiohttp.ClientSession, requests: int) -> None:
        for _ in range(requests):
            async with session.get(url) as response:
                if len(await response.read()) != 13:
                    raise AssertionError("the body is not the server's")

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*[work(session, 10) for _ in range(workers)])
        start = time.process_time()
        await asyncio.gather(*[work(session, count // workers) for _ in range(workers)])
        return time.process_time() - start


def open_run_close(make: Callable[[], Loop], count: int) -> float:
    async def main() -> None:
        pass

    start = clock()
    for _ in range(count):
        loop = make()
        loop.run_until_complete(main())
        loop.close()
    return clock() - start


# --- the child process --------------------------------------------------------------------------


def measure(name: str, loop_name: str, peer: str, passes: int | None) -> dict[str, Any]:
    make = loops.factory(loop_name)
    loop = make()
    kind = loops.identify(loop, loop_name)
    asyncio.set_event_loop(loop)
    if name == "open_run_close":
        task = Task(lambda loop, count, peer: open_run_close(make, count), 200)
    else:
        task = TASKS[name]
    if task.passes > 1:
        task.function(loop, max(task.count // 10, 1), peer)
    took: list[float] = []
    cpu_start = time.process_time()
    for _ in range(min(task.passes, passes or task.passes)):
        took.append(task.function(loop, task.count, peer))
    cpu = (time.process_time() - cpu_start) / len(took)
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    return {
        "ns": statistics.median(took) / task.count * 1e9,
        "cpu_ns": cpu / task.count * 1e9,
        "count": task.count,
        "loop": kind,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("row", choices=[*TASKS, "open_run_close"])
    parser.add_argument("--loop", default="asyncio")
    parser.add_argument("--peer", default="", help="host:port of the server of connect and clients")
    parser.add_argument("--passes", type=int, help="at most this many timed passes")
    options = parser.parse_args()
    try:
        result = measure(options.row, options.loop, options.peer, options.passes)
    except Exception as error:
        kind = "unsupported" if loops.is_missing_feature(error) else "failed"
        result = {kind: loops.reason(error)}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
