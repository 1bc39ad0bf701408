"""create_connection to an address, which rondel does natively: nobody can tell from outside."""

import asyncio
import gc
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from support import HOST, Recorder, finish, listener, needs_ipv6, turns, until, unused_port

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]


class Shy(Recorder):
    """Stops reading as soon as it is connected."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.shown = repr(transport)
        self.transport.pause_reading()


async def greet(sock: socket.socket, greeting: bytes) -> None:
    """Accept one connection, say something and close it."""
    accepted: list[socket.socket] = []

    def accept() -> bool:
        try:
            accepted.append(sock.accept()[0])
        except BlockingIOError:
            return False
        return True

    await until(accept)
    with accepted[0]:
        accepted[0].sendall(greeting)


@pytest.mark.parametrize("late", [0, 3])
def test_what_the_peer_says_first_is_read(loop: Loop, run: Run, late: int) -> None:
    async def main() -> None:
        async with listener() as (sock, port):
            greeting = asyncio.ensure_future(greet(sock, b"220 hello"))
            await turns(late)
            _, protocol = await loop.create_connection(Recorder, HOST, port)
            await greeting
            await until(lambda: protocol.lost)
            assert protocol.data == b"220 hello"
            assert protocol.events == ["made", "data", "eof", "lost"]

    run(main)


def test_many_peers_that_speak_first(loop: Loop, run: Run) -> None:
    """The greeting may come with the event that tells of the connection, or at any time later."""

    class Greeter(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            transport.write(b"220 hello")
            transport.close()

    async def one(port: int) -> None:
        _, protocol = await loop.create_connection(Recorder, HOST, port)
        await until(lambda: protocol.lost)
        assert protocol.data == b"220 hello"
        assert protocol.lost == [None]

    async def main() -> None:
        server = await loop.create_server(Greeter, HOST, 0)
        port = server.sockets[0].getsockname()[1]
        await asyncio.gather(*(one(port) for _ in range(50)))
        server.close()

    run(main)


def test_pausing_in_connection_made(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with listener() as (sock, port):
            greeting = asyncio.ensure_future(greet(sock, b"220 hello"))
            transport, protocol = await loop.create_connection(Shy, HOST, port)
            await greeting
            await turns(5)
            assert protocol.events == ["made"]
            assert "read=idle" in protocol.shown
            transport.resume_reading()
            await until(lambda: protocol.lost)
            assert protocol.data == b"220 hello"

    run(main)


def test_a_paused_transport_that_is_dropped_is_closed(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with listener() as (sock, port):
            transport, protocol = await loop.create_connection(Shy, HOST, port)
            accepted: list[socket.socket] = []
            await until(lambda: accepted or accepted.append(sock.accept()[0]))
            with pytest.warns(ResourceWarning, match="unclosed transport"):
                protocol.transport = None
                del transport, protocol
                gc.collect()
            with accepted[0]:
                await until(lambda: accepted[0].recv(1) == b"")

    run(main)


def test_closed_in_connection_made(loop: Loop, run: Run) -> None:
    class Brief(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.write(b"bye")
            self.transport.abort()

    async def main() -> None:
        async with listener() as (_, port):
            transport, protocol = await loop.create_connection(Brief, HOST, port)
            assert transport.is_closing()
            await until(lambda: protocol.lost)
            assert protocol.events == ["made", "lost"]

    run(main)


def test_cancelled_between_connecting_and_connection_made(loop: Loop, run: Run) -> None:
    made: list[Recorder] = []

    def factory() -> Recorder:
        task.cancel()
        made.append(Recorder())
        return made[-1]

    async def main() -> None:
        nonlocal task
        async with listener() as (_, port):
            task = asyncio.ensure_future(loop.create_connection(factory, HOST, port))
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: made[0].lost)
            assert made[0].events == ["made", "lost"]

    task: asyncio.Future[Any] = None  # type: ignore[assignment]
    run(main)


def test_what_is_no_protocol(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with listener() as (_, port):
            with pytest.raises(AttributeError, match="connection_made"):
                await loop.create_connection(object, HOST, port)  # type: ignore[arg-type]

    run(main)


@needs_ipv6
def test_refused_over_ipv6(loop: Loop, run: Run) -> None:
    async def main() -> None:
        port = unused_port()
        with pytest.raises(ConnectionRefusedError) as caught:
            await loop.create_connection(Recorder, "::1", port)
        assert caught.value.strerror == f"Connect call failed ('::1', {port}, 0, 0)"

    run(main)


def test_an_address_that_cannot_be_reached_at_all(loop: Loop, run: Run) -> None:
    async def main() -> None:
        # A broadcast address is refused by connect() itself.
        with pytest.raises(OSError) as caught:
            await loop.create_connection(Recorder, "255.255.255.255", 9)
        expected = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        with expected, pytest.raises(OSError) as blocking:
            expected.connect(("255.255.255.255", 9))
        assert caught.value.args == blocking.value.args
        assert type(caught.value) is type(blocking.value)

    run(main)


def test_the_unspecified_address_has_the_loopback_as_its_peer(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with listener() as (_, port):
            transport, _ = await loop.create_connection(Recorder, "0.0.0.0", port)
            assert transport.get_extra_info("peername") == (HOST, port)
            sock = transport.get_extra_info("socket")
            assert sock.getsockname() == transport.get_extra_info("sockname")
            assert (sock.family, sock.type, sock.proto, sock.gettimeout()) == (
                socket.AF_INET,
                socket.SOCK_STREAM,
                socket.IPPROTO_TCP,
                0.0,
            )
            await finish(transport)

    run(main)


def test_steps_that_the_program_replaces_are_taken(
    loop: Loop, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    own = loop.sock_connect

    async def sock_connect(sock: socket.socket, address: Any) -> None:
        seen.append("sock_connect")
        await own(sock, address)

    class Counted(socket.socket):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            seen.append("socket")
            super().__init__(*args, **kwargs)

    async def connect() -> None:
        async with listener() as (_, port):
            seen.clear()
            transport, _ = await loop.create_connection(Recorder, HOST, port)
            await finish(transport)

    monkeypatch.setattr(loop, "sock_connect", sock_connect)
    run(connect)
    assert seen == ["sock_connect"]
    monkeypatch.undo()
    monkeypatch.setattr(socket, "socket", Counted)
    run(connect)
    assert seen[:1] == ["socket"]


AUDITED = """
import asyncio, json, socket, sys

def hook(event, args):
    if event == "socket.connect" and isinstance(args[0], socket.socket):
        seen.append(list(args[1]))
        if args[1][1] == forbidden:
            raise PermissionError("not there")

seen, forbidden = [], None
sys.addaudithook(hook)
if sys.argv[1] == "rondel":
    from rondel import new_event_loop
else:
    new_event_loop = asyncio.SelectorEventLoop

async def main():
    global forbidden
    loop = asyncio.get_running_loop()
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    (await loop.create_connection(asyncio.Protocol, "127.0.0.1", port))[0].close()
    assert seen == [["127.0.0.1", port]], seen
    forbidden = port
    try:
        await loop.create_connection(asyncio.Protocol, "127.0.0.1", port)
    except PermissionError as error:
        print(json.dumps(str(error)))
    server.close()

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
"""


@pytest.mark.parametrize("kind", ["asyncio", "rondel"])
def test_audit_hooks_see_connections_and_may_refuse_them(kind: str) -> None:
    command = [sys.executable, "-c", AUDITED, kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=25, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == "not there"
