"""sendfile() and sock_sendfile(): by the system call, by the fall-back, and what ends them."""

import asyncio
import contextlib
import io
import os
import pathlib
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import (
    HOST,
    Recorder,
    counted_turns,
    in_thread,
    run_on,
    skip_if_asyncio_errs,
    tcp_pair,
    until,
)

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]

DATA = bytes(range(256)) * 4096 + b"the end"  # 1 MiB, and odd


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    return path


@contextlib.contextmanager
def received(sock: socket.socket) -> Iterator[bytearray]:
    """What a thread receives from the socket until its end; complete after the block."""
    got = bytearray()

    def receive() -> None:
        sock.settimeout(10)
        while data := sock.recv(65536):
            got.extend(data)

    with in_thread(receive) as thread:
        yield got
        thread.join(10)
        assert not thread.is_alive()


async def transport_of(loop: Loop, sock: socket.socket) -> tuple[Any, Recorder]:
    return await loop.create_connection(Recorder, sock=sock)


async def shut(transport: Any, protocol: Recorder) -> None:
    """Close, and wait until the socket is closed too."""
    transport.close()
    await until(lambda: protocol.lost)


PARTS = [
    (0, None, DATA),
    (5, None, DATA[5:]),
    (0, 1000, DATA[:1000]),
    (7, 600_000, DATA[7:600_007]),
    (len(DATA) - 3, 100, b"end"),
    (len(DATA), None, b""),
    (len(DATA) + 10, 5, b""),
]


@pytest.mark.parametrize("wrapped", [False, True], ids=["native", "fallback"])
@pytest.mark.parametrize(("offset", "count", "expected"), PARTS)
@pytest.mark.parametrize("to", ["sock", "transport"])
def test_parts_of_a_file(
    loop: Loop,
    run: Run,
    path: pathlib.Path,
    to: str,
    offset: int,
    count: int | None,
    expected: bytes,
    wrapped: bool,
) -> None:
    if wrapped and to == "transport":
        skip_if_asyncio_errs(loop, "it fills a buffer anew that was not sent yet", since=(3, 12))
    # What is no file with a descriptor goes through the fall-back.
    file: Any = io.BytesIO(DATA) if wrapped else path.open("rb")

    async def main() -> None:
        with tcp_pair(small=True) as (near, far), received(far) as got:
            if to == "sock":
                sent = await loop.sock_sendfile(near, file, offset, count)
                near.close()
            else:
                transport, protocol = await transport_of(loop, near)
                sent = await loop.sendfile(transport, file, offset, count)
                await shut(transport, protocol)
        assert sent == len(expected)
        assert bytes(got) == expected
        if sent:
            assert file.tell() == offset + sent
        elif sys.version_info >= (3, 14):
            assert file.tell() == offset
        else:
            assert file.tell() == (offset if wrapped else 0)

    with file:
        run(main)


