"""aiohttp over TLS: its server and its client against each other on one loop."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import ClientConnectorCertificateError, ClientSession, TCPConnector, WSMsgType, web
from support import HOST, until
from tls import client_context, server_context

Run = Callable[..., Any]


@contextlib.asynccontextmanager
async def serving(*routes: web.AbstractRouteDef) -> AsyncIterator[str]:
    app = web.Application(client_max_size=1 << 30)
    app.add_routes(routes)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, 0, ssl_context=server_context()).start()
        yield f"https://{HOST}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def echo(request: web.Request) -> web.Response:
    assert request.secure
    return web.Response(body=await request.read())


async def echo_socket(request: web.Request) -> web.WebSocketResponse:
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    async for message in ws:
        await ws.send_bytes(message.data)
    return ws


def session(*, trust: bool = True) -> ClientSession:
    return ClientSession(connector=TCPConnector(ssl=client_context(trust=trust)))


def test_requests(run: Run) -> None:
    async def main() -> None:
        async with serving(web.post("/", echo)) as url, session() as client:

            async def ask(number: int) -> None:
                body = random.Random(number).randbytes(number * 50_000)
                async with client.post(url, data=body) as response:
                    assert response.status == 200
                    assert await response.read() == body

            for number in range(3):
                await ask(number)
            await asyncio.gather(*map(ask, range(20)))

    run(main, limit=25)


def test_certificate_is_not_trusted(run: Run) -> None:
    async def main() -> None:
        async with serving(web.post("/", echo)) as url, session(trust=False) as client:
            with pytest.raises(ClientConnectorCertificateError):
                await client.post(url)

    run(main)


def test_websocket(run: Run) -> None:
    async def main() -> None:
        async with serving(web.get("/", echo_socket)) as url, session() as client:
            async with client.ws_connect(url, max_msg_size=0) as ws:
                for size in (1, 1000, 100_000, 2_000_000):
                    data = random.Random(size).randbytes(size)
                    await ws.send_bytes(data)
                    message = await ws.receive()
                    assert message.type is WSMsgType.BINARY
                    assert message.data == data

    run(main, limit=25)


def test_through_a_tunnel(run: Run) -> None:
    """A proxy: CONNECT in plain text, then start_tls over the connection."""
    tunnels: list[asyncio.Task[None]] = []

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        method, target, _ = request.split(b" ", 2)
        assert method == b"CONNECT"
        host, port = target.decode().split(":")
        up_reader, up_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        tunnels.append(asyncio.create_task(copy(reader, up_writer)))
        tunnels.append(asyncio.create_task(copy(up_reader, writer)))

    async def main() -> None:
        server = await asyncio.start_server(proxy, HOST, 0)
        through = f"http://{HOST}:{server.sockets[0].getsockname()[1]}"
        body = random.Random(1).randbytes(500_000)
        async with serving(web.post("/", echo)) as url, session() as client:
            async with client.post(url, data=body, proxy=through) as response:
                assert await response.read() == body
        await until(lambda: all(task.done() for task in tunnels))
        assert tunnels
        server.close()
        await server.wait_closed()

    run(main, limit=25)
