"""Data over TLS: large transfers, flow control, BufferedProtocol."""

import asyncio
import random
import ssl
from collections.abc import Callable
from typing import Any

import pytest
from support import HOST, Recorder, is_stock, turns, until
from tls import NAME, client_context, connected_tls, server_context

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]

BOTH_TLS = True

MIB = 1 << 20
BLOB = random.Random(7).randbytes(8 * MIB)


class Buffered(asyncio.BufferedProtocol):
    """Takes data into a buffer of the given size and kind."""

    def __init__(self, size: int, make: Callable[[bytearray], Any] = memoryview) -> None:
        self.memory = bytearray(size)
        self.buffer = make(self.memory)
        self.data = bytearray()
        self.sizes: list[int] = []
        self.hints: list[int] = []
        self.events: list[str] = []
        self.lost: list[BaseException | None] = []
        self.transport: asyncio.Transport = None  # type: ignore[assignment]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def get_buffer(self, sizehint: int) -> Any:
        self.hints.append(sizehint)
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.sizes.append(nbytes)
        self.data += self.memory[:nbytes]

    def eof_received(self) -> None:
        self.events.append("eof")

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost.append(exc)


@pytest.mark.timeout(60)
def test_large_transfers_both_ways_at_once(run: Run) -> None:
    async def main() -> None:
        async with connected_tls(small=True) as (transport, protocol, peer):
            sending = asyncio.ensure_future(peer.send(BLOB))
            await asyncio.sleep(0)
            for start in range(0, len(BLOB), MIB):
                transport.write(BLOB[start : start + MIB])
            await sending
            assert await peer.read(len(BLOB)) == BLOB
            await until(lambda: len(protocol.data) == len(BLOB), 20)
            assert protocol.data == BLOB
            assert {"pause", "resume"} <= set(protocol.events)
            assert protocol.events.count("pause") == protocol.events.count("resume")

    run(main, limit=50)


@pytest.mark.timeout(60)
def test_streams_with_drain(run: Run) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, HOST, 0, ssl=server_context())
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection(
            HOST, port, ssl=client_context(), server_hostname=NAME
        )

        async def send() -> None:
            for start in range(0, len(BLOB), 100_003):
                writer.write(BLOB[start : start + 100_003])
                await writer.drain()

        sending = asyncio.ensure_future(send())
        assert await reader.readexactly(len(BLOB)) == BLOB
        await sending
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run(main, limit=50)


def test_sizes_around_a_record(run: Run) -> None:
    async def main() -> None:
        async with connected_tls() as (transport, protocol, peer):
            for size in (1, 2, 4095, 4096, 4097, 16383, 16384, 16385, 32768, 70000, 262145):
                protocol.data.clear()
                transport.write(BLOB[:size])
                assert await peer.read(size) == BLOB[:size]
                await peer.send(BLOB[:size])
                await until(lambda s=size: len(protocol.data) >= s)
                assert protocol.data == BLOB[:size]

    run(main)


def test_record_that_comes_byte_by_byte(run: Run) -> None:
    async def main() -> None:
        async with connected_tls() as (_, protocol, peer):
            for size in (1, 300):
                protocol.data.clear()
                peer.object.write(BLOB[:size])
                ciphertext = peer.outgoing.read()
                for index in range(len(ciphertext)):
                    assert protocol.data == b""
                    peer.sock.send(ciphertext[index : index + 1])
                    await asyncio.sleep(0)
                await until(lambda: protocol.data)
                assert protocol.data == BLOB[:size]

    run(main)


def test_small_writes_arrive_in_order(run: Run) -> None:
    async def main() -> None:
        async with connected_tls(small=True) as (transport, _, peer):
            sizes = [random.Random(1).randrange(1, 40_000) for _ in range(200)]
            start = 0
            for size in sizes:
                transport.write(BLOB[start : start + size])
                start += size
            transport.writelines(BLOB[start + n : start + n + 10] for n in range(0, 1000, 10))
            start += 1000
            assert await peer.read(start) == BLOB[:start]

    run(main)


def test_buffer_may_be_changed_after_write(run: Run) -> None:
    async def main() -> None:
        async with connected_tls(small=True) as (transport, _, peer):
            data = bytearray(BLOB[: 2 * MIB])
            transport.write(memoryview(data))
            data[:] = bytes(len(data))
            assert await peer.read(2 * MIB) == BLOB[: 2 * MIB]

    run(main, limit=25)


