"""Servers within the program: rondel.http's mock and ASGI transports."""

import asyncio
from typing import Any

import pytest
from rondel import http
from support import run_on

pytestmark = pytest.mark.usefixtures("no_descriptor_left")


async def _slowly() -> Any:
    for number in range(3):
        await asyncio.sleep(0)
        yield b"%d" % number * 100_000


def _handler(request: http.MockRequest) -> http.MockResponse:
    match request.url.path:
        case "/echo":
            fields = {k.lower(): v for k, v in request.headers.items()}
            told = [request.method, str(request.url), request.text(), fields.get("x-own")]
            return http.MockResponse(json=told)
        case "/json":
            return http.MockResponse(201, json=request.json(), headers={"X-A": "b"})
        case "/moved":
            return http.MockResponse(302, headers={"Location": "/echo"})
        case "/stream":
            return http.MockResponse(body=_slowly())
        case "/cookie":
            return http.MockResponse(headers={"Set-Cookie": "a=b; Path=/"})
    raise http.ClientOSError(104, "as if it were reset")


async def _pieces() -> Any:
    yield b"a"
    yield b"b" * 100_000


def test_mock(rondel_loop: Any) -> None:
    async def asynchronous(request: http.MockRequest) -> http.MockResponse:
        await asyncio.sleep(0)
        return _handler(request)

    async def main() -> None:
        for handler in (_handler, asynchronous):
            connector = http.MockTransport(handler)
            async with http.ClientSession("http://some.where", connector=connector) as session:
                async with session.get("/echo?a=1", headers={"X-Own": "1"}) as response:
                    told = await response.json()
                    assert told == ["GET", "http://some.where/echo?a=1", "", "1"]
                async with session.post("/json", json={"a": 1}) as response:
                    assert response.status == 201 and response.reason == "Created"
                    assert await response.json() == {"a": 1} and response.headers["x-a"] == "b"
                async with session.put("/echo", data=_pieces()) as response:
                    assert (await response.json())[2] == "a" + "b" * 100_000
                async with session.get("https://other/moved") as response:
                    assert (await response.json())[1] == "https://other/echo"
                async with session.head("/echo") as response:
                    assert response.status == 200 and await response.read() == b""
                async with session.get("/stream") as response:
                    assert len(await response.read()) == 300_000
                async with session.get("/cookie"):
                    assert len(session.cookie_jar) == 1
                with pytest.raises(http.ClientOSError, match="as if it were reset"):
                    await session.get("/raises")
                await asyncio.gather(*[session.get("/echo") for _ in range(20)])

    run_on(rondel_loop, main)


def test_retries_of_a_mock(rondel_loop: Any) -> None:
    answers = [503, 503, 200]

    async def main() -> None:
        connector = http.MockTransport(lambda _: http.MockResponse(answers.pop(0)))
        retry = http.Retry(backoff=0.001)
        async with (
            http.ClientSession(connector=connector, retry=retry) as session,
            session.get("http://x/") as response,
        ):
            assert response.status == 200 and not answers

    run_on(rondel_loop, main)


async def _app(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    path = scope["path"]
    if path == "/raises":
        raise LookupError("of the application")
    if path == "/returns":
        return
    request = await receive()
    headers = [(b"content-type", b"text/plain")]
    if path == "/sized":
        headers.append((b"content-length", b"300000"))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if path in ("/stream", "/sized"):
        for number in range(3):
            await send(
                {
                    "type": "http.response.body",
                    "body": b"%d" % number * 100_000,
                    "more_body": number < 2,
                }
            )
        assert (await receive())["type"] == "http.disconnect"
        return
    keys = ("method", "scheme", "path", "raw_path", "query_string", "root_path", "server")
    told = [*[scope[key] for key in keys], request["body"], dict(scope["headers"])[b"x-own"]]
    await send({"type": "http.response.body", "body": repr(told).encode()})


def test_asgi(rondel_loop: Any) -> None:
    async def main() -> None:
        connector = http.ASGITransport(_app, root_path="/root")
        base = "https://some.where:8443"
        async with http.ClientSession(base, connector=connector) as session:
            url = "/a%20b/ü?x=1"
            async with session.post(url, data=b"body", headers={"X-Own": "1"}) as response:
                told = (
                    "['POST', 'https', '/a b/ü', b'/a%20b/%C3%BC', b'x=1', '/root', "
                    "('some.where', 8443), b'body', b'1']"
                )
                assert await response.text() == told
                assert response.content_type == "text/plain"
            for path in ("/stream", "/sized"):
                async with session.get(path) as response:
                    assert len(await response.read()) == 300_000
            with pytest.raises(LookupError, match="of the application"):
                await session.get("/raises")
            with pytest.raises(RuntimeError, match="without a complete response"):
                await session.get("/returns")

    run_on(rondel_loop, main)


def test_a_response_that_is_not_read_is_given_up(rondel_loop: Any) -> None:
    ended = []

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        finally:
            ended.append(True)

    async def main() -> None:
        connector = http.ASGITransport(endless)
        async with (
            http.ClientSession(connector=connector) as session,
            session.get("http://x/") as response,
        ):
            assert await response.content.readexactly(10) == b"x" * 10
        while not ended:
            await asyncio.sleep(0.001)

    run_on(rondel_loop, main)
