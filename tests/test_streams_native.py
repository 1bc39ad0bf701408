"""rondel's native streams: what programs see, beside asyncio's own classes."""

import asyncio
import contextlib
import gc
import inspect
import random
import sys
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import rondel
from streams import READERS, fed, made_by_hand, served
from support import HOST, collected, counted_turns, turns, until

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]


@pytest.fixture
def loop(rondel_loop: Loop) -> Loop:
    """What is said here is said of rondel's loop."""
    return rondel_loop


# --- from the transport to the reader ------------------------------------------------------------


@contextlib.contextmanager
def python_calls() -> Iterator[set[str]]:
    """The names of Python functions called during the block."""
    names: set[str] = set()

    def profile(frame: types.FrameType, event: str, _: Any) -> None:
        if event == "call":
            names.add(frame.f_code.co_name)

    sys.setprofile(profile)
    try:
        yield names
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("reader_class", READERS)
def test_no_python_function_is_called_for_data(run: Run, reader_class: Any) -> None:
    async def main() -> None:
        reader = reader_class()
        async with made_by_hand(reader) as (_, far):
            with python_calls() as names:
                far.send(b"data")
                await asyncio.sleep(0.05)
            assert names.isdisjoint({"data_received", "feed_data", "_wakeup_waiter"})
            assert await reader.read(10) == b"data"

    run(main)


def test_reading_and_draining_take_no_python_function(run: Run) -> None:
    async def main() -> None:
        async with served() as ((reader, writer), (_, there)):
            there.write(b"one\ntwo\nthree")
            with python_calls() as names:
                await reader.readline()
                await reader.readuntil(b"\n")
                await reader.readexactly(5)
                writer.write(b"x")
                await writer.drain()
                writer.writelines([b"y", b"z"])
                await writer.drain()
            assert names.isdisjoint(dir(asyncio.StreamReader) + dir(asyncio.StreamWriter))

    run(main)


@pytest.mark.parametrize("reader_class", READERS)
def test_what_was_put_between_transport_and_reader_is_called(
    run: Run, reader_class: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, bytes]] = []

    class Reader(reader_class):  # type: ignore[misc]
        def feed_data(self, data: bytes) -> None:
            calls.append(("reader's class", data))
            super().feed_data(data)

    class Protocol(asyncio.StreamReaderProtocol):
        def data_received(self, data: bytes) -> None:
            calls.append(("protocol's class", data))
            super().data_received(data)

    def instance_of(reader: Any, protocol: Any) -> None:
        feed = reader.feed_data
        reader.feed_data = lambda data: (calls.append(("reader", data)), feed(data))
        receive = protocol.data_received
        protocol.data_received = lambda data: (calls.append(("protocol", data)), receive(data))

    async def talk(reader: Any, protocol: Any = None, patch: Any = None) -> None:
        async with made_by_hand(reader, protocol) as (made, far):
            if patch:
                patch(reader, made)
            far.send(b"data")
            assert await asyncio.wait_for(reader.read(10), 10) == b"data"

    async def main() -> None:
        await talk(Reader())
        plain = reader_class()
        await talk(plain, Protocol(plain))
        await talk(reader_class(), patch=instance_of)
        original = asyncio.StreamReaderProtocol.data_received

        def replaced(self: Any, data: bytes) -> None:
            calls.append(("replaced", data))
            original(self, data)

        monkeypatch.setattr(asyncio.StreamReaderProtocol, "data_received", replaced)
        await talk(reader_class())

    run(main)
    expected = ["reader's class", "protocol's class", "protocol", "reader", "replaced"]
    assert calls == [(name, b"data") for name in expected]


def test_data_for_a_reader_that_is_gone_is_dropped(run: Run) -> None:
    async def main() -> None:
        reader = rondel.StreamReader()
        gone = weakref.ref(reader)
        protocol = asyncio.StreamReaderProtocol(reader)
        async with made_by_hand(None, protocol) as (_, far):
            del reader
            protocol._transport = None  # type: ignore[attr-defined]
            assert collected(gone)
            far.send(b"data")
            await asyncio.sleep(0.02)

    run(main)