def test_empty_file(loop: Loop, run: Run, tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty").touch()

    async def main() -> None:
        with tcp_pair() as (near, _), (tmp_path / "empty").open("rb") as file:
            assert await loop.sock_sendfile(near, file, fallback=False) == 0
            transport, _ = await transport_of(loop, near)
            assert await loop.sendfile(transport, file, fallback=False) == 0
            transport.abort()
            await asyncio.sleep(0)

    run(main)


def test_over_a_unix_socket(loop: Loop, run: Run, path: pathlib.Path) -> None:
    async def main() -> None:
        near, far = socket.socketpair()
        near.setblocking(False)
        with near, far, received(far) as got, path.open("rb") as file:
            transport, protocol = await loop.create_unix_connection(Recorder, sock=near)
            assert await loop.sendfile(transport, file, fallback=False) == len(DATA)
            await shut(transport, protocol)
        assert bytes(got) == DATA

    run(main)


def test_order_with_what_was_written(loop: Loop, run: Run, path: pathlib.Path) -> None:
    async def main() -> None:
        with tcp_pair(small=True) as (near, far), path.open("rb") as file:
            transport, protocol = await transport_of(loop, near)
            transport.write(b"a" * 500_000)
            transport.write(b"b")
            with received(far) as got:
                assert await loop.sendfile(transport, file) == len(DATA)
                transport.write(b"c")
                transport.writelines([b"d", b"e"])
                await shut(transport, protocol)
            assert bytes(got) == b"a" * 500_000 + b"b" + DATA + b"cde"

    run(main)


def test_transport_is_lent(loop: Loop, run: Run, path: pathlib.Path) -> None:
    async def main() -> None:
        with tcp_pair(small=True) as (near, far), path.open("rb") as file:
            transport, protocol = await transport_of(loop, near)
            task = asyncio.ensure_future(loop.sendfile(transport, file))
            await asyncio.sleep(0.05)
            assert not task.done()
            several = "writelines" if sys.version_info >= (3, 12) else "write"
            with pytest.raises(RuntimeError, match="^unable to write; sendfile is in progress$"):
                transport.write(b"x")
            with pytest.raises(
                RuntimeError, match=f"^unable to {several}; sendfile is in progress$"
            ):
                transport.writelines([b"x"])
            assert not transport.is_reading()
            far.send(b"question")
            await asyncio.sleep(0.02)
            assert protocol.data == b""
            with received(far) as got:
                assert await task == len(DATA)
                assert transport.is_reading()
                await until(lambda: protocol.data == b"question")
                transport.write(b"answer")
                await shut(transport, protocol)
            assert bytes(got) == DATA + b"answer"

    run(main)


def test_paused_transport_stays_paused(loop: Loop, run: Run, path: pathlib.Path) -> None:
    async def main() -> None:
        with tcp_pair() as (near, far), received(far), path.open("rb") as file:
            transport, protocol = await transport_of(loop, near)
            transport.pause_reading()
            for source in (file, io.BytesIO(DATA)):
                assert await loop.sendfile(transport, source) == len(DATA)
                assert not transport.is_reading()
            await shut(transport, protocol)

    run(main)


def test_loop_goes_on_meanwhile(loop: Loop, run: Run, path: pathlib.Path) -> None:
    async def main() -> None:
        with tcp_pair(small=True) as (near, far), received(far), path.open("rb") as file:
            async with counted_turns() as turns:
                assert await loop.sock_sendfile(near, file) == len(DATA)
            near.close()
        assert turns() > 10

    run(main)


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["sock", "transport"])
def test_parameters(loop: Loop, run: Run, path: pathlib.Path, to: str) -> None:
    async def main() -> None:
        with tcp_pair() as (near, _), path.open("rb") as file, path.open() as text:
            target: Any = near
            send: Any = loop.sock_sendfile
            if to == "transport":
                target, _ = await transport_of(loop, near)
                send = loop.sendfile
            positive = "^count must be a positive integer "
            offset = "^offset must be a non-negative integer "
            for arguments, kind, message in (
                ((text,), ValueError, "^file should be opened in binary mode$"),
                ((file, 0, 0), ValueError, positive + r"\(got 0\)$"),
                ((file, 0, -1), ValueError, positive + r"\(got -1\)$"),
                ((file, 0, 1.5), TypeError, positive + r"\(got 1.5\)$"),
                ((file, -1), ValueError, offset + r"\(got -1\)$"),
                ((file, "1"), TypeError, offset + r"\(got '1'\)$"),
            ):
                with pytest.raises(kind, match=message):
                    await send(target, *arguments)
            assert file.tell() == 0
            if to == "transport":
                target.abort()
                await asyncio.sleep(0)

    run(main)


def test_sockets_that_are_refused(loop: Loop, run: Run, path: pathlib.Path) -> None:
    async def main() -> None:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram,
            socket.socket() as blocking,
            path.open("rb") as file,
        ):
            datagram.setblocking(False)
            with pytest.raises(ValueError, match="^only SOCK_STREAM type sockets are supported$"):
                await loop.sock_sendfile(datagram, file)
            loop.set_debug(True)
            with pytest.raises(ValueError, match="^the socket must be non-blocking$"):
                await loop.sock_sendfile(blocking, file)
            loop.set_debug(False)

    run(main)


@pytest.mark.parametrize("to", ["sock", "transport"])
def test_without_fallback(loop: Loop, run: Run, path: pathlib.Path, to: str) -> None:
    skip_if_asyncio_errs(loop, "it seeks in a pipe", since=(3, 14))

    async def main() -> None:
        with tcp_pair() as (near, _):
            target: Any = near
            send: Any = loop.sock_sendfile
            if to == "transport":
                target, _ = await transport_of(loop, near)
                send = loop.sendfile
            with pytest.raises(asyncio.SendfileNotAvailableError, match="^not a regular file$"):
                await send(target, io.BytesIO(DATA), fallback=False)
            reading, writing = os.pipe()
            with open(reading, "rb") as pipe, open(writing, "wb"):
                with pytest.raises(asyncio.SendfileNotAvailableError) as caught:
                    await send(target, pipe, count=5, fallback=False)
                assert str(caught.value) == "os.sendfile call failed"
            if to == "transport":
                assert target.is_reading()
                target.write(b"still there")
                target.close()
                await asyncio.sleep(0.01)

    run(main)


