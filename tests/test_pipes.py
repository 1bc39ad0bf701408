"""connect_read_pipe(), and what both ends of pipes have in common."""

import asyncio
import contextlib
import contextvars
import gc
import io
import logging
import os
import pathlib
import pty
import socket
import tty
import warnings
from collections.abc import Callable, Iterator
from pipes import Reader, Writer, drain, fill, reading, writing
from typing import Any

import pytest
from support import LoopFactory, turns, until

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("no_descriptor_left")


def test_read_pipe_delivers_data_then_eof_then_the_end(run: Run) -> None:
    async def main() -> None:
        async with reading() as (transport, protocol, w):
            assert isinstance(transport, asyncio.ReadTransport)
            assert not isinstance(transport, asyncio.WriteTransport)
            assert protocol.events == ["made"]
            assert not os.get_blocking(transport.get_extra_info("pipe").fileno())
            os.write(w, b"one")
            await until(lambda: protocol.data)
            os.write(w, b"two")
            os.close(w)
            await until(lambda: protocol.lost)
            assert bytes(protocol.data) == b"onetwo"
            assert protocol.events == ["made", "data", "data", "eof", "lost"]
            assert protocol.lost == [None]
            assert transport.is_closing()
            assert transport.get_extra_info("pipe").closed
            assert transport.get_extra_info("nothing", 5) == 5

    run(main)


def test_read_pipe_carries_much_data_whole(run: Run) -> None:
    data = os.urandom(3_000_000)

    async def main() -> None:
        async with reading() as (_, protocol, w):
            loop = asyncio.get_running_loop()

            def write() -> None:
                sent = 0
                while sent < len(data):
                    sent += os.write(w, data[sent:])
                os.close(w)

            await loop.run_in_executor(None, write)
            await until(lambda: protocol.lost)
            assert bytes(protocol.data) == data

    run(main)


def test_pause_and_resume_reading(run: Run) -> None:
    async def main() -> None:
        async with reading() as (transport, protocol, w):
            transport.pause_reading()
            transport.pause_reading()
            assert not transport.is_reading()
            os.write(w, b"x")
            os.close(w)
            await asyncio.sleep(0.02)
            assert protocol.events == ["made"]
            transport.resume_reading()
            transport.resume_reading()
            assert transport.is_reading()
            await until(lambda: protocol.lost)
            assert protocol.events == ["made", "data", "eof", "lost"]

    run(main)


def test_pausing_in_data_received_holds_the_rest_back(run: Run) -> None:
    class Pausing(Reader):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.pause_reading()

    async def main() -> None:
        r, w = os.pipe()
        os.set_blocking(w, False)
        size = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                size += os.write(w, b"p" * 4096)
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.connect_read_pipe(Pausing, io.FileIO(r, "r"))
        os.close(w)
        await until(lambda: protocol.data)
        await asyncio.sleep(0.01)
        # At most one piece per resume_reading().
        resumed = 0
        while not protocol.lost:
            count = protocol.events.count("data")
            assert count <= resumed + 1
            transport.resume_reading()
            resumed += 1
            await asyncio.sleep(0.005)
        assert len(protocol.data) == size

    run(main)


def test_closing_in_data_received_ends_reading(run: Run) -> None:
    class Closing(Reader):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.close()

    async def main() -> None:
        async with reading(Closing()) as (_, protocol, w):
            os.write(w, b"x" * 40_000)
            await until(lambda: protocol.lost)
            assert protocol.events == ["made", "data", "lost"]
            with pytest.raises(BrokenPipeError):
                os.write(w, b"y")

    run(main)


def test_an_exception_of_data_received_is_reported_and_reading_goes_on(
    run: Run, reported: list[dict[str, Any]]
) -> None:
    class Failing(Reader):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            raise ZeroDivisionError

    async def main() -> None:
        async with reading(Failing()) as (transport, protocol, w):
            for number in range(1, 3):
                os.write(w, b"x")
                await until(lambda number=number: len(protocol.data) == number)
            assert not transport.is_closing()

    run(main)
    assert [type(context["exception"]) for context in reported] == [ZeroDivisionError] * 2
    assert reported[0]["message"].startswith("Exception in callback")


def test_close_of_a_read_pipe_is_done_once(run: Run) -> None:
    async def main() -> None:
        async with reading() as (transport, protocol, _):
            transport.close()
            transport.close()
            assert transport.is_closing() and not transport.is_reading()
            assert protocol.lost == []
            await turns(3)
            assert protocol.lost == [None]
            transport.close()
            transport.pause_reading()
            transport.resume_reading()
            await turns(2)
            assert protocol.events == ["made", "lost"]

    run(main)


