"""BufferedProtocol: reading into the protocol's own buffer."""

import asyncio
import random
import socket
from collections.abc import Callable
from typing import Any

import pytest
from support import Recorder, connected, until

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]


class Buffered(asyncio.BufferedProtocol):
    """Reads into a buffer of a given size and writes down what it is told."""

    def __init__(self, size: int = 1000) -> None:
        self.buffer: Any = bytearray(size)
        self.events: list[Any] = []
        self.hints: list[int] = []
        self.data = bytearray()
        self.lost: list[BaseException | None] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.events.append("made")

    def get_buffer(self, sizehint: int) -> Any:
        self.hints.append(sizehint)
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.events.append(nbytes)
        self.data += memoryview(self.buffer)[:nbytes]

    def eof_received(self) -> bool | None:
        self.events.append("eof")
        return None

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost.append(exc)
        self.events.append("lost")


def test_data_lands_in_the_buffer(run: Run) -> None:
    async def main() -> None:
        async with connected(Buffered()) as (_, protocol, peer):
            peer.send(b"hello")
            await until(lambda: protocol.data == b"hello")
            assert protocol.buffer[:5] == b"hello"
            peer.send(b"again")
            peer.shutdown(socket.SHUT_WR)
            await until(lambda: protocol.lost)
            assert protocol.events == ["made", 5, 5, "eof", "lost"]
            assert protocol.lost == [None]
            # asyncio does not know how much will come.
            assert set(protocol.hints) == {-1}

    run(main)


@pytest.mark.parametrize("size", [1, 7, 65536, 1 << 20])
def test_buffers_of_every_size(run: Run, size: int) -> None:
    async def main() -> None:
        data = random.Random(1).randbytes(20_000 if size < 100 else 3 << 20)
        loop = asyncio.get_running_loop()
        async with connected(Buffered(size)) as (_, protocol, peer):
            sender = asyncio.ensure_future(loop.sock_sendall(peer, data))
            await until(lambda: len(protocol.data) == len(data))
            await sender
            assert protocol.data == data
            assert max(n for n in protocol.events if isinstance(n, int)) <= size

    run(main)


@pytest.mark.parametrize(
    "wrap",
    [
        bytearray,
        lambda buffer: memoryview(buffer),
        lambda buffer: memoryview(buffer)[100:],
        lambda buffer: memoryview(buffer)[5:6],
    ],
    ids=["bytearray", "view", "view from the middle", "one byte"],
)
def test_buffer_may_be_a_view(run: Run, wrap: Any) -> None:
    class Viewed(Buffered):
        def __init__(self) -> None:
            super().__init__()
            self.buffer = wrap(bytearray(1000))

    async def main() -> None:
        async with connected(Viewed()) as (_, protocol, peer):
            peer.send(b"hello")
            await until(lambda: protocol.data == b"hello")

    run(main)


def test_buffer_is_asked_for_before_every_read(run: Run) -> None:
    class Fresh(Buffered):
        def get_buffer(self, sizehint: int) -> Any:
            self.buffer = bytearray(3)
            return super().get_buffer(sizehint)

    async def main() -> None:
        async with connected(Fresh()) as (_, protocol, peer):
            peer.send(b"abcdefgh")
            await until(lambda: protocol.data == b"abcdefgh")
            assert [n for n in protocol.events if isinstance(n, int)] == [3, 3, 2]
            assert len(protocol.hints) >= 3

    run(main)


def test_buffer_is_free_again_in_buffer_updated(run: Run) -> None:
    """No export of the buffer is kept: the protocol may resize it."""

    class Growing(Buffered):
        def buffer_updated(self, nbytes: int) -> None:
            super().buffer_updated(nbytes)
            self.buffer.extend(bytes(10))

    async def main() -> None:
        async with connected(Growing(4)) as (_, protocol, peer):
            peer.send(b"abcdefghijkl")
            await until(lambda: protocol.data == b"abcdefghijkl")
            assert [n for n in protocol.events if isinstance(n, int)] == [4, 8]

    run(main)


def test_empty_buffer_is_an_error(run: Run, reported: list[dict[str, Any]]) -> None:
    async def main() -> None:
        async with connected(Buffered(0)) as (transport, protocol, peer):
            peer.send(b"hello")
            await until(lambda: protocol.lost)
            (context,) = reported
            assert context["message"] == "Fatal error: protocol.get_buffer() call failed."
            assert isinstance(context["exception"], RuntimeError)
            assert str(context["exception"]) == "get_buffer() returned an empty buffer"
            assert context["transport"] is transport
            assert context["protocol"] is protocol
            assert protocol.lost == [context["exception"]]

    run(main)


@pytest.mark.parametrize("wrong", [b"read only", None, 42, memoryview(b"read only")])
def test_buffer_that_cannot_be_written_is_an_error(
    run: Run, reported: list[dict[str, Any]], wrong: Any
) -> None:
    async def main() -> None:
        protocol = Buffered()
        protocol.buffer = wrong
        async with connected(protocol) as (transport, _, peer):
            peer.send(b"hello")
            await until(lambda: protocol.lost)
            (context,) = reported
            assert isinstance(context["exception"], TypeError)
            assert protocol.lost == [context["exception"]]
            # What has no length fails as the answer of get_buffer, the rest at the read.
            sized = isinstance(wrong, (bytes, memoryview))
            assert context["message"] == (
                "Fatal read error on socket transport"
                if sized
                else "Fatal error: protocol.get_buffer() call failed."
            )
            assert context["transport"] is transport

    run(main)


