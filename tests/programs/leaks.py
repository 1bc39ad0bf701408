"""Opens and closes many of one thing; prints what the process held before and after, as JSON.

usage: leaks.py LOOP SCENARIO WARM_UP COUNT
"""

import asyncio
import contextlib
import gc
import json
import os
import resource
import socket
import ssl
import sys
import threading
import warnings
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from loops import new_event_loop

sys.path.insert(0, str(Path(__file__).parent.parent))
from tls import client_context, server_context

HOST = "127.0.0.1"
BATCH = 100


def held() -> dict[str, int]:
    """What this process holds, after a full collection."""
    for _ in range(3):
        gc.collect()
    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[1])
    return {
        "fds": len(os.listdir("/proc/self/fd")),
        "resident": pages * resource.getpagesize(),
        "objects": len(gc.get_objects()),
        "threads": threading.active_count(),
    }


# --- connections ------------------------------------------------------------------------------


class Echo(asyncio.Protocol):
    """Sends back what it gets; hangs up when it is told to."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if data == b"close":
            self.transport.close()
        elif data == b"abort":
            self.transport.abort()
        elif data == b"fail":
            raise RuntimeError("as told")
        else:
            self.transport.write(data)


class BufferedEcho(asyncio.BufferedProtocol):
    """The same through a buffer of its own."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.buffer = bytearray(1024)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(self.buffer[:nbytes])


class Client(asyncio.Protocol):
    """One question, one answer, then the end that was asked for."""

    def __init__(self, question: bytes) -> None:
        self.question = question
        self.answer = asyncio.get_running_loop().create_future()
        self.lost = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self.question)

    def data_received(self, data: bytes) -> None:
        assert data == self.question
        self.answer.set_result(None)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost.set_result(None)


async def serve_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.readline())
    await writer.drain()
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


class Connections:
    """One server of each kind, and the ways in which a connection may come to its end."""

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        # "fail" is reported here, ten thousand times; the report itself is not what is tested.
        loop.set_exception_handler(lambda _loop, _context: None)
        self.servers = [
            await loop.create_server(Echo, HOST, 0, backlog=1024),
            await loop.create_server(BufferedEcho, HOST, 0, backlog=1024),
            await asyncio.start_server(serve_stream, HOST, 0, backlog=1024),
        ]
        self.plain, self.buffered, self.streams = (
            server.sockets[0].getsockname()[1] for server in self.servers
        )
        # Bound, so that nobody else gets the port, and not listening.
        self.unused = socket.socket()
        self.unused.bind((HOST, 0))
        self.refusing = self.unused.getsockname()[1]

    async def stop(self) -> None:
        self.unused.close()
        for server in self.servers:
            server.close()
            await server.wait_closed()

    async def one(self, number: int) -> None:
        """Open and close a connection, each time in another way."""
        ways: tuple[Callable[[], Coroutine[Any, Any, None]], ...] = (
            lambda: self.answered(self.plain, asyncio.Transport.close),
            lambda: self.answered(self.buffered, asyncio.Transport.close),
            lambda: self.answered(self.plain, asyncio.Transport.abort),
            lambda: self.answered(self.plain, asyncio.Transport.write_eof),
            lambda: self.hung_up(b"close"),
            lambda: self.hung_up(b"abort"),
            lambda: self.hung_up(b"fail"),
            self.unfinished_write,
            self.streamed,
            self.refused,
            self.cancelled,
            self.own_socket,
        )
        await ways[number % len(ways)]()

    async def client(self, port: int, question: bytes) -> Client:
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(lambda: Client(question), HOST, port)
        return client

    async def answered(self, port: int, end: Callable[[asyncio.Transport], None]) -> None:
        client = await self.client(port, b"question")
        await client.answer
        # By name: the transport's class is not the one that the function was taken from.
        getattr(client.transport, end.__name__)()
        await client.lost

    async def hung_up(self, question: bytes) -> None:
        client = await self.client(self.plain, question)
        await client.lost
        client.answer.cancel()

    async def unfinished_write(self) -> None:
        """Abort with most of what was written still in the transport's buffer."""
        client = await self.client(self.plain, b"question")
        await client.answer
        client.transport.pause_reading()
        client.transport.write(bytes(8 << 20))
        assert client.transport.get_write_buffer_size() > 0
        client.transport.abort()
        await client.lost

    async def streamed(self) -> None:
        reader, writer = await asyncio.open_connection(HOST, self.streams)
        writer.write(b"line\n")
        assert await reader.readline() == b"line\n"
        writer.close()
        await writer.wait_closed()

    async def refused(self) -> None:
        with contextlib.suppress(ConnectionRefusedError):
            await self.client(self.refusing, b"")
            raise AssertionError("something answered")

    async def cancelled(self) -> None:
        task = asyncio.create_task(self.client(self.plain, b"close"))
        await asyncio.sleep(0)
        task.cancel()
        # It may have been connected in that turn already.
        with contextlib.suppress(asyncio.CancelledError):
            await (await task).lost

    async def own_socket(self) -> None:
        loop = asyncio.get_running_loop()
        sock = socket.socket()
        sock.setblocking(False)
        await loop.sock_connect(sock, (HOST, self.plain))
        await loop.sock_sendall(sock, b"question")
        assert await loop.sock_recv(sock, 100) == b"question"
        sock.close()

    async def many(self, count: int) -> None:
        for start in range(0, count, BATCH):
            await asyncio.gather(*map(self.one, range(start, min(start + BATCH, count))))
        # The server's ends.
        await asyncio.sleep(0.05)


