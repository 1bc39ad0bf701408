"""asyncio's streams on the loop."""

import asyncio
import contextlib
import random
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from support import HOST, listening_socket, read_to_end, tcp_pair, until

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def served(
    handler: Handler, **kwargs: Any
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A stream to a server that runs handler for it; handler's exceptions reach the test."""
    failures: list[BaseException] = []
    ended = asyncio.Event()

    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except BaseException as exc:
            failures.append(exc)
        finally:
            writer.close()
            ended.set()

    server = await asyncio.start_server(guarded, HOST, 0, **kwargs)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), **kwargs)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        await asyncio.wait_for(ended.wait(), 10)
        server.close()
        await server.wait_closed()
        if failures:
            raise failures[0]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


def test_echo(run: Run) -> None:
    async def main() -> None:
        async with served(echo) as (reader, writer):
            writer.write(b"hello\n")
            await writer.drain()
            assert await reader.readline() == b"hello\n"
            assert writer.can_write_eof()
            writer.write_eof()
            assert await reader.read() == b""
            assert reader.at_eof()

    run(main)


def test_readline(run: Run) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in (b"one\ntw", b"o\n\nthr", b"ee"):
            writer.write(part)
            await asyncio.sleep(0.002)

    async def main() -> None:
        async with served(handler) as (reader, _):
            lines = [await reader.readline() for _ in range(5)]
            assert lines == [b"one\n", b"two\n", b"\n", b"three", b""]

    run(main)


def test_async_for_over_lines(run: Run) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.writelines([b"one\n", b"two\n", b"tail"])

    async def main() -> None:
        async with served(handler) as (reader, _):
            assert [line async for line in reader] == [b"one\n", b"two\n", b"tail"]

    run(main)


def test_readexactly(run: Run) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for byte in b"abcdefg":
            writer.write(bytes([byte]))
            await asyncio.sleep(0)

    async def main() -> None:
        async with served(handler) as (reader, _):
            assert await reader.readexactly(0) == b""
            assert await reader.readexactly(3) == b"abc"
            assert await reader.readexactly(3) == b"def"
            with pytest.raises(asyncio.IncompleteReadError) as caught:
                await reader.readexactly(3)
            assert (caught.value.partial, caught.value.expected) == (b"g", 3)
            with pytest.raises(ValueError, match="readexactly size can not be less than zero"):
                await reader.readexactly(-1)

    run(main)


def test_readuntil(run: Run) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"first--second-")
        await asyncio.sleep(0.002)
        writer.write(b"-third")

    async def main() -> None:
        async with served(handler) as (reader, _):
            assert await reader.readuntil(b"--") == b"first--"
            assert await reader.readuntil(b"--") == b"second--"
            with pytest.raises(asyncio.IncompleteReadError) as caught:
                await reader.readuntil(b"--")
            assert caught.value.partial == b"third"

    run(main)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="several separators are new in 3.13")
def test_readuntil_of_several_separators(run: Run) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"one;two--three")

    async def main() -> None:
        async with served(handler) as (reader, _):
            assert await reader.readuntil((b"--", b";")) == b"one;"  # type: ignore[arg-type]
            assert await reader.readuntil((b"--", b";")) == b"two--"  # type: ignore[arg-type]

    run(main)


def test_limit(run: Run) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * 500 + b"\n" + b"short\n")
        await reader.read()

    async def main() -> None:
        async with served(handler, limit=100) as (reader, writer):
            with pytest.raises(
                ValueError, match="Separator is (found, but chunk|not found, and chunk)"
            ):
                await reader.readline()
            assert await reader.readline() == b"short\n"
            writer.write_eof()

    run(main)


def test_limit_pauses_the_transport(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with tcp_pair() as (near, far):
            reader, writer = await asyncio.open_connection(sock=near, limit=1000)
            data = random.Random(1).randbytes(8 << 20)
            sender = asyncio.ensure_future(loop.sock_sendall(far, data))
            await asyncio.sleep(0.05)
            # The reader stopped taking long before the end.
            assert not sender.done()
            assert not writer.transport.is_reading()  # type: ignore[attr-defined]
            received = bytearray()
            while len(received) < len(data):
                received += await reader.read(100_000)
            assert received == data
            await sender
            writer.close()

    run(main)


def test_read_sizes(run: Run) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"abcdefgh")
        writer.close()

    async def main() -> None:
        async with served(handler) as (reader, _):
            assert await reader.read(0) == b""
            assert await reader.read(3) == b"abc"
            assert await reader.read(-1) == b"defgh"
            assert await reader.read(10) == b""

    run(main)


def test_drain_waits_for_a_slow_reader(run: Run) -> None:
    async def main() -> None:
        with tcp_pair(small=True) as (near, far):
            _, writer = await asyncio.open_connection(sock=near)
            writer.write(b"small")
            await asyncio.wait_for(writer.drain(), 5)
            data = random.Random(1).randbytes(1 << 20)
            writer.write(data)
            draining = asyncio.ensure_future(writer.drain())
            await asyncio.sleep(0.02)
            assert not draining.done()
            writer.close()
            assert await read_to_end(far) == b"small" + data
            await draining
            await writer.wait_closed()

    run(main)