@pytest.mark.parametrize("method", ["get_buffer", "buffer_updated"])
def test_exception_in_the_protocol_is_fatal(
    run: Run, reported: list[dict[str, Any]], method: str
) -> None:
    error = ValueError("mine")

    class Failing(Buffered):
        pass

    def fail(self: Any, size: int) -> Any:
        raise error

    setattr(Failing, method, fail)

    async def main() -> None:
        async with connected(Failing()) as (transport, protocol, peer):
            peer.send(b"hello")
            await until(lambda: protocol.lost)
            assert protocol.lost == [error]
            assert transport.is_closing()
            assert reported == [
                {
                    "message": f"Fatal error: protocol.{method}() call failed.",
                    "exception": error,
                    "transport": transport,
                    "protocol": protocol,
                }
            ]

    run(main)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("method", ["get_buffer", "buffer_updated"])
def test_exit_in_the_protocol_leaves_the_loop(
    loop: Loop, kind: type[BaseException], method: str
) -> None:
    class Exiting(Buffered):
        def get_buffer(self, sizehint: int) -> Any:
            if method == "get_buffer" and not self.hints:
                self.hints.append(0)
                raise kind
            return super().get_buffer(sizehint)

        def buffer_updated(self, nbytes: int) -> None:
            super().buffer_updated(nbytes)
            if method == "buffer_updated" and len(self.events) == 2:
                raise kind

    async def main() -> Buffered:
        async with connected(Exiting()) as (_, protocol, peer):
            peer.send(b"hello")
            await until(lambda: protocol.data == b"hello" or protocol.lost)
            await asyncio.sleep(0)
            assert protocol.lost == []
            return protocol

    task = loop.create_task(main())
    with pytest.raises(kind):
        loop.run_until_complete(task)
    protocol = loop.run_until_complete(task)
    assert protocol.data == b"hello"
    assert protocol.lost == [None]


def test_pause_in_buffer_updated_takes_effect_at_once(run: Run) -> None:
    class Pausing(Buffered):
        def buffer_updated(self, nbytes: int) -> None:
            super().buffer_updated(nbytes)
            self.transport.pause_reading()

    async def main() -> None:
        async with connected(Pausing(4)) as (transport, protocol, peer):
            peer.send(b"abcdefghij")
            for expected in (b"abcd", b"abcdefgh", b"abcdefghij"):
                await until(lambda expected=expected: len(protocol.data) >= len(expected))
                await asyncio.sleep(0.005)
                assert protocol.data == expected
                transport.resume_reading()

    run(main)


def test_close_in_buffer_updated_ends_reading(run: Run) -> None:
    class Closing(Buffered):
        def buffer_updated(self, nbytes: int) -> None:
            super().buffer_updated(nbytes)
            self.transport.close()

    async def main() -> None:
        async with connected(Closing(4)) as (_, protocol, peer):
            peer.send(b"abcdefghij")
            await until(lambda: protocol.lost)
            assert protocol.events == ["made", 4, "lost"]

    run(main)


def test_close_in_get_buffer(run: Run) -> None:
    class Closing(Buffered):
        def get_buffer(self, sizehint: int) -> Any:
            self.transport.close()
            return super().get_buffer(sizehint)

    async def main() -> None:
        async with connected(Closing()) as (_, protocol, peer):
            peer.send(b"hello")
            await until(lambda: protocol.lost)
            await asyncio.sleep(0)
            assert protocol.events[-1] == "lost"
            assert protocol.lost == [None]

    run(main)


# --- switching ---------------------------------------------------------------------------------


def test_switch_from_protocol_to_buffered_protocol(run: Run) -> None:
    buffered = Buffered()

    class Switching(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.set_protocol(buffered)

    async def main() -> None:
        async with connected(Switching()) as (transport, plain, peer):
            peer.send(b"plain")
            await until(lambda: plain.data)
            assert transport.get_protocol() is buffered
            peer.send(b"buffered")
            await until(lambda: buffered.data == b"buffered")
            assert plain.data == b"plain"

    run(main)


def test_switch_from_buffered_protocol_to_protocol(run: Run) -> None:
    plain = Recorder()

    class Switching(Buffered):
        def buffer_updated(self, nbytes: int) -> None:
            super().buffer_updated(nbytes)
            self.transport.set_protocol(plain)

    async def main() -> None:
        async with connected(Switching(4)) as (transport, buffered, peer):
            peer.send(b"buffplain")
            await until(lambda: plain.data == b"plain")
            assert transport.get_protocol() is plain
            assert buffered.data == b"buff"
            peer.close()
            await until(lambda: plain.lost)
            assert buffered.lost == []

    run(main)


def test_protocol_is_buffered_by_its_class_not_by_its_methods(run: Run) -> None:
    class Looks(Recorder):
        def get_buffer(self, sizehint: int) -> Any:
            raise AssertionError("not a BufferedProtocol")

        def buffer_updated(self, nbytes: int) -> None:
            raise AssertionError("not a BufferedProtocol")

    async def main() -> None:
        async with connected(Looks()) as (_, protocol, peer):
            peer.send(b"hello")
            await until(lambda: protocol.data == b"hello")

    run(main)


def test_server_and_client_of_buffered_protocols(loop: Loop, run: Run) -> None:
    class Echo(Buffered):
        def buffer_updated(self, nbytes: int) -> None:
            super().buffer_updated(nbytes)
            self.transport.write(bytes(self.buffer[:nbytes]))

    async def main() -> None:
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        transport, client = await loop.create_connection(Buffered, *address)
        data = random.Random(2).randbytes(500_000)
        transport.write(data)
        await until(lambda: len(client.data) == len(data))
        assert client.data == data
        transport.close()
        server.close()
        await until(lambda: client.lost)

    run(main)
