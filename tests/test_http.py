"""rondel.http beside aiohttp: the same request to the same server, and the same outcome."""

import asyncio
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from http_peers import BIG, CLIENTS, TEXT, lineage, raw_server, web_server
from support import run_on
from yarl import URL

pytestmark = pytest.mark.usefixtures("no_descriptor_left")


async def exchange(client: Any, base: str, method: str, path: str, **arguments: Any) -> Any:
    """What a program sees of a request, in a form that can be compared."""
    session_arguments = arguments.pop("session", {})
    jar = client.CookieJar(unsafe=True)
    make = arguments.pop("make", None)
    if make is not None:
        arguments.update(make(client))
    target = path if path.startswith("http") else base + path
    async with client.ClientSession(cookie_jar=jar, **session_arguments) as session:
        try:
            async with session.request(method, target, **arguments) as response:
                headers = sorted(
                    (name.lower(), value)
                    for name, value in response.headers.items()
                    if name.lower() not in ("date", "etag")
                )
                body = await response.read()
                return {
                    "status": response.status,
                    "reason": response.reason,
                    "ok": response.ok,
                    "url": response.url,
                    "real_url": response.real_url,
                    "method": response.method,
                    "headers": headers,
                    "type": response.content_type,
                    "charset": response.charset,
                    "encoding": response.get_encoding(),
                    "length": response.content_length,
                    "version": tuple(response.version),
                    "cookies": sorted((k, m.OutputString()) for k, m in response.cookies.items()),
                    "history": [(r.status, r.url, r.method) for r in response.history],
                    "jar": sorted((m.key, m.value, m["domain"], m["path"]) for m in jar),
                    "at_eof": response.content.at_eof(),
                    "closed": response.closed,
                    "connection": response.connection is None,
                    "body": _comparable(body),
                }
        except (TimeoutError, client.ClientError, ValueError, TypeError) as error:
            return {
                "lineage": lineage(error),
                "status": getattr(error, "status", None),
                "history": len(getattr(error, "history", ())),
            }


def _comparable(body: bytes) -> bytes:
    return re.sub(rb"(?<=boundary=)[0-9a-f]+|(?<=--)[0-9a-f]{32}", b"B", body)


def same(loop: asyncio.AbstractEventLoop, method: str, path: str, **arguments: Any) -> Any:
    """Assert that both clients see the same; returns it."""

    async def main() -> Any:
        async with web_server() as base:
            one, other = [
                await exchange(client, base, method, path, **dict(arguments)) for client in CLIENTS
            ]
            assert other == one
            return other

    return run_on(loop, main)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"])
@pytest.mark.parametrize("path", ["/echo", "/echo/a%20b/ü?x=1&y=%2F#part", "/echo?"])
def test_methods(rondel_loop: Any, method: str, path: str) -> None:
    assert same(rondel_loop, method, path)["status"] == 200


async def _pieces() -> Any:
    for number in range(5):
        await asyncio.sleep(0)
        yield b"%d" % number * 1000


BODIES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "bytes": lambda _: {"data": b"\x00\xff" * 100},
    "bytearray": lambda _: {"data": bytearray(b"abc")},
    "memoryview": lambda _: {"data": memoryview(b"abc")},
    "str": lambda _: {"data": "Grüße"},
    "dict": lambda _: {"data": {"a": "1 & 2", "ü": "ä"}},
    "pairs": lambda _: {"data": [("a", "1"), ("a", "2")]},
    "form": lambda client: {"data": client.FormData({"a": "b", "n": "5"})},
    "json": lambda _: {"json": {"a": [1, None, "ü"]}},
    "empty bytes": lambda _: {"data": b""},
    "file": lambda _: {"data": io.BytesIO(b"0123456789" * 1000)},
    "iterator": lambda _: {"data": _pieces()},
    "chunked": lambda _: {"data": b"abc" * 1000, "chunked": True},
    "own type": lambda _: {"data": b"abc", "headers": {"Content-Type": "text/x-own"}},
    "own length": lambda _: {"data": _pieces(), "headers": {"Content-Length": "5000"}},
}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("method", ["POST", "PUT", "GET", "DELETE"])
def test_bodies(rondel_loop: Any, method: str, body: str) -> None:
    assert same(rondel_loop, method, "/echo", make=BODIES[body])["status"] == 200


def test_multipart(rondel_loop: Any, tmp_path: Path) -> None:
    source = tmp_path / "picture.png"
    source.write_bytes(BIG)

    def make(client: Any) -> dict[str, Any]:
        form = client.FormData()
        form.add_field("text", "Grüße")
        form.add_field("bytes", b"\x00\x01", filename="b.bin", content_type="application/x-own")
        form.add_field("file", source.open("rb"))
        form.add_field("named", io.BytesIO(b"abc"), filename='with "quotes" ü.txt')
        return {"data": form}

    seen = same(rondel_loop, "POST", "/form", make=make)
    assert seen["status"] == 200 and b"picture.png" in seen["body"]


