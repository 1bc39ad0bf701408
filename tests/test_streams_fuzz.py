"""Random calls and data: rondel's streams do what asyncio's do."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rondel
from streams import Stream, served
from support import tcp_pair, turns, until
from tls import client_context, server_context

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]


@pytest.fixture
def loop(rondel_loop: Loop) -> Loop:
    """What is said here is said of rondel's loop."""
    return rondel_loop


# --- the differential fuzz: the same calls on asyncio's reader and on ours -----------------------


class Transport:
    """Writes down what a reader asks of its transport."""

    def __init__(self, log: list[Any], pausable: bool) -> None:
        self.log, self.pausable = log, pausable

    def pause_reading(self) -> None:
        if not self.pausable:
            raise NotImplementedError
        self.log.append("pause")

    def resume_reading(self) -> None:
        self.log.append("resume")

    def __repr__(self) -> str:
        return "<Transport>"


def described(exc: BaseException) -> tuple[Any, ...]:
    """What programs can see of an exception."""
    context = exc.__context__
    return (
        type(exc),
        str(exc),
        getattr(exc, "partial", None),
        getattr(exc, "expected", None),
        getattr(exc, "consumed", None),
        context and (type(context), str(context)),
    )


SEPARATORS: list[Any] = [b"\n", b"a", b"ab", b"aab", b"", b"\r\n", bytearray(b"b"), "a", 7, None]
SEPARATORS += [(b"a", b"ab"), (b"ba", b"b", b"\n"), (), (b"", b"a"), (b"\n", "x"), [b"a"]]
SIZES: list[Any] = [0, 1, 2, 3, 7, 20, 70, -1, -5, True, 10**30, None, "1", 1.5]
ERRORS: list[Callable[[], BaseException]] = [
    lambda: ValueError("set"),
    lambda: asyncio.IncompleteReadError(b"part", 9),
    lambda: asyncio.LimitOverrunError("over", 1),
    lambda: ConnectionResetError("reset"),
]


def plan(seed: int) -> list[tuple[Any, ...]]:
    """A random sequence of calls."""
    rng = random.Random(seed)
    limit = rng.choice([1, 2, 5, 16, 64])
    steps: list[tuple[Any, ...]] = [("new", limit, rng.random() < 0.8, rng.random() < 0.9)]
    plain = rng.random() < 0.7  # mostly what programs do
    for _ in range(rng.randrange(5, 60)):
        kind = rng.choices(
            ["feed", "start", "turn", "cancel", "eof", "set_exception", "look", "poke"],
            [30, 30, 20, 4, 1, 0.5, 3, 0 if plain else 3],
        )[0]
        if kind == "feed":
            data = bytes(rng.choices(b"aab\n\r", k=rng.randrange(0, 2 * limit + 3)))
            form = rng.choice([bytes, bytes, bytes, bytearray, memoryview, list])
            steps.append(("feed", data, bytes if plain else form))
        elif kind == "start":
            method = rng.choice(["read", "readline", "readuntil", "readexactly", "__anext__"])
            args: tuple[Any, ...] = ()
            if method == "readuntil" and rng.random() < 0.9:
                args = (rng.choice(SEPARATORS[:4] if plain else SEPARATORS),)
            elif method == "readexactly" or (method == "read" and rng.random() < 0.8):
                args = (rng.choice(SIZES[:9] if plain else SIZES),)
            steps.append(("start", method, args))
        elif kind == "set_exception":
            steps.append((kind, rng.choice(ERRORS)))
        elif kind == "poke":
            steps.append((kind, rng.randrange(4)))
        else:
            steps.append((kind,))
    steps += [("turn",), ("eof",), ("turn",), ("look",)]
    return steps


def poke(reader: Any, how: int) -> None:
    """What programs do to a reader's buffer behind its back."""
    if how == 0:
        del reader._buffer[:2]
    elif how == 1:
        reader._buffer.extend(b"ab\n")
    elif how == 2:
        reader._buffer = bytearray(b"new a\n")
    else:
        reader._buffer.clear()


async def perform(reader_class: Any, steps: list[tuple[Any, ...]]) -> list[Any]:
    """Carry out a plan; everything that can be seen of it."""
    log: list[Any] = []
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[Any]] = []
    reader: Any = None

    async def call(number: int, method: str, args: tuple[Any, ...]) -> None:
        try:
            result = await getattr(reader, method)(*args)
        except (Exception, asyncio.CancelledError) as exc:
            log.append((number, method, args, described(exc)))
        else:
            log.append((number, method, args, type(result), result))

    for step in steps:
        try:
            match step:
                case ("new", limit, with_transport, pausable):
                    reader = reader_class(limit=limit, loop=loop)
                    if with_transport:
                        reader.set_transport(Transport(log, pausable))
                case ("feed", data, form):
                    reader.feed_data(form(data))
                case ("start", method, args):
                    tasks.append(loop.create_task(call(len(tasks), method, args)))
                case ("turn",):
                    await turns(4)
                case ("cancel",):
                    if tasks:
                        tasks[-1].cancel()
                case ("eof",):
                    reader.feed_eof()
                case ("set_exception", make):
                    reader.set_exception(make())
                case ("poke", how):
                    poke(reader, how)
                case ("look",):
                    waits = reader._waiter is not None
                    log.append((reader.at_eof(), reader._paused, waits, reader._limit))
                    log.append((bytes(reader._buffer), reader._eof, reader._transport is None))
                    log.append(str(reader.exception()))
                    if not waits:
                        log.append(repr(reader))
        except Exception as exc:
            log.append((step[0], described(exc)))
    await turns(4)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    log.append(bytes(reader._buffer))
    return log