def test_the_buffer_is_a_bytearray_for_programs(run: Run) -> None:
    """Once a program has seen it, what the program does to it counts."""

    async def main() -> None:
        async with served() as ((reader, _), (_, there)):
            there.write(b"0123456789")
            await until(lambda: len(reader._buffer) == 10)  # type: ignore[attr-defined]
            buffer = reader._buffer  # type: ignore[attr-defined]
            assert type(buffer) is bytearray
            del buffer[:3]
            assert await reader.readexactly(2) == b"34"
            assert buffer == b"56789"
            there.write(b"ab")
            await until(lambda: len(buffer) == 7)
            with memoryview(buffer), pytest.raises(BufferError):
                await reader.read(3)
            assert await reader.read(100) == b"56789ab"

    run(main)


def test_a_look_at_the_buffer_does_not_last(run: Run) -> None:
    async def main() -> None:
        async with served() as ((reader, _), (_, there)):
            for _ in range(3):
                there.write(b"0123456789")
                await until(lambda: len(reader._buffer) == 10)  # type: ignore[attr-defined]
                assert await reader.readexactly(4) == b"0123"
                there.write(b"abcdef")
                await until(lambda: len(reader._buffer) == 12)  # type: ignore[attr-defined]
                assert await reader.read(100) == b"456789abcdef"

    run(main)


def test_pauses_and_resumes_the_transport(run: Run) -> None:
    async def main() -> None:
        async with served(limit=1000) as ((reader, _), (_, there)):
            there.write(bytes(2001))
            await until(lambda: reader._paused)  # type: ignore[attr-defined]
            assert not there.transport.is_closing()
            transport = reader._transport  # type: ignore[attr-defined]
            assert not transport.is_reading()
            await reader.readexactly(1000)
            assert not transport.is_reading()
            await reader.readexactly(1)
            assert transport.is_reading()

    run(main)


def test_a_waiting_read_gets_no_more_than_it_asked_for(run: Run) -> None:
    async def main() -> None:
        data = random.Random(1).randbytes(3_000_000)
        async with served() as ((reader, _), (_, there)):

            async def send() -> None:
                there.write(data)
                await there.drain()

            sending = asyncio.ensure_future(send())
            parts = []
            while sum(map(len, parts)) < len(data):
                parts.append(await reader.read(50_000))
            assert max(map(len, parts)) <= 50_000
            assert b"".join(parts) == data
            await sending

    run(main)


# --- the classes ---------------------------------------------------------------------------------


def test_isinstance_and_subclasses(run: Run) -> None:
    class Reader(rondel.StreamReader):
        def __init__(self, name: str) -> None:
            super().__init__(limit=7)
            self.name = name

        async def readline(self) -> bytes:
            return (await super().readline()).upper()

    async def main() -> None:
        reader = Reader("mine")
        assert isinstance(reader, asyncio.StreamReader)
        assert reader.name == "mine"
        reader.feed_data(b"line\n")
        assert await reader.readline() == b"LINE\n"
        assert "limit=7" in repr(reader)
        assert issubclass(rondel.StreamWriter, asyncio.StreamWriter)

    run(main)


@pytest.mark.parametrize("reader_class", READERS)
def test_a_subclasss_methods_are_called_by_the_others(run: Run, reader_class: Any) -> None:
    calls: list[str] = []

    def noting(name: str) -> Any:
        async def method(self: Any, *args: Any) -> Any:
            calls.append(name)
            return await getattr(super(kind, self), name)(*args)

        return method

    async def use(reader: Any) -> None:
        reader.feed_data(b"one\ntwo\nthree\nfour" + bytes(70_000))
        await reader.readline()
        await reader.readuntil()
        await reader.readuntil(b"\n")
        await reader.readexactly(2)
        await reader.read(3)
        reader.feed_data(b"\n")
        assert await anext(reader)
        asyncio.get_running_loop().call_soon(reader.feed_data, b"x\n")
        assert await anext(reader) == b"x\n"
        reader.feed_data(b"tail")
        reader.feed_eof()
        assert await reader.read() == b"tail"

    found = {}
    for name in ("read", "readline", "readuntil", "readexactly", "_wait_for_data"):
        kind = type("Reader", (reader_class,), {name: noting(name)})
        calls.clear()
        run(use_of, kind, use)
        found[name] = len(calls)
    assert found == {
        "read": 4,
        "readline": 3,
        "readuntil": 5,
        "readexactly": 1,
        "_wait_for_data": 1,
    }