REQUESTS: dict[str, dict[str, Any]] = {
    "params dict": {"params": {"a": "1", "b": "x y", "ü": "ä&="}},
    "params pairs": {"params": [("a", "1"), ("a", "2")]},
    "params str": {"params": "a=1&b=c%20d"},
    "params number": {"params": {"a": 5}},
    "headers": {"headers": {"X-One": "1", "accept": "text/html"}},
    "headers pairs": {"headers": [("X-One", "1"), ("X-One", "2")]},
    "host": {"headers": {"Host": "example.org"}},
    "skip": {"skip_auto_headers": ["Accept"]},
    "cookies": {"cookies": {"a": "b", "c": 'd "e"; f'}},
    "session headers": {"session": {"headers": {"X-A": "1", "X-B": "2"}}, "headers": {"X-b": "3"}},
    "session cookies": {"session": {"cookies": {"a": "b"}}},
    "session cookies too": {"session": {"cookies": {"a": "b", "x": "y"}}, "cookies": {"a": "c"}},
    "newline in value": {"headers": {"X-One": "1\r\nX-Two: 2"}},
    "both bodies": {"data": b"x", "json": {}},
}


@pytest.mark.parametrize("case", REQUESTS)
def test_arguments(rondel_loop: Any, case: str) -> None:
    same(rondel_loop, "GET", "/echo", **REQUESTS[case])


@pytest.mark.filterwarnings("ignore:The 'auth' parameter is deprecated:DeprecationWarning")
def test_auth(rondel_loop: Any) -> None:
    def make(client: Any) -> dict[str, Any]:
        return {"auth": client.BasicAuth("me", "secret")}

    told = same(rondel_loop, "GET", "/echo", make=make)
    assert b"Basic bWU6c2VjcmV0" in told["body"]
    same(rondel_loop, "GET", "/echo", make=make, headers={"Authorization": "x"})


