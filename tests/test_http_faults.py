"""Servers that do wrong: rondel.http tells it as aiohttp does, and leaves nothing open."""

import asyncio
from typing import Any

import pytest
from http_peers import CLIENTS, lineage, raw_server
from rondel import http
from support import run_on

pytestmark = pytest.mark.usefixtures("no_descriptor_left")

OK = b"HTTP/1.1 200 OK\r\n"

# What a server sends before it closes.
ANSWERS: dict[str, bytes] = {
    "nothing": b"",
    "no HTTP": b"hello there\r\n\r\n",
    "half a head": OK + b"Content-Le",
    "no head's end": OK + b"Content-Length: 5\r\n",
    "bad version": b"HTTP/9.9 200 OK\r\n\r\n",
    "bad status": b"HTTP/1.1 abc OK\r\n\r\n",
    "no reason": b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok",
    "empty reason": b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok",
    "space in name": OK + b"Content Length: 5\r\n\r\nhello",
    "no colon": OK + b"nonsense\r\n\r\n",
    "bad length": OK + b"Content-Length: five\r\n\r\nhello",
    "negative length": OK + b"Content-Length: -5\r\n\r\nhello",
    "two lengths": OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "length and chunks": OK
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "too short": OK + b"Content-Length: 10\r\n\r\nhello",
    "too long": OK + b"Content-Length: 5\r\n\r\nhello, world",
    "to the end": OK + b"\r\nhello",
    "1.0": b"HTTP/1.0 200 OK\r\n\r\nhello",
    "1.0 with length": b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "chunks": OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3;ext=1\r\n!!!\r\n0\r\n\r\n",
    "trailers": OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n",
    "bad chunk size": OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\nhello\r\n0\r\n\r\n",
    "bad chunk end": OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n",
    "half a chunk": OK + b"Transfer-Encoding: chunked\r\n\r\na\r\nhello",
    "no last chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    "continue first": b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 5\r\n\r\nhello",
    "hints first": b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n"
    + OK
    + b"Content-Length: 5\r\n\r\nhello",
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "304": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n",
    "close": OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello",
    "latin1 value": OK + b"X-Name: Gr\xfc\xdfe\r\nContent-Length: 0\r\n\r\n",
    "many fields": OK
    + b"".join(b"X-%d: v\r\n" % n for n in range(100))
    + b"Content-Length: 0\r\n\r\n",
}

# Where rondel.http is stricter or more lenient, and why that is right.
OTHERWISE = {
    # What is left over is dropped with the connection; to aiohttp it is a bad second response or
    # nothing at all, depending on which of its parsers is at work and when the bytes come.
    "too long",
    # The head was good, so the body's error comes when it is read. aiohttp blames the head when
    # both come at once, and waits forever when the fault comes last.
    "bad chunk size",
    "bad chunk end",
}


async def outcome(client: Any, url: str, session: Any = None, **arguments: Any) -> Any:
    """Status, fields and body, or the exception's classes and where it was raised."""
    stage = "request"
    async with session or client.ClientSession() as session:
        try:
            async with session.get(url, **arguments) as response:
                stage = "body"
                fields = sorted(response.headers.items())
                return response.status, response.reason, fields, await response.read()
        except (TimeoutError, client.ClientError) as error:
            return stage, lineage(error)


@pytest.mark.parametrize("name", [name for name in ANSWERS if name not in OTHERWISE])
@pytest.mark.parametrize("how", ["at once", "by bytes", "reset"])
def test_answers(rondel_loop: Any, name: str, how: str) -> None:
    answer = ANSWERS[name]

    async def by_bytes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for index in range(len(answer)):
            writer.write(answer[index : index + 1])
            await asyncio.sleep(0)

    async def main() -> None:
        served: Any = by_bytes if how == "by bytes" else answer
        async with raw_server(served, reset=how == "reset") as url:
            one, other = [await outcome(client, url) for client in CLIENTS]
        assert other == one

    run_on(rondel_loop, main)


@pytest.mark.parametrize("name", ["bad chunk size", "bad chunk end"])
def test_bad_chunks(rondel_loop: Any, name: str) -> None:
    async def main() -> None:
        async with raw_server(ANSWERS[name]) as url:
            stage, kinds = await outcome(http, url)
            assert (stage, kinds[0]) == ("body", "ClientPayloadError")

    run_on(rondel_loop, main)


