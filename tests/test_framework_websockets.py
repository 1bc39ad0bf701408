"""websockets: its asyncio server and client against each other on one loop."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from support import HOST, until
from tls import client_context, server_context
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed, ConnectionClosedError

Run = Callable[..., Any]
pytestmark = pytest.mark.timeout(20)


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        if message == "leave":
            await connection.close(4001, "as told")
        else:
            await connection.send(message)


@contextlib.asynccontextmanager
async def serving(handler: Any = echo, *, tls: bool = False) -> AsyncIterator[tuple[Server, str]]:
    """A server on the running loop and its address."""
    context = server_context() if tls else None
    async with serve(handler, HOST, 0, ssl=context, max_size=None) as server:
        port = server.sockets[0].getsockname()[1]
        yield server, f"{'wss' if tls else 'ws'}://{HOST}:{port}"


def client(url: str, **options: Any) -> connect:
    if url.startswith("wss"):
        options["ssl"] = client_context()
    return connect(url, max_size=None, proxy=None, **options)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_messages_of_every_size(run: Run, tls: bool) -> None:
    async def main() -> None:
        async with serving(tls=tls) as (_, url), client(url) as connection:
            for size in (0, 1, 125, 126, 65_536, 1_000_000):
                data = random.Random(size).randbytes(size)
                await connection.send(data)
                assert await connection.recv() == data
            await connection.send("grüße 🦀")
            assert await connection.recv() == "grüße 🦀"
            waiter = await connection.ping()
            assert await waiter >= 0

    run(main)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_many_clients_at_once(run: Run, tls: bool) -> None:
    async def one(url: str, number: int) -> None:
        async with client(url) as connection:
            for index in range(10):
                await connection.send(f"{number} {index}")
            for index in range(10):
                assert await connection.recv() == f"{number} {index}"

    async def main() -> None:
        async with serving(tls=tls) as (_, url):
            await asyncio.gather(*(one(url, number) for number in range(30)))

    run(main)


def test_a_fragmented_message_arrives_in_parts(run: Run) -> None:
    async def parts() -> AsyncIterator[str]:
        for number in range(5):
            yield f"part {number};"

    async def main() -> None:
        async with serving() as (_, url), client(url) as connection:
            await connection.send(parts())
            assert await connection.recv() == "".join(f"part {n};" for n in range(5))

    run(main)


def test_the_closing_handshake(run: Run) -> None:
    async def main() -> None:
        async with serving() as (server, url):
            async with client(url) as connection:
                await connection.send("leave")
                with pytest.raises(ConnectionClosedError) as caught:
                    await connection.recv()
                assert caught.value.rcvd is not None
                assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4001, "as told")
            async with client(url) as connection:
                await connection.close(1000, "done")
                assert connection.close_code == 1000
            await until(lambda: not server.connections)

    run(main)


def test_a_connection_that_is_cut(run: Run) -> None:
    seen: list[int | None] = []

    async def listen(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            await connection.recv()
        seen.append(connection.close_code)

    async def main() -> None:
        async with serving(listen) as (_, url), client(url) as connection:
            connection.transport.abort()
            await until(lambda: seen)
            assert seen == [1006]

    run(main)


def test_the_client_is_slowed_down_by_a_server_that_does_not_read(run: Run) -> None:
    """send() waits once every buffer on the way is full, and goes on when they are emptied."""

    async def main() -> None:
        release = asyncio.Event()
        sizes: list[int] = []

        async def sleepy(connection: ServerConnection) -> None:
            await release.wait()
            async for message in connection:
                sizes.append(len(message))

        chunk = bytes(1_000_000)
        sent = 0

        async def flood(connection: ClientConnection) -> None:
            nonlocal sent
            for _ in range(40):
                await connection.send(chunk)
                sent += 1

        async with serving(sleepy) as (_, url):
            async with client(url, compression=None) as connection:
                flooding = asyncio.create_task(flood(connection))
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(flooding), 0.5)
                assert sent < 40
                release.set()
                await flooding
            await until(lambda: len(sizes) == 40)
            assert set(sizes) == {len(chunk)}

    run(main)


def test_the_server_goes_away(run: Run) -> None:
    async def main() -> None:
        async with serving() as (server, url), client(url) as connection:
            await connection.send("one")
            assert await connection.recv() == "one"
            server.close()
            await server.wait_closed()
            with pytest.raises(ConnectionClosed) as caught:
                await connection.recv()
            assert caught.value.rcvd is not None
            # "Going Away"
            assert caught.value.rcvd.code == 1001

    run(main)
