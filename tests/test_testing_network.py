"""rondel.testing's connections in memory."""

import asyncio
import types
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import rondel
from rondel import testing
from rondel.testing import Network, RealWorldError

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

CALM = Network(latency=(0.001, 0.1), split=0.5, loss=0.2)

pytestmark = [
    # A server's task that ends with the connection's error is asyncio's to report, and is meant.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(params=[asyncio, rondel], ids=["asyncio", "rondel"])
def streams(request: pytest.FixtureRequest) -> types.ModuleType:
    """Whose streams to use."""
    module: types.ModuleType = request.param
    return module


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1000):
            writer.write(data)
            await writer.drain()
    except ConnectionResetError:
        pass
    finally:
        writer.close()


def test_what_is_sent_arrives_whole_and_in_order(streams: types.ModuleType) -> None:
    data = bytes(range(256)) * 2000

    async def main() -> float:
        loop = asyncio.get_running_loop()
        async with await streams.start_server(echo, None, 7000):
            reader, writer = await streams.open_connection("any.example", 7000)

            async def send() -> None:
                for start in range(0, len(data), 40_000):
                    writer.write(data[start : start + 40_000])
                    await writer.drain()
                writer.write_eof()

            sending = asyncio.ensure_future(send())
            assert await reader.read() == data
            await sending
            writer.close()
            await writer.wait_closed()
        return loop.time()

    times = {testing.run(main(), seed=seed, network=CALM) for seed in range(10)}
    assert len(times) == 10
    trace: list[str] = []
    again: list[str] = []
    testing.run(main(), seed=3, network=CALM, trace=trace)
    testing.run(main(), seed=3, network=CALM, trace=again)
    assert trace == again


def test_pieces_and_delays_are_the_tapes() -> None:
    async def main() -> list[tuple[bytes, float]]:
        loop = asyncio.get_running_loop()
        got: list[tuple[bytes, float]] = []
        ended = loop.create_future()

        class Sender(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                assert transport.get_extra_info("sockname") == ("host", 80)
                assert transport.get_extra_info("socket").getpeername()[0] == "client"
                transport.write(b"0123456789")
                transport.close()

        class Receiver(asyncio.Protocol):
            def data_received(self, data: bytes) -> None:
                got.append((data, loop.time()))

            def connection_lost(self, exc: Exception | None) -> None:
                ended.set_result(exc)

        server = await loop.create_server(Sender, "host", 80)
        await loop.create_connection(Receiver, "host", 80)
        assert await ended is None
        server.close()
        await server.wait_closed()
        return got

    network = Network(latency=(1, 2), split=0.5, loss=0.5, retransmission=10)
    assert testing.run(main(), network=network) == [(b"0123456789", 3.0)]
    runs = [testing.run(main(), seed=seed, network=network) for seed in range(40)]
    assert all(b"".join(data for data, _ in run) == b"0123456789" for run in runs)
    assert {len(run) for run in runs} > {1, 2, 3}
    for run in runs:
        assert [time for _, time in run] == sorted(time for _, time in run)
    assert any(run[-1][1] < 6 for run in runs) and any(run[-1][1] > 10 for run in runs)


def test_a_connection_may_break(streams: types.ModuleType) -> None:
    async def main() -> str:
        async with await streams.start_server(echo, "host", 1):
            reader, writer = await streams.open_connection("host", 1)
            try:
                for _ in range(5):
                    writer.write(b"x" * 10)
                    await reader.readexactly(10)
            except ConnectionResetError:
                return "broken"
            finally:
                writer.close()
        return "whole"

    found = [testing.run(main(), seed=s, network=Network(disconnect=0.05)) for s in range(40)]
    assert set(found) == {"broken", "whole"}
    assert testing.run(main(), network=Network(disconnect=0.05)) == "whole"


def test_abort_and_writing_to_who_has_closed() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        accepted: asyncio.Queue[Streams] = asyncio.Queue()

        async def accept(*streams: Any) -> None:
            await accepted.put(streams)

        async with await asyncio.start_server(accept, port=0) as server:
            port = server.sockets[0].getsockname()[1]
            _, writer = await asyncio.open_connection("a", port)
            theirs, _ = await accepted.get()
            writer.transport.abort()
            with pytest.raises(ConnectionResetError):
                await theirs.read()

            reader, writer = await asyncio.open_connection("b", port)
            _, leaving = await accepted.get()
            leaving.close()
            assert await reader.read() == b""
            writer.write(b"too late")
            with pytest.raises(ConnectionResetError):
                for _ in range(10):
                    await asyncio.sleep(1)
                    await writer.drain()
        with pytest.raises(ConnectionRefusedError, match="Connect call failed"):
            await asyncio.open_connection("a", port)
        assert loop.time() < 60

    testing.run(main())
    for seed in range(20):
        testing.run(main(), seed=seed)


def test_flow_control_reaches_the_writer() -> None:
    async def main() -> None:
        release = asyncio.Event()
        total = 0

        async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal total
            await release.wait()
            while data := await reader.read(10_000):
                total += len(data)
            writer.close()

        async with await asyncio.start_server(slow, "host", 1):
            _, writer = await asyncio.open_connection("host", 1)
            for _ in range(4):
                writer.write(bytes(100_000))
            draining = asyncio.ensure_future(writer.drain())
            await asyncio.sleep(1000)
            assert not draining.done()
            release.set()
            await draining
            writer.close()
            await asyncio.sleep(10)
            assert total == 400_000

    for seed in (None, 1, 2):
        testing.run(main(), seed=seed)


def test_names_have_the_addresses_that_the_test_gives_them() -> None:
    hosts = {"db": ["10.0.0.1", "10.0.0.2", "10.0.0.3"]}

    async def main() -> tuple[str, ...]:
        loop = asyncio.get_running_loop()
        served: list[str] = []

        def handler(address: str) -> Callable[[Any, Any], Awaitable[None]]:
            async def handle(reader: Any, writer: asyncio.StreamWriter) -> None:
                served.append(address)
                writer.close()

            return handle

        for address in hosts["db"][1:]:
            await asyncio.start_server(handler(address), address, 5432)
        reader, writer = await asyncio.open_connection("db", 5432)
        await reader.read()
        writer.close()
        infos = await loop.getaddrinfo("db", 1, type=1)
        with pytest.raises(OSError, match="not known"):
            await loop.getaddrinfo("nobody", 1)
        return (*served, *(info[4][0] for info in infos))

    runs = {testing.run(main(), seed=seed, network=Network(hosts=hosts)) for seed in range(60)}
    assert {run[0] for run in runs} == {"10.0.0.2", "10.0.0.3"}
    assert len({run[1:] for run in runs}) == 6


def test_unix_sockets_and_what_is_refused() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with await asyncio.start_unix_server(echo, "/no/file"):
            reader, writer = await asyncio.open_unix_connection("/no/file")
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            assert writer.get_extra_info("peername") == "/no/file"
            writer.close()
            with pytest.raises(OSError, match="address already in use"):
                await loop.create_unix_server(asyncio.Protocol, "/no/file")
        with pytest.raises(RealWorldError, match="ssl"):
            await asyncio.open_connection("a", 1, ssl=True)

        def fails() -> asyncio.Protocol:
            raise ZeroDivisionError

        reported: list[Any] = []
        loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))
        server = await loop.create_server(fails, "host", 1)
        reader, writer = await asyncio.open_connection("host", 1)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        assert [type(error) for error in reported] == [ZeroDivisionError]
        server.close()
        await server.wait_closed()

    testing.run(main())
    testing.run(main(), seed=1)
