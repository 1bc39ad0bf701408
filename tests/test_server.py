"""Server: serving, closing, waiting for the end, its clients."""

import asyncio
import contextlib
import gc
import socket
import sys
import warnings
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from support import HOST, Recorder, listening_socket, skip_if_asyncio_errs, until

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]

#: Since 3.12.1 wait_closed waits for the connections, and for a server that is still open.
WAITS = sys.version_info >= (3, 12, 1)
knows_clients = pytest.mark.skipif(
    sys.version_info < (3, 13), reason="close_clients and abort_clients are new in 3.13"
)


class Serving:
    """A server on the loop, its protocols, and plain sockets that visit it."""

    def __init__(self, server: asyncio.Server, made: list[Recorder]) -> None:
        self.server, self.made = server, made
        self.address = server.sockets[0].getsockname()
        self.visitors: list[socket.socket] = []

    async def visit(self) -> tuple[socket.socket, Recorder]:
        """Connect a plain socket; return it and the protocol at the server's end."""
        before = len(self.made)
        sock = socket.create_connection(self.address, timeout=5)
        sock.setblocking(False)
        self.visitors.append(sock)
        await until(lambda: len(self.made) > before and self.made[-1].events)
        return sock, self.made[-1]


@contextlib.asynccontextmanager
async def serving(**kwargs: Any) -> AsyncIterator[Serving]:
    loop = asyncio.get_running_loop()
    made: list[Recorder] = []

    def factory() -> Recorder:
        made.append(Recorder())
        return made[-1]

    server = await loop.create_server(factory, HOST, 0, **kwargs)
    running = Serving(server, made)
    try:
        yield running
    finally:
        server.close()
        for sock in running.visitors:
            sock.close()
        await until(lambda: all(protocol.lost for protocol in made))
        await asyncio.sleep(0)


def refused(address: tuple[str, int]) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(address) != 0


