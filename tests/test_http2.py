"""rondel.http over HTTP/2: the same outcome as over HTTP/1.1, and what is HTTP/2's own."""

import asyncio
import io
import ssl
from collections.abc import AsyncIterator, Iterator
from typing import Any

import h2.errors
import h2.events
import h2.settings
import pytest
from http2_peers import Peer, Proxy, Scripted, nginx_proxy, offering, scripted
from http_peers import BIG, web_server
from rondel import http
from rondel.http.tls import default_context
from support import run_on, until
from test_http import BODIES, REQUESTS, exchange
from test_http_proxy import proxy_server

pytestmark = pytest.mark.usefixtures("no_descriptor_left")


@pytest.fixture(scope="module")
def nginx() -> Iterator[Proxy]:
    with nginx_proxy() as proxy:
        yield proxy


TABLE: list[tuple[str, str, dict[str, Any]]] = [
    *[(method, "/echo/a%20b/ü?x=1&y=%2F#part", {}) for method in ("GET", "PUT", "HEAD", "OPTIONS")],
    *[(method, "/echo", {"make": make}) for method in ("POST", "PUT") for make in BODIES.values()],
    *[("GET", "/echo", arguments) for arguments in REQUESTS.values()],
    *[("GET", f"/encoded/{kind}", {}) for kind in ("gzip", "deflate", "raw", "bad", "unknown")],
    *[
        (method, f"/status/{code}", {})
        for code in (200, 201, 204, 304, 400, 404, 500)
        for method in ("GET", "HEAD")
    ],
    *[
        (method, f"/redirect?code={code}&to=/echo", {"data": b"x" * 10})
        for code in (301, 303, 307)
        for method in ("POST", "PUT")
    ],
    *[("GET", path, {}) for path in ("/small", "/empty", "/big", "/lines", "/fields", "/latin")],
    ("GET", "/redirect?to=/cookies/deep/x&cookie=1", {}),
    ("GET", "/status/404", {"raise_for_status": True}),
    ("GET", "/redirect?to=/redirect?to=/redirect", {"max_redirects": 2}),
    ("POST", "/echo", {"make": lambda _: {"data": io.BytesIO(BIG[:200_000])}}),
]

# What HTTP/2 does not have, and what nginx adds to HTTP/1.1's.
_OF_HTTP1 = {"connection", "transfer-encoding", "content-length"}


async def _seen(nginx: Proxy, base: str, protocol: str, row: tuple[str, str, Any]) -> Any:
    method, path, arguments = row
    arguments = dict(arguments)
    session = dict(arguments.pop("session", {}))
    session["headers"] = dict(session.get("headers", {})) | {"X-Upstream": base[7:]}
    session["connector"] = offering(protocol)
    seen = await exchange(http, nginx.tls_url, method, path, session=session, **arguments)
    if "version" in seen:
        assert seen.pop("version") == ((2, 0) if protocol == "h2" else (1, 1))
        assert seen.pop("reason") == "" or protocol != "h2"
        seen["headers"] = [pair for pair in seen["headers"] if pair[0] not in _OF_HTTP1]
        # Neither does the server behind nginx see the same framing.
        seen["body"] = _unframed(seen["body"])
        del seen["length"]
    return seen


def _unframed(body: bytes) -> Any:
    if not body.startswith(b'{"method"'):
        return body
    import json

    told = json.loads(body)
    told["headers"] = [pair for pair in told["headers"] if pair[0] not in _OF_HTTP1]
    return told


def test_the_same_requests(rondel_loop: Any, nginx: Proxy) -> None:
    async def main() -> None:
        async with web_server() as base:
            for row in TABLE:
                one = await _seen(nginx, base, "http/1.1", row)
                assert await _seen(nginx, base, "h2", row) == one, row

    run_on(rondel_loop, main, limit=100)
    assert nginx.requests("HTTP/2.0")


