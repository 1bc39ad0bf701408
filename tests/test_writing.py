"""TCP transports: write, writelines, write_eof, the buffer and flow control."""

import asyncio
import errno
import logging
import random
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

import pytest
from support import (
    Recorder,
    connected,
    is_stock,
    read_exactly,
    read_to_end,
    skip_if_asyncio_errs,
    until,
)

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]

BIG = 1 << 20


def pattern(size: int) -> bytes:
    """Bytes that tell a shift or a swap, unlike a run of zeros."""
    return random.Random(size).randbytes(size)


# --- write -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "convert",
    [
        bytes,
        bytearray,
        memoryview,
        lambda data: memoryview(bytearray(data)),
        lambda data: memoryview(bytes(byte for byte in data for _ in range(2)))[::2].tobytes(),
        lambda data: memoryview(data).cast("B"),
    ],
    ids=["bytes", "bytearray", "memoryview", "writable view", "copied view", "cast view"],
)
@pytest.mark.parametrize("size", [1, 1000, 300_000])
def test_write_takes_every_kind_of_bytes(run: Run, convert: Any, size: int) -> None:
    async def main() -> None:
        data = pattern(size)
        async with connected() as (transport, _, peer):
            assert transport.write(convert(data)) is None  # type: ignore[func-returns-value]
            assert await read_exactly(peer, size) == data

    run(main)


def test_write_takes_a_view_of_wider_items(run: Run) -> None:
    import array

    async def main() -> None:
        items = array.array("I", range(1000))
        async with connected() as (transport, _, peer):
            transport.write(memoryview(items))
            assert await read_exactly(peer, 4000) == items.tobytes()

    run(main)


@pytest.mark.parametrize("wrong", ["text", None, 42, [1, 2], object()])
def test_write_refuses_other_types(run: Run, wrong: Any) -> None:
    words = (
        "a bytes, bytearray, or memoryview object"
        if sys.version_info >= (3, 14)
        else "a bytes-like object"
    )

    async def main() -> None:
        async with connected() as (transport, _, peer):
            with pytest.raises(TypeError) as caught:
                transport.write(wrong)
            name = type(wrong).__name__
            allowed = {f"data argument must be {words}, not {name!r}"}
            if not is_stock(asyncio.get_running_loop()):
                # The sentence changed in a patch release.
                allowed.add(f"data argument must be a bytes-like object, not {name!r}")
                allowed.add(
                    f"data argument must be a bytes, bytearray, or memoryview object, not {name!r}"
                )
            assert str(caught.value) in allowed
            transport.write(b"fine")
            assert await read_exactly(peer, 4) == b"fine"

    run(main)


def test_write_of_nothing(run: Run) -> None:
    async def main() -> None:
        async with connected() as (transport, _, peer):
            for nothing in (b"", bytearray(), memoryview(b"")):
                transport.write(nothing)
            assert transport.get_write_buffer_size() == 0
            transport.write(b"x")
            assert await read_exactly(peer, 1) == b"x"

    run(main)


def test_write_leaves_before_the_callback_returns_to_the_loop(loop: Loop, run: Run) -> None:
    """Nothing waits for a later turn: a program that writes and stops has written."""

    async def main() -> None:
        async with connected() as (transport, _, peer):

            def body() -> None:
                transport.write(b"one")
                transport.write(b"two")
                transport.writelines([b"three", b"four"])

            loop.call_soon(body)
            await asyncio.sleep(0)
            assert peer.recv(100) == b"onetwothreefour"

    run(main)


def test_write_then_stop_loses_nothing(loop: Loop) -> None:
    async def open_() -> Any:
        context = connected()
        return context, await context.__aenter__()

    context, (transport, _, peer) = loop.run_until_complete(open_())

    def body() -> None:
        transport.write(b"one")
        transport.write(b"two")
        loop.stop()

    loop.call_soon(body)
    loop.run_forever()
    assert peer.recv(100) == b"onetwo"
    loop.run_until_complete(context.__aexit__(None, None, None))


def test_write_outside_the_running_loop_leaves_at_the_latest_when_it_runs(loop: Loop) -> None:
    async def open_() -> Any:
        context = connected()
        return context, await context.__aenter__()

    context, (transport, _, peer) = loop.run_until_complete(open_())
    transport.write(b"one")
    transport.write(b"two")
    loop.run_until_complete(asyncio.sleep(0))
    assert peer.recv(100) == b"onetwo"
    loop.run_until_complete(context.__aexit__(None, None, None))


