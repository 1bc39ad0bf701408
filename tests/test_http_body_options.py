"""What a request says about its body: compression, 100 Continue, chunks; beside aiohttp."""

import asyncio
import io
import random
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from http_peers import BIG, CLIENTS, lineage, raw_server, web_server
from rondel import http
from support import run_on

pytestmark = pytest.mark.usefixtures("no_descriptor_left")

MUCH = random.Random(3).randbytes(100_000) + bytes(100_000)


async def _pieces() -> AsyncIterator[bytes]:
    for number in range(5):
        await asyncio.sleep(0)
        yield b"%d" % number * (20_000 if number == 2 else 100)


async def _request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Any:
    """A request's head, as sorted lines, and its body out of its chunks."""
    head = await reader.readuntil(b"\r\n\r\n")
    if b"100-continue" in head.lower():
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = b""
    lines = [line.lower() for line in head.split(b"\r\n") if line]
    if b"transfer-encoding: chunked" in lines:
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readline()
        assert await reader.readline() == b"\r\n"
    for line in lines:
        if line.startswith(b"content-length:"):
            body = await reader.readexactly(int(line.split(b":")[1]))
    own = (b"host:", b"user-agent:", b"accept-encoding:")
    for name, window in ((b"gzip", 31), (b"deflate", 15)):
        if b"content-encoding: " + name in lines:
            body = zlib.decompress(body, wbits=window)
    return sorted(line for line in lines if not line.startswith(own)), body


async def wire(client: Any, method: str, arguments: dict[str, Any]) -> Any:
    """What a server sees of a request, or what the program is told."""
    seen: list[Any] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await _request(reader, writer))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    arguments = {name: value() if callable(value) else value for name, value in arguments.items()}
    async with raw_server(answer) as url, client.ClientSession() as session:
        try:
            async with session.request(method, url, **arguments) as response:
                seen.append((response.status, await response.read()))
        except (client.ClientError, ValueError, TypeError) as error:
            return lineage(error), str(error)
    return seen


CASES: dict[str, dict[str, Any]] = {
    "deflate": {"data": b"abc" * 100, "compress": True},
    "named": {"data": b"abc" * 100, "compress": "deflate"},
    "gzip": {"data": "Grüße" * 100, "compress": "gzip"},
    "json": {"json": {"a": [1] * 100}, "compress": "gzip"},
    "form": {"data": {"a": "b", "c": "d"}, "compress": True},
    "much": {"data": MUCH, "compress": "gzip"},
    "stream": {"data": _pieces, "compress": "deflate"},
    "file": {"data": lambda: io.BytesIO(MUCH), "compress": True},
    "nothing": {"compress": True},
    "empty": {"data": b"", "compress": True},
    "own encoding": {"data": b"x", "headers": {"Content-Encoding": "br"}},
    "two encodings": {"data": b"x", "compress": True, "headers": {"Content-Encoding": "br"}},
    "own length": {"data": b"x", "compress": True, "headers": {"Content-Length": "1"}},
    "compressed and chunked": {"data": b"x" * 50, "compress": True, "chunked": True},
    "chunked": {"data": b"x" * 50, "chunked": True},
    "chunked stream": {"data": _pieces, "chunked": True},
    "expect": {"data": b"x" * 50, "expect100": True},
    "expect stream": {"data": _pieces, "expect100": True},
    "expect compressed": {"data": MUCH, "expect100": True, "compress": True},
    "expect nothing": {"expect100": True},
    "expect by header": {"data": b"abc", "headers": {"Expect": "100-continue"}},
}


@pytest.mark.parametrize("case", CASES)
def test_on_the_wire(rondel_loop: Any, case: str) -> None:
    async def main() -> None:
        for method in ("POST", "PUT"):
            told = [await wire(client, method, CASES[case]) for client in CLIENTS]
            assert told[1] == told[0]

    run_on(rondel_loop, main)