def test_transports_that_are_refused(loop: Loop, run: Run, path: pathlib.Path) -> None:
    class Unable(asyncio.Transport):
        def is_closing(self) -> bool:
            return False

    class Fallback(Unable):
        _sendfile_compatible = asyncio.constants._SendfileMode.FALLBACK

    async def main() -> None:
        with tcp_pair() as (near, _), path.open("rb") as file:
            transport, _ = await transport_of(loop, near)
            transport.close()
            with pytest.raises(RuntimeError, match="^Transport is closing$"):
                await loop.sendfile(transport, file)
            with pytest.raises(RuntimeError, match="^sendfile is not supported for transport <"):
                await loop.sendfile(Unable(), file)
            with pytest.raises(
                RuntimeError,
                match="^fallback is disabled and native sendfile is not supported for transport <",
            ):
                await loop.sendfile(Fallback(), file, fallback=False)

    run(main)


# --- what ends it ------------------------------------------------------------------------------


def reset(sock: socket.socket) -> None:
    """Close a connection in the way that the other end notices at once."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.parametrize("wrapped", [False, True], ids=["native", "fallback"])
@pytest.mark.parametrize("to", ["sock", "transport"])
def test_peer_goes_away(loop: Loop, run: Run, path: pathlib.Path, to: str, wrapped: bool) -> None:
    file: Any = io.BytesIO(DATA) if wrapped else path.open("rb")

    async def main() -> None:
        with tcp_pair(small=True) as (near, far):
            protocol = None
            if to == "sock":
                task = asyncio.ensure_future(loop.sock_sendfile(near, file))
            else:
                transport, protocol = await transport_of(loop, near)
                task = asyncio.ensure_future(loop.sendfile(transport, file))
            got = len(await loop.sock_recv(far, 1000))
            await asyncio.sleep(0.05)
            assert not task.done()
            reset(far)
            with pytest.raises(ConnectionError):
                await task
            assert got <= file.tell() < len(DATA)
            if protocol is not None:
                transport.abort()
                await until(lambda: protocol.lost)

    with file:
        run(main)


@pytest.mark.parametrize("to", ["sock", "transport"])
def test_cancelling(loop: Loop, run: Run, path: pathlib.Path, to: str) -> None:
    async def main() -> None:
        with tcp_pair(small=True) as (near, far), path.open("rb") as file:
            if to == "sock":
                task = asyncio.ensure_future(loop.sock_sendfile(near, file))
            else:
                transport, protocol = await transport_of(loop, near)
                task = asyncio.ensure_future(loop.sendfile(transport, file))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with received(far) as got:
                if to == "sock":
                    await loop.sock_sendall(near, b"after")
                    near.close()
                else:
                    assert transport.is_reading()
                    transport.write(b"after")
                    await shut(transport, protocol)
            data = bytes(got)
            assert data.endswith(b"after")
            assert DATA.startswith(data[:-5])
            assert 0 < len(data) - 5 < len(DATA)

    run(main)


def test_position_after_cancelling(rondel_loop: Loop, path: pathlib.Path) -> None:
    async def main() -> None:
        with tcp_pair(small=True) as (near, far), path.open("rb") as file:
            task = asyncio.ensure_future(rondel_loop.sock_sendfile(near, file))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with received(far) as got:
                near.close()
            assert file.tell() == len(got) > 0

    run_on(rondel_loop, main)


@pytest.mark.parametrize("how", ["close", "abort"])
def test_transport_is_closed_meanwhile(rondel_loop: Loop, path: pathlib.Path, how: str) -> None:
    async def main() -> None:
        with tcp_pair(small=True) as (near, _), path.open("rb") as file:
            transport, protocol = await transport_of(rondel_loop, near)
            task = asyncio.ensure_future(rondel_loop.sendfile(transport, file))
            await asyncio.sleep(0.05)
            getattr(transport, how)()
            with pytest.raises(ConnectionError, match="^Connection closed by peer$"):
                await task
            await until(lambda: protocol.lost)
            assert protocol.lost == [None]

    run_on(rondel_loop, main)


def test_two_at_once_on_one_transport(loop: Loop, run: Run, path: pathlib.Path) -> None:
    async def main() -> None:
        with tcp_pair(small=True) as (near, far), path.open("rb") as file:
            transport, protocol = await transport_of(loop, near)
            task = asyncio.ensure_future(loop.sendfile(transport, file))
            await asyncio.sleep(0.02)
            with pytest.raises((RuntimeError, KeyError)):
                await loop.sendfile(transport, file)
            with received(far) as got:
                assert await task == len(DATA)
                await shut(transport, protocol)
            assert bytes(got) == DATA

    run(main)


def test_accepted_connection_sends_a_file(loop: Loop, run: Run, path: pathlib.Path) -> None:
    async def main() -> None:
        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with path.open("rb") as file:
                await loop.sendfile(writer.transport, file, fallback=False)
            writer.close()

        server = await asyncio.start_server(serve, HOST, 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await reader.read() == DATA
        writer.close()
        await writer.wait_closed()
        server.close()

    run(main)
