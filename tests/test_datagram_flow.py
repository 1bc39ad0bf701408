"""Flow control of datagram endpoints: what waits, and who is told."""

import asyncio
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import skip_if_asyncio_errs, until

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]

HEADER = 8 if sys.version_info >= (3, 13) else 0


class Told(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.events: list[Any] = []

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def error_received(self, exc: Exception) -> None:
        self.events.append(type(exc))

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append(("lost", exc))


async def over(loop: Loop, near: socket.socket) -> tuple[Any, Told]:
    transport, protocol = await loop.create_datagram_endpoint(Told, sock=near)
    return transport, protocol


def fill(transport: Any, size: int = 1000) -> int:
    """Send until something waits; return how many datagrams left."""
    sent = 0
    while transport.get_write_buffer_size() == 0:
        transport.sendto(b"%04d" % sent + b"x" * (size - 4))
        sent += 1
        assert sent < 10_000
    return sent - 1


@pytest.fixture
def pair(tmp_path: Any) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Connected Unix datagram sockets, which block when a few datagrams wait at the receiver."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as near,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as far,
    ):
        far.bind(str(tmp_path / "far"))
        far.settimeout(10)
        near.connect(str(tmp_path / "far"))
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        yield near, far


def test_what_waits_is_counted_and_sent(loop: Loop, run: Run, pair: Any) -> None:
    skip_if_asyncio_errs(loop, "never takes the headers off again", (3, 13), (3, 13, 3))

    async def main() -> None:
        near, far = pair
        transport, protocol = await over(loop, near)
        sent = fill(transport)
        assert transport.get_write_buffer_size() == 1000 + HEADER
        changing = bytearray(b"%04d" % (sent + 1) + b"y" * 500)
        transport.sendto(changing)
        changing[:] = b"!" * len(changing)
        assert transport.get_write_buffer_size() == 1504 + 2 * HEADER
        for number in range(sent + 2):
            data = await asyncio.to_thread(far.recv, 2000)
            assert data[:4] == b"%04d" % number
            assert set(data[4:]) == ({ord("y")} if number == sent + 1 else {ord("x")})
        await until(lambda: transport.get_write_buffer_size() == 0)
        assert protocol.events == []
        transport.close()
        await until(lambda: protocol.events == [("lost", None)])

    run(main)


def test_pause_and_resume(loop: Loop, run: Run, pair: Any) -> None:
    skip_if_asyncio_errs(loop, "never takes the headers off again", (3, 13), (3, 13, 3))

    async def main() -> None:
        near, far = pair
        transport, protocol = await over(loop, near)
        assert transport.get_write_buffer_limits() == (16384, 65536)
        transport.set_write_buffer_limits(high=2500)
        assert transport.get_write_buffer_limits() == (625, 2500)
        sent = fill(transport)
        transport.sendto(b"x" * 1000)
        assert protocol.events == []
        transport.sendto(b"x" * 1000)
        assert protocol.events == ["pause"]
        transport.sendto(b"x" * 1000)
        assert protocol.events == ["pause"]
        for _ in range(sent + 4):
            await asyncio.to_thread(far.recv, 2000)
        await until(lambda: len(protocol.events) == 2)
        assert protocol.events == ["pause", "resume"]
        with pytest.raises(ValueError, match=r"^high \(1\) must be >= low \(2\) must be >= 0$"):
            transport.set_write_buffer_limits(high=1, low=2)
        transport.close()
        await until(lambda: len(protocol.events) == 3)

    run(main)


def test_close_sends_what_waits(loop: Loop, run: Run, pair: Any) -> None:
    async def main() -> None:
        near, far = pair
        transport, protocol = await over(loop, near)
        sent = fill(transport)
        transport.sendto(b"last")
        transport.close()
        await asyncio.sleep(0.01)
        assert protocol.events == []
        got = [await asyncio.to_thread(far.recv, 2000) for _ in range(sent + 2)]
        assert got[-1] == b"last"
        await until(lambda: protocol.events == [("lost", None)])
        assert near.fileno() == -1

    run(main)


