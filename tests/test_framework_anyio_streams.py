"""anyio's byte and packet streams: TCP, TLS, Unix sockets and UDP, on the loop of anyio.run()."""

import contextlib
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.tls import TLSAttribute, TLSListener, TLSStream
from support import HOST, unused_port
from tls import NAME, client_context, server_context

AnyioRun = Callable[[Callable[[], Awaitable[Any]]], Any]
pytestmark = pytest.mark.timeout(20)
DATA = random.Random(1).randbytes(1_000_000)


async def echo(stream: ByteStream) -> None:
    """Send back what comes, up to the end."""
    async with stream:
        async for data in stream:
            await stream.send(data)


async def exchange(stream: ByteStream, *, half_close: bool = True) -> None:
    """Send DATA and take it back; the sending does not wait for the taking."""
    async with stream, anyio.create_task_group() as group:

        async def send() -> None:
            await stream.send(DATA)
            if half_close:
                await stream.send_eof()

        group.start_soon(send)
        received = BufferedByteReceiveStream(stream)
        assert await received.receive_exactly(len(DATA)) == DATA
        if half_close:
            with pytest.raises(anyio.EndOfStream):
                await received.receive()


@contextlib.asynccontextmanager
async def served(handler: Callable[[Any], Awaitable[None]]) -> AsyncIterator[int]:
    """A TCP listener with this handler; yields its port."""
    listener = await anyio.create_tcp_listener(local_host=HOST, local_port=0)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, handler)
        yield listener.extra(SocketAttribute.local_port)
        group.cancel_scope.cancel()


@pytest.mark.usefixtures("no_descriptor_left")
def test_tcp(anyio_run: AnyioRun) -> None:
    async def main() -> None:
        async with served(echo) as port, anyio.create_task_group() as clients:
            for _ in range(5):
                clients.start_soon(exchange, await anyio.connect_tcp(HOST, port))

    anyio_run(main)


def test_tcp_by_name(anyio_run: AnyioRun) -> None:
    """The addresses of a name are tried by anyio itself, as happy eyeballs does."""

    async def main() -> None:
        async with served(echo) as port:
            await exchange(await anyio.connect_tcp("localhost", port))

    anyio_run(main)


def test_tcp_refused_closed_and_broken(anyio_run: AnyioRun) -> None:
    async def main() -> None:
        with pytest.raises(OSError):
            await anyio.connect_tcp(HOST, unused_port())

        async def leave(stream: ByteStream) -> None:
            await stream.aclose()

        async with served(leave) as port:
            async with await anyio.connect_tcp(HOST, port) as stream:
                with pytest.raises(anyio.EndOfStream):
                    await stream.receive()
                with pytest.raises(anyio.BrokenResourceError):
                    while True:
                        await stream.send(DATA)
            with pytest.raises(anyio.ClosedResourceError):
                await stream.receive()

    anyio_run(main)


def test_a_cancelled_receive_loses_nothing(anyio_run: AnyioRun) -> None:
    async def main() -> None:
        async with served(echo) as port, await anyio.connect_tcp(HOST, port) as stream:
            for number in range(20):
                with anyio.move_on_after(0.002) as scope:
                    await stream.receive()
                assert scope.cancelled_caught
                await stream.send(b"%d" % number)
                assert await stream.receive() == b"%d" % number

    anyio_run(main)


def test_tls(anyio_run: AnyioRun) -> None:
    async def main() -> None:
        tcp = await anyio.create_tcp_listener(local_host=HOST, local_port=0)
        port = tcp.extra(SocketAttribute.local_port)
        async with TLSListener(tcp, server_context()) as listener:
            async with anyio.create_task_group() as group:
                group.start_soon(listener.serve, echo)
                for _ in range(3):
                    stream = await anyio.connect_tcp(
                        HOST, port, ssl_context=client_context(), tls_hostname=NAME
                    )
                    assert isinstance(stream, TLSStream)
                    assert stream.extra(TLSAttribute.tls_version).startswith("TLSv1.")
                    # TLS has no half-closed connections in anyio.
                    await exchange(stream, half_close=False)
                group.cancel_scope.cancel()

    anyio_run(main)


@pytest.mark.usefixtures("no_descriptor_left")
def test_unix(anyio_run: AnyioRun, tmp_path: Path) -> None:
    path = tmp_path / "socket"

    async def main() -> None:
        async with await anyio.create_unix_listener(path) as listener:
            async with anyio.create_task_group() as group:
                group.start_soon(listener.serve, echo)
                await exchange(await anyio.connect_unix(path))
                group.cancel_scope.cancel()

    anyio_run(main)


def test_unix_passes_descriptors(anyio_run: AnyioRun, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    (tmp_path / "file").write_bytes(b"content")

    async def give(stream: Any) -> None:
        async with stream:
            with (tmp_path / "file").open("rb") as file:
                await stream.send_fds(b"here", [file])

    async def main() -> None:
        async with await anyio.create_unix_listener(path) as listener:
            async with anyio.create_task_group() as group:
                group.start_soon(listener.serve, give)
                async with await anyio.connect_unix(path) as stream:
                    message, descriptors = await stream.receive_fds(4, 1)
                with open(descriptors[0], "rb") as file:
                    assert (message, file.read()) == (b"here", b"content")
                group.cancel_scope.cancel()

    anyio_run(main)


def test_udp(anyio_run: AnyioRun) -> None:
    async def main() -> None:
        async with await anyio.create_udp_socket(
            family=socket.AF_INET, local_host=HOST, local_port=0
        ) as server:
            port = server.extra(SocketAttribute.local_port)

            async def answer() -> None:
                async for data, (host, peer) in server:
                    await server.sendto(data.upper(), host, peer)

            async with anyio.create_task_group() as group:
                group.start_soon(answer)
                async with await anyio.create_connected_udp_socket(HOST, port) as client:
                    for number in range(100):
                        await client.send(b"datagram %d" % number)
                        assert await client.receive() == b"DATAGRAM %d" % number
                with pytest.raises(anyio.ClosedResourceError):
                    await client.send(b"late")
                group.cancel_scope.cancel()

    anyio_run(main)


@pytest.mark.usefixtures("no_descriptor_left")
def test_waiting_for_a_plain_socket(anyio_run: AnyioRun) -> None:
    async def main() -> None:
        near, far = socket.socketpair()
        with near, far:
            near.setblocking(False)
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.wait_readable, near)
                await anyio.wait_writable(far)
                far.send(b"x")
            assert near.recv(1) == b"x"

    anyio_run(main)
