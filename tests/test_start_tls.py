"""loop.start_tls() and StreamWriter.start_tls(): TLS over a connection that is there already."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from support import HOST, Recorder, connected, is_stock, tcp_pair, until
from tls import NAME, Peer, client_context, connected_tls, server_context

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]

BOTH_TLS = True

BLOB = bytes(range(256)) * 8192  # 2 MiB


def skip_if_bytes_are_lost(loop: Loop) -> None:
    if is_stock(loop):
        pytest.skip("asyncio loses what the StreamReader holds (a server's since 3.14 not)")


@contextlib.asynccontextmanager
async def upgraded(protocol: Recorder, **options: Any) -> AsyncIterator[tuple[Any, Peer]]:
    """A client that has said "STARTTLS" in plain text and then started TLS."""
    loop = asyncio.get_running_loop()
    async with connected(protocol) as (below, _, sock):
        below.write(b"STARTTLS\n")
        peer = Peer(sock, server_context())
        await until(lambda: _take(sock, b"STARTTLS\n"))
        shaking = asyncio.ensure_future(peer.handshake())
        transport = await loop.start_tls(
            below, protocol, client_context(), server_hostname=NAME, **options
        )
        assert isinstance(transport, asyncio.Transport)
        await shaking
        yield transport, peer
        transport.abort()


def _take(sock: socket.socket, expected: bytes) -> bool:
    try:
        data = sock.recv(len(expected))
    except BlockingIOError:
        return False
    assert data == expected
    return True


def test_client(run: Run) -> None:
    async def main() -> None:
        protocol = Recorder()
        async with upgraded(protocol) as (transport, peer):
            # connection_made() was called before, and is not called again.
            assert protocol.events == ["made"]
            assert transport is not protocol.transport
            assert transport.get_protocol() is protocol
            assert transport.get_extra_info("ssl_object").version()
            assert transport.get_extra_info("peername") is not None
            transport.write(b"hello")
            assert await peer.read(5) == b"hello"
            await peer.send(b"world")
            await until(lambda: protocol.data == b"world")
            transport.close()
            await peer.unwrap()
            await until(lambda: protocol.lost)
            assert protocol.events[-2:] == ["eof", "lost"]
            assert protocol.lost == [None]

    run(main)


def test_server(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        protocol = Recorder()
        async with connected(protocol) as (below, _, sock):
            peer = Peer(sock, client_context(), server_side=False, server_hostname=NAME)
            shaking = asyncio.ensure_future(peer.handshake())
            transport = await loop.start_tls(below, protocol, server_context(), server_side=True)
            assert isinstance(transport, asyncio.Transport)
            await shaking
            await peer.send(BLOB)
            await until(lambda: protocol.data == BLOB)
            transport.write(BLOB)
            assert await peer.read(len(BLOB)) == BLOB
            transport.abort()
            await until(lambda: protocol.lost)
            assert protocol.lost == [None]

    run(main)


def test_wrong_arguments(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with connected() as (below, protocol, _):
            with pytest.raises(TypeError, match="sslcontext is expected to be an instance of"):
                await loop.start_tls(below, protocol, None)  # type: ignore[arg-type]
            with pytest.raises(TypeError, match=r"is not supported by start_tls\(\)"):
                await loop.start_tls(object(), protocol, client_context())  # type: ignore[arg-type]
            for name in ("ssl_handshake_timeout", "ssl_shutdown_timeout"):
                with pytest.raises(ValueError, match=f"{name} should be a positive number, got 0"):
                    await loop.start_tls(
                        below,
                        protocol,
                        client_context(),
                        server_hostname=NAME,
                        **{name: 0},  # type: ignore[arg-type]
                    )
            # Nothing has happened to the connection.
            assert below.get_protocol() is protocol
            assert below.is_reading()

    run(main)


def test_certificate_is_wrong(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        protocol = Recorder()
        async with connected(protocol) as (below, _, sock):
            shaking = asyncio.ensure_future(Peer(sock, server_context()).handshake())
            with pytest.raises(ssl.SSLCertVerificationError):
                await loop.start_tls(below, protocol, client_context(), server_hostname="other")
            with contextlib.suppress(ConnectionError):
                await shaking
            await until(lambda: protocol.lost)
            assert isinstance(protocol.lost[0], ssl.SSLCertVerificationError)
            assert below.is_closing()

    run(main)


def test_handshake_timeout(loop: Loop, run: Run) -> None:
    async def main() -> None:
        protocol = Recorder()
        async with connected(protocol) as (below, _, _sock):
            with pytest.raises(ConnectionAbortedError, match="longer than 0.05 seconds"):
                await loop.start_tls(
                    below,
                    protocol,
                    client_context(),
                    server_hostname=NAME,
                    ssl_handshake_timeout=0.05,
                )
            if not is_stock(loop):
                # asyncio never tells a protocol that had been told of the connection.
                await until(lambda: protocol.lost)
                assert isinstance(protocol.lost[0], ConnectionAbortedError)

    run(main)


@pytest.mark.parametrize("delay", [0, 0.02])
def test_cancel(run: Run, delay: float) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        protocol = Recorder()
        async with connected(protocol) as (below, _, _sock):
            starting = asyncio.ensure_future(
                loop.start_tls(below, protocol, client_context(), server_hostname=NAME)
            )
            await asyncio.sleep(delay)
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
            assert below.is_closing()
            await asyncio.sleep(0.01)
            assert below.get_extra_info("socket").fileno() == -1

    run(main)


@pytest.mark.parametrize("side", ["server", "client"])
def test_what_the_reader_holds_is_the_beginning_of_tls(loop: Loop, run: Run, side: str) -> None:
    """Trap 3: the peer's handshake came together with the line before it."""
    skip_if_bytes_are_lost(loop)

    async def main() -> None:
        with tcp_pair() as (near, far):
            if side == "client":
                peer = Peer(far, server_context())
            else:
                peer = Peer(far, client_context(), server_side=False, server_hostname=NAME)
                with contextlib.suppress(ssl.SSLWantReadError):
                    peer.object.do_handshake()
            # A client must speak first; what a server says early is a record like any other (here:
            # an alert, the warning "user canceled").
            early = peer.outgoing.read() or b"\x15\x03\x03\x00\x02\x01\x5a"
            far.send(b"READY\n" + early)
            reader = asyncio.StreamReader(loop=loop)
            writers: list[asyncio.StreamWriter] = []  # one that is dropped closes the connection

            def connected(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                writers.append(writer)

            protocol = asyncio.StreamReaderProtocol(
                reader, connected if side == "server" else None, loop=loop
            )
            below, _ = await loop.create_connection(lambda: protocol, sock=near)
            assert isinstance(below, asyncio.Transport)
            assert await reader.readline() == b"READY\n"
            assert bytes(reader._buffer) == early  # type: ignore[attr-defined]
            shaking = asyncio.ensure_future(peer.handshake())
            transport = await loop.start_tls(
                below,
                protocol,
                server_context() if side == "server" else client_context(),
                server_side=side == "server",
                server_hostname=None if side == "server" else NAME,
            )
            assert isinstance(transport, asyncio.Transport)
            assert not reader._buffer  # type: ignore[attr-defined]
            await shaking
            await peer.send(b"line\n")
            assert await reader.readline() == b"line\n"
            transport.abort()
            await asyncio.sleep(0.01)

    run(main)


def test_streams_on_both_sides(run: Run) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"GO\n")
        await writer.start_tls(server_context())
        assert writer.get_extra_info("sslcontext") is not None
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def main() -> None:
        server = await asyncio.start_server(serve, HOST, 0)
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(b"STARTTLS\n")
        assert await reader.readline() == b"GO\n"
        await writer.start_tls(client_context(), server_hostname=NAME)
        writer.write(BLOB)
        assert await reader.readexactly(len(BLOB)) == BLOB
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run(main)


