"""Tornado: its HTTP server and client, and its own face of the loop, over one loop."""

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from support import HOST
from tls import client_context, server_context
from tornado import gen, httpclient, ioloop, iostream, tcpserver, web, websocket
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

Run = Callable[..., Any]
pytestmark = pytest.mark.timeout(20)


class Echo(web.RequestHandler):
    def get(self) -> None:
        self.write({"path": self.request.path})

    def post(self) -> None:
        self.write(self.request.body)


class Parts(web.RequestHandler):
    """A response that is written part by part, each flushed to the client."""

    async def get(self) -> None:
        for number in range(5):
            self.write(f"{number};")
            await self.flush()
            await gen.sleep(0.001)


class EchoSocket(websocket.WebSocketHandler):
    async def on_message(self, message: str | bytes) -> None:
        if message == "leave":
            self.close(4001, "as told")
        else:
            await self.write_message(message, binary=isinstance(message, bytes))


@contextlib.asynccontextmanager
async def serving(*, tls: bool = False) -> AsyncIterator[str]:
    """A server on the running loop, and its host and port."""
    app = web.Application([("/echo", Echo), ("/parts", Parts), ("/socket", EchoSocket)])
    listening = bind_sockets(0, HOST, socket.AF_INET)
    server = HTTPServer(
        app, ssl_options=server_context() if tls else None, max_buffer_size=100_000_000
    )
    server.add_sockets(listening)
    try:
        yield f"{HOST}:{listening[0].getsockname()[1]}"
    finally:
        server.stop()
        await server.close_all_connections()


@contextlib.contextmanager
def http_client() -> Any:
    client = httpclient.AsyncHTTPClient(force_instance=True, max_clients=50)
    try:
        yield client
    finally:
        client.close()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_requests(run: Run, tls: bool) -> None:
    async def main() -> None:
        options: dict[str, Any] = {"ssl_options": client_context()} if tls else {}
        async with serving(tls=tls) as address:
            url = f"{'https' if tls else 'http'}://{address}"
            with http_client() as client:

                async def post(number: int) -> None:
                    body = random.Random(number).randbytes(number * 10_000)
                    answer = await client.fetch(
                        f"{url}/echo",
                        method="POST",
                        body=body,
                        # Otherwise Tornado takes the body for a form.
                        headers={"Content-Type": "application/octet-stream"},
                        **options,
                    )
                    assert (answer.code, answer.body) == (200, body)

                await asyncio.gather(*map(post, range(30)))
                got: list[bytes] = []
                await client.fetch(f"{url}/parts", streaming_callback=got.append, **options)
                assert b"".join(got) == b"0;1;2;3;4;"
                with pytest.raises(httpclient.HTTPClientError) as caught:
                    await client.fetch(f"{url}/nothing", **options)
                assert caught.value.code == 404

    run(main)


def test_websocket(run: Run) -> None:
    async def main() -> None:
        async with serving() as address:
            connection = await websocket.websocket_connect(f"ws://{address}/socket")
            for message in ("grüße 🦀", b"\x00\xff", bytes(1_000_000)):
                await connection.write_message(message, binary=isinstance(message, bytes))
                assert await connection.read_message() == message
            await connection.write_message("leave")
            assert await connection.read_message() is None
            assert (connection.close_code, connection.close_reason) == (4001, "as told")

    run(main)


def test_streams_by_lines(run: Run) -> None:
    class Upper(tcpserver.TCPServer):
        async def handle_stream(self, stream: iostream.IOStream, address: Any) -> None:
            with contextlib.suppress(iostream.StreamClosedError):
                while True:
                    await stream.write((await stream.read_until(b"\n")).upper())

    async def main() -> None:
        server = Upper()
        listening = bind_sockets(0, HOST, socket.AF_INET)
        server.add_sockets(listening)
        address = listening[0].getsockname()
        stream = iostream.IOStream(socket.socket())
        await stream.connect(address)
        for number in range(100):
            await stream.write(b"line %d\n" % number)
            assert await stream.read_until(b"\n") == b"LINE %d\n" % number
        stream.close()
        server.stop()
        with pytest.raises(iostream.StreamClosedError) as caught:
            await iostream.IOStream(socket.socket()).connect(address)
        assert isinstance(caught.value.real_error, ConnectionRefusedError)

    run(main)


def test_the_ioloop_is_the_loop(run: Run, loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        current = ioloop.IOLoop.current()
        assert current.asyncio_loop is loop
        assert await current.run_in_executor(None, sum, [1, 2]) == 3
        ticks: list[None] = []
        periodic = ioloop.PeriodicCallback(lambda: ticks.append(None), 1)
        periodic.start()
        while len(ticks) < 5:
            await gen.sleep(0.001)
        periodic.stop()
        with pytest.raises(gen.TimeoutError):
            await gen.with_timeout(current.time() + 0.01, asyncio.Future())
        loop.call_soon_threadsafe(current.add_callback, ticks.clear)
        while ticks:
            await gen.sleep(0.001)

    run(main)


def test_an_ioloop_of_its_own_is_made_by_the_installed_policy(rondel: Any) -> None:
    """IOLoop() and run_sync(), as programs older than asyncio.run() have them."""

    async def main() -> type[asyncio.AbstractEventLoop]:
        await gen.sleep(0.001)
        return type(asyncio.get_running_loop())

    rondel.install()
    try:
        own = ioloop.IOLoop(make_current=False)
        assert own.run_sync(main, timeout=5) is rondel.Loop
        with pytest.raises(TimeoutError):
            own.run_sync(lambda: gen.sleep(60), timeout=0.01)
        own.add_callback(own.stop)
        own.start()
        own.close(all_fds=True)
    finally:
        rondel.uninstall()
