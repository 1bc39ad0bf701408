"""What the HTTP client's tests need: servers, good and bad, and aiohttp beside rondel.http."""

import asyncio
import contextlib
import gzip
import hashlib
import random
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
from aiohttp import web
from rondel import http
from support import HOST

# Modules of one interface: what the first does, the second is to do as well.
CLIENTS: tuple[Any, Any] = (aiohttp, http)

BIG = random.Random(7).randbytes(3_000_000)
TEXT = "Grüße aus Köln\n" * 500


async def _echo(request: web.Request) -> web.Response:
    """Tells what arrived, but for what the clients may differ in."""
    own = ("user-agent", "accept-encoding")
    headers = sorted((k.lower(), v) for k, v in request.headers.items() if k.lower() not in own)
    body = await request.read()
    told: dict[str, Any] = {
        "method": request.method,
        "path": request.raw_path,
        "headers": headers,
        "body": body.decode("latin1"),
    }
    return web.json_response(told)


async def _form(request: web.Request) -> web.Response:
    """Tells the fields of a multipart form."""
    fields = []
    async for part in await request.multipart():
        assert isinstance(part, aiohttp.BodyPartReader)
        data = await part.read()
        kind = part.headers.get("Content-Type")
        fields.append((part.name, part.filename, kind, hashlib.sha256(data).hexdigest()))
    return web.json_response(fields)


async def _lines(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    response.enable_chunked_encoding()
    await response.prepare(request)
    for number in range(10):
        await response.write(b"line %d\n" % number * number)
        await asyncio.sleep(0.001)
    return response


async def _encoded(request: web.Request) -> web.Response:
    """The text in the encoding that the path names."""
    kind, data = request.match_info["kind"], TEXT.encode()
    if kind == "gzip":
        data = gzip.compress(data)
    elif kind == "members":
        data = gzip.compress(data[:1000]) + gzip.compress(data[1000:])
        kind = "gzip"
    elif kind == "deflate":
        data = zlib.compress(data)
    elif kind == "raw":
        compressor = zlib.compressobj(wbits=-15)
        data = compressor.compress(data) + compressor.flush()
        kind = "deflate"
    elif kind == "bad":
        data, kind = b"\x1f\x8bnonsense" + data, "gzip"
    headers = {"Content-Encoding": kind, "Content-Type": "text/plain; charset=utf-8"}
    return web.Response(body=data, headers=headers)


async def _status(request: web.Request) -> web.Response:
    code = int(request.match_info["code"])
    body = None if code in (204, 304) else b"the body"
    return web.Response(status=code, body=body)


async def _redirect(request: web.Request) -> web.Response:
    """Redirects to ?to= with ?code=."""
    code = int(request.query.get("code", "302"))
    response = web.Response(status=code, headers={"Location": request.query["to"]})
    if "cookie" in request.query:
        response.set_cookie("on", "the way")
    return response


async def _cookies(request: web.Request) -> web.Response:
    response = web.json_response(sorted(request.cookies.items()))
    response.set_cookie("plain", "1")
    response.set_cookie("deep", "2", path="/cookies/deep")
    response.set_cookie("safe", "3", secure=True)
    response.set_cookie("gone", "4", max_age=0)
    response.set_cookie("other", "5", domain="example.org")
    return response


async def _json(request: web.Request) -> web.Response:
    kind = request.query.get("type", "application/json")
    return web.Response(body=b'{"a": [1, "\xc3\xbc"]}', headers={"Content-Type": kind})


async def _latin(request: web.Request) -> web.Response:
    del request
    return web.Response(body="Grüße".encode("latin1"), content_type="text/plain", charset="latin1")


async def _fields(request: web.Request) -> web.Response:
    del request
    response = web.Response(body=b"x")
    response.headers.add("X-Twice", "one")
    response.headers.add("X-Twice", "two")
    response.headers["x-ünsafe"[:2] + "case"] = "Value with  spaces"
    return response


async def _slow(request: web.Request) -> web.StreamResponse:
    """Says nothing for ?before= seconds, and nothing for ?within= seconds in its body."""
    await asyncio.sleep(float(request.query.get("before", "0")))
    response = web.StreamResponse(headers={"Content-Length": "20"})
    await response.prepare(request)
    await response.write(b"0123456789")
    await asyncio.sleep(float(request.query.get("within", "0")))
    await response.write(b"0123456789")
    return response


def _sends(data: bytes) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(request: web.Request) -> web.Response:
        del request
        return web.Response(body=data)

    return answer


@contextlib.asynccontextmanager
async def web_server(tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A well-behaved server; yields its URL."""
    app = web.Application(client_max_size=1 << 30)
    app.add_routes(
        [
            web.route("*", "/echo", _echo),
            web.route("*", "/echo/{more:.*}", _echo),
            web.get("/small", _sends(b"x" * 1024)),
            web.get("/empty", _sends(b"")),
            web.get("/big", _sends(BIG)),
            web.get("/lines", _lines),
            web.get("/encoded/{kind}", _encoded),
            web.route("*", "/status/{code}", _status),
            web.route("*", "/redirect", _redirect),
            web.get("/cookies/{more:.*}", _cookies),
            web.get("/json", _json),
            web.get("/latin", _latin),
            web.get("/fields", _fields),
            web.get("/slow", _slow),
            web.post("/form", _form),
        ]
    )
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, 0, ssl_context=tls).start()
        yield f"http{'s' if tls else ''}://{HOST}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def raw_server(answer: bytes | Answer, *, reset: bool = False) -> AsyncIterator[str]:
    """A server that sends `answer` for a request and closes, by a reset if so; yields its URL."""
    handlers: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        try:
            if callable(answer):
                await answer(reader, writer)
                return
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            if reset:
                await asyncio.sleep(0.05)
                writer.transport.abort()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            handlers.discard(task)

    server = await asyncio.start_server(serve, HOST, 0)
    try:
        yield f"http://{HOST}:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()
        for task in list(handlers):
            task.cancel()
        while handlers:
            await asyncio.sleep(0.001)


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Passes on what comes, and the end of it."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def serving(proxy: Any, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server of `proxy.serve`, which notes its tasks in `proxy.serving`; yields its port."""
    server = await asyncio.start_server(proxy.serve, HOST, 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(proxy.serving):
            task.cancel()
        while proxy.serving:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)  # for what was closed


def lineage(error: BaseException) -> list[str]:
    """The names of an exception's classes, by which programs catch it."""
    return [kind.__name__ for kind in type(error).__mro__]