def test_the_switch(rondel_loop: Any, nginx: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Own contexts offer HTTP/2 when asked to; a program's context is used as it is."""
    monkeypatch.setenv("SSL_CERT_FILE", str(nginx.folder / "ca.pem"))
    default_context.cache_clear()

    async def spoken(**arguments: Any) -> str:
        connector = http.TCPConnector(**arguments)
        async with http.ClientSession(connector=connector) as session:
            async with session.get(nginx.tls_url + "/protocol") as response:
                return (await response.text()).split()[0]

    async def main() -> None:
        assert await spoken() == "HTTP/1.1"
        assert await spoken(http2=True) == "HTTP/2.0"
        assert await spoken(http2=True, ssl=False) == "HTTP/2.0"
        assert await spoken(http2=True, force_close=True) == "HTTP/1.1"
        assert await spoken(http2=True, ssl=ssl._create_unverified_context()) == "HTTP/1.1"
        async with http.ClientSession(connector=http.TCPConnector(http2=True)) as session:
            async with session.get(nginx.url + "/protocol") as response:
                assert (response.version, (await response.text())[:8]) == ((1, 1), "HTTP/1.1")

    try:
        run_on(rondel_loop, main)
    finally:
        default_context.cache_clear()


def test_many_requests_share_a_connection(rondel_loop: Any, nginx: Proxy) -> None:
    async def main() -> None:
        async with http.ClientSession(connector=offering()) as session:

            async def one() -> str:
                async with session.get(nginx.tls_url + "/protocol") as response:
                    return (await response.text()).split()[1]

            assert len(set(await asyncio.gather(*[one() for _ in range(300)]))) == 1

    run_on(rondel_loop, main)


def test_large_bodies_both_ways_at_once(rondel_loop: Any, nginx: Proxy) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(BIG), 100_000):
            yield BIG[start : start + 100_000]

    async def main() -> None:
        async with (
            web_server() as base,
            http.ClientSession(connector=offering(), headers={"X-Upstream": base[7:]}) as session,
        ):

            async def up(data: Any) -> None:
                async with session.post(nginx.tls_url + "/echo", data=data) as response:
                    told = await response.json()
                    assert told["body"].encode("latin1") == BIG

            async def down() -> None:
                async with session.get(nginx.tls_url + "/big") as response:
                    assert await response.read() == BIG

            await asyncio.gather(
                *[up(BIG), up(pieces()), up(io.BytesIO(BIG))], *[down()] * 1, down()
            )

    run_on(rondel_loop, main)


def serve(loop: Any, handle: Any, program: Any, **settings: int) -> Scripted:
    """Run a program with a session against a scripted server."""
    codes = {h2.settings.SettingCodes[name]: value for name, value in settings.items()}
    server = Scripted(handle, codes)

    async def main() -> None:
        async with scripted(server), http.ClientSession(connector=offering("h2")) as session:
            await asyncio.wait_for(program(session, server), 60)

    run_on(loop, main)
    return server


def _is_request(event: h2.events.Event) -> bool:
    return isinstance(event, h2.events.RequestReceived)


def test_a_slow_reader_holds_the_server_back(rondel_loop: Any) -> None:
    sent, begun = 0, False

    async def handle(server: Scripted, peer: Peer, event: h2.events.Event) -> None:
        nonlocal sent, begun
        protocol = peer.protocol
        if isinstance(event, h2.events.RequestReceived):
            if event.stream_id > 1:
                peer.answer(event.stream_id, b"quick")
                return
            protocol.send_headers(1, [(":status", "200")])
            begun = True
        while begun and 1 not in peer.resets:
            room = min(protocol.local_flow_control_window(1), protocol.max_outbound_frame_size)
            if room <= 0:
                break
            protocol.send_data(1, b"x" * room)
            sent += room

    async def program(session: http.ClientSession, server: Scripted) -> None:
        async with session.get(server.url) as response:
            before = -1
            while before != sent:
                before = sent
                await asyncio.sleep(0.1)
            assert 65536 <= sent <= 4 << 20
            # The others go on meanwhile.
            async with session.get(server.url) as other:
                assert await other.read() == b"quick"
            # With room again there is more.
            await response.content.readexactly(sent + (1 << 20))
        await until(lambda: server.peers[0].resets)
        assert server.peers[0].resets == {1: h2.errors.ErrorCodes.CANCEL}

    assert serve(rondel_loop, handle, program).connections == 1


def test_refused_and_unprocessed_requests_are_made_again(rondel_loop: Any) -> None:
    """REFUSED_STREAM on the same connection, GOAWAY on a new one, also for POST."""
    refused = 0

    async def handle(server: Scripted, peer: Peer, event: h2.events.Event) -> None:
        nonlocal refused
        if not isinstance(event, h2.events.StreamEnded):
            return
        if peer is server.peers[0]:
            if refused == 0:
                refused += 1
                peer.protocol.reset_stream(event.stream_id, h2.errors.ErrorCodes.REFUSED_STREAM)
            else:
                peer.protocol.close_connection(last_stream_id=0)
        else:
            peer.answer(event.stream_id, b"at last")

    async def program(session: http.ClientSession, server: Scripted) -> None:
        async with session.post(server.url, data=b"abc") as response:
            assert await response.read() == b"at last"

    server = serve(rondel_loop, handle, program)
    assert (refused, server.connections) == (1, 2)
    assert server.peers[1].received == {1: 3}


