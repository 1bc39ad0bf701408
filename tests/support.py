"""What several test files need: running a coroutine bounded in time, sockets, protocols."""

import asyncio
import contextlib
import functools
import gc
import os
import pathlib
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NamedTuple

import pytest

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

HOST = "127.0.0.1"


def is_stock(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether the loop is asyncio's own."""
    return type(loop).__module__.partition(".")[0] == "asyncio"


def skip_if_asyncio_errs(
    loop: asyncio.AbstractEventLoop,
    reason: str,
    since: tuple[int, ...] = (0,),
    until: tuple[int, ...] = (99,),
) -> None:
    """Skip on asyncio's own loop where versions in [since, until) have a bug that CPython mended.

    rondel has the mended behaviour on every version.
    """
    if is_stock(loop) and since <= sys.version_info[:3] < until:
        pytest.skip(f"asyncio of this Python: {reason}")


def run_on(
    loop: asyncio.AbstractEventLoop,
    main: Callable[..., Awaitable[Any]],
    *args: Any,
    limit: float = 15,
) -> Any:
    """Run ``main(*args)`` on the loop and return its result; TimeoutError after limit seconds."""

    async def bounded() -> Any:
        async with asyncio.timeout(limit):
            return await main(*args)

    return loop.run_until_complete(bounded())


def run_turn(loop: asyncio.AbstractEventLoop) -> None:
    """Run exactly one turn of the loop."""
    loop.call_soon(loop.stop)
    loop.run_forever()


def run_until(
    loop: asyncio.AbstractEventLoop, condition: Callable[[], object], limit: float = 10
) -> None:
    """Run the loop until condition() is true; an AssertionError after limit seconds."""

    async def poll() -> None:
        deadline = time.monotonic() + limit
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true in time"
            await asyncio.sleep(0.001)

    loop.run_until_complete(poll())


async def until(condition: Callable[[], object], limit: float = 10) -> None:
    """Wait on the running loop until condition() is true."""
    async with asyncio.timeout(limit):
        while not condition():
            await asyncio.sleep(0.001)


@functools.cache
def has_ipv6() -> bool:
    """Whether this machine has IPv6 on its loopback interface."""
    if not socket.has_ipv6:
        return False
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on the loopback interface")


def listening_socket(backlog: int = 100, host: str = HOST) -> socket.socket:
    """A non-blocking listening TCP socket on a port that the system chose."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.bind((host, 0))
    sock.listen(backlog)
    sock.setblocking(False)
    return sock


def unused_port() -> int:
    """A TCP port of 127.0.0.1 on which nothing listens."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def tcp_pair(
    *, blocking: bool = False, small: bool = False
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected TCP sockets; both are closed afterwards if nobody did.

    With small=True the kernel takes only some 40 KiB from either side before it blocks.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        near = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if small:
            # Before connecting: a window once announced is not taken back.
            for sock in (listener, near):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        listener.bind((HOST, 0))
        listener.listen(1)
        near.connect(listener.getsockname())
        far, _ = listener.accept()
    with near, far:
        near.setblocking(blocking)
        far.setblocking(blocking)
        yield near, far


class Recorder(asyncio.Protocol):
    """A protocol that writes down what the transport tells it."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.data = bytearray()
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self.lost: list[BaseException | None] = []
        self.keep_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.events.append("made")

    def data_received(self, data: bytes) -> None:
        assert type(data) is bytes
        self.data += data
        self.events.append("data")

    def eof_received(self) -> bool:
        self.events.append("eof")
        return self.keep_open

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost.append(exc)
        self.events.append("lost")


class Ends(NamedTuple):
    """A transport on the loop under test and the plain socket at its other end."""

    transport: asyncio.Transport
    protocol: Any
    peer: socket.socket


@contextlib.asynccontextmanager
async def connected(protocol: Any = None, *, small: bool = False) -> AsyncIterator[Ends]:
    """A transport of the running loop, connected to a non-blocking plain socket.

    With small=True the kernel's buffers are so small that a test can fill them.
    """
    loop = asyncio.get_running_loop()
    protocol = Recorder() if protocol is None else protocol
    with tcp_pair(small=small) as (near, far):
        transport, _ = await loop.create_connection(lambda: protocol, sock=near)
        assert isinstance(transport, asyncio.Transport)
        try:
            yield Ends(transport, protocol, far)
        finally:
            if transport.get_write_buffer_size() or not transport.is_closing():
                transport.abort()
            await asyncio.sleep(0)


async def read_exactly(sock: socket.socket, count: int) -> bytes:
    """Read count bytes from a plain non-blocking socket without the loop's own sock methods."""
    out = bytearray()
    while len(out) < count:
        try:
            chunk = sock.recv(min(1 << 20, count - len(out)))
        except BlockingIOError:
            await asyncio.sleep(0.001)
            continue
        if not chunk:
            break
        out += chunk
    return bytes(out)


async def read_to_end(sock: socket.socket) -> bytes:
    """Read a plain non-blocking socket until the peer's EOF."""
    return await read_exactly(sock, sys.maxsize)


@contextlib.contextmanager
def in_thread(target: Callable[..., object], *args: Any) -> Iterator[threading.Thread]:
    """Run target in a thread during the block; its exception is raised after the join."""
    failures: list[BaseException] = []

    def body() -> None:
        try:
            target(*args)
        except BaseException as exc:
            failures.append(exc)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(15)
    assert not thread.is_alive(), "the thread did not end"
    if failures:
        raise failures[0]


def collected(ref: Callable[[], object]) -> bool:
    """Whether the object of a weak reference is gone after a full collection."""
    for _ in range(3):
        gc.collect()
    return ref() is None


def open_fds() -> int:
    """How many file descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def info(host: str, port: int) -> tuple[Any, ...]:
    """A row as getaddrinfo gives it."""
    if ":" in host:
        return socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port, 0, 0)
    return socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port)


def resolve_to(loop: asyncio.AbstractEventLoop, *rows: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Let loop.getaddrinfo answer with rows; the calls are appended to the list returned."""
    calls: list[tuple[Any, ...]] = []

    async def getaddrinfo(
        host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> list[tuple[Any, ...]]:
        calls.append((host, port, family, type, proto, flags))
        return list(rows)

    loop.getaddrinfo = getaddrinfo  # type: ignore[method-assign]
    return calls


@contextlib.asynccontextmanager
async def listener(host: str = HOST) -> AsyncIterator[tuple[socket.socket, int]]:
    """A listening socket that accepts by itself (its backlog), and its port."""
    with listening_socket(host=host) as sock:
        yield sock, sock.getsockname()[1]


async def finish(transport: asyncio.BaseTransport) -> None:
    assert isinstance(transport, asyncio.Transport)
    transport.abort()
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def turns(count: int) -> None:
    """Let the running loop do count turns."""
    for _ in range(count):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def counted_turns() -> AsyncIterator[Callable[[], int]]:
    """Make the loop busy; what is yielded says how many turns it has made since."""
    made = 0

    async def count() -> None:
        nonlocal made
        while True:
            made += 1
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(count())
    yield lambda: made
    counting.cancel()


def children() -> list[int]:
    """The numbers of this process's children, zombies included."""
    out: list[int] = []
    for task in pathlib.Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            out += map(int, (task / "children").read_text().split())
    return out