def test_other_encodings_are_refused(rondel_loop: Any) -> None:
    async def main() -> None:
        async with http.ClientSession() as session:
            with pytest.raises(ValueError, match="'br'"):
                await session.post("http://127.0.0.1:1/", data=b"x", compress="br")

    run_on(rondel_loop, main)


def test_compressed_again_after_a_redirect(rondel_loop: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(MUCH)

    async def main() -> None:
        async with web_server() as base, http.ClientSession() as session:
            for code, sent in ((307, MUCH), (303, b"")):
                with source.open("rb") as file:
                    url = f"{base}/redirect?code={code}&to=/echo"
                    async with session.post(url, data=file, compress="gzip") as response:
                        told = await response.json()
                assert told["body"].encode("latin1") == sent
                names = {name for name, _ in told["headers"]}
                assert ("content-encoding" in names) == bool(sent)

    run_on(rondel_loop, main)


async def _final(client: Any, status: bytes, later: bytes) -> Any:
    """What a server sees that answers without wanting the body, and what the program is told."""
    arrived: asyncio.Queue[bytes] = asyncio.Queue()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %b\r\nContent-Length: 4\r\n\r\n" % status)
        await writer.drain()
        writer.write(later)
        await arrived.put(await reader.read())

    async with raw_server(answer) as url, client.ClientSession() as session:
        async with session.post(url, data=b"the body", expect100=True) as response:
            told = response.status, await response.read()
        return told, await arrived.get()


def test_refused_before_the_body(rondel_loop: Any) -> None:
    """The status is there, the body of the request is not sent, and the connection ends."""

    async def main() -> None:
        for client in CLIENTS:
            told = await _final(client, b"417 Expectation Failed", b"no!!")
            assert told == ((417, b"no!!"), b"")

    run_on(rondel_loop, main)


def test_handler_decides_with_aiohttp(rondel_loop: Any) -> None:
    """A handler of aiohttp's server is asked before 100 Continue."""
    asked: list[str] = []

    async def expect(request: web.Request) -> web.StreamResponse | None:
        asked.append(request.path)
        if request.path == "/no":
            return web.Response(status=413, text="too much")
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return None

    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    async def main() -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post("/yes", handler, expect_handler=expect)
        app.router.add_post("/no", handler, expect_handler=expect)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            base = f"http://127.0.0.1:{runner.addresses[0][1]}"
            async with http.ClientSession() as session:
                for path, body in (("/yes", b"x" * 1000), ("/no", b"x"), ("/yes", MUCH)):
                    async with session.post(base + path, data=body, expect100=True) as response:
                        status = 413 if path == "/no" else 200
                        assert response.status == status
                        got = await response.read()
                        assert got == (b"too much" if path == "/no" else body)
            assert asked == ["/yes", "/no", "/yes"]
        finally:
            await runner.cleanup()

    run_on(rondel_loop, main)


def test_mock_transport_continues(rondel_loop: Any) -> None:
    async def main() -> None:
        transport = http.MockTransport(lambda request: http.MockResponse(body=request.body))
        async with http.ClientSession(connector=transport) as session:
            async with session.post("http://x/", data=b"abc", expect100=True) as response:
                assert await response.read() == b"abc"

    run_on(rondel_loop, main)


def test_read_bufsize(rondel_loop: Any) -> None:
    """So much is held of a body that is not read, and a piece more."""

    async def held(response: http.ClientResponse) -> int:
        async with asyncio.timeout(60):
            while not response._connection.reading_paused:
                await asyncio.sleep(0.001)
        return response.content.total_bytes

    async def main() -> None:
        piece = 256 * 1024
        async with web_server() as base:
            for session, request, limit in (
                ({}, {}, 2**16),
                ({"read_bufsize": 2**19}, {}, 2**19),
                ({"read_bufsize": 2**19}, {"read_bufsize": 2**18}, 2**18),
            ):
                async with http.ClientSession(**session) as made:
                    for _ in range(2):  # the second goes out another way
                        async with made.get(base + "/big", **request) as response:
                            assert 2 * limit < await held(response) <= 2 * limit + piece
                            assert await response.read() == BIG

    run_on(rondel_loop, main)