async def collected(thresholds: range) -> None:
    """Have the collector start at every step of making a connection, in turn.

    It looks at objects that are only half made then. Many at once, so that CPython's free lists
    are empty and each step really allocates.
    """
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, HOST, 0, backlog=1024)
    port = server.sockets[0].getsockname()[1]
    before = gc.get_threshold()
    for threshold in thresholds:
        gc.set_threshold(threshold)
        made = [loop.create_connection(asyncio.Protocol, HOST, port) for _ in range(BATCH)]
        for transport, _ in await asyncio.gather(*made):
            transport.abort()
        await asyncio.sleep(0.01)
    gc.set_threshold(*before)
    server.close()
    await server.wait_closed()


def collecting(loop_name: str, warm_up: int, count: int) -> tuple[dict[str, int], dict[str, int]]:
    """Before and after connections that are made while the collector runs all the time."""
    loop = new_event_loop(loop_name)
    loop.run_until_complete(collected(range(100, 100 + warm_up)))
    held()
    before = held()
    loop.run_until_complete(collected(range(1, 1 + count)))
    after = held()
    loop.close()
    return before, after


def connections(loop_name: str, warm_up: int, count: int) -> tuple[dict[str, int], dict[str, int]]:
    """Before and after so many connections, on one loop."""
    loop = new_event_loop(loop_name)
    work = Connections()
    loop.run_until_complete(work.start())
    loop.run_until_complete(work.many(warm_up))
    held()  # Its own list of objects is the largest thing allocated here: that, too, once before.
    before = held()
    loop.run_until_complete(work.many(count))
    after = held()
    loop.run_until_complete(work.stop())
    loop.close()
    return before, after


# --- TLS --------------------------------------------------------------------------------------


class TlsConnections:
    """TLS servers, and the ways in which a TLS connection may begin and end."""

    def __init__(self) -> None:
        self.server_context = server_context()
        self.client_context = client_context()
        self.strangers_context = client_context(trust=False)

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, _context: None)
        context = self.server_context
        self.servers = [
            await loop.create_server(Echo, HOST, 0, ssl=context, backlog=1024),
            await asyncio.start_server(serve_stream, HOST, 0, ssl=context, backlog=1024),
            await asyncio.start_server(self.serve_upgrade, HOST, 0, backlog=1024),
        ]
        self.echo, self.streams, self.upgrades = (
            server.sockets[0].getsockname()[1] for server in self.servers
        )

    async def stop(self) -> None:
        for server in self.servers:
            server.close()
            await server.wait_closed()

    async def serve_upgrade(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"GO\n")
        await writer.start_tls(self.server_context)
        await serve_stream(reader, writer)

    async def one(self, number: int) -> None:
        ways: tuple[Callable[[], Coroutine[Any, Any, None]], ...] = (
            lambda: self.answered("close"),
            lambda: self.answered("abort"),
            lambda: self.hung_up(b"close"),
            lambda: self.hung_up(b"abort"),
            lambda: self.hung_up(b"fail"),
            self.streamed,
            self.upgraded,
            self.distrusted,
            self.cancelled,
            self.garbage,
        )
        await ways[number % len(ways)]()

    async def client(self, question: bytes) -> Client:
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(
            lambda: Client(question),
            HOST,
            self.echo,
            ssl=self.client_context,
            server_hostname="localhost",
        )
        return client

    async def answered(self, end: str) -> None:
        client = await self.client(b"question")
        await client.answer
        getattr(client.transport, end)()
        await client.lost

    async def hung_up(self, question: bytes) -> None:
        client = await self.client(question)
        await client.lost
        client.answer.cancel()

    async def streamed(self) -> None:
        reader, writer = await asyncio.open_connection(
            HOST, self.streams, ssl=self.client_context, server_hostname="localhost"
        )
        await self.line(reader, writer)

    async def upgraded(self) -> None:
        reader, writer = await asyncio.open_connection(HOST, self.upgrades)
        writer.write(b"STARTTLS\n")
        assert await reader.readline() == b"GO\n"
        await writer.start_tls(self.client_context, server_hostname="localhost")
        await self.line(reader, writer)

    async def line(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"line\n")
        assert await reader.readline() == b"line\n"
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def distrusted(self) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ssl.SSLCertVerificationError):
            await loop.create_connection(
                asyncio.Protocol, HOST, self.echo, ssl=self.strangers_context
            )
            raise AssertionError("a stranger was trusted")

    async def cancelled(self) -> None:
        task = asyncio.create_task(self.client(b"close"))
        await asyncio.sleep(0.001)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await (await task).lost

    async def garbage(self) -> None:
        reader, writer = await asyncio.open_connection(HOST, self.echo)
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def many(self, count: int) -> None:
        # Few at once: asyncio's loop has half a MiB of buffers for each.
        for start in range(0, count, 20):
            await asyncio.gather(*map(self.one, range(start, min(start + 20, count))))
        await asyncio.sleep(0.1)

    async def collected(self, thresholds: range) -> None:
        """Have the collector start at every step of making a connection, in turn."""
        before = gc.get_threshold()
        for threshold in thresholds:
            gc.set_threshold(threshold)
            await asyncio.gather(*map(self.one, range(20)))
        gc.set_threshold(*before)
        await asyncio.sleep(0.1)