async def use_of(kind: Any, use: Any) -> None:
    await use(kind(limit=100_000))


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_must_be_positive(loop: Loop, limit: int) -> None:
    with pytest.raises(ValueError, match="Limit cannot be <= 0"):
        rondel.StreamReader(limit=limit, loop=loop)


def test_infinite_limit(run: Run) -> None:
    async def main() -> None:
        reader = fed(bytes(200_000) + b"\n", limit=float("inf"))
        assert len(await reader.readline()) == 200_001

    run(main)


def test_public_methods_take_asyncios_arguments() -> None:
    for ours, theirs in [
        (rondel.StreamReader, asyncio.StreamReader),
        (rondel.StreamWriter, asyncio.StreamWriter),
    ]:
        for name in dir(theirs):
            if name.startswith("_"):
                continue
            method = getattr(ours, name)
            if callable(method):
                expected = inspect.signature(getattr(theirs, name)).parameters
                found = inspect.signature(method).parameters
                assert list(found) == list(expected), name
                for parameter in expected:
                    assert found[parameter].default == expected[parameter].default, name


def test_debug_mode_tells_where_a_reader_was_made(loop: Loop) -> None:
    loop.set_debug(True)
    reader: Any = rondel.StreamReader(loop=loop)
    assert reader._source_traceback[-1].name == "test_debug_mode_tells_where_a_reader_was_made"


def test_readers_and_writers_are_collected(run: Run) -> None:
    async def main() -> list[Any]:
        gone = []
        async with served() as (near, far):
            near[0].kept = near[1]  # type: ignore[attr-defined]
            near[1].kept = near[0]  # type: ignore[attr-defined]
            gone = [weakref.ref(stream) for stream in near + far]
        await turns(3)
        return gone

    for gone in run(main):
        assert collected(gone)


def test_waiting_operation_is_collected_with_its_reader(loop: Loop) -> None:
    reader: Any = rondel.StreamReader(loop=loop)
    reader.operation = reader.read(5)
    reader.operation.send(None)
    gone = weakref.ref(reader)
    del reader
    assert collected(gone)


# --- the same as asyncio's, seen from outside ----------------------------------------------------


def start_both() -> list[Any]:
    return [asyncio.start_server, rondel.start_server]


