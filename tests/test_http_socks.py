"""rondel.http through SOCKS proxies, which aiohttp does not have."""

import asyncio
import errno
from typing import Any

import pytest
from http_peers import raw_server, web_server
from rondel import http
from socks_server import SocksServer, socks_server
from support import HOST, run_on, unused_port
from tls import client_context, server_context

pytestmark = pytest.mark.usefixtures("no_descriptor_left")


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
@pytest.mark.parametrize(
    ("scheme", "host", "asked"),
    [
        ("socks5", HOST, ("5 address", HOST)),
        ("socks5", "localhost", ("5 address", None)),
        ("socks5h", "localhost", ("5 name", "localhost")),
        ("socks5h", "away.example", ("5 name", "away.example")),
        ("socks4", "localhost", ("4 address", "127.0.0.1")),
        ("socks4a", "away.example", ("4 name", "away.example")),
        ("socks4a", HOST, ("4 address", HOST)),
    ],
)
def test_kinds(
    rondel_loop: Any, scheme: str, host: str, asked: tuple[str, str | None], secure: bool
) -> None:
    def make() -> SocksServer:
        # A name may mean ::1, where the server does not listen.
        return SocksServer(names=dict.fromkeys(("away.example", "localhost", "::1"), HOST))

    async def main() -> None:
        context = server_context() if secure else None
        async with web_server(context) as base, socks_server(make) as proxy:
            url = base.replace(HOST, host)
            arguments: dict[str, Any] = {"proxy": f"{scheme}://{HOST}:{proxy.port}"}
            if secure:
                arguments.update(ssl=client_context(), server_hostname="localhost")
            async with http.ClientSession() as session:
                for _ in range(3):
                    async with session.post(url + "/echo", data=b"abc", **arguments) as response:
                        told = await response.json()
                        assert told["body"] == "abc" and told["path"] == "/echo"
                        names = {name for name, _ in told["headers"]}
                        assert "proxy-authorization" not in names
                async with session.get(url + "/big", **arguments) as response:
                    assert len(await response.read()) == 3_000_000
            # One connection for all.
            assert len(proxy.asked) == 1
            kind, name, _ = proxy.asked[0]
            assert kind == asked[0] and (asked[1] is None or name == asked[1])

    run_on(rondel_loop, main)


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("how", ["url", "argument", "session"])
def test_credentials(rondel_loop: Any, right: bool, how: str) -> None:
    async def main() -> None:
        async with (
            web_server() as base,
            socks_server(lambda: SocksServer(("me", "sä@cret" if right else "other"))) as proxy,
        ):
            place = f"{HOST}:{proxy.port}"
            auth = http.BasicAuth("me", "sä@cret")
            session_arguments: dict[str, Any] = {}
            arguments: dict[str, Any] = {}
            if how == "url":
                arguments = {"proxy": f"socks5://me:s%C3%A4%40cret@{place}"}
            elif how == "argument":
                arguments = {"proxy": f"socks5h://{place}", "proxy_auth": auth}
            else:
                session_arguments = {"proxy": f"socks5h://{place}", "proxy_auth": auth}
            async with http.ClientSession(**session_arguments) as session:
                if right:
                    async with session.get(base + "/small", **arguments) as response:
                        assert response.status == 200
                else:
                    with pytest.raises(http.ClientProxyConnectionError, match="password is wrong"):
                        await session.get(base + "/small", **arguments)

    run_on(rondel_loop, main)


REFUSALS: dict[str, tuple[str, SocksServer, int, str]] = {
    "unreachable": ("socks5", SocksServer(reply=4), errno.EHOSTUNREACH, "host unreachable"),
    "refused": ("socks5h", SocksServer(reply=5), errno.ECONNREFUSED, "connection refused"),
    "unknown": ("socks5", SocksServer(reply=77), errno.EPROTO, "unknown reply 77"),
    "no credentials": ("socks5", SocksServer(("a", "b")), errno.EACCES, "are required"),
    "not SOCKS5": ("socks5", SocksServer(raw=b"HTTP/1.1 400 x"), errno.EPROTO, "does not speak"),
    "closed": ("socks5", SocksServer(raw=b"\x05"), errno.ECONNRESET, "closed the connection"),
    "rejected": ("socks4", SocksServer(reply=0x5B), errno.ECONNREFUSED, "request rejected"),
    "not SOCKS4": ("socks4a", SocksServer(raw=b"HTTP/1.1"), errno.EPROTO, "does not speak"),
    "too much": ("socks4", SocksServer(raw=b"\0\x5a123456more"), errno.EPROTO, "more than"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(rondel_loop: Any, case: str) -> None:
    scheme, server, number, text = REFUSALS[case]

    async def main() -> None:
        async with socks_server(lambda: server) as proxy, http.ClientSession() as session:
            place = f"{scheme}://{HOST}:{proxy.port}"
            with pytest.raises(http.ClientProxyConnectionError, match=text) as raised:
                await session.get("http://127.0.0.1:1/", proxy=place)
            assert raised.value.errno == number
            assert f"{scheme} proxy {HOST}:{proxy.port}" in str(raised.value)

    run_on(rondel_loop, main)


def test_unreachable_proxy_and_unusable_urls(rondel_loop: Any) -> None:
    async def main() -> None:
        async with http.ClientSession() as session:
            with pytest.raises(http.ClientProxyConnectionError) as raised:
                await session.get("http://x.example/", proxy=f"socks5h://{HOST}:{unused_port()}")
            assert raised.value.errno == errno.ECONNREFUSED
            for proxy in ("socks://127.0.0.1:1", "socks9://x:1"):
                with pytest.raises(http.InvalidURL):
                    await session.get("http://x.example/", proxy=proxy)
            with pytest.raises(ValueError, match="255 bytes"):
                await session.get("http://x/", proxy=f"socks5://{'a' * 256}:b@{HOST}:1")

    run_on(rondel_loop, main)


def test_silent_proxy(rondel_loop: Any) -> None:
    """The limit of time for connecting holds for what the proxy does, too."""

    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read(100)
        await reader.read(100)

    async def main() -> None:
        limits = http.ClientTimeout(sock_connect=0.05)
        async with raw_server(silent) as url, http.ClientSession(timeout=limits) as session:
            with pytest.raises(http.ConnectionTimeoutError):
                await session.get("http://x/", proxy=url.replace("http", "socks5h"))

    run_on(rondel_loop, main)


@pytest.mark.parametrize("bypassed", [False, True])
def test_all_proxy(rondel_loop: Any, monkeypatch: Any, bypassed: bool) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    if bypassed:
        monkeypatch.setenv("NO_PROXY", HOST)

    async def main() -> None:
        async with web_server() as base, socks_server() as proxy:
            monkeypatch.setenv("ALL_PROXY", f"socks5h://{HOST}:{proxy.port}")
            async with http.ClientSession(trust_env=True) as session:
                async with session.get(base + "/small") as response:
                    assert response.status == 200
            async with http.ClientSession() as session, session.get(base + "/small") as response:
                assert response.status == 200
            assert len(proxy.asked) == (0 if bypassed else 1)

    run_on(rondel_loop, main)


def test_websocket(rondel_loop: Any) -> None:
    from test_http_websocket import socket_server

    async def main() -> None:
        async with (
            socket_server() as base,
            socks_server() as proxy,
            http.ClientSession() as session,
        ):
            place = f"socks5://{HOST}:{proxy.port}"
            async with session.ws_connect(base + "/echo", proxy=place) as socket:
                await socket.send_str("hello")
                assert await socket.receive_str() == "hello"
            assert len(proxy.asked) == 1

    run_on(rondel_loop, main)