def test_protocol_is_called_in_the_context_of_the_connect(run: Run) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    seen: list[str] = []

    class Looking(Reader):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            seen.append(variable.get())
            super().connection_made(transport)

        def data_received(self, data: bytes) -> None:
            seen.append(variable.get())
            super().data_received(data)

        def connection_lost(self, exc: BaseException | None) -> None:
            seen.append(variable.get())
            super().connection_lost(exc)

    async def main() -> None:
        variable.set("mine")
        async with reading(Looking()) as (_, protocol, w):
            os.write(w, b"x")
            os.close(w)
            await until(lambda: protocol.lost)

    run(main)
    assert seen == ["mine"] * 3


def test_set_protocol(run: Run) -> None:
    async def main() -> None:
        async with reading() as (transport, first, w):
            assert transport.get_protocol() is first
            second = Reader()
            transport.set_protocol(second)
            assert transport.get_protocol() is second
            os.write(w, b"x")
            await until(lambda: second.data)
            assert not first.data
            transport.set_protocol(first)

    run(main)


@pytest.mark.parametrize("what", ["file", "directory"])
def test_files_are_refused(run: Run, tmp_path: pathlib.Path, what: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        fd = os.open(path if what == "file" else tmp_path, os.O_RDONLY)

        class Pipe:
            closed = False

            def fileno(self) -> int:
                return fd

            def close(self) -> None:
                self.closed = True

        pipe: Any = Pipe()
        with pytest.raises(ValueError, match=r"^Pipe transport is for pipes/sockets only\.$"):
            await loop.connect_read_pipe(asyncio.Protocol, pipe)
        text = "^Pipe transport is only for pipes, sockets and character devices$"
        with pytest.raises(ValueError, match=text):
            await loop.connect_write_pipe(asyncio.BaseProtocol, pipe)
        gc.collect()
        assert not pipe.closed
        os.close(fd)

    run(main)


def test_what_cannot_be_polled_is_reported(run: Run, reported: list[dict[str, Any]]) -> None:
    # /dev/null is a character device, but epoll refuses it.
    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.connect_read_pipe(Reader, io.FileIO("/dev/null", "r"))
        assert [type(context["exception"]) for context in reported] == [PermissionError]
        transport.close()
        await turns(3)
        assert protocol.lost == [None]
        # Writing needs no poll.
        writer, other = await loop.connect_write_pipe(Writer, io.FileIO("/dev/null", "w"))
        writer.write(b"x")
        writer.close()
        await turns(3)
        assert other.lost == [None]
        assert len(reported) == 1

    run(main)


def test_cancelled_connect_closes_the_pipe(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        r, w = os.pipe()
        pipe = io.FileIO(r, "r")
        protocol = Reader()
        task = loop.create_task(loop.connect_read_pipe(lambda: protocol, pipe))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await turns(3)
        assert pipe.closed
        assert protocol.lost == [None]
        os.close(w)

    run(main)


def test_fifo(run: Run, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        out, writer = await loop.connect_write_pipe(Writer, io.FileIO(path, "w"))
        out.write(b"before anybody reads")
        await asyncio.sleep(0.01)
        assert writer.lost == []  # unread data is no end
        _, protocol = await loop.connect_read_pipe(Reader, io.FileIO(reader, "r"))
        await until(lambda: protocol.data)
        out.close()
        await until(lambda: protocol.lost and writer.lost)
        assert bytes(protocol.data) == b"before anybody reads"

    run(main)


def test_socket_as_both_ends(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        near, far = socket.socketpair()
        out, writer = await loop.connect_write_pipe(Writer, near)
        _, reader = await loop.connect_read_pipe(Reader, far)
        out.write(b"x")
        await until(lambda: reader.data)
        out.write_eof()
        await until(lambda: reader.lost and writer.lost)
        assert reader.events == ["made", "data", "eof", "lost"]

    run(main)


@contextlib.contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """A pseudo-terminal in raw mode: (master, slave)."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    try:
        yield master, slave
    finally:
        for fd in (master, slave):
            with contextlib.suppress(OSError):
                os.close(fd)


def test_one_terminal_for_reading_and_writing(run: Run) -> None:
    class Shared:
        """A descriptor of which each transport believes that it closes it."""

        def __init__(self, fd: int) -> None:
            self.fd = fd

        def fileno(self) -> int:
            return self.fd

        def close(self) -> None:
            pass

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with terminal() as (master, slave):
            os.set_blocking(master, False)
            pipe: Any = Shared(slave)
            source, reader = await loop.connect_read_pipe(Reader, pipe)
            sink, writer = await loop.connect_write_pipe(Writer, pipe)
            os.write(master, b"in")
            await until(lambda: bytes(reader.data) == b"in")
            assert writer.lost == []
            total = fill(sink)
            os.write(master, b"!")
            assert await drain(master, total) == b"f" * total
            await until(lambda: bytes(reader.data) == b"in!")
            source.close()
            await turns(3)
            assert reader.lost == [None]
            assert writer.lost == []
            assert await drain(master, fill(sink))
            sink.close()
            await until(lambda: writer.lost)

    run(main)


def test_hung_up_terminal_ends_with_eio(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with terminal() as (master, slave):
            _, protocol = await loop.connect_read_pipe(Reader, io.FileIO(os.dup(master), "r"))
            os.write(slave, b"bye")
            await until(lambda: protocol.data)
            os.close(slave)
            await until(lambda: protocol.lost)
            assert bytes(protocol.data) == b"bye"
            assert [type(exc) for exc in protocol.lost] == [OSError]
            assert "eof" not in protocol.events

    run(main)


def test_streams_over_pipes(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        r, w = os.pipe()
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), io.FileIO(r, "r")
        )
        transport, protocol = await loop.connect_write_pipe(
            lambda: asyncio.streams.FlowControlMixin(loop), io.FileIO(w, "w")
        )
        writer = asyncio.StreamWriter(transport, protocol, None, loop)
        data = os.urandom(1 << 20)

        async def send() -> None:
            for start in range(0, len(data), 1000):
                writer.write(data[start : start + 1000])
                await writer.drain()
            writer.write(b"\nline\n")
            writer.close()

        _, got = await asyncio.gather(send(), reader.readexactly(len(data)))
        assert got == data
        assert await reader.readline() == b"\n"
        assert await reader.readline() == b"line\n"
        assert await reader.read() == b""

    run(main)


@pytest.mark.parametrize("end", ["read", "write"])
def test_dropped_transport_warns_and_closes(run: Run, end: str) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        fds = os.pipe()
        if end == "read":
            pipe: Any = io.FileIO(fds[0], "r")
            transport: Any
            transport, _ = await loop.connect_read_pipe(Reader, pipe)
            transport.pause_reading()  # the loop holds what reads
        else:
            pipe = io.FileIO(fds[1], "w")
            transport, _ = await loop.connect_write_pipe(Writer, pipe)
            loop.remove_reader(fds[1])  # so that the loop does not hold it
        transport.get_protocol().transport = None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del transport
            gc.collect()
        assert [w.category for w in caught] == [ResourceWarning]
        assert str(caught[0].message).startswith("unclosed transport <")
        assert pipe.closed
        os.close(fds[1] if end == "read" else fds[0])

    run(main)


def test_loop_closed_before_its_pipes(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    r, w = os.pipe()

    async def connect() -> tuple[Any, Any]:
        source, _ = await loop.connect_read_pipe(Reader, io.FileIO(r, "r"))
        sink, _ = await loop.connect_write_pipe(Writer, io.FileIO(w, "w"))
        return source, sink

    transports = loop.run_until_complete(connect())
    loop.close()
    for transport in transports:
        assert "open" in repr(transport)
        with pytest.raises(RuntimeError, match="Event loop is closed"):
            transport.close()
        transport.get_protocol().transport = None
    del transport
    with pytest.warns(ResourceWarning, match="unclosed transport"):
        del transports
        gc.collect()
    for fd in (r, w):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_connecting_on_a_closed_loop(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    loop.close()
    r, w = os.pipe()
    with io.FileIO(r, "r") as pipe, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # asyncio's half-made transport
        coroutine: Any = loop.connect_read_pipe(Reader, pipe)
        with pytest.raises(RuntimeError, match="Event loop is closed"):
            coroutine.send(None)
        gc.collect()
    os.close(w)


def test_debug_mode_logs(loop: Loop, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    loop.set_debug(True)

    async def main() -> None:
        async with reading() as (transport, protocol, w):
            transport.pause_reading()
            transport.resume_reading()
            os.close(w)
            await until(lambda: protocol.lost)
        async with writing() as (_, protocol, r):
            os.close(r)
            await until(lambda: protocol.lost)

    with caplog.at_level(logging.DEBUG, "asyncio"):
        run(main)
    texts = "\n".join(record.getMessage() for record in caplog.records)
    for expected in (
        "Read pipe ",
        " connected: (",
        "Write pipe ",
        " pauses reading",
        " resumes reading",
    ):
        assert expected in texts
    assert texts.count(" was closed by peer") == 2


def test_repr(run: Run) -> None:
    async def main() -> None:
        async with reading() as (transport, protocol, w):
            assert " polling" in repr(transport)
            transport.pause_reading()
            assert " idle" in repr(transport)
            transport.close()
            assert " closing " in repr(transport)
            await until(lambda: protocol.lost)
            assert " closed" in repr(transport)
            assert w
        async with writing() as (transport, _, _r):
            assert f"fd={transport.get_extra_info('pipe').fileno()} idle bufsize=0" in repr(
                transport
            )
            fill(transport)
            assert " polling bufsize=" in repr(transport)

    run(main)