@pytest.mark.parametrize("kind", ["coroutine", "function", "cancelled"])
def test_errors_of_the_callback_are_reported_as_by_asyncio(
    run: Run, loop: Loop, reported: list[dict[str, Any]], kind: str
) -> None:
    async def failing(reader: Any, writer: Any) -> None:
        if kind == "cancelled":
            asyncio.current_task().cancel()  # type: ignore[union-attr]
            await asyncio.sleep(0)
        raise ZeroDivisionError("in the callback")

    def failing_at_once(reader: Any, writer: Any) -> None:
        raise ZeroDivisionError("in the callback")

    async def main(start_server: Any) -> list[Any]:
        reported.clear()
        callback = failing_at_once if kind == "function" else failing
        server = await start_server(callback, HOST, 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        if kind == "coroutine":
            assert await reader.read() == b""  # the connection is closed
        else:
            await asyncio.sleep(0.05)
        writer.close()
        server.close()
        await asyncio.sleep(0.02)
        return [
            (context["message"], repr(context.get("exception")), sorted(context))
            for context in reported
            if "was destroyed" not in context["message"]
        ]

    expected, found = (run(main, start_server) for start_server in start_both())
    for one in expected + found:
        assert "address" not in one[0]
    without_address = [
        [(m.split(" at 0x")[0].split("<")[0], e, k) for m, e, k in each]
        for each in (expected, found)
    ]
    assert without_address[0] == without_address[1]
    reported.clear()


def test_unclosed_writer_warns_as_asyncios(run: Run) -> None:
    async def main(open_connection: Any) -> list[Any]:
        async def handler(reader: Any, writer: Any) -> None:
            await reader.read()
            writer.close()

        server = await rondel.start_server(handler, HOST, 0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _, writer = await open_connection(*server.sockets[0].getsockname())
            del _, writer
            gc.collect()
            await asyncio.sleep(0.02)
            gc.collect()
        server.close()
        return [(w.category, str(w.message).split(" ")[0]) for w in caught]

    expected, found = (
        run(main, each) for each in (asyncio.open_connection, rondel.open_connection)
    )
    assert found == expected


def test_drain_waits_while_the_peer_does_not_read(run: Run) -> None:
    async def main() -> None:
        async with served() as ((_, writer), (there, _)):
            writer.write(bytes(20_000_000))
            draining = asyncio.create_task(writer.drain())
            other = asyncio.create_task(writer.drain())
            await asyncio.sleep(0.02)
            assert not draining.done()
            other.cancel()
            await there.readexactly(20_000_000)
            await asyncio.wait_for(draining, 10)
            assert other.cancelled()

    run(main)


def test_who_writes_without_having_to_wait_gives_way(run: Run) -> None:
    async def main() -> None:
        async with served() as ((_, writer), (there, _)):
            async with counted_turns() as turns_of_others:
                for _ in range(8):
                    writer.write(bytes(65536))
                    await writer.drain()
                assert turns_of_others() >= 6
            await there.readexactly(8 * 65536)

    run(main)


def test_an_answer_is_not_held_up_and_giving_way_can_be_cancelled(run: Run) -> None:
    async def main() -> None:
        async with served() as ((reader, writer), (there, back)):
            for _ in range(3):
                back.write(b"question")
                await reader.readexactly(8)
                writer.write(bytes(65536))
                with pytest.raises(StopIteration):
                    writer.drain().send(None)
                await there.readexactly(65536)
            writer.write(b"more")
            giving_way = writer.drain()
            assert giving_way.send(None) is None
            with pytest.raises(asyncio.CancelledError):
                giving_way.throw(asyncio.CancelledError())

    run(main)


def test_drain_raises_what_the_connection_ended_with(run: Run) -> None:
    async def main() -> None:
        async with served() as ((reader, writer), (_, there)):
            there.transport.abort()
            with pytest.raises(ConnectionError):
                while True:
                    writer.write(b"data")
                    await writer.drain()
            reader.set_exception(ZeroDivisionError())
            with pytest.raises(ZeroDivisionError):
                await writer.drain()

    run(main)


def test_a_replaced_write_of_the_transport_is_called(run: Run) -> None:
    async def main() -> None:
        async with served() as ((_, writer), (there, _)):
            transport: Any = writer.transport
            write = transport.write
            transport.write = lambda data: write(data.upper())
            writer.write(b"data")
            assert await there.readexactly(4) == b"DATA"

    run(main)


# --- install() -----------------------------------------------------------------------------------

NAMES = ["open_connection", "start_server", "open_unix_connection", "start_unix_server"]


def test_install_puts_the_functions_under_asyncios_names(rondel: Any) -> None:
    modules = (asyncio, asyncio.streams)
    before = [[getattr(module, name) for name in NAMES] for module in modules]
    rondel.install()
    try:
        rondel.install()
        for module in modules:
            for name in NAMES:
                assert getattr(module, name) is getattr(rondel, name)
        assert asyncio.StreamReader is asyncio.streams.StreamReader is rondel.streams._StockReader

        async def main() -> tuple[type, type]:
            kinds: asyncio.Future[type] = asyncio.get_running_loop().create_future()

            async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                kinds.set_result(type(writer))
                writer.close()

            server = await asyncio.start_server(accept, HOST, 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
            server.close()
            await server.wait_closed()
            return type(reader), await kinds

        assert asyncio.run(main()) == (rondel.StreamReader, rondel.StreamWriter)
        # On a loop that is not rondel's the names still work.
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            assert runner.run(main()) == (asyncio.StreamReader, asyncio.StreamWriter)
    finally:
        rondel.uninstall()
    assert [[getattr(module, name) for name in NAMES] for module in modules] == before


def test_install_leaves_what_others_have_put_there(
    rondel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asyncio, "open_connection", print)
    rondel.install()
    try:
        assert asyncio.open_connection is print  # type: ignore[comparison-overlap]
        monkeypatch.setattr(asyncio, "start_server", print)
    finally:
        rondel.uninstall()
    assert asyncio.start_server is print  # type: ignore[comparison-overlap]


def test_subprocess_streams_with_install(rondel: Any) -> None:
    async def main() -> bytes:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "print(input())", stdin=-1, stdout=-1
        )
        output, _ = await process.communicate(b"text\n")
        return output

    rondel.install()
    try:
        assert asyncio.run(main()) == b"text\n"
    finally:
        rondel.uninstall()
