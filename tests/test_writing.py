"""TCP transports: write, writelines, write_eof, the buffer and flow control."""

import asyncio
import contextlib
import errno
import logging
import random
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from support import (
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


def test_write_leaves_before_the_program_blocks(run: Run) -> None:
    async def main() -> None:
        async with connected() as (transport, _, peer):
            peer.settimeout(10)
            for data in (b"one", b"two", b"three"):
                transport.write(data)
                assert await read_exactly(peer, len(data)) == data
            transport.write(b"four")
            # Nothing else waits for its turn, so asyncio would have sent it.
            assert peer.recv(100) == b"four"

    run(main)


def test_write_on_a_busy_loop_is_not_held_until_the_last_callback(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with connected() as (transport, _, peer):
            peer.setblocking(False)
            arrived: list[bool] = []

            def look() -> None:
                arrived.append(bool(select.select([peer], [], [], 0)[0]))

            loop.call_soon(transport.write, b"data")
            for _ in range(3):
                loop.call_soon(time.sleep, 0.01)
            loop.call_soon(look)
            await until(lambda: arrived)
            assert arrived == [True]

    run(main)


def test_writes_of_many_connections_do_not_pile_up(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            made = [await stack.enter_async_context(connected()) for _ in range(100)]
            peers = [peer for _, _, peer in made]
            arrived: list[int] = []

            def write() -> None:
                for transport, _, _ in made:
                    transport.write(b"data")

            def look() -> None:
                arrived.append(len(select.select(peers, [], [], 0)[0]))

            loop.call_soon(write)
            loop.call_soon(look)
            await until(lambda: arrived)
            assert arrived == [100]

    run(main)


def test_writes_of_many_callbacks_keep_their_order(loop: Loop, run: Run) -> None:
    async def main() -> None:
        pieces = [pattern(size) for size in (1, 20_000, 100, 16_384, 16_383, 70_000, 5) * 20]
        async with connected() as (transport, _, peer):
            for index in range(0, len(pieces), 4):

                def write(pieces: list[bytes]) -> None:
                    for piece in pieces:
                        transport.write(piece)

                loop.call_soon(write, pieces[index : index + 4])
            data = b"".join(pieces)
            assert await read_exactly(peer, len(data)) == data

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