@pytest.mark.parametrize("size", [100, BIG])
def test_bytearray_may_be_changed_after_write(run: Run, size: int) -> None:
    async def main() -> None:
        if size == BIG:
            skip_if_asyncio_errs(
                asyncio.get_running_loop(), "it keeps a view of the caller's buffer", (3, 12)
            )
        async with connected(small=True) as (transport, _, peer):
            original = pattern(size)
            buffer = bytearray(original)
            transport.write(buffer)
            if size == BIG:
                assert transport.get_write_buffer_size() > 0
            buffer[:] = bytes(size)
            assert await read_exactly(peer, size) == original

    run(main)


def test_order_of_interleaved_writes_of_all_sizes(run: Run) -> None:
    async def main() -> None:
        choose = random.Random(1)
        async with connected(small=True) as (transport, _, peer):
            expected = bytearray()
            reader = asyncio.ensure_future(read_to_end(peer))
            for i in range(300):
                data = choose.randbytes(choose.choice([0, 1, 10, 1000, 70_000]))
                expected += data
                if i % 7 == 3:
                    cut = len(data) // 2
                    transport.writelines([data[:cut], b"", data[cut:]])
                elif i % 5 == 2:
                    transport.write(bytearray(data))
                else:
                    transport.write(data)
                if i % 11 == 0:
                    await asyncio.sleep(0)
            transport.write_eof()
            assert await reader == expected

    run(main)


def test_large_write_goes_through_whole(run: Run) -> None:
    async def main() -> None:
        data = pattern(16 << 20)
        async with connected() as (transport, _, peer):
            transport.write(data)
            assert await read_exactly(peer, len(data)) == data
            await until(lambda: transport.get_write_buffer_size() == 0)

    run(main)


def test_write_assigned_on_the_transport_is_called(run: Run) -> None:
    async def main() -> None:
        reader: asyncio.StreamReader
        async with connected() as (transport, protocol, peer):
            seen: list[bytes] = []
            real = transport.write

            def write(data: bytes) -> None:
                seen.append(data)
                real(data.upper())

            transport.write = write  # type: ignore[method-assign, assignment]
            loop = asyncio.get_running_loop()
            reader = asyncio.StreamReader(loop=loop)
            writer = asyncio.StreamWriter(
                transport, asyncio.StreamReaderProtocol(reader, loop=loop), reader, loop
            )
            writer.write(b"hello")
            assert seen == [b"hello"]
            assert await read_exactly(peer, 5) == b"HELLO"
            del transport.write
            transport.write(b"plain")
            assert await read_exactly(peer, 5) == b"plain"
            assert protocol.lost == []

    run(main)


# --- writelines --------------------------------------------------------------------------------


def test_writelines(run: Run) -> None:
    async def main() -> None:
        async with connected() as (transport, _, peer):
            transport.writelines([b"one", bytearray(b"two"), memoryview(b"three")])
            transport.writelines([])
            assert await read_exactly(peer, 11) == b"onetwothree"

    run(main)


def test_writelines_takes_any_iterable(run: Run) -> None:
    async def main() -> None:
        async with connected() as (transport, _, peer):
            transport.writelines(bytes([i]) for i in range(5))
            transport.writelines((b"tuple", b"!"))
            assert await read_exactly(peer, 11) == b"\0\1\2\3\4tuple!"

    run(main)


def test_writelines_of_empty_pieces(run: Run) -> None:
    async def main() -> None:
        skip_if_asyncio_errs(
            asyncio.get_running_loop(),
            "an empty piece is never drained",
            (3, 12),
            (3, 14),
        )
        async with connected() as (transport, _, peer):
            transport.writelines([b"", b""])
            assert transport.get_write_buffer_size() == 0
            transport.writelines([b"", b"x", b""])
            assert await read_exactly(peer, 1) == b"x"

    run(main)


def test_writelines_of_many_pieces(run: Run) -> None:
    """More than one writev takes (IOV_MAX is 1024)."""

    async def main() -> None:
        pieces = [i.to_bytes(4, "big") for i in range(5000)]
        async with connected() as (transport, _, peer):
            transport.writelines(pieces)
            assert await read_exactly(peer, 20_000) == b"".join(pieces)

    run(main)


def test_writelines_refuses_other_types(run: Run) -> None:
    async def main() -> None:
        async with connected() as (transport, _, _):
            with pytest.raises(TypeError):
                transport.writelines([b"fine", "text"])  # type: ignore[list-item]
            with pytest.raises(TypeError):
                transport.writelines(42)  # type: ignore[arg-type]

    run(main)