def tls(
    loop_name: str, warm_up: int, count: int, *, collecting: bool
) -> tuple[dict[str, int], dict[str, int]]:
    """Before and after so many TLS connections, or so many rounds of collecting while they come."""
    loop = new_event_loop(loop_name)
    work = TlsConnections()

    def many(count: int) -> None:
        made = work.collected(range(1, 1 + count)) if collecting else work.many(count)
        loop.run_until_complete(made)

    loop.run_until_complete(work.start())
    many(warm_up)
    held()
    before = held()
    many(count)
    after = held()
    loop.run_until_complete(work.stop())
    loop.close()
    return before, after


# --- loops ------------------------------------------------------------------------------------


async def a_bit(executor: bool) -> None:
    """A little of everything that a loop has to clean up."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, HOST, 0)
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(b"question")
    assert await reader.readexactly(8) == b"question"
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()
    woken = loop.create_future()
    loop.call_soon_threadsafe(woken.set_result, None)
    await woken
    await asyncio.gather(*(asyncio.sleep(0.0001) for _ in range(3)))
    if executor:
        assert await loop.run_in_executor(None, int, "1") == 1


def closed_loop(loop_name: str, number: int) -> None:
    """A loop that ends as it should."""
    loop = new_event_loop(loop_name)
    loop.run_until_complete(a_bit(executor=number % 10 == 0))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def closed_with_work(loop_name: str, number: int) -> None:
    """A loop that is closed with a timer, a reader, a server and a task left."""
    loop, sockets = with_work(loop_name)
    loop.close()
    for sock in sockets:
        sock.close()


def dropped_loop(loop_name: str, number: int) -> None:
    """A loop that nobody closes, nor refers to any more."""
    loop = new_event_loop(loop_name)
    loop.run_until_complete(a_bit(executor=False))


def dropped_with_work(loop_name: str, number: int) -> None:
    """The same with work left that refers to the loop."""
    with_work(loop_name)


def with_work(loop_name: str) -> tuple[asyncio.AbstractEventLoop, list[socket.socket]]:
    """A loop that stands still with every kind of work under way."""
    loop = new_event_loop(loop_name)
    # "Task was destroyed but it is pending" is right, and a thousand times too many.
    loop.set_exception_handler(lambda _loop, _context: None)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    loop.add_reader(ours, loop.stop)
    loop.call_later(3600, loop.stop)

    async def leave() -> asyncio.Server:
        server = await loop.create_server(Echo, HOST, 0)
        port = server.sockets[0].getsockname()[1]
        transport, client = await loop.create_connection(lambda: Client(b"question"), HOST, port)
        await client.answer
        # Only the loop knows the task: nothing but the loop keeps it alive.
        asyncio.create_task(wait(loop, server, transport))  # noqa: RUF006
        await asyncio.sleep(0)
        return server

    loop.run_until_complete(leave())
    loop.call_soon(loop.stop)
    return loop, [ours, theirs]


async def wait(*args: object) -> None:
    await asyncio.sleep(3600)


def loops(
    once: Callable[[str, int], None], loop_name: str, warm_up: int, count: int
) -> tuple[dict[str, int], dict[str, int]]:
    """Before and after so many loops."""

    def many(count: int) -> None:
        for number in range(count):
            once(loop_name, number)
            # A dropped loop is cyclic garbage: only a collection finds it.
            if number % 50 == 49:
                gc.collect()

    many(warm_up)
    held()
    before = held()
    many(count)
    return before, held()


def main() -> None:
    loop_name, scenario, warm_up, count = sys.argv[1:]
    warnings.simplefilter("ignore", ResourceWarning)
    if scenario == "connections":
        before, after = connections(loop_name, int(warm_up), int(count))
    elif scenario == "tls":
        before, after = tls(loop_name, int(warm_up), int(count), collecting=False)
    elif scenario == "tls_collecting":
        before, after = tls(loop_name, int(warm_up), int(count), collecting=True)
    elif scenario == "collecting":
        before, after = collecting(loop_name, int(warm_up), int(count))
    else:
        once = {
            "closed_loop": closed_loop,
            "closed_with_work": closed_with_work,
            "dropped_loop": dropped_loop,
            "dropped_with_work": dropped_with_work,
        }[scenario]
        before, after = loops(once, loop_name, int(warm_up), int(count))
    print(json.dumps({"before": before, "after": after}))


if __name__ == "__main__":
    main()