def test_drain_after_the_loss_raises(run: Run) -> None:
    async def main() -> None:
        with tcp_pair(small=True) as (near, far):
            _, writer = await asyncio.open_connection(sock=near)
            writer.write(bytes(1 << 20))
            draining = asyncio.ensure_future(writer.drain())
            await asyncio.sleep(0.01)
            far.close()
            with pytest.raises(ConnectionError):
                await draining
            with pytest.raises(ConnectionError):
                await writer.drain()
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    run(main)


def test_ten_megabytes_both_ways_at_once(run: Run) -> None:
    size = 10 << 20
    down, up = random.Random(1).randbytes(size), random.Random(2).randbytes(size)

    async def send(writer: asyncio.StreamWriter, data: bytes) -> None:
        view = memoryview(data)
        for start in range(0, size, 50_001):
            writer.write(view[start : start + 50_001])
            await writer.drain()
        writer.write_eof()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, received = await asyncio.gather(send(writer, down), reader.read())
        assert received == up

    async def main() -> None:
        async with served(handler) as (reader, writer):
            _, received = await asyncio.gather(send(writer, up), reader.read())
            assert received == down

    run(main)


def test_many_clients_at_once(run: Run) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.readline()).upper())
        await writer.drain()
        writer.close()

    async def visit(address: tuple[str, int], number: int) -> bytes:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"client %d\n" % number)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer

    async def main() -> None:
        async with await asyncio.start_server(handler, HOST, 0, backlog=300) as server:
            address = server.sockets[0].getsockname()
            answers = await asyncio.gather(*(visit(address, i) for i in range(200)))
            assert answers == [b"CLIENT %d\n" % i for i in range(200)]

    run(main)


def test_handler_may_be_a_plain_function(run: Run) -> None:
    async def main() -> None:
        writers: list[asyncio.StreamWriter] = []
        server = await asyncio.start_server(lambda r, w: writers.append(w), HOST, 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        await until(lambda: writers)
        writers[0].write(b"hello")
        writers[0].close()
        assert await reader.read() == b"hello"
        writer.close()
        server.close()
        await server.wait_closed()

    run(main)


def test_handler_that_fails_is_reported_and_closed(
    run: Run, reported: list[dict[str, Any]]
) -> None:
    error = ValueError("mine")

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise error

    async def main() -> None:
        server = await asyncio.start_server(handler, HOST, 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        await until(lambda: reported)
        (context,) = reported
        assert context["message"] == "Unhandled exception in client_connected_cb"
        assert context["exception"] is error
        if sys.version_info >= (3, 12):
            assert await reader.read() == b""
        writer.close()
        server.close()
        await asyncio.sleep(0.01)

    run(main)


def test_reader_keeps_what_came_before_a_reset(run: Run) -> None:
    import struct

    async def main() -> None:
        with tcp_pair() as (near, far):
            reader, writer = await asyncio.open_connection(sock=near)
            far.send(b"before")
            assert await reader.readexactly(3) == b"bef"
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            far.close()
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(10)
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()
            with pytest.raises(ConnectionResetError):
                await writer.wait_closed()

    run(main)


def test_extra_info_and_closing(run: Run) -> None:
    async def main() -> None:
        with tcp_pair() as (near, far):
            _, writer = await asyncio.open_connection(sock=near)
            assert writer.get_extra_info("peername") == far.getsockname()
            assert writer.get_extra_info("nothing", 7) == 7
            assert not writer.is_closing()
            writer.close()
            assert writer.is_closing()
            await writer.wait_closed()
            await writer.wait_closed()

    run(main)


def test_start_server_on_a_socket(run: Run) -> None:
    async def main() -> None:
        with listening_socket() as sock:
            server = await asyncio.start_server(echo, sock=sock)
            reader, writer = await asyncio.open_connection(*sock.getsockname())
            writer.write(b"hello")
            writer.write_eof()
            assert await reader.read() == b"hello"
            writer.close()
            server.close()
            await server.wait_closed()

    run(main)


def test_two_readers_at_once_are_refused(run: Run) -> None:
    async def main() -> None:
        async with served(echo) as (reader, writer):
            first = asyncio.ensure_future(reader.readexactly(5))
            await asyncio.sleep(0)
            with pytest.raises(
                RuntimeError,
                match=r"readexactly\(\) called while another coroutine is already waiting",
            ):
                await reader.readexactly(5)
            writer.write(b"hello")
            assert await first == b"hello"
            writer.write_eof()

    run(main)


def test_timeout_of_a_read_leaves_the_stream_usable(run: Run) -> None:
    async def main() -> None:
        async with served(echo) as (reader, writer):
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.005):
                        await reader.readline()
            writer.write(b"still fine\n")
            assert await reader.readline() == b"still fine\n"
            writer.write_eof()

    run(main)