def test_writelines_after_write_eof(run: Run) -> None:
    async def main() -> None:
        async with connected() as (transport, _, _):
            transport.write_eof()
            # Until 3.11 it was a write of everything.
            with pytest.raises(
                RuntimeError, match=r"^Cannot call write(lines)?\(\) after write_eof\(\)$"
            ):
                transport.writelines([b"x"])

    run(main)


# --- write_eof ---------------------------------------------------------------------------------


def test_write_eof_ends_the_writing_half_only(run: Run) -> None:
    async def main() -> None:
        async with connected() as (transport, protocol, peer):
            assert transport.can_write_eof() is True
            transport.write(b"last words")
            transport.write_eof()
            assert await read_to_end(peer) == b"last words"
            assert not transport.is_closing()
            peer.send(b"answer")
            await until(lambda: protocol.data == b"answer")
            transport.write_eof()
            peer.close()
            await until(lambda: protocol.lost)
            assert protocol.lost == [None]

    run(main)


def test_write_eof_waits_for_the_buffer(run: Run) -> None:
    async def main() -> None:
        data = pattern(BIG)
        async with connected(small=True) as (transport, _, peer):
            transport.write(data)
            assert transport.get_write_buffer_size() > 0
            transport.write_eof()
            assert await read_to_end(peer) == data

    run(main)


def test_write_after_write_eof_is_refused(run: Run) -> None:
    async def main() -> None:
        async with connected() as (transport, _, _):
            transport.write_eof()
            for data in (b"x", b""):
                with pytest.raises(
                    RuntimeError, match=r"^Cannot call write\(\) after write_eof\(\)$"
                ):
                    transport.write(data)

    run(main)


def test_write_eof_after_close_is_harmless(run: Run) -> None:
    async def main() -> None:
        async with connected() as (transport, protocol, _):
            transport.close()
            transport.write_eof()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            transport.write_eof()
            assert protocol.lost == [None]

    run(main)


# --- close and abort with a buffer -------------------------------------------------------------


def test_close_flushes_the_buffer(run: Run) -> None:
    async def main() -> None:
        data = pattern(BIG)
        async with connected(small=True) as (transport, protocol, peer):
            transport.write(data)
            transport.close()
            await asyncio.sleep(0.01)
            # Not lost while there is something to send.
            assert protocol.lost == []
            assert transport.get_write_buffer_size() > 0
            assert await read_to_end(peer) == data
            await until(lambda: protocol.lost)
            assert protocol.lost == [None]

    run(main)


def test_close_then_abort_drops_the_buffer(run: Run) -> None:
    async def main() -> None:
        async with connected(small=True) as (transport, protocol, peer):
            transport.write(bytes(BIG))
            transport.close()
            transport.abort()
            assert transport.get_write_buffer_size() == 0
            await asyncio.sleep(0)
            assert protocol.lost == [None]
            received = 0
            try:
                received = len(await read_to_end(peer))
            except ConnectionResetError:
                pass
            assert received < BIG

    run(main)


def test_abort_after_close_has_flushed_is_harmless(run: Run) -> None:
    async def main() -> None:
        skip_if_asyncio_errs(asyncio.get_running_loop(), "it fails", until=(3, 14, 10))
        async with connected(small=True) as (transport, protocol, peer):
            transport.write(bytes(BIG))
            transport.close()
            await read_to_end(peer)
            await until(lambda: protocol.lost)
            transport.abort()
            transport.close()
            await asyncio.sleep(0)
            assert protocol.lost == [None]

    run(main)


def test_abort_drops_the_buffer(run: Run) -> None:
    async def main() -> None:
        async with connected(small=True) as (transport, protocol, _):
            transport.write(bytes(BIG))
            assert transport.get_write_buffer_size() > 0
            transport.abort()
            assert transport.get_write_buffer_size() == 0
            assert transport.is_closing()
            await asyncio.sleep(0)
            assert protocol.lost == [None]
            assert protocol.events == ["made", "pause", "lost"]

    run(main)