@pytest.mark.parametrize("after", ["nothing", "head", "part"])
@pytest.mark.parametrize("how", ["reset", "close", "goaway", "nonsense"])
def test_what_the_server_breaks(rondel_loop: Any, after: str, how: str) -> None:
    async def handle(server: Scripted, peer: Peer, event: h2.events.Event) -> None:
        if not isinstance(event, h2.events.RequestReceived):
            return
        stream = event.stream_id
        if after != "nothing":
            peer.protocol.send_headers(stream, [(":status", "200"), ("content-length", "10")])
        if after == "part":
            peer.protocol.send_data(stream, b"12345")
        if how == "reset":
            peer.protocol.reset_stream(stream, h2.errors.ErrorCodes.INTERNAL_ERROR)
        elif how == "goaway":
            peer.protocol.close_connection(h2.errors.ErrorCodes.INTERNAL_ERROR, b"", stream)
        peer.flush()
        if how == "nonsense":
            peer.writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 100)
        if how != "reset":
            await peer.writer.drain()
            peer.writer.close()

    async def program(session: http.ClientSession, server: Scripted) -> None:
        expected: Any = http.ClientPayloadError
        if after == "nothing":
            expected = {
                "reset": http.ClientOSError,
                "nonsense": http.ClientResponseError,
            }.get(how, http.ServerDisconnectedError)
        with pytest.raises(expected):
            async with session.post(server.url, data=b"x") as response:
                await response.read()

    assert serve(rondel_loop, handle, program).connections == 1


def test_how_many_streams_the_server_allows(rondel_loop: Any) -> None:
    async def handle(server: Scripted, peer: Peer, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.StreamEnded):

            async def later(stream: int) -> None:
                await asyncio.sleep(0.01)
                peer.answer(stream, b"x")
                peer.flush()

            peer.writer.task = asyncio.create_task(later(event.stream_id))  # type: ignore[attr-defined]

    async def program(session: http.ClientSession, server: Scripted) -> None:
        async def one() -> bytes:
            async with session.get(server.url) as response:
                return await response.read()

        assert await asyncio.gather(*[one() for _ in range(30)]) == [b"x"] * 30

    server = serve(rondel_loop, handle, program, MAX_CONCURRENT_STREAMS=3)
    assert max(peer.most for peer in server.peers) <= 3
    assert server.connections <= 10


def test_cancellation_and_timeouts_reset_the_stream(rondel_loop: Any) -> None:
    async def handle(server: Scripted, peer: Peer, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            if dict(event.headers).get("x-then") == "head":
                peer.protocol.send_headers(event.stream_id, [(":status", "200")])
            elif dict(event.headers)[":path"] == "/ok":
                peer.answer(event.stream_id)

    async def program(session: http.ClientSession, server: Scripted) -> None:
        async def get(**arguments: Any) -> None:
            async with session.get(server.url, **arguments) as response:
                await response.read()

        task = asyncio.create_task(get())
        await until(lambda: server.peers and server.peers[0].requests)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError):
            await get(timeout=http.ClientTimeout(total=0.05))
        with pytest.raises(http.SocketTimeoutError):
            await get(timeout=http.ClientTimeout(sock_read=0.05), headers={"x-then": "head"})
        async with session.get(server.url, headers={"x-then": "head"}) as response:
            assert response.status == 200
        await until(lambda: len(server.peers[0].resets) == 4)
        assert set(server.peers[0].resets.values()) == {h2.errors.ErrorCodes.CANCEL}
        async with session.get(server.url + "/ok") as response:
            assert response.status == 200

    assert serve(rondel_loop, handle, program).connections == 1