def test_abort_drops_what_waits(loop: Loop, run: Run, pair: Any) -> None:
    async def main() -> None:
        near, far = pair
        transport, protocol = await over(loop, near)
        sent = fill(transport)
        transport.abort()
        assert transport.get_write_buffer_size() == 0 or is_counted_until_the_end(loop)
        await until(lambda: protocol.events == [("lost", None)])
        for _ in range(sent):
            far.recv(2000)
        far.setblocking(False)
        with pytest.raises(BlockingIOError):
            far.recv(2000)

    run(main)


def is_counted_until_the_end(loop: Loop) -> bool:
    return type(loop).__module__.startswith("asyncio")


@pytest.mark.parametrize("how", ["close", "abort"])
def test_protocol_that_is_gone_is_not_resumed(loop: Loop, run: Run, pair: Any, how: str) -> None:
    async def main() -> None:
        near, far = pair
        transport, protocol = await over(loop, near)
        transport.set_write_buffer_limits(high=0)
        sent = fill(transport)
        assert protocol.events == ["pause"]
        getattr(transport, how)()
        if how == "close":
            for _ in range(sent + 1):
                await asyncio.to_thread(far.recv, 2000)
        await until(lambda: ("lost", None) in protocol.events)
        await asyncio.sleep(0.02)
        assert protocol.events[-1] == ("lost", None)
        assert protocol.events.count(("lost", None)) == 1

    run(main)


def test_error_of_what_waited_goes_to_the_protocol(loop: Loop, run: Run, pair: Any) -> None:
    async def main() -> None:
        near, far = pair
        transport, protocol = await over(loop, near)
        fill(transport)
        transport.sendto(b"second")
        far.close()
        await until(lambda: len(protocol.events) >= 2)
        # The kernel then forgets the peer.
        assert protocol.events[:2] == [ConnectionRefusedError, OSError]
        transport.close()
        await until(lambda: ("lost", None) in protocol.events)

    run(main)


def test_error_of_what_waited_lets_close_end(loop: Loop, run: Run, pair: Any) -> None:
    async def main() -> None:
        near, far = pair
        transport, protocol = await over(loop, near)
        fill(transport)
        transport.close()
        far.close()
        await until(lambda: ("lost", None) in protocol.events)
        assert protocol.events == [ConnectionRefusedError, ("lost", None)]

    run(main)


def test_address_object_that_waits(loop: Loop, run: Run, tmp_path: Any) -> None:
    async def main() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as far:
            far.bind(str(tmp_path / "far"))
            far.settimeout(10)
            transport, _ = await loop.create_datagram_endpoint(Told, family=socket.AF_UNIX)
            sent = 0
            while transport.get_write_buffer_size() == 0:
                transport.sendto(b"%d" % sent, str(tmp_path / "far"))
                sent += 1
            for number in range(sent):
                assert await asyncio.to_thread(far.recv, 100) == b"%d" % number
            transport.close()
            await asyncio.sleep(0.01)

    run(main)


def test_exception_in_pause_writing_is_reported(
    loop: Loop, run: Run, pair: Any, reported: list[dict[str, Any]]
) -> None:
    class Raising(Told):
        def pause_writing(self) -> None:
            raise ZeroDivisionError

    async def main() -> None:
        near, _ = pair
        transport, protocol = await loop.create_datagram_endpoint(Raising, sock=near)
        transport.set_write_buffer_limits(high=0)
        fill(transport)
        (context,) = reported
        assert context["message"] == "protocol.pause_writing() failed"
        assert isinstance(context["exception"], ZeroDivisionError)
        assert context["transport"] is transport
        assert context["protocol"] is protocol
        transport.abort()
        await asyncio.sleep(0)

    run(main)
