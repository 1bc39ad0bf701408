"""TCP transports: their names and facts, reading, end of file, closing and loss."""

import asyncio
import gc
import socket
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from support import Recorder, connected, read_exactly, read_to_end, tcp_pair, turns, until

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]


# --- what a transport is -----------------------------------------------------------------------


def test_transport_is_asyncios_abstract_transport(run: Run) -> None:
    async def main() -> None:
        async with connected() as (transport, _, _):
            for base in (
                asyncio.Transport,
                asyncio.ReadTransport,
                asyncio.WriteTransport,
                asyncio.BaseTransport,
            ):
                assert isinstance(transport, base)
            assert not isinstance(transport, asyncio.DatagramTransport)

    run(main)


def test_repr(run: Run) -> None:
    async def main() -> None:
        async with connected() as (transport, _, _):
            name = type(transport).__name__
            fd = transport.get_extra_info("socket").fileno()
            rest = "write=<idle, bufsize=0>>"
            assert repr(transport) == f"<{name} fd={fd} read=polling {rest}"
            transport.pause_reading()
            assert repr(transport) == f"<{name} fd={fd} read=idle {rest}"
            transport.close()
            assert repr(transport) == f"<{name} closing fd={fd} read=idle {rest}"
            await turns(2)
            assert repr(transport) == f"<{name} closed fd={fd}>"

    run(main)


def test_write_takes_one_argument_which_has_a_name(run: Run) -> None:
    async def main() -> None:
        async with connected() as (transport, _, peer):
            write: Any = transport.write
            for args, names, complaint in [
                ((), {}, "missing 1 required positional argument: 'data'"),
                ((), {"text": b""}, "argument 'text'"),
                ((b"",), {"data": b""}, "multiple values for argument 'data'"),
                ((b"", b""), {}, "were given"),
            ]:
                with pytest.raises(TypeError, match=complaint):
                    write(*args, **names)
            write(data=b"by name")
            assert await read_exactly(peer, 7) == b"by name"

    run(main)


def test_attributes_can_be_set(run: Run) -> None:
    async def main() -> None:
        async with connected() as (transport, _, _):
            transport.mine = 1  # type: ignore[attr-defined]
            assert transport.__dict__["mine"] == 1
            assert weakref.ref(transport)() is transport

    run(main)


def test_extra_info(run: Run) -> None:
    async def main() -> None:
        with tcp_pair() as (near, far):
            names = near.getsockname(), far.getsockname()
            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_connection(Recorder, sock=near)
            assert transport.get_extra_info("sockname") == names[0]
            assert transport.get_extra_info("peername") == names[1]
            assert transport.get_extra_info("nothing") is None
            assert transport.get_extra_info("nothing", "default") == "default"
            assert transport.get_extra_info("sockname", "default") == names[0]
            assert transport.get_extra_info("sslcontext") is None
            assert transport.get_extra_info("ssl_object") is None
            transport.close()
            await turns(2)
            # What was known stays known.
            assert transport.get_extra_info("peername") == names[1]
            assert transport.get_extra_info("socket").fileno() == -1

    run(main)


def test_extra_socket_is_a_transport_socket(run: Run) -> None:
    async def main() -> None:
        async with connected() as (transport, _, peer):
            sock = transport.get_extra_info("socket")
            assert isinstance(sock, asyncio.trsock.TransportSocket)
            assert transport.get_extra_info("socket") is sock
            assert (sock.family, sock.type) == (socket.AF_INET, socket.SOCK_STREAM)
            assert sock.getpeername() == peer.getsockname()
            assert sock.gettimeout() == 0
            with pytest.raises(ValueError, match="cannot be blocking"):
                sock.setblocking(True)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            with pytest.raises(AttributeError):
                sock.close()
            with sock.dup() as duplicate:
                assert isinstance(duplicate, socket.socket)
                assert duplicate.getpeername() == peer.getsockname()

    run(main)


# --- reading -----------------------------------------------------------------------------------


def test_data_arrives_as_bytes_in_order(run: Run) -> None:
    async def main() -> None:
        async with connected() as (_, protocol, peer):
            sent = bytearray()
            for i in range(200):
                chunk = bytes([i]) * (i * 37 % 1500 + 1)
                sent += chunk
                view = memoryview(chunk)
                while view:
                    try:
                        view = view[peer.send(view) :]
                    except BlockingIOError:
                        await asyncio.sleep(0)
            await until(lambda: len(protocol.data) >= len(sent))
            assert protocol.data == sent

    run(main)