@pytest.mark.parametrize(
    "path",
    ["/small", "/empty", "/big", "/lines", "/fields", "/latin", "/json", "/nothing"]
    + [f"/encoded/{kind}" for kind in ("gzip", "deflate", "raw", "bad", "unknown")]
    + [f"/status/{code}" for code in (200, 201, 204, 304, 400, 404, 500, 599)],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_responses(rondel_loop: Any, method: str, path: str) -> None:
    same(rondel_loop, method, path)


@pytest.mark.parametrize("code", [404, 200])
@pytest.mark.parametrize("where", ["session", "request"])
def test_raise_for_status(rondel_loop: Any, code: int, where: str) -> None:
    wanted: dict[str, Any] = {"raise_for_status": True}
    arguments = {"session": wanted} if where == "session" else wanted
    seen = same(rondel_loop, "GET", f"/status/{code}", **arguments)
    assert ("lineage" in seen) == (code == 404)


@pytest.mark.parametrize("code", [300, 301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "HEAD", "DELETE"])
def test_redirects(rondel_loop: Any, method: str, code: int) -> None:
    body = b"data" if method in ("POST", "PUT") else None
    path = f"/redirect?code={code}&to=/echo/there%3Fx=1&cookie=1"
    same(rondel_loop, method, path, data=body, headers={"X-Own": "1", "Authorization": "me"})


@pytest.mark.parametrize(
    "to", ["echo", "?to=/echo", "//127.0.0.1:1/", "ftp://127.0.0.1/", "http://", "", "http:echo"]
)
def test_odd_redirects(rondel_loop: Any, to: str) -> None:
    same(rondel_loop, "GET", "/redirect", params={"to": to})


@pytest.mark.parametrize("options", [{}, {"max_redirects": 3}, {"allow_redirects": False}])
def test_redirects_in_a_loop(rondel_loop: Any, options: dict[str, Any]) -> None:
    same(rondel_loop, "GET", "/redirect?to=/redirect%3Fto=/echo", **options)

    async def main() -> None:
        async with raw_server(
            b"HTTP/1.1 302 Found\r\nLocation: /\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        ) as url:
            one, other = [await exchange(c, "", "GET", url, **options) for c in CLIENTS]
            one.pop("headers", None), other.pop("headers", None)
            assert other == one

    run_on(rondel_loop, main)


URLS = """nothing /relative ftp://x/ http:// http://:80/ http://a%20b/ http://[::1
http://127.0.0.1:1/ https://127.0.0.1:1/ http://127.0.0.1:99999/"""


@pytest.mark.parametrize("url", ["", "http://a b/", *URLS.split()])
def test_unusable_urls(rondel_loop: Any, url: str) -> None:
    async def main() -> None:
        for client in CLIENTS:
            async with client.ClientSession() as session:
                with pytest.raises(Exception) as raised:
                    await session.get(url)
                seen.append(lineage(raised.value))

    seen: list[list[str]] = []
    run_on(rondel_loop, main)
    assert seen[0] == seen[1]


def test_base_url(rondel_loop: Any) -> None:
    async def main() -> None:
        async with web_server() as base:
            seen = []
            for client in CLIENTS:
                async with client.ClientSession(base + "/echo/") as session:
                    for path in ("a", "/echo/b", "?q=1", base + "/echo/c"):
                        async with session.get(path) as response:
                            seen.append((response.url, (await response.json())["path"]))
            assert seen[:4] == seen[4:]

    run_on(rondel_loop, main)


def test_cookies_over_requests(rondel_loop: Any) -> None:
    async def main() -> None:
        async with web_server() as base:
            seen = []
            for client in CLIENTS:
                jar = client.CookieJar(unsafe=True)
                async with client.ClientSession(cookie_jar=jar) as session:
                    for path in ("/cookies/", "/cookies/deep", "/cookies/deep/er", "/cookies/x"):
                        async with session.get(base + path) as response:
                            seen.append(await response.json())
                    kept = {(m.key, m.value, m["path"]) for m in session.cookie_jar}
                    seen.append(kept)
                    seen.append(set(jar.filter_cookies(URL(base + "/cookies/deep"))))
            assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]

    run_on(rondel_loop, main)


@pytest.mark.parametrize("kind", ["application/json", "application/x+json", "text/plain", "x"])
@pytest.mark.parametrize("accepted", ["application/json", None, "text/plain"])
def test_json(rondel_loop: Any, kind: str, accepted: str | None) -> None:
    async def main() -> None:
        async with web_server() as base:
            seen: list[Any] = []
            for client in CLIENTS:
                async with client.ClientSession() as session:
                    async with session.get(base + "/json", params={"type": kind}) as response:
                        try:
                            seen.append(await response.json(content_type=accepted))
                        except client.ContentTypeError as error:
                            seen.append((error.status, error.message, lineage(error)))
            assert seen[0] == seen[1]

    run_on(rondel_loop, main)


READS: dict[str, Callable[[Any], Any]] = {
    "read": lambda content: content.read(),
    "read 7": lambda content: content.read(7),
    "read 0": lambda content: content.read(0),
    "readany": lambda content: content.readany(),
    "readline": lambda content: content.readline(),
    "readexactly 11": lambda content: content.readexactly(11),
    "readuntil": lambda content: content.readuntil(b"ne "),
}


@pytest.mark.parametrize("how", READS)
@pytest.mark.parametrize("path", ["/lines", "/small", "/empty", "/encoded/gzip"])
def test_reads(rondel_loop: Any, path: str, how: str) -> None:
    async def main() -> None:
        async with web_server() as base:
            seen: list[Any] = []
            for client in CLIENTS:
                parts: list[Any] = []
                async with client.ClientSession() as session:
                    async with session.get(base + path) as response:
                        try:
                            while len(parts) < 10_000:
                                part = await READS[how](response.content)
                                if not part:
                                    break
                                parts.append(part)
                        except asyncio.IncompleteReadError as error:
                            parts.append((error.partial, error.expected))
                        seen.append((b"" if how == "readany" else parts, response.content.at_eof()))
            assert seen[0] == seen[1]

    run_on(rondel_loop, main)


def test_iterations(rondel_loop: Any) -> None:
    async def main() -> None:
        async with web_server() as base:
            seen: list[Any] = []
            for client in CLIENTS:
                async with client.ClientSession() as session:
                    async with session.get(base + "/lines") as response:
                        seen.append([line async for line in response.content])
                    async with session.get(base + "/big") as response:
                        pieces = [piece async for piece in response.content.iter_chunked(1000)]
                        assert max(map(len, pieces)) <= 1000
                        seen.append(b"".join(pieces) == BIG)
                    async with session.get(base + "/big") as response:
                        seen.append(b"".join([p async for p in response.content.iter_any()]) == BIG)
                    async with session.get(base + "/lines") as response:
                        chunks, chunk = [], b""
                        async for data, ends in response.content.iter_chunks():
                            chunk += data
                            if ends:
                                chunks.append(chunk)
                                chunk = b""
                        seen.append(chunks)
            assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]

    run_on(rondel_loop, main)


@pytest.mark.parametrize("kind", ["br", "zstd", "members"])
def test_further_encodings(rondel_loop: Any, kind: str) -> None:
    """What aiohttp decodes only with other packages."""
    encoded = {
        "br": bytes.fromhex("0b0280") + b"hello" + b"\x03",
        "zstd": bytes.fromhex("28b52ffd2005290000") + b"hello",
    }

    async def main() -> None:
        async with http_session() as session:
            if kind == "members":
                async with web_server() as base, session.get(base + "/encoded/members") as response:
                    assert await response.text() == TEXT
                return
            data = encoded[kind]
            head = b"HTTP/1.1 200 OK\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n\r\n"
            async with raw_server(head % (kind.encode(), len(data)) + data) as url:
                async with session.get(url) as response:
                    assert await response.read() == b"hello"

    def http_session() -> Any:
        return CLIENTS[1].ClientSession()

    run_on(rondel_loop, main)


def test_encodings_left_alone(rondel_loop: Any) -> None:
    same(rondel_loop, "GET", "/encoded/gzip", session={"auto_decompress": False})