def test_write_to_a_lost_connection_is_dropped_and_warns_after_a_while(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with connected() as (transport, protocol, peer):
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
            await until(lambda: protocol.lost)
            for _ in range(4):
                transport.write(b"x")
            assert caplog.records == []
            transport.write(b"x")
            transport.write(b"x")
            assert [record.getMessage() for record in caplog.records] == [
                "socket.send() raised exception."
            ] * 2
            assert caplog.records[0].levelno == logging.WARNING
            assert caplog.records[0].name == "asyncio"
            assert transport.get_write_buffer_size() == 0

    run(main)


def test_write_after_close_with_a_buffer_is_still_sent(run: Run) -> None:
    async def main() -> None:
        data = pattern(BIG)
        async with connected(small=True) as (transport, _, peer):
            transport.write(data)
            transport.close()
            transport.write(b"tail")
            assert await read_to_end(peer) == data + b"tail"

    run(main)


def test_write_error_reaches_connection_lost(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with connected() as (transport, protocol, peer):
            transport.get_extra_info("socket").shutdown(socket.SHUT_WR)
            transport.write(b"x")
            assert protocol.lost == []
            await until(lambda: protocol.lost)
            (exc,) = protocol.lost
            assert isinstance(exc, BrokenPipeError)
            assert exc.errno == errno.EPIPE
            peer.close()

    run(main)


# --- flow control ------------------------------------------------------------------------------


def test_default_limits(run: Run) -> None:
    async def main() -> None:
        async with connected() as (transport, _, _):
            assert transport.get_write_buffer_limits() == (16 * 1024, 64 * 1024)

    run(main)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, (16384, 65536)),
        ({"high": 1000}, (250, 1000)),
        ({"low": 1000}, (1000, 4000)),
        ({"high": 1000, "low": 10}, (10, 1000)),
        ({"high": 0}, (0, 0)),
        ({"high": 7}, (1, 7)),
        ({"high": 5, "low": 5}, (5, 5)),
        ({"low": 0}, (0, 0)),
    ],
)
def test_limits(run: Run, arguments: dict[str, int], expected: tuple[int, int]) -> None:
    async def main() -> None:
        async with connected() as (transport, _, _):
            transport.set_write_buffer_limits(**arguments)
            assert transport.get_write_buffer_limits() == expected

    run(main)


@pytest.mark.parametrize(("high", "low"), [(5, 6), (10, -1), (-1, None), (-2, -1), (None, -4)])
def test_limits_that_make_no_sense(run: Run, high: int | None, low: int | None) -> None:
    if high is None:
        assert low is not None
        shown_high, shown_low = 4 * low, low
    else:
        shown_high, shown_low = high, high // 4 if low is None else low

    async def main() -> None:
        async with connected() as (transport, _, _):
            with pytest.raises(ValueError) as caught:
                transport.set_write_buffer_limits(high=high, low=low)
            assert str(caught.value) == (
                f"high ({shown_high!r}) must be >= low ({shown_low!r}) must be >= 0"
            )
            assert transport.get_write_buffer_limits() == (16384, 65536)

    run(main)


def test_buffer_size_counts_what_was_not_sent(run: Run) -> None:
    async def main() -> None:
        async with connected(small=True) as (transport, _, peer):
            assert transport.get_write_buffer_size() == 0
            transport.write(bytes(BIG))
            first = transport.get_write_buffer_size()
            assert 0 < first < BIG
            transport.write(bytes(1000))
            assert transport.get_write_buffer_size() == first + 1000
            transport.writelines([bytes(10), bytes(20)])
            # writelines tries to send at once, even when something waits already.
            assert first < transport.get_write_buffer_size() + BIG // 2
            assert transport.get_write_buffer_size() <= first + 1030
            taken = BIG - first
            received = await read_exactly(peer, taken + 100_000)
            assert len(received) == taken + 100_000
            await until(lambda: transport.get_write_buffer_size() < first)
            await read_exactly(peer, BIG + 1030 - len(received))
            assert transport.get_write_buffer_size() == 0

    run(main)


def test_pause_writing_above_the_high_mark_and_resume_at_the_low_one(run: Run) -> None:
    sizes: list[tuple[str, int]] = []

    class Watching(Recorder):
        def pause_writing(self) -> None:
            super().pause_writing()
            sizes.append(("pause", self.transport.get_write_buffer_size()))

        def resume_writing(self) -> None:
            super().resume_writing()
            sizes.append(("resume", self.transport.get_write_buffer_size()))

    async def main() -> None:
        async with connected(Watching(), small=True) as (transport, protocol, peer):
            transport.set_write_buffer_limits(high=100_000, low=20_000)
            sent = 0
            while transport.get_write_buffer_size() == 0:
                transport.write(bytes(10_000))
                sent += 10_000
            while transport.get_write_buffer_size() <= 90_000:
                assert protocol.events == ["made"]
                transport.write(bytes(10_000))
                sent += 10_000
            transport.write(bytes(10_000))
            sent += 10_000
            # Called before write() returned, and only once.
            assert protocol.events == ["made", "pause"]
            transport.write(bytes(10_000))
            sent += 10_000
            assert protocol.events == ["made", "pause"]
            await read_exactly(peer, sent)
            await until(lambda: "resume" in protocol.events)
            assert protocol.events == ["made", "pause", "resume"]
            (_, high), (_, low) = sizes
            assert high > 100_000
            assert low <= 20_000

    run(main)


