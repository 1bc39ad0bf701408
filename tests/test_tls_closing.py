"""TLS connections: how they end, and how they fail to begin."""

import asyncio
import contextlib
import gc
import logging
import socket
import ssl
import struct
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from support import (
    HOST,
    Recorder,
    is_stock,
    listening_socket,
    read_to_end,
    skip_if_asyncio_errs,
    tcp_pair,
    turns,
    until,
)
from tls import NAME, Peer, client_context, connected_tls, server_context

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]

BOTH_TLS = True

MIB = 1 << 20


def test_close_exchanges_close_notify(run: Run) -> None:
    async def main() -> None:
        async with connected_tls() as (transport, protocol, peer):
            transport.write(b"last words")
            transport.close()
            assert transport.is_closing()
            transport.close()
            assert await peer.read(100) == b"last words"  # read() ends at close_notify
            assert protocol.lost == []
            await peer.unwrap()
            await until(lambda: protocol.lost)
            assert protocol.lost == [None]
            assert protocol.events == ["made", "eof", "lost"]
            transport.close()
            transport.abort()
            await turns(5)
            assert protocol.lost == [None]

    run(main)


def test_peers_close_notify_closes(run: Run) -> None:
    async def main() -> None:
        async with connected_tls() as (transport, protocol, peer):
            await peer.send(b"bye")
            await peer.unwrap()  # which waits for ours
            await until(lambda: protocol.lost)
            assert protocol.events == ["made", "data", "eof", "lost"]
            assert protocol.lost == [None]
            assert transport.is_closing()
            assert await read_to_end(peer.sock) == b""

    run(main)