def test_write_buffer_size_and_limits(run: Run) -> None:
    async def main() -> None:
        async with connected_tls(small=True) as (transport, protocol, peer):
            assert transport.get_write_buffer_limits() == (128 * 1024, 512 * 1024)
            assert transport.get_write_buffer_size() == 0
            transport.set_write_buffer_limits(high=100_000, low=50_000)
            assert transport.get_write_buffer_limits() == (50_000, 100_000)
            with pytest.raises(ValueError, match="must be >= low"):
                transport.set_write_buffer_limits(high=1, low=2)
            transport.write(BLOB[:MIB])
            transport.write(BLOB[:MIB])
            assert transport.get_write_buffer_size() > 100_000
            assert protocol.events == ["made", "pause"]
            assert await peer.read(2 * MIB) == BLOB[:MIB] * 2
            await until(lambda: protocol.events == ["made", "pause", "resume"])
            assert transport.get_write_buffer_size() == 0
            transport.set_write_buffer_limits()
            assert transport.get_write_buffer_limits() == (128 * 1024, 512 * 1024)
            transport.set_write_buffer_limits(low=10)
            assert transport.get_write_buffer_limits() == (10, 40)

    run(main)


def test_failing_flow_control_methods_are_reported(
    run: Run, reported: list[dict[str, Any]]
) -> None:
    class Failing(Recorder):
        def pause_writing(self) -> None:
            raise ZeroDivisionError

        def resume_writing(self) -> None:
            raise IndexError

    async def main() -> None:
        async with connected_tls(Failing(), small=True) as (transport, protocol, peer):
            transport.write(BLOB[: 2 * MIB])
            transport.write(BLOB[: 2 * MIB])
            assert await peer.read(4 * MIB) == BLOB[: 2 * MIB] * 2
            await until(lambda: len(reported) == 2)
            assert [context["message"] for context in reported] == [
                "protocol.pause_writing() failed",
                "protocol.resume_writing() failed",
            ]
            assert all(context["transport"] is transport for context in reported)
            assert not protocol.lost

    run(main)


def test_pause_and_resume_reading(run: Run) -> None:
    async def main() -> None:
        async with connected_tls() as (transport, protocol, peer):
            assert transport.is_reading()
            transport.pause_reading()
            transport.pause_reading()
            assert not transport.is_reading()
            await peer.send(b"held")
            await asyncio.sleep(0.02)
            assert protocol.data == b""
            assert transport.get_read_buffer_size() > 0  # type: ignore[attr-defined]
            transport.resume_reading()
            transport.resume_reading()
            assert transport.is_reading()
            assert protocol.data == b""
            await until(lambda: protocol.data == b"held")
            assert transport.get_read_buffer_size() == 0  # type: ignore[attr-defined]

    run(main)


def test_pausing_pauses_the_peer(run: Run) -> None:
    async def main() -> None:
        async with connected_tls(small=True) as (transport, protocol, peer):
            transport.pause_reading()
            sending = asyncio.ensure_future(peer.send(BLOB[: 4 * MIB]))
            await asyncio.sleep(0.1)
            assert not sending.done()
            size = transport.get_read_buffer_size()  # type: ignore[attr-defined]
            assert 256 * 1024 <= size < MIB
            transport.resume_reading()
            await sending
            await until(lambda: len(protocol.data) == 4 * MIB)
            assert protocol.data == BLOB[: 4 * MIB]

    run(main, limit=25)