def test_connection_made_comes_before_data_that_waits_already(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with tcp_pair() as (near, far):
            far.send(b"early")
            transport, protocol = await loop.create_connection(Recorder, sock=near)
            assert protocol.events == ["made"]
            await until(lambda: protocol.data)
            assert protocol.events == ["made", "data"]
            assert protocol.data == b"early"
            transport.abort()
            await turns(2)

    run(main)


def test_pause_and_resume_reading(run: Run) -> None:
    async def main() -> None:
        async with connected() as (transport, protocol, peer):
            assert transport.is_reading() is True
            transport.pause_reading()
            assert transport.is_reading() is False
            peer.send(b"held back")
            await asyncio.sleep(0.02)
            assert protocol.data == b""
            transport.pause_reading()
            transport.resume_reading()
            assert transport.is_reading() is True
            transport.resume_reading()
            await until(lambda: protocol.data == b"held back")

    run(main)


def test_pause_reading_in_data_received_takes_effect_at_once(run: Run) -> None:
    class Pausing(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.pause_reading()

    async def main() -> None:
        async with connected(Pausing()) as (transport, protocol, peer):
            size = 4 << 20
            sender = asyncio.ensure_future(
                asyncio.get_running_loop().sock_sendall(peer, bytes(size))
            )
            calls = 0
            while len(protocol.data) < size:
                await until(lambda calls=calls: protocol.events.count("data") > calls)
                await turns(3)
                # One delivery for each resume, though more is waiting.
                assert protocol.events.count("data") == calls + 1
                calls += 1
                transport.resume_reading()
            await sender
            assert len(protocol.data) == size

    run(main)


def test_pause_reading_in_connection_made(run: Run) -> None:
    class Shy(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.pause_reading()

    async def main() -> None:
        async with connected(Shy()) as (transport, protocol, peer):
            peer.send(b"data")
            await asyncio.sleep(0.02)
            assert protocol.events == ["made"]
            transport.resume_reading()
            await until(lambda: protocol.data == b"data")

    run(main)


def test_close_in_data_received_ends_reading_at_once(run: Run) -> None:
    class Hasty(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.close()

    async def main() -> None:
        async with connected(Hasty()) as (_, protocol, peer):
            peer.send(bytes(100_000))
            await until(lambda: protocol.lost)
            assert protocol.events == ["made", "data", "lost"]
            assert protocol.lost == [None]

    run(main)


def test_one_busy_peer_does_not_starve_the_rest(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with connected() as (_, flooded, flooder), connected() as (_, quiet, other):

            async def flood() -> None:
                block = bytes(1 << 20)
                while not quiet.data:
                    await loop.sock_sendall(flooder, block)

            task = asyncio.ensure_future(flood())
            await until(lambda: len(flooded.data) > 4 << 20)
            other.send(b"me too")
            await until(lambda: quiet.data == b"me too", 5)
            await task

    run(main)


# --- protocols that change ---------------------------------------------------------------------


def test_get_and_set_protocol(run: Run) -> None:
    async def main() -> None:
        async with connected() as (transport, first, peer):
            second = Recorder()
            assert transport.get_protocol() is first
            transport.set_protocol(second)
            assert transport.get_protocol() is second
            peer.send(b"data")
            await until(lambda: second.data == b"data")
            assert (first.events, second.events) == (["made"], ["data"])
            peer.close()
            await until(lambda: second.lost)
            assert first.lost == []

    run(main)


def test_set_protocol_inside_data_received(run: Run) -> None:
    second = Recorder()

    class Handover(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.set_protocol(second)

    async def main() -> None:
        async with connected(Handover()) as (transport, first, peer):
            peer.send(b"x" * 1000)
            await until(lambda: first.data)
            peer.send(b"y" * 1000)
            peer.shutdown(socket.SHUT_WR)
            await until(lambda: second.lost)
            assert first.events == ["made", "data"]
            assert bytes(first.data + second.data) == b"x" * 1000 + b"y" * 1000
            assert second.events[-2:] == ["eof", "lost"]
            assert transport.get_protocol() is None

    run(main)


def test_protocol_is_let_go_after_the_loss(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with tcp_pair() as (near, _):
            transport, protocol = await loop.create_connection(Recorder, sock=near)
            ref = weakref.ref(protocol)
            transport.close()
            await turns(3)
            assert protocol.lost == [None]
            protocol.transport = None  # type: ignore[assignment]
            del protocol
            gc.collect()
            assert ref() is None
            assert transport.is_closing()

    run(main)


# --- end of file -------------------------------------------------------------------------------


def test_eof_closes_unless_the_protocol_wants_it_open(run: Run) -> None:
    async def main() -> None:
        async with connected() as (transport, protocol, peer):
            peer.send(b"last words")
            peer.shutdown(socket.SHUT_WR)
            await until(lambda: protocol.lost)
            assert protocol.data == b"last words"
            assert protocol.events == ["made", "data", "eof", "lost"]
            assert protocol.lost == [None]
            assert transport.is_closing()
            assert await read_to_end(peer) == b""

    run(main)


def test_eof_received_true_keeps_the_writing_half_open(run: Run) -> None:
    async def main() -> None:
        protocol = Recorder()
        protocol.keep_open = True
        async with connected(protocol) as (transport, _, peer):
            peer.shutdown(socket.SHUT_WR)
            await until(lambda: "eof" in protocol.events)
            await asyncio.sleep(0.02)
            assert protocol.events == ["made", "eof"]
            assert not transport.is_closing()
            transport.write(b"still here")
            assert await read_exactly(peer, 10) == b"still here"
            transport.close()
            await until(lambda: protocol.lost)
            assert protocol.events == ["made", "eof", "lost"]
            assert await read_to_end(peer) == b""

    run(main)


def test_eof_while_paused_comes_after_the_data(run: Run) -> None:
    async def main() -> None:
        async with connected() as (transport, protocol, peer):
            transport.pause_reading()
            peer.send(b"held back")
            peer.close()
            await asyncio.sleep(0.02)
            assert protocol.events == ["made"]
            transport.resume_reading()
            await until(lambda: protocol.lost)
            assert protocol.data == b"held back"
            assert protocol.events == ["made", "data", "eof", "lost"]

    run(main)


def test_close_in_eof_received(run: Run) -> None:
    class Closing(Recorder):
        def eof_received(self) -> bool:
            super().eof_received()
            self.transport.close()
            return True

    async def main() -> None:
        async with connected(Closing()) as (_, protocol, peer):
            peer.shutdown(socket.SHUT_WR)
            await until(lambda: protocol.lost)
            assert protocol.events == ["made", "eof", "lost"]

    run(main)