def test_true_from_eof_received_has_no_effect(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        protocol = Recorder()
        protocol.keep_open = True
        async with connected_tls(protocol) as (_, _, peer):
            await peer.unwrap()
            await until(lambda: protocol.lost)
        text = "returning true from eof_received() has no effect when using ssl"
        assert [record.getMessage() for record in caplog.records] == [text]

    run(main)


@pytest.mark.parametrize("full", [False, True])
def test_end_without_close_notify(run: Run, full: bool) -> None:
    async def main() -> None:
        async with connected_tls() as (_, protocol, peer):
            await peer.send(b"bye")
            if full:
                peer.sock.close()
            else:
                peer.sock.shutdown(socket.SHUT_WR)
            await until(lambda: protocol.lost)
            assert protocol.events == ["made", "data", "eof", "lost"]
            assert protocol.lost == [None]

    run(main)


def test_reset(run: Run) -> None:
    async def main() -> None:
        async with connected_tls() as (transport, protocol, peer):
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.sock.close()
            await until(lambda: protocol.lost)
            [error] = protocol.lost
            assert isinstance(error, ConnectionResetError)
            assert protocol.events == ["made", "lost"]
            assert transport.is_closing()

    run(main)


def test_abort(run: Run) -> None:
    async def main() -> None:
        async with connected_tls(small=True) as (transport, protocol, peer):
            transport.write(bytes(2 * MIB))
            transport.abort()
            assert transport.is_closing()
            assert protocol.lost == []
            transport.abort()
            transport.close()
            await until(lambda: protocol.lost)
            await turns(5)
            assert protocol.lost == [None]
            with pytest.raises(ConnectionError):
                await peer.read(2 * MIB)

    run(main)


def test_writes_after_the_end_are_dropped(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with connected_tls() as (transport, protocol, _):
            transport.abort()
            await until(lambda: protocol.lost)
            for _ in range(10):
                transport.write(b"x")
            transport.writelines([b"x"])
            assert transport.get_write_buffer_size() == 0
            texts = {record.getMessage() for record in caplog.records}
            assert texts == {"SSL connection is closed"}

    run(main)


def test_close_sends_what_is_queued(run: Run) -> None:
    async def main() -> None:
        async with connected_tls(small=True) as (transport, protocol, peer):
            blob = bytes(range(256)) * (3 * MIB // 256)
            transport.write(blob[:MIB])
            transport.write(blob[MIB:])
            transport.close()
            transport.write(b"too late")
            assert await peer.read(len(blob) + 1) == blob
            await peer.unwrap()
            await until(lambda: protocol.lost)
            assert protocol.lost == [None]

    run(main, limit=25)


def test_what_is_queued_is_sent_after_the_peers_close_notify(loop: Loop, run: Run) -> None:
    skip_if_asyncio_errs(loop, "its socket calls None for ever", since=(3, 12), until=(3, 14))

    async def main() -> None:
        async with connected_tls(small=True) as (transport, protocol, peer):
            blob = bytes(range(256)) * (2 * MIB // 256)
            transport.write(blob[:MIB])
            transport.write(blob[MIB:])
            peer.sock.send(peer.notify())
            await asyncio.sleep(0.05)
            assert protocol.lost == []
            assert await peer.read(len(blob) + 1) == blob
            await until(lambda: protocol.lost)
            assert protocol.lost == [None]

    run(main, limit=25)


def test_shutdown_timeout(run: Run) -> None:
    async def main() -> None:
        async with connected_tls(ssl_shutdown_timeout=0.05) as (transport, protocol, _):
            start = time.monotonic()
            transport.close()
            await until(lambda: protocol.lost)
            assert 0.04 < time.monotonic() - start < 5
            [error] = protocol.lost
            assert isinstance(error, TimeoutError)
            assert str(error) == "SSL shutdown timed out"

    run(main)


def test_shutdown_timeout_with_a_peer_that_does_not_read(loop: Loop, run: Run) -> None:
    skip_if_asyncio_errs(loop, "closing waits forever for such a peer", until=(3, 14, 10))

    async def main() -> None:
        async with connected_tls(small=True, ssl_shutdown_timeout=0.1) as (
            transport,
            protocol,
            peer,
        ):
            transport.write(bytes(4 * MIB))
            peer.sock.send(peer.notify())
            await until(lambda: protocol.lost)
            [error] = protocol.lost
            assert isinstance(error, TimeoutError)

    run(main)


def test_abort_passes_the_shutdown_timeout_by(run: Run) -> None:
    async def main() -> None:
        async with connected_tls() as (transport, protocol, _):
            transport.close()
            await asyncio.sleep(0.02)
            assert protocol.lost == []
            transport.abort()
            await until(lambda: protocol.lost)
            assert protocol.lost == [None]

    run(main)


def test_data_after_our_close_notify_is_an_error(run: Run) -> None:
    async def main() -> None:
        async with connected_tls() as (transport, protocol, peer):
            transport.close()
            await peer.send(b"did not hear you")
            await until(lambda: protocol.lost)
            [error] = protocol.lost
            assert isinstance(error, ssl.SSLError)
            assert "APPLICATION_DATA_AFTER_CLOSE_NOTIFY" in str(error)

    run(main)


def test_garbage_in_the_middle(run: Run) -> None:
    async def main() -> None:
        async with connected_tls() as (_, protocol, peer):
            peer.sock.send(b"this is no TLS record, and long enough to say so")
            await until(lambda: protocol.lost)
            [error] = protocol.lost
            assert isinstance(error, ssl.SSLError)

    run(main)


@pytest.mark.parametrize("method", ["data_received", "eof_received"])
def test_exceptions_of_the_protocol(run: Run, reported: list[dict[str, Any]], method: str) -> None:
    class Failing(Recorder):
        def data_received(self, data: bytes) -> None:
            if method == "data_received":
                raise ZeroDivisionError("as told")

        def eof_received(self) -> bool:
            raise ZeroDivisionError("as told")

    async def main() -> None:
        async with connected_tls(Failing()) as (transport, protocol, peer):
            below = transport._ssl_protocol._transport  # type: ignore[attr-defined]
            await peer.send(b"data")
            if method == "eof_received":
                peer.sock.send(peer.notify())
            await until(lambda: protocol.lost)
            [error] = protocol.lost
            assert isinstance(error, ZeroDivisionError)
            [context] = reported
            assert context["exception"] is error
            assert context["transport"] is below
            assert context["protocol"] is transport._ssl_protocol  # type: ignore[attr-defined]
            expected = {
                "data_received": "Fatal error on SSL protocol",
                "eof_received": "Error calling eof_received()",
            }
            assert context["message"] == expected[method]

    run(main)


def test_oserror_of_the_protocol_is_not_reported(run: Run) -> None:
    class Failing(Recorder):
        def data_received(self, data: bytes) -> None:
            raise FileNotFoundError

    async def main() -> None:
        async with connected_tls(Failing()) as (_, protocol, peer):
            await peer.send(b"data")
            await until(lambda: protocol.lost)
            assert isinstance(protocol.lost[0], FileNotFoundError)

    run(main)


def test_exception_of_connection_made(run: Run, reported: list[dict[str, Any]]) -> None:
    class Failing(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            raise ZeroDivisionError

    async def main() -> None:
        loop = asyncio.get_running_loop()
        protocol = Failing()
        with tcp_pair() as (near, far):
            shaking = asyncio.ensure_future(Peer(far, server_context()).handshake())
            with pytest.raises(ZeroDivisionError):
                await loop.create_connection(
                    lambda: protocol, sock=near, ssl=client_context(), server_hostname=NAME
                )
            with contextlib.suppress(ConnectionError):
                await shaking
        await until(lambda: protocol.lost)
        assert isinstance(protocol.lost[0], ZeroDivisionError)
        assert len(reported) == 1

    run(main)


def test_exception_of_connection_lost(run: Run, reported: list[dict[str, Any]]) -> None:
    class Failing(Recorder):
        def connection_lost(self, exc: BaseException | None) -> None:
            super().connection_lost(exc)
            raise ZeroDivisionError

    async def main() -> None:
        async with connected_tls(Failing()) as (transport, protocol, _):
            transport.abort()
            await until(lambda: protocol.lost)
        await until(lambda: reported)
        assert isinstance(reported[0]["exception"], ZeroDivisionError)

    run(main)


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit])
def test_exceptions_that_leave_the_loop(loop: Loop, exception: type[BaseException]) -> None:
    class Failing(Recorder):
        def data_received(self, data: bytes) -> None:
            raise exception

    async def main() -> None:
        async with connected_tls(Failing()) as (_, protocol, peer):
            await peer.send(b"data")
            await until(lambda: protocol.lost)

    task = loop.create_task(main())
    with pytest.raises(exception):
        loop.run_until_complete(task)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        loop.run_until_complete(task)


# --- the handshake


def test_handshake_timeout_of_a_client(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with tcp_pair() as (near, _far):
            text = "SSL handshake is taking longer than 0.05 seconds: aborting the connection"
            with pytest.raises(ConnectionAbortedError, match=f"^{text}$"):
                await loop.create_connection(
                    Recorder,
                    sock=near,
                    ssl=client_context(),
                    server_hostname=NAME,
                    ssl_handshake_timeout=0.05,
                )
            await turns(3)
            assert near.fileno() == -1

    run(main)


def test_handshake_timeout_of_a_server(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        protocol = Recorder()
        server = await loop.create_server(
            lambda: protocol, HOST, 0, ssl=server_context(), ssl_handshake_timeout=0.05
        )
        with socket.create_connection(server.sockets[0].getsockname()) as sock:
            sock.setblocking(False)
            assert await read_to_end(sock) == b""
        assert protocol.events == []
        server.close()
        await server.wait_closed()

    run(main)


@pytest.mark.parametrize("how", ["close", "reset"])
def test_peer_goes_away_during_the_handshake(run: Run, how: str) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with tcp_pair() as (near, far):
            connecting = asyncio.ensure_future(
                loop.create_connection(
                    Recorder, sock=near, ssl=client_context(), server_hostname=NAME
                )
            )
            await asyncio.sleep(0.02)
            if how == "reset":
                linger = struct.pack("ii", 1, 0)
                far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            else:
                far.recv(1 << 16)
            far.close()
            with pytest.raises(ConnectionResetError):
                await connecting

    run(main)


@pytest.mark.parametrize("delay", [None, 0, 0.02])
def test_cancel_during_the_handshake(run: Run, delay: float | None) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        protocol = Recorder()
        with tcp_pair() as (near, _far):
            connecting = asyncio.ensure_future(
                loop.create_connection(
                    lambda: protocol, sock=near, ssl=client_context(), server_hostname=NAME
                )
            )
            if delay is not None:
                await asyncio.sleep(delay)
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting
            if delay is None:
                return  # it had not begun
            if delay == 0 and is_stock(loop):
                return  # asyncio goes on with the handshake
            await turns(4)
            assert near.fileno() == -1
            assert protocol.events == []

    run(main)


def test_connection_that_comes_and_goes_leaves_the_server_serving(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Recorder, HOST, 0, ssl=server_context())
        address = server.sockets[0].getsockname()
        for data in (b"", b"\x16\x03\x01", b"garbage" * 10):
            with socket.create_connection(address) as sock:
                sock.send(data)
            await asyncio.sleep(0.01)
        transport, protocol = await loop.create_connection(
            Recorder, *address, ssl=client_context(), server_hostname=NAME
        )
        transport.close()
        await until(lambda: protocol.lost)
        server.close()
        await server.wait_closed()

    run(main)


def test_server_closes_its_clients(rondel_loop: Loop) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        protocols: list[Recorder] = []

        def factory() -> Recorder:
            protocols.append(Recorder())
            return protocols[-1]

        server = await loop.create_server(factory, HOST, 0, ssl=server_context())
        port = server.sockets[0].getsockname()[1]
        _, client = await loop.create_connection(
            Recorder, HOST, port, ssl=client_context(), server_hostname=NAME
        )
        await until(lambda: protocols and protocols[0].events)
        server.close()
        server.abort_clients()  # type: ignore[attr-defined]
        await server.wait_closed()
        await until(lambda: client.lost and protocols[0].lost)

    rondel_loop.run_until_complete(asyncio.wait_for(main(), 10))


def test_debug_mode_tells_of_the_handshake(
    loop: Loop, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "asyncio")
    loop.set_debug(True)

    async def main() -> None:
        async with connected_tls() as (_, protocol, peer):
            peer.sock.close()
            await until(lambda: protocol.lost)
        texts = "\n".join(record.getMessage() for record in caplog.records)
        for text in ("starts SSL handshake", ": SSL handshake took ", "received EOF"):
            assert text in texts

    run(main)


def test_listener_in_the_middle_of_nothing(run: Run) -> None:
    """A client whose server never accepts: the time limit holds."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with listening_socket() as listener:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await loop.create_connection(
                        Recorder,
                        *listener.getsockname(),
                        ssl=client_context(),
                        server_hostname=NAME,
                    )

    run(main)


def test_failed_handshake_leaves_no_cycle(loop: Loop, run: Run) -> None:
    skip_if_asyncio_errs(loop, "the exception and its frame refer to each other", until=(3, 14, 10))

    async def main() -> None:
        refs: list[weakref.ref[Any]] = []

        def factory() -> Recorder:
            protocol = Recorder()
            refs.append(weakref.ref(protocol))
            return protocol

        with tcp_pair() as (near, far):
            shaking = asyncio.ensure_future(Peer(far, server_context()).handshake())
            with contextlib.suppress(ssl.SSLCertVerificationError):
                await loop.create_connection(
                    factory, sock=near, ssl=client_context(), server_hostname="other"
                )
                raise AssertionError("the name was not verified")
            with contextlib.suppress(ConnectionError):
                await shaking
        await turns(3)
        assert [ref() for ref in refs] == [None]

    gc.collect()
    gc.disable()
    try:
        run(main)
    finally:
        gc.enable()
