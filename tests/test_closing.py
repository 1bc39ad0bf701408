"""TCP transports: closing, loss, resets, and what is let go afterwards."""

import asyncio
import gc
import socket
import struct
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from support import Recorder, connected, read_to_end, tcp_pair, turns, until

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]


def reset(sock: socket.socket) -> None:
    """Close a socket so that its peer gets a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_close_calls_connection_lost_once_and_later(run: Run) -> None:
    async def main() -> None:
        async with connected() as (transport, protocol, peer):
            assert transport.is_closing() is False
            transport.close()
            assert transport.is_closing() is True
            assert transport.is_reading() is False
            assert protocol.lost == []
            transport.close()
            transport.abort()
            await turns(5)
            assert protocol.lost == [None]
            assert await read_to_end(peer) == b""
            transport.close()
            transport.abort()
            await turns(5)
            assert protocol.lost == [None]

    run(main)


def test_connection_lost_takes_its_turn_among_the_callbacks(loop: Loop, run: Run) -> None:
    seen: list[str] = []

    class Noting(Recorder):
        def connection_lost(self, exc: BaseException | None) -> None:
            super().connection_lost(exc)
            seen.append("lost")

    async def main() -> None:
        for end in ("close", "abort"):
            seen.clear()
            async with connected(Noting()) as (transport, _, _):
                loop.call_soon(seen.append, "before")
                getattr(transport, end)()
                loop.call_soon(seen.append, "after")
                assert seen == []
                await asyncio.sleep(0)
                assert seen == ["before", "lost", "after"]

    run(main)


def test_data_that_waits_is_not_delivered_after_close(run: Run) -> None:
    async def main() -> None:
        async with connected() as (transport, protocol, peer):
            peer.send(b"too late")
            transport.close()
            await turns(5)
            assert protocol.events == ["made", "lost"]

    run(main)


def test_reset_by_the_peer(run: Run) -> None:
    async def main() -> None:
        async with connected() as (transport, protocol, peer):
            reset(peer)
            await until(lambda: protocol.lost)
            (exc,) = protocol.lost
            assert isinstance(exc, ConnectionResetError)
            assert protocol.events == ["made", "lost"]
            assert transport.is_closing()

    run(main)


def test_reset_is_noticed_while_writing(run: Run) -> None:
    async def main() -> None:
        async with connected() as (transport, protocol, peer):
            transport.pause_reading()
            reset(peer)
            for _ in range(100):
                transport.write(b"x")
                if protocol.lost:
                    break
                await asyncio.sleep(0.001)
            (exc,) = protocol.lost
            assert isinstance(exc, (ConnectionResetError, BrokenPipeError))

    run(main)


def test_reset_with_a_full_buffer(run: Run) -> None:
    async def main() -> None:
        async with connected(small=True) as (transport, protocol, peer):
            transport.write(bytes(1 << 20))
            assert transport.get_write_buffer_size() > 0
            reset(peer)
            await until(lambda: protocol.lost)
            (exc,) = protocol.lost
            assert isinstance(exc, ConnectionError)
            assert transport.get_write_buffer_size() == 0

    run(main)


def test_resume_reading_after_close_is_harmless(run: Run) -> None:
    async def main() -> None:
        async with connected() as (transport, protocol, peer):
            transport.pause_reading()
            peer.send(b"data")
            transport.close()
            transport.resume_reading()
            transport.pause_reading()
            assert transport.is_reading() is False
            await turns(5)
            transport.resume_reading()
            transport.pause_reading()
            assert protocol.events == ["made", "lost"]

    run(main)


def test_connection_lost_may_start_a_new_connection(loop: Loop, run: Run) -> None:
    made: list[Recorder] = []

    class Reconnecting(Recorder):
        def connection_lost(self, exc: BaseException | None) -> None:
            super().connection_lost(exc)
            tasks.append(loop.create_task(reconnect()))

    tasks: list[asyncio.Task[None]] = []
    with tcp_pair() as (near, far):

        async def reconnect() -> None:
            _, protocol = await loop.create_connection(Recorder, sock=near)
            made.append(protocol)

        async def main() -> None:
            async with connected(Reconnecting()) as (transport, _, _):
                transport.close()
                await until(lambda: made)
                far.send(b"data")
                await until(lambda: made[0].data == b"data")
                made[0].transport.abort()
                await asyncio.gather(*tasks)

        run(main)


def test_loop_closed_with_an_open_transport(loop: Loop, run: Run) -> None:
    """The program closed the loop first; the transport warns when it goes, and harms nobody."""

    async def main() -> tuple[asyncio.BaseTransport, Recorder]:
        return await loop.create_connection(Recorder, sock=near)

    with tcp_pair() as (near, far):
        transport, protocol = run(main)
        loop.close()
        far.send(b"data")
        with pytest.warns(ResourceWarning, match="unclosed transport"):
            protocol.transport = None  # type: ignore[assignment]
            del transport
            gc.collect()
        assert protocol.events == ["made"]
        assert near.fileno() == -1


def test_closing_a_transport_of_a_closed_loop(loop: Loop, run: Run) -> None:
    """It is refused; the socket goes with the transport all the same."""

    async def main() -> tuple[asyncio.Transport, Recorder]:
        return await loop.create_connection(Recorder, sock=near)  # type: ignore[return-value]

    with tcp_pair() as (near, far):
        transport, protocol = run(main)
        loop.close()
        with pytest.raises(RuntimeError, match=r"^Event loop is closed$"):
            transport.close()
        assert transport.is_closing()
        protocol.transport = None  # type: ignore[assignment]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del transport
            gc.collect()
        assert near.fileno() == -1
        assert far.recv(1) == b""


def test_transports_do_not_leak(run: Run) -> None:
    refs: list[weakref.ref[Any]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(20):
            with tcp_pair() as (near, far):
                transport, protocol = await loop.create_connection(Recorder, sock=near)
                refs.extend([weakref.ref(transport), weakref.ref(protocol)])
                far.send(b"data")
                await until(lambda protocol=protocol: protocol.data)
                transport.write(b"data")
                transport.close()
                await turns(2)
            del transport, protocol

    run(main)
    gc.collect()
    assert [ref() for ref in refs if ref() is not None] == []


def test_connection_lost_is_called_without_connection_errors_hiding_it(
    run: Run, reported: list[dict[str, Any]]
) -> None:
    """A reset is the peer's business: it goes to connection_lost, not to the handler."""

    async def main() -> None:
        async with connected() as (_, protocol, peer):
            reset(peer)
            await until(lambda: protocol.lost)

    run(main)
    assert reported == []