def test_too_long(rondel_loop: Any) -> None:
    async def main() -> None:
        async with raw_server(ANSWERS["too long"]) as url, http.ClientSession() as session:
            for _ in range(3):
                async with session.get(url) as response:
                    assert await response.read() == b"hello"

    run_on(rondel_loop, main)


def test_endless_head(rondel_loop: Any) -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        while True:
            writer.write(b"X-More: " + b"x" * 1000 + b"\r\n")
            await writer.drain()

    async def main() -> None:
        async with raw_server(endless) as url, http.ClientSession() as session:
            with pytest.raises(http.ClientResponseError) as raised:
                await session.get(url)
            assert raised.value.status == 400

    run_on(rondel_loop, main)


def test_connection_is_tried_again(rondel_loop: Any) -> None:
    """A server may close a connection just when the next request is sent on it."""
    seen = []

    async def one_each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        seen.append("answered")
        writer.write(OK + b"Content-Length: 2\r\n\r\nok")
        await reader.readuntil(b"\r\n\r\n")
        seen.append("closed")

    async def main() -> None:
        async with raw_server(one_each) as url, http.ClientSession() as session:
            for _ in range(3):
                async with session.get(url) as response:
                    assert await response.read() == b"ok"
            assert seen == ["answered", "closed", "answered", "closed", "answered"]
            with pytest.raises(http.ServerDisconnectedError):
                await session.post(url, data=b"not twice")

    run_on(rondel_loop, main)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_nonsense_in_an_encoding(rondel_loop: Any, encoding: str) -> None:
    head = b"Content-Encoding: %b\r\nContent-Length: 50\r\n\r\n" % encoding.encode()

    async def main() -> None:
        async with raw_server(OK + head + b"\x5b\xff\x11" * 16 + b"xx") as url:
            async with http.ClientSession() as session, session.get(url) as response:
                with pytest.raises(http.ClientPayloadError, match=encoding):
                    await response.read()

    run_on(rondel_loop, main)


def test_gzip_bomb_is_decoded_as_it_is_read(rondel_loop: Any) -> None:
    import gzip
    import resource

    bomb = gzip.compress(bytes(400_000_000), 9)
    head = b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)

    async def main() -> None:
        async with raw_server(OK + head + bomb) as url, http.ClientSession() as session:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            async with session.get(url) as response:
                for _ in range(100):
                    assert await response.content.read(1000) == bytes(1000)
                await asyncio.sleep(0.05)
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            assert after - before < 50_000  # KiB

    run_on(rondel_loop, main)


REPEATED: dict[str, list[bytes]] = {
    "closed": [],
    "closed twice": [b"close"],
    "redirect": [b"HTTP/1.1 302 Found\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n"],
    "endless redirect": [b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n"] * 20,
    "no place": [b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"],
    "no HTTP": [b"hello there\r\n\r\n"],
    "cookie": [OK + b"Set-Cookie: a=1\r\nContent-Length: 0\r\n\r\n"],
    "status": [b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"],
    "silence": [b""],
}


@pytest.mark.parametrize("checks", [False, True])
@pytest.mark.parametrize("name", REPEATED)
def test_what_comes_of_an_equal_request(rondel_loop: Any, name: str, checks: bool) -> None:
    """The second of equal requests is sent as it was prepared for the first one."""

    async def ask(client: Any) -> Any:
        requests: list[str] = []
        answers = list(REPEATED[name])

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                requests.append(head.partition(" HTTP")[0] + ("+" if "Cookie:" in head else ""))
                answer = OK + b"Content-Length: 2\r\n\r\nok"
                if len(requests) > 1 and answers:
                    answer = answers.pop(0)
                elif name.startswith("closed") and len(requests) == 2:
                    return
                if answer == b"close":
                    return
                writer.write(answer)

        outcomes = []
        limit = client.ClientTimeout(total=0.5 if name == "silence" else 20)
        async with raw_server(serve) as url:
            jar = client.CookieJar(unsafe=True)
            session = client.ClientSession(cookie_jar=jar, timeout=limit, raise_for_status=checks)
            async with session:
                for _ in range(4):
                    try:
                        async with session.get(url) as response:
                            steps = [step.status for step in response.history]
                            outcomes.append((response.status, steps, await response.read()))
                    except (TimeoutError, client.ClientError) as error:
                        outcomes.append(lineage(error))
        return outcomes, requests

    async def main() -> None:
        theirs, ours = [await ask(client) for client in CLIENTS]
        assert ours == theirs

    run_on(rondel_loop, main)