def test_reader_that_is_full_pauses_the_tls_transport(loop: Loop, run: Run) -> None:
    if is_stock(loop):
        pytest.skip("before 3.14 asyncio's reader goes on to pause the transport below")

    async def main() -> None:
        with tcp_pair() as (near, far):
            reader, writer = await asyncio.open_connection(sock=near, limit=1000)
            peer = Peer(far, server_context())
            shaking = asyncio.ensure_future(peer.handshake())
            await writer.start_tls(client_context(), server_hostname=NAME)
            await shaking
            transport = writer.transport
            await peer.send(BLOB[:5000])
            await until(lambda: not transport.is_reading())
            assert await reader.readexactly(5000) == BLOB[:5000]
            assert transport.is_reading()
            transport.abort()
            await asyncio.sleep(0.01)

    run(main)


def test_tls_in_tls(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with connected_tls() as (outer, protocol, peer):
            inner_peer = ssl.MemoryBIO(), ssl.MemoryBIO()
            inner_object = server_context().wrap_bio(*inner_peer, server_side=True)

            async def step(operation: Callable[..., Any], *args: Any) -> Any:
                while True:
                    try:
                        result = operation(*args)
                    except ssl.SSLWantReadError:
                        result = None
                        again = True
                    else:
                        again = False
                    data = inner_peer[1].read()
                    if data:
                        await peer.send(data)
                    if not again:
                        return result
                    inner_peer[0].write(await peer.step(peer.object.read, 1 << 16))

            shaking = asyncio.ensure_future(step(inner_object.do_handshake))
            inner = await loop.start_tls(outer, protocol, client_context(), server_hostname=NAME)
            assert isinstance(inner, asyncio.Transport)
            await shaking
            inner.write(b"hello")
            assert await step(inner_object.read, 100) == b"hello"
            await step(inner_object.write, BLOB[:10_000])
            await until(lambda: protocol.data == BLOB[:10_000])
            inner.write(BLOB[:100_000])
            received = b""
            while len(received) < 100_000:
                received += await step(inner_object.read, 1 << 16)
            assert received == BLOB[:100_000]
            info = inner.get_extra_info
            assert info("ssl_object") is not outer.get_extra_info("ssl_object")
            assert info("peername") == outer.get_extra_info("peername")
            inner.close()
            await step(inner_object.unwrap)
            await until(lambda: outer.is_closing())
            await peer.unwrap()
            await until(lambda: protocol.lost)
            assert protocol.lost == [None]

    run(main)


def test_over_a_transport_of_the_programs_own(run: Run) -> None:
    """A transport written in Python, without any private method, that hands over to another."""

    class Tunnel(asyncio.Transport):
        _start_tls_compatible = True

        def __init__(self, sock: asyncio.Transport) -> None:
            super().__init__()
            self.sock = sock
            self.protocol: Any = None
            self.calls: list[str] = []

        def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
            self.protocol = protocol

        def pause_reading(self) -> None:
            self.calls.append("pause")

        def resume_reading(self) -> None:
            self.calls.append("resume")

        def get_extra_info(self, name: str, default: Any = None) -> Any:
            return {"tunnel": "mine"}.get(name, default)

        def write(self, data: bytes | bytearray | memoryview) -> None:
            self.sock.write(data)

        def is_closing(self) -> bool:
            return self.sock.is_closing()

        def close(self) -> None:
            self.sock.close()

        def abort(self) -> None:
            self.sock.abort()

        def _force_close(self, exc: BaseException | None) -> None:
            self.sock.abort()

    class Carrier(asyncio.Protocol):
        tunnel: Tunnel

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.tunnel = Tunnel(transport)

        def data_received(self, data: bytes) -> None:
            # asyncio's TLS is a BufferedProtocol, rondel's is not.
            protocol = self.tunnel.protocol
            if hasattr(protocol, "get_buffer"):
                protocol.get_buffer(len(data))[: len(data)] = data
                protocol.buffer_updated(len(data))
            else:
                protocol.data_received(data)

        def connection_lost(self, exc: BaseException | None) -> None:
            self.tunnel.protocol.connection_lost(exc)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with tcp_pair() as (near, far):
            _, carrier = await loop.create_connection(Carrier, sock=near)
            peer = Peer(far, server_context())
            shaking = asyncio.ensure_future(peer.handshake())
            protocol = Recorder()
            transport = await loop.start_tls(
                carrier.tunnel, protocol, client_context(), server_hostname=NAME
            )
            assert isinstance(transport, asyncio.Transport)
            await shaking
            assert carrier.tunnel.calls == ["pause", "resume"]
            assert transport.get_extra_info("tunnel") == "mine"
            transport.write(b"hello")
            assert await peer.read(5) == b"hello"
            await peer.send(b"world")
            await until(lambda: protocol.data == b"world")
            transport.abort()
            await until(lambda: protocol.lost)

    run(main)