def test_pause_inside_data_received(run: Run) -> None:
    class Sipping(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.pause_reading()

    async def main() -> None:
        async with connected_tls(Sipping()) as (transport, protocol, peer):
            await peer.send(b"one")
            await until(lambda: protocol.data == b"one")
            await peer.send(b"two")
            await asyncio.sleep(0.02)
            assert protocol.data == b"one"
            transport.resume_reading()
            await until(lambda: protocol.data == b"onetwo")

    run(main)


def test_set_read_buffer_limits(run: Run) -> None:
    async def main() -> None:
        async with connected_tls() as (transport, _, _):
            limits = transport.get_read_buffer_limits  # type: ignore[attr-defined]
            assert limits() == (64 * 1024, 256 * 1024)
            transport.set_read_buffer_limits(high=1000, low=10)  # type: ignore[attr-defined]
            assert limits() == (10, 1000)
            with pytest.raises(ValueError, match="must be >= low"):
                transport.set_read_buffer_limits(high=-1)  # type: ignore[attr-defined]

    run(main)


@pytest.mark.parametrize("end", ["close_notify", "eof"])
def test_data_held_back_arrives_after_the_peers_end(run: Run, end: str) -> None:
    async def main() -> None:
        async with connected_tls() as (transport, protocol, peer):
            transport.pause_reading()
            await peer.send(b"held")
            if end == "close_notify":
                peer.sock.send(peer.notify())
            peer.sock.shutdown(1)
            await asyncio.sleep(0.05)
            assert protocol.events == ["made"]
            transport.resume_reading()
            await until(lambda: protocol.lost)
            assert protocol.events == ["made", "data", "eof", "lost"]
            assert protocol.data == b"held"
            assert protocol.lost == [None]

    run(main)


@pytest.mark.parametrize("size", [1, 100, 16384, 100_000, MIB])
def test_buffered_protocol(run: Run, size: int) -> None:
    async def main() -> None:
        total = min(size * 200, MIB)
        async with connected_tls(Buffered(size)) as (transport, protocol, peer):
            await peer.send(BLOB[:total])
            await until(lambda: len(protocol.data) == total)
            assert protocol.data == BLOB[:total]
            assert 0 < max(protocol.sizes) <= size
            assert min(protocol.hints) >= 0
            peer.sock.send(peer.notify())
            await until(lambda: protocol.lost)
            assert protocol.events == ["eof"]
            assert protocol.lost == [None]
            assert transport.is_closing()

    run(main)


def test_buffer_may_be_a_bytearray(loop: Loop, run: Run) -> None:
    if is_stock(loop):
        pytest.skip("asyncio reads the second record into a copy of the rest of a bytearray")

    async def main() -> None:
        protocol = Buffered(MIB, lambda memory: memory)
        async with connected_tls(protocol) as (_, _, peer):
            await peer.send(BLOB[:MIB])
            await until(lambda: len(protocol.data) == MIB)
            assert protocol.data == BLOB[:MIB]

    run(main)


def test_from_plain_to_buffered_protocol_and_back(run: Run) -> None:
    async def main() -> None:
        async with connected_tls() as (transport, first, peer):
            buffered = Buffered(1000)
            transport.set_protocol(buffered)
            await peer.send(b"buffered")
            await until(lambda: buffered.data == b"buffered")
            transport.set_protocol(first)
            await peer.send(b"plain")
            await until(lambda: first.data == b"plain")

    run(main)


@pytest.mark.parametrize("wrong", [b"read-only", bytearray(), "text"])
def test_wrong_buffers_end_the_connection(
    loop: Loop, run: Run, reported: list[dict[str, Any]], wrong: Any
) -> None:
    if is_stock(loop) and wrong == bytearray():
        pytest.skip("asyncio takes an empty buffer for the peer's end")

    async def main() -> None:
        async with connected_tls(Buffered(1)) as (_, protocol, peer):
            protocol.buffer = wrong
            await peer.send(b"data")
            await until(lambda: protocol.lost)
            [error] = protocol.lost
            assert isinstance(error, Exception)
            [context] = reported
            assert context["message"] == "Fatal error on SSL protocol"
            assert context["exception"] is error

    run(main)


def test_write_from_data_received(run: Run) -> None:
    class Answering(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            for part in (data[:1], data[1:2], data[2:]):
                self.transport.write(part)

    async def main() -> None:
        async with connected_tls(Answering()) as (_, _, peer):
            for number in range(50):
                await peer.send(b"question %d" % number)
                assert await peer.read(len(b"question %d" % number)) == b"question %d" % number

    run(main)


def test_key_update_and_tickets_are_no_data(run: Run) -> None:
    async def main() -> None:
        async with connected_tls() as (transport, protocol, peer):
            # Session tickets have come with the handshake; nothing was delivered for them.
            await turns(10)
            assert protocol.events == ["made"]
            assert transport.get_extra_info("ssl_object").version() == "TLSv1.3"
            await peer.send(b"x")
            await until(lambda: protocol.data)
            assert protocol.events == ["made", "data"]

    run(main)


def test_sslobject_class_of_the_programs_own_is_used(run: Run) -> None:
    class Counting(ssl.SSLObject):
        calls: list[str] = []  # noqa: RUF012 - counts for all

        def read(self, len: int = 1024, buffer: Any = None) -> Any:
            self.calls.append("read")
            return super().read(len, buffer)

        def write(self, data: Any) -> int:
            self.calls.append("write")
            return super().write(data)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        context = client_context()
        context.sslobject_class = Counting
        server = await loop.create_server(Recorder, HOST, 0, ssl=server_context())
        port = server.sockets[0].getsockname()[1]
        transport, protocol = await loop.create_connection(
            Recorder, HOST, port, ssl=context, server_hostname=NAME
        )
        transport.write(BLOB[:50_000])
        assert "write" in Counting.calls
        transport.close()
        await until(lambda: protocol.lost)
        assert "read" in Counting.calls
        server.close()
        await server.wait_closed()

    run(main)