def test_odd_responses(rondel_loop: Any) -> None:
    """Informational ones, trailers, an answer before the request's body, and a head too large."""

    async def handle(server: Scripted, peer: Peer, event: h2.events.Event) -> None:
        if not isinstance(event, h2.events.RequestReceived | h2.events.StreamEnded):
            return
        stream, protocol = event.stream_id, peer.protocol
        path = peer.requests[stream][":path"]
        if path != "/continue" and isinstance(event, h2.events.StreamEnded):
            return
        match path:
            case "/early":
                protocol.send_headers(stream, [(":status", "103"), ("link", "</x>")])
                protocol.send_headers(stream, [(":status", "200"), ("set-cookie", "a=b")])
                protocol.send_data(stream, b"body")
                protocol.send_headers(stream, [("x-sum", "5")], end_stream=True)
            case "/too-early":
                protocol.send_headers(stream, [(":status", "413")])
                protocol.send_data(stream, b"no more", end_stream=True)
            case "/continue":
                if not isinstance(event, h2.events.StreamEnded):
                    assert not peer.received.get(stream)
                    protocol.send_headers(stream, [(":status", "100")])
                else:
                    peer.answer(stream, b"%d" % peer.received[stream])
            case "/large":
                fields = [(f"x-{number}", "y" * 10_000) for number in range(20)]
                protocol.send_headers(stream, [(":status", "200"), *fields], end_stream=True)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 10_000
            await asyncio.sleep(0)

    async def program(session: http.ClientSession, server: Scripted) -> None:
        async with session.get(server.url + "/early") as response:
            assert (response.status, await response.read()) == (200, b"body")
            assert response.cookies["a"].value == "b"
        async with session.post(server.url + "/too-early", data=endless()) as response:
            assert (response.status, await response.read()) == (413, b"no more")
        async with session.post(server.url + "/continue", data=BIG, expect100=True) as response:
            assert await response.read() == b"%d" % len(BIG)
        with pytest.raises(http.ClientResponseError):
            await session.get(server.url + "/large")
        async with session.get(server.url + "/early") as response:
            assert await response.read() == b"body"

    assert serve(rondel_loop, handle, program).connections == 1


def test_tunnels_and_websockets(rondel_loop: Any, nginx: Proxy) -> None:
    """HTTP/2 through a CONNECT proxy; a WebSocket refuses it."""

    async def main() -> None:
        async with proxy_server() as proxy, http.ClientSession(connector=offering()) as session:
            url = nginx.tls_url + "/protocol"
            seen = []
            for _ in range(3):
                async with session.get(url, proxy=proxy.url) as response:
                    seen.append(await response.text())
            assert len(set(seen)) == 1 and seen[0].startswith("HTTP/2.0")
            assert len(proxy.heads) == 1
            with pytest.raises(http.ClientConnectionError, match="HTTP/2"):
                await session.ws_connect(nginx.tls_url)

    run_on(rondel_loop, main)


def test_closing_and_idleness(rondel_loop: Any) -> None:
    ended: list[h2.events.Event] = []

    async def handle(server: Scripted, peer: Peer, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            ended.append(event)
        elif isinstance(event, h2.events.RequestReceived) and "/ok" in dict(event.headers)[":path"]:
            peer.answer(event.stream_id)

    async def main() -> None:
        server = Scripted(handle)
        async with scripted(server):
            connector = offering("h2")
            connector._keepalive = 0.05
            async with http.ClientSession(connector=connector) as session:
                await session.get(server.url + "/ok")
                await until(lambda: len(ended) == 1)
                await session.get(server.url + "/ok")
                assert server.connections == 2
                waiting = asyncio.ensure_future(session.get(server.url + "/never"))
                await until(lambda: server.peers[1].requests.get(3))
            with pytest.raises(http.ClientConnectionError):
                await waiting
            await until(lambda: len(ended) == 2)

    run_on(rondel_loop, main)


def test_a_proxy_that_chooses_http2(rondel_loop: Any) -> None:
    """Requests for http:// go over its one connection; there is no tunnel for https://."""

    async def handle(server: Scripted, peer: Peer, event: h2.events.Event) -> None:
        if _is_request(event):
            peer.answer(event.stream_id, b"from afar")

    async def program(session: http.ClientSession, server: Scripted) -> None:
        for url in ("http://example.com:81/a?b=c", "http://example.com", "http://example.com/d"):
            async with session.get(url, proxy=server.url, headers={"X-Own": url}) as response:
                assert (response.status, await response.read()) == (200, b"from afar")
        with pytest.raises(http.ClientConnectionError, match="chosen HTTP/2.*no tunnel"):
            await session.get("https://example.com/", proxy=server.url)

    seen = serve(rondel_loop, handle, program)
    fields = (":scheme", ":authority", ":path", "x-own")
    requests = [one for peer in seen.peers for one in peer.requests.values()]
    told = [tuple(one[field] for field in fields) for one in requests]
    assert told == [
        ("http", "example.com:81", "/a?b=c", "http://example.com:81/a?b=c"),
        ("http", "example.com", "/", "http://example.com"),
        ("http", "example.com", "/d", "http://example.com/d"),
    ]
    assert seen.connections == 3  # one for each host and port, and the one without a tunnel
