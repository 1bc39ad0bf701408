"""A program closes a socket that it gave to the loop, and something else gets its number.

asyncio goes through the socket object and gets EBADF; whatever has the number now stays untouched.
"""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import HOST, Recorder, listening_socket, turns, until

Run = Callable[..., Any]
Taken = Callable[[socket.socket], contextlib.AbstractContextManager[socket.socket]]
Loop = asyncio.AbstractEventLoop


@pytest.fixture(params=["close", "detach"])
def taken(request: pytest.FixtureRequest) -> Taken:
    """A context manager that closes a socket and gives its number to one end of a new pair.

    It yields the other end, to which what is written to the number comes.
    """

    @contextlib.contextmanager
    def take(sock: socket.socket) -> Iterator[socket.socket]:
        number = sock.fileno()
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        if request.param == "close":
            sock.close()
        else:
            os.close(sock.detach())
        with far:
            with near:
                os.dup2(near.fileno(), number)
            try:
                yield far
                assert untouched(far)
            finally:
                os.close(number)

    return take


def untouched(far: socket.socket) -> bool:
    """Whether the other end is open, and nothing came from there."""
    try:
        far.recv(100)
    except BlockingIOError:
        return True
    return False


def write(transport: asyncio.Transport) -> None:
    transport.write(b"for nobody")


def write_twice(transport: asyncio.Transport) -> None:
    transport.write(b"for nobody")
    transport.write(b"and more")


def write_lines(transport: asyncio.Transport) -> None:
    transport.writelines([b"for ", b"nobody"])


def bad(exc: BaseException | None) -> bool:
    return isinstance(exc, OSError) and exc.errno == errno.EBADF


@pytest.mark.parametrize("use", [write, write_twice, write_lines])
def test_writing(run: Run, loop: Loop, taken: Taken, use: Callable[..., None]) -> None:
    async def main() -> None:
        near, far = socket.socketpair()
        transport, protocol = await loop.create_connection(Recorder, sock=near)
        with far, taken(near):
            use(transport)
            await until(lambda: protocol.lost)
            assert bad(protocol.lost[0])
            assert far.recv(100) == b""  # nothing was sent before

    run(main)


def test_ending_the_writing_half(run: Run, loop: Loop, taken: Taken) -> None:
    async def main() -> None:
        near, far = socket.socketpair()
        transport, protocol = await loop.create_connection(Recorder, sock=near)
        with far, taken(near):
            with pytest.raises(OSError) as caught:
                transport.write_eof()
            assert bad(caught.value)
            transport.abort()
            await until(lambda: protocol.lost)

    run(main)


class Wrapped:
    """Used like a socket, without being one."""

    def __init__(self, sock: socket.socket) -> None:
        self.real = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def test_an_object_that_is_no_socket(run: Run, loop: Loop, taken: Taken) -> None:
    async def main() -> None:
        near, far = socket.socketpair()
        sock: Any = Wrapped(near)
        transport, protocol = await loop.create_connection(Recorder, sock=sock)
        with far:
            transport.write(b"to")
            assert far.recv(100) == b"to"
            far.send(b"from")
            await until(lambda: protocol.data)
            assert protocol.data == b"from"
            with taken(near):
                transport.write(b"for nobody")
                await until(lambda: protocol.lost)
                assert bad(protocol.lost[0])

    run(main)


@pytest.mark.parametrize("how", ["close", "abort"])
def test_closing(run: Run, loop: Loop, taken: Taken, how: str) -> None:
    async def main() -> None:
        near, far = socket.socketpair()
        transport, protocol = await loop.create_connection(Recorder, sock=near)
        with far, taken(near):
            getattr(transport, how)()
            await until(lambda: protocol.lost)
            assert protocol.lost == [None]
            await turns(3)

    run(main)


def test_reading_goes_not_elsewhere(run: Run, loop: Loop, taken: Taken) -> None:
    async def main() -> None:
        near, far = socket.socketpair()
        transport, protocol = await loop.create_connection(Recorder, sock=near)
        with far, taken(near) as other:
            other.send(b"not for the transport")
            await asyncio.sleep(0.02)
            assert protocol.events == ["made"]
            transport.abort()
            await until(lambda: protocol.lost)

    run(main)


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.lost = False

    def error_received(self, exc: Exception) -> None:
        self.errors.append(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True


@pytest.mark.parametrize("connected", [True, False])
def test_datagrams(run: Run, loop: Loop, taken: Taken, connected: bool) -> None:
    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind((HOST, 0))
            near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            if connected:
                near.connect(peer.getsockname())
            transport, protocol = await loop.create_datagram_endpoint(Datagrams, sock=near)
            with taken(near):
                transport.sendto(b"for nobody", None if connected else peer.getsockname())
                await turns(2)
                assert bad(protocol.errors[0])
                transport.abort()
                await until(lambda: protocol.lost)

    run(main)


def test_a_server_lets_go_of_nothing_else(rondel_loop: Loop, taken: Taken) -> None:
    # asyncio's Server.close() raises ValueError here.
    async def main() -> None:
        listening = listening_socket()
        server = await rondel_loop.create_server(Recorder, sock=listening)
        number = listening.fileno()
        with taken(listening) as other:
            readable = asyncio.Event()
            rondel_loop.add_reader(number, readable.set)
            server.close()
            await turns(2)
            other.send(b"x")
            await asyncio.wait_for(readable.wait(), 10)
            rondel_loop.remove_reader(number)

    rondel_loop.run_until_complete(main())