@pytest.mark.timeout(120)
@pytest.mark.parametrize("first", range(0, 4000, 500))
def test_reader_answers_every_call_as_asyncios(run: Run, first: int) -> None:
    async def main() -> None:
        for seed in range(first, first + 500):
            steps = plan(seed)
            expected = await perform(asyncio.StreamReader, steps)
            assert await perform(rondel.StreamReader, steps) == expected, f"seed {seed}: {steps}"

    run(main, limit=100)


@pytest.mark.parametrize("first", range(0, 400, 200))
def test_stock_reader_is_fed_as_by_asyncio(run: Run, first: int) -> None:
    """Through a transport of rondel's, without feed_data() being called."""

    async def feed(seed: int) -> None:
        rng = random.Random(seed)
        limit = rng.choice([1, 4, 64])
        pieces = [rng.randbytes(rng.randrange(1, 20)) for _ in range(rng.randrange(1, 8))]
        received = b""
        sent = 0
        with tcp_pair() as (near, far):
            reader: Any = asyncio.StreamReader(limit=limit)
            protocol = asyncio.StreamReaderProtocol(reader)
            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_connection(lambda: protocol, sock=near)

            def arrived() -> bool:
                assert (
                    len(reader._buffer) > limit
                    if reader._paused
                    else len(reader._buffer) <= 2 * limit
                )
                return reader._paused or len(received) + len(reader._buffer) == sent

            for piece in pieces:
                sent += far.send(piece)
                await until(arrived)
                received += await reader.read(rng.randrange(1, 9))
            far.close()
            received += await reader.read()
            assert received == b"".join(pieces)
            transport.close()
            await turns(2)

    async def main() -> None:
        for seed in range(first, first + 200):
            await feed(seed)

    run(main)


# --- over real connections -----------------------------------------------------------------------


async def converse(client: Stream, server: Stream, seed: int) -> None:
    """Send random data both ways at once, read it by random calls."""

    async def send(writer: asyncio.StreamWriter, data: bytes, rng: random.Random) -> None:
        at = 0
        while at < len(data):
            size = rng.choice([1, 50, 1000, 70_000, 300_000])
            if rng.random() < 0.5:
                writer.write(data[at : at + size])
            else:
                writer.writelines([data[at : at + size // 2], data[at + size // 2 : at + size]])
            at += size
            if rng.random() < 0.8:
                await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    async def receive(reader: asyncio.StreamReader, size: int, rng: random.Random) -> bytes:
        parts: list[bytes] = []
        left = size
        while left:
            how = rng.randrange(4)
            if how == 0 or left < 2000:  # with more there is a newline and a separator to come
                part = await reader.read(rng.choice([1, 100, 65536, 1 << 20]))
            elif how == 1:
                part = await reader.readexactly(min(left, rng.choice([1, 1000, 200_000])))
            elif how == 2:
                part = await reader.readuntil(b"\0\1\2")
            else:
                part = await reader.readline()
            assert part
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    rng = random.Random(seed)
    there, back = (
        b"".join(rng.randbytes(rng.randrange(400)) + b"\n\0\1\2" for _ in range(3000))
        for _ in range(2)
    )
    *_, got_there, got_back = await asyncio.gather(
        send(client[1], there, random.Random(seed + 1)),
        send(server[1], back, random.Random(seed + 2)),
        receive(server[0], len(there), random.Random(seed + 3)),
        receive(client[0], len(back), random.Random(seed + 4)),
    )
    assert got_there == there
    assert got_back == back


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["tcp", "unix", "tls", "start_tls"])
def test_conversations(run: Run, kind: str, seed: int, tmp_path: Path) -> None:
    async def over_unix() -> None:
        accepted: asyncio.Future[Stream] = asyncio.get_running_loop().create_future()

        def accept(*stream: Any) -> None:
            accepted.set_result(stream)

        path = tmp_path / "socket"
        server = await rondel.start_unix_server(accept, path)
        near = await rondel.open_unix_connection(path)
        far = await accepted
        await converse(near, far, seed)
        near[1].close()
        far[1].close()
        server.close()
        await server.wait_closed()

    async def over_tcp() -> None:
        options = {"ssl": server_context()} if kind == "tls" else {}
        async with served(**options) as (near, far):
            if kind == "start_tls":
                far[1]._protocol._client_connected_cb = print  # type: ignore[attr-defined]
                await asyncio.gather(
                    far[1].start_tls(server_context()),
                    near[1].start_tls(client_context(), server_hostname="localhost"),
                )
                assert near[1].get_extra_info("ssl_object") is not None
            await converse(near, far, seed)

    run(over_unix if kind == "unix" else over_tcp, limit=60)
