"""connect_write_pipe(): writing, flow control, the reader going away."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from pipes import Writer, drain, fill, writing
from typing import Any

import pytest
from support import skip_if_asyncio_errs, turns, until

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("no_descriptor_left")


def test_write_pipe_sends_and_closes_after_the_queue(run: Run) -> None:
    async def main() -> None:
        async with writing() as (transport, protocol, r):
            assert isinstance(transport, asyncio.WriteTransport)
            assert transport.can_write_eof()
            assert not os.get_blocking(transport.get_extra_info("pipe").fileno())
            transport.write(b"a")
            transport.write(bytearray(b"b"))
            transport.write(memoryview(b"xcx")[1:2])
            transport.write(b"")
            transport.writelines([b"d", bytearray(b"e")])
            assert os.read(r, 100) == b"abcde"
            total = fill(transport)
            transport.close()
            assert transport.is_closing()
            transport.close()
            transport.write_eof()
            await asyncio.sleep(0.01)
            assert protocol.lost == []
            assert await drain(r, total) == b"f" * total
            await until(lambda: protocol.lost)
            assert os.read(r, 1) == b""
            assert protocol.lost == [None]
            assert transport.get_extra_info("pipe").closed

    run(main)


def test_a_bytearray_may_change_after_write(run: Run) -> None:
    async def main() -> None:
        async with writing() as (transport, _, r):
            total = fill(transport)
            data = bytearray(b"0123456789")
            transport.write(data)
            data[:] = b"##########"
            assert (await drain(r, total + 10))[-10:] == b"0123456789"

    run(main)


def test_write_refuses_other_types(run: Run) -> None:
    async def main() -> None:
        async with writing() as (transport, _, _r):
            for wrong in ("text", 5, None):
                with pytest.raises(AssertionError):
                    transport.write(wrong)

    run(main)


def test_write_flow_control(run: Run) -> None:
    async def main() -> None:
        async with writing() as (transport, protocol, r):
            assert transport.get_write_buffer_limits() == (16384, 65536)
            transport.set_write_buffer_limits(high=1000, low=100)
            assert transport.get_write_buffer_limits() == (100, 1000)
            total = fill(transport)
            assert protocol.events == ["made", "pause"]
            transport.write(b"f" * 5000)
            total += 5000
            queued = transport.get_write_buffer_size()
            assert queued > 1000
            assert protocol.events == ["made", "pause"]
            got = await drain(r, total - 1)
            assert len(got) == total - 1
            await until(lambda: "resume" in protocol.events)
            assert await drain(r, 1) == b"f"
            assert protocol.events == ["made", "pause", "resume"]
            assert transport.get_write_buffer_size() == 0
            for bad in ({"high": 1, "low": 2}, {"low": -1}):
                with pytest.raises(ValueError, match="must be >= low"):
                    transport.set_write_buffer_limits(**bad)

    run(main)


def test_lowering_the_limit_pauses_the_protocol(run: Run) -> None:
    async def main() -> None:
        async with writing() as (transport, protocol, _):
            fill(transport)
            assert protocol.events == ["made"]
            transport.set_write_buffer_limits(high=0)
            assert protocol.events == ["made", "pause"]

    run(main)


def test_writes_in_resume_writing_keep_their_order(loop: Loop, run: Run) -> None:
    skip_if_asyncio_errs(loop, "connection_lost() twice when resume_writing() closes")

    class More(Writer):
        def resume_writing(self) -> None:
            super().resume_writing()
            if self.events.count("resume") == 1:
                self.transport.write(b"end")
                self.transport.close()

    async def main() -> None:
        async with writing(More()) as (transport, protocol, r):
            transport.set_write_buffer_limits(high=0)
            total = fill(transport)
            assert await drain(r, total + 3) == b"f" * total + b"end"
            await until(lambda: protocol.lost)
            assert protocol.lost == [None]

    run(main)


def test_reader_gone_ends_an_idle_write_pipe(run: Run) -> None:
    async def main() -> None:
        async with writing() as (transport, protocol, r):
            transport.write(b"unread")
            os.close(r)
            await until(lambda: protocol.lost)
            assert protocol.lost == [None]
            assert transport.is_closing()

    run(main)


@pytest.mark.parametrize("closing", [False, True])
def test_reader_gone_with_a_queue_is_a_broken_pipe(run: Run, closing: bool) -> None:
    async def main() -> None:
        async with writing() as (transport, protocol, r):
            fill(transport)
            if closing:
                transport.close()
            os.close(r)
            await until(lambda: protocol.lost)
            await turns(3)
            assert [type(exc) for exc in protocol.lost] == [BrokenPipeError]
            assert transport.get_write_buffer_size() == 0

    run(main)


def test_writing_when_the_reader_is_gone(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with writing() as (transport, protocol, r):
            os.close(r)
            transport.write(b"x")
            assert transport.is_closing()
            with caplog.at_level(logging.WARNING, "asyncio"):
                for _ in range(10):
                    transport.write(b"y")
            await until(lambda: protocol.lost)
            assert [type(exc) for exc in protocol.lost] == [BrokenPipeError]

    run(main)
    texts = [record.getMessage() for record in caplog.records]
    expected = "pipe closed by peer or os.write(pipe, data) raised exception."
    assert texts and set(texts) == {expected} and len(texts) < 10


def test_abort_drops_the_queue(run: Run) -> None:
    async def main() -> None:
        async with writing() as (transport, protocol, r):
            total = fill(transport)
            queued = transport.get_write_buffer_size()
            transport.abort()
            await turns(3)
            assert protocol.lost == [None]
            rest = await drain(r, total - queued)
            assert len(rest) == total - queued
            assert os.read(r, 1) == b""

    run(main)


def test_abort_after_close_with_a_queue(run: Run) -> None:
    async def main() -> None:
        async with writing() as (transport, protocol, _):
            fill(transport)
            transport.close()
            transport.abort()
            await turns(3)
            assert protocol.lost == [None]

    run(main)


def test_abort_after_close_tells_the_end_once(rondel_loop: Loop) -> None:
    # asyncio calls connection_lost() of a protocol that is gone here, and logs the AttributeError.
    async def main() -> None:
        async with writing() as (transport, protocol, _):
            transport.close()
            transport.abort()
            await turns(3)
            assert protocol.lost == [None]

    rondel_loop.run_until_complete(main())


def test_socket_peer_gone_ends_the_write_transport(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        near, far = socket.socketpair()
        _, writer = await loop.connect_write_pipe(Writer, near)
        far.close()
        await until(lambda: writer.lost)
        assert writer.lost == [None]

    run(main)


def test_a_transport_has_room_for_the_programs_own(run: Run) -> None:
    async def main() -> None:
        async with writing() as (transport, _, _r):
            transport.write = transport.name = "mine"
            assert transport.name == transport.write == "mine"

    run(main)