def test_type_loop_and_repr(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with serving() as s:
            assert isinstance(s.server, asyncio.AbstractServer)
            assert s.server.get_loop() is loop
            assert repr(s.server) == f"<{type(s.server).__name__} sockets={s.server.sockets!r}>"
            assert type(s.server).__name__ == "Server"
            assert s.server.is_serving() is True

    run(main)


def test_sockets_are_transport_sockets(run: Run) -> None:
    async def main() -> None:
        async with serving() as s:
            sockets = s.server.sockets
            assert type(sockets) is tuple
            (sock,) = sockets
            assert isinstance(sock, asyncio.trsock.TransportSocket)
            assert sock.family == socket.AF_INET
            assert sock.getsockname() == s.address
            with pytest.raises(AttributeError):
                sock.close()
            s.server.close()
            assert s.server.sockets == ()

    run(main)


def test_close_stops_listening_at_once_and_keeps_the_connections(run: Run) -> None:
    async def main() -> None:
        async with serving() as s:
            sock, protocol = await s.visit()
            s.server.close()
            assert s.server.is_serving() is False
            assert refused(s.address)
            sock.send(b"still here")
            await until(lambda: protocol.data == b"still here")
            s.server.close()

    run(main)


def test_start_serving_twice_is_harmless(run: Run) -> None:
    async def main() -> None:
        async with serving(start_serving=False) as s:
            assert s.server.is_serving() is False
            await s.server.start_serving()
            await s.server.start_serving()
            assert s.server.is_serving() is True
            await s.visit()

    run(main)


def test_private_names_that_programs_read(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with serving() as s:
            server: Any = s.server
            assert [sock.getsockname() for sock in server._sockets] == [s.address]
            assert server._waiters == []
            assert server._loop is loop
            assert server._ssl_context is None
            server.close()
            assert server._sockets is None

    run(main)


def test_async_with_closes(loop: Loop, run: Run) -> None:
    async def main() -> None:
        server = await loop.create_server(Recorder, HOST, 0)
        address = server.sockets[0].getsockname()
        async with server as entered:
            assert entered is server
            assert server.is_serving()
        assert not server.is_serving()
        assert refused(address)

    run(main)


def test_server_without_references_goes_on_serving(loop: Loop, run: Run) -> None:
    async def main() -> None:
        listener = listening_socket()
        address = listener.getsockname()
        made: list[Recorder] = []

        def factory() -> Recorder:
            made.append(Recorder())
            return made[-1]

        await loop.create_server(factory, sock=listener)
        del listener
        gc.collect()
        with socket.create_connection(address, timeout=5) as sock:
            sock.sendall(b"anyone?")
            await until(lambda: made and made[0].data)
        await until(lambda: made[0].lost)

    with warnings.catch_warnings():
        # The socket of a server that nobody closed warns when the loop goes.
        warnings.simplefilter("ignore", ResourceWarning)
        run(main)
        loop.close()
        gc.collect()


# --- serve_forever -----------------------------------------------------------------------------


def test_serve_forever_starts_serving_until_it_is_cancelled(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with serving(start_serving=False) as s:
            task = loop.create_task(s.server.serve_forever())
            await until(s.server.is_serving)
            sock, protocol = await s.visit()
            sock.close()
            await until(lambda: protocol.lost)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert s.server.sockets == ()
            assert not s.server.is_serving()

    run(main)


def test_serve_forever_twice_is_refused(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with serving() as s:
            task = loop.create_task(s.server.serve_forever())
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError) as caught:
                await s.server.serve_forever()
            assert str(caught.value) == (
                f"server {s.server!r} is already being awaited on serve_forever()"
            )
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(main)


def test_serve_forever_on_a_closed_server_is_refused(run: Run) -> None:
    async def main() -> None:
        async with serving() as s:
            s.server.close()
            with pytest.raises(RuntimeError) as caught:
                await s.server.serve_forever()
            assert str(caught.value) == f"server {s.server!r} is closed"

    run(main)


def test_close_ends_serve_forever(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with serving() as s:
            task = loop.create_task(s.server.serve_forever())
            await asyncio.sleep(0)
            s.server.close()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(main)


@pytest.mark.skipif(sys.version_info < (3, 12, 1), reason="it does not wait yet")
def test_cancelled_serve_forever_and_its_connections(loop: Loop, run: Run) -> None:
    """From 3.14 on a cancelled serve_forever closes them, before it waited for their end."""
    closes = sys.version_info >= (3, 14)

    async def main() -> None:
        async with serving() as s:
            task = loop.create_task(s.server.serve_forever())
            sock, protocol = await s.visit()
            task.cancel()
            await asyncio.sleep(0.02)
            if not closes:
                assert not task.done()
                assert protocol.lost == []
                sock.close()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: protocol.lost)
            assert protocol.lost == [None]

    run(main)


# --- wait_closed -------------------------------------------------------------------------------


def test_wait_closed_without_connections(run: Run) -> None:
    async def main() -> None:
        async with serving() as s:
            s.server.close()
            assert await s.server.wait_closed() is None  # type: ignore[func-returns-value]
            assert await s.server.wait_closed() is None  # type: ignore[func-returns-value]
            assert s.server._waiters is None  # type: ignore[attr-defined]

    run(main)


def test_wait_closed_on_an_open_server_waits(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with serving() as s:
            task = loop.create_task(s.server.wait_closed())
            await asyncio.sleep(0.01)
            assert not task.done()
            assert len(s.server._waiters) == 1  # type: ignore[attr-defined]
            s.server.close()
            await task

    run(main)


def test_wait_closed_and_open_connections(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with serving() as s:
            first, _ = await s.visit()
            second, protocol = await s.visit()
            s.server.close()
            task = loop.create_task(s.server.wait_closed())
            await asyncio.sleep(0.01)
            if not WAITS:
                # In 3.11 it returned as soon as the server was closed.
                assert task.done()
                return
            assert not task.done()
            first.close()
            await asyncio.sleep(0.01)
            assert not task.done()
            second.close()
            await task
            assert protocol.lost == [None]

    run(main)


@pytest.mark.skipif(not WAITS, reason="it does not wait for connections yet")
def test_wait_closed_begun_before_close_waits_for_both(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with serving() as s:
            sock, protocol = await s.visit()
            tasks = [loop.create_task(s.server.wait_closed()) for _ in range(3)]
            await asyncio.sleep(0.01)
            sock.close()
            await until(lambda: protocol.lost)
            await asyncio.sleep(0.01)
            assert not any(task.done() for task in tasks)
            s.server.close()
            await asyncio.gather(*tasks)

    run(main)


def test_cancelled_wait_closed_does_not_disturb_the_others(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with serving() as s:
            first = loop.create_task(s.server.wait_closed())
            second = loop.create_task(s.server.wait_closed())
            await asyncio.sleep(0)
            first.cancel()
            await asyncio.sleep(0)
            s.server.close()
            await second
            assert first.cancelled()

    run(main)


@pytest.mark.skipif(not WAITS, reason="it does not wait for connections yet")
def test_wait_closed_after_transports_were_dropped(loop: Loop, run: Run) -> None:
    """A transport that was collected no longer counts as a connection."""
    skip_if_asyncio_errs(loop, "an abandoned transport is waited for", until=(3, 13))
    transports: list[Any] = []

    class Dropping(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            transport.pause_reading()
            transports.append(transport)

    async def main() -> None:
        server = await loop.create_server(Dropping, HOST, 0)
        with socket.create_connection(server.sockets[0].getsockname()):
            await until(lambda: transports)
            await asyncio.sleep(0.01)
            server.close()
            task = loop.create_task(server.wait_closed())
            await asyncio.sleep(0)
            assert not task.done()
            with pytest.warns(ResourceWarning, match="unclosed transport"):
                transports.clear()
                gc.collect()
            await asyncio.wait_for(task, 5)

    run(main)


# --- clients -----------------------------------------------------------------------------------


@knows_clients
def test_close_clients_flushes_and_closes(run: Run) -> None:
    async def main() -> None:
        async with serving() as s:
            visits = [await s.visit() for _ in range(3)]
            for _, protocol in visits:
                protocol.transport.write(b"goodbye")
            s.server.close()
            s.server.close_clients()
            assert all(protocol.transport.is_closing() for _, protocol in visits)
            await asyncio.wait_for(s.server.wait_closed(), 5)
            assert [protocol.lost for _, protocol in visits] == [[None]] * 3
            for sock, _ in visits:
                assert sock.recv(20) == b"goodbye"
                assert sock.recv(20) == b""

    run(main)


@knows_clients
def test_close_clients_leaves_the_server_open(run: Run) -> None:
    async def main() -> None:
        async with serving() as s:
            _, protocol = await s.visit()
            s.server.close_clients()
            await until(lambda: protocol.lost)
            assert s.server.is_serving()
            _, protocol = await s.visit()
            assert protocol.lost == []

    run(main)


@knows_clients
def test_abort_clients_drops_what_is_unsent(run: Run) -> None:
    async def main() -> None:
        async with serving() as s:
            sock, protocol = await s.visit()
            size = 32 << 20
            protocol.transport.write(bytes(size))
            assert protocol.transport.get_write_buffer_size() > 0
            s.server.close()
            s.server.abort_clients()
            await asyncio.wait_for(s.server.wait_closed(), 5)
            assert protocol.lost == [None]
            received = 0
            with contextlib.suppress(ConnectionResetError):
                while chunk := sock.recv(1 << 20):
                    received += len(chunk)
            assert received < size

    run(main)