def test_size_equal_to_the_high_mark_does_not_pause(run: Run) -> None:
    async def main() -> None:
        async with connected(small=True) as (transport, protocol, _):
            transport.set_write_buffer_limits(high=BIG)
            transport.write(bytes(BIG // 2))
            rest = BIG - transport.get_write_buffer_size()
            transport.write(bytes(rest))
            assert transport.get_write_buffer_size() == BIG
            assert protocol.events == ["made"]
            transport.write(b"x")
            assert protocol.events == ["made", "pause"]

    run(main)


def test_lower_limits_pause_at_once(run: Run) -> None:
    async def main() -> None:
        async with connected(small=True) as (transport, protocol, _):
            transport.set_write_buffer_limits(high=2 * BIG)
            transport.write(bytes(BIG))
            assert protocol.events == ["made"]
            transport.set_write_buffer_limits(high=1000)
            assert protocol.events == ["made", "pause"]

    run(main)


def test_limit_of_zero_pauses_whenever_something_waits(run: Run) -> None:
    async def main() -> None:
        async with connected(small=True) as (transport, protocol, peer):
            transport.set_write_buffer_limits(high=0)
            transport.write(b"small")
            assert protocol.events == ["made"]
            transport.write(bytes(BIG))
            assert protocol.events == ["made", "pause"]
            await read_exactly(peer, BIG + 5)
            await until(lambda: "resume" in protocol.events)
            assert transport.get_write_buffer_size() == 0

    run(main)


def test_writelines_pauses_too(run: Run) -> None:
    async def main() -> None:
        skip_if_asyncio_errs(
            asyncio.get_running_loop(), "writelines does not pause", (3, 12), (3, 14)
        )
        async with connected(small=True) as (transport, protocol, peer):
            transport.writelines([bytes(BIG // 4)] * 4)
            assert protocol.events == ["made", "pause"]
            await read_exactly(peer, BIG)
            await until(lambda: "resume" in protocol.events)

    run(main)


def test_write_in_resume_writing(run: Run) -> None:
    class Refilling(Recorder):
        rounds = 5

        def resume_writing(self) -> None:
            super().resume_writing()
            if self.rounds:
                self.rounds -= 1
                self.transport.write(bytes(BIG))
            else:
                asyncio.get_running_loop().call_soon(self.transport.close)

    async def main() -> None:
        async with connected(Refilling(), small=True) as (transport, protocol, peer):
            transport.write(bytes(BIG))
            assert len(await read_to_end(peer)) == 6 * BIG
            await until(lambda: protocol.lost)
            assert protocol.events == ["made"] + ["pause", "resume"] * 6 + ["lost"]

    run(main)


def test_close_in_resume_writing(run: Run) -> None:
    class Closing(Recorder):
        def resume_writing(self) -> None:
            super().resume_writing()
            self.transport.close()

    async def main() -> None:
        skip_if_asyncio_errs(
            asyncio.get_running_loop(), "the connection is lost twice", until=(3, 14, 10)
        )
        async with connected(Closing(), small=True) as (transport, protocol, peer):
            transport.write(bytes(BIG))
            assert len(await read_to_end(peer)) == BIG
            await until(lambda: protocol.lost)
            await asyncio.sleep(0)
            assert protocol.events == ["made", "pause", "resume", "lost"]

    run(main)


def test_set_protocol_while_paused_resumes_the_new_one(run: Run) -> None:
    async def main() -> None:
        async with connected(small=True) as (transport, first, peer):
            transport.write(bytes(BIG))
            assert first.events == ["made", "pause"]
            second = Recorder()
            transport.set_protocol(second)
            await read_exactly(peer, BIG)
            await until(lambda: second.events)
            assert first.events == ["made", "pause"]
            assert second.events == ["resume"]

    run(main)
