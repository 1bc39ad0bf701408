"""rondel.http and aiohttp through a proxy: the same requests reach it, and the same outcomes."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from http_peers import CLIENTS, lineage, relay, serving, web_server
from support import HOST, run_on
from tls import client_context, server_context
from yarl import URL

pytestmark = [
    pytest.mark.usefixtures("no_descriptor_left"),
    pytest.mark.filterwarnings("ignore:The '(proxy_)?auth' parameter is:DeprecationWarning"),
]


class ProxyServer:
    """A proxy that notes the heads it gets; `refusal` is what it answers in place of serving."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.refusal: bytes | None = None
        self.url = ""
        self.serving: set[asyncio.Task[Any]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        below = None
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            if self.refusal is not None:
                writer.write(self.refusal)
                return
            method, target, _ = head.split(b" ", 2)
            tunnels = method == b"CONNECT"
            url = URL(("//" if tunnels else "") + target.decode())
            above, below = await asyncio.open_connection(url.host, url.port)
            if tunnels:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                path = url.raw_path_qs.encode()
                below.write(head.replace(b" " + target, b" " + path, 1))
            await asyncio.gather(relay(reader, below), relay(above, writer))
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            if below is not None:
                below.close()
            self.serving.discard(task)

    def seen(self) -> list[list[str]]:
        """The heads, without what the clients may differ in."""
        own = re.compile("(user-agent|accept-encoding):", re.IGNORECASE)
        told = [sorted(head.decode().split("\r\n")) for head in self.heads]
        return [[line.lower() for line in lines if not own.match(line)] for lines in told]


@contextlib.asynccontextmanager
async def proxy_server(tls: bool = False) -> AsyncIterator[ProxyServer]:
    proxy = ProxyServer()
    context = server_context() if tls else None
    async with serving(proxy, context) as port:
        proxy.url = f"http{'s' if tls else ''}://{HOST}:{port}"
        yield proxy


async def outcome(client: Any, session: dict[str, Any], url: str, arguments: dict[str, Any]) -> Any:
    """What a program sees of two requests for a URL."""
    session = {name: value(client) if callable(value) else value for name, value in session.items()}
    arguments = {k: v(client) if callable(v) else v for k, v in arguments.items()}
    tls = client_context()
    try:
        async with client.ClientSession(**session) as made:
            told = []
            for _ in range(2):
                async with made.get(url, ssl=tls, **arguments) as response:
                    told.append((response.status, response.url, await response.read()))
            return told
    except (client.ClientError, ValueError, TypeError) as error:
        info = getattr(error, "request_info", None)
        told = (info.method, info.url.origin(), info.real_url) if info else None
        status = getattr(error, "status", None), getattr(error, "host", None)
        # What is wrong with an answer is said in the parser's own words.
        text = re.sub("0x[0-9a-f]+|message=.*(?=, url)", "", str(error), flags=re.DOTALL)
        return lineage(error), text, told, status


def auth(client: Any) -> Any:
    return client.BasicAuth("me", "secret")


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {"proxy": "{proxy}"}),
    "session": ({"proxy": "{proxy}", "proxy_auth": auth}, {}),
    "session and request": ({"proxy": "http://127.0.0.1:1"}, {"proxy": "{proxy}"}),
    "auth": ({}, {"proxy": "{proxy}", "proxy_auth": auth}),
    "auth in URL": ({}, {"proxy": "http://you:p%40ss@{place}"}),
    "both auths": ({}, {"proxy": "{proxy}", "proxy_auth": auth, "auth": auth}),
    "headers": ({}, {"proxy": "{proxy}", "proxy_headers": {"X-Proxy": "1"}}),
    "own headers": ({}, {"proxy": "{proxy}", "headers": {"X-Own": "1"}}),
    "wrong auth": ({}, {"proxy": "{proxy}", "proxy_auth": ("me", "secret")}),
    "wrong header": ({}, {"proxy": "{proxy}", "proxy_headers": {"X-A": "1\r\nX-B: 2"}}),
    "refused": ({}, {"proxy": "http://127.0.0.1:1/"}),
    "no URL": ({}, {"proxy": "http://"}),
    "params": ({}, {"proxy": "{proxy}", "params": {"a": "ü"}}),
    "trust": ({"trust_env": True}, {}),
    "trust and proxy": ({"trust_env": True}, {"proxy": "{proxy}"}),
    "denied": ({}, {"proxy": "{proxy}"}),
    "nonsense": ({}, {"proxy": "{proxy}"}),
}
REFUSALS = {
    "denied": b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 3\r\nX: y\r\n\r\nno!",
    "nonsense": b"what?\r\n\r\n",
}


def _filled(arguments: dict[str, Any], proxy: ProxyServer) -> dict[str, Any]:
    place = proxy.url.partition("//")[2]
    return {
        name: value.format(proxy=proxy.url, place=place) if isinstance(value, str) else value
        for name, value in arguments.items()
    }


# Those that differ from http.
TUNNELS = (
    "plain",
    "auth",
    "headers",
    "own headers",
    "wrong header",
    "refused",
    "denied",
    "nonsense",
)


@pytest.mark.parametrize(
    ("case", "secure"), [(case, False) for case in CASES] + [(case, True) for case in TUNNELS]
)
def test_proxies(
    rondel_loop: Any, monkeypatch: Any, tmp_path: Path, case: str, secure: bool
) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    async def main() -> Any:
        told: list[Any] = []
        async with web_server(server_context() if secure else None) as base:
            for client in CLIENTS:
                async with proxy_server() as proxy:
                    proxy.refusal = REFUSALS.get(case)
                    if case.startswith("trust"):
                        netrc = tmp_path / "netrc"
                        netrc.write_text(f"machine {HOST} login a password b\n")
                        netrc.chmod(0o600)
                        monkeypatch.setenv("NETRC", str(netrc))
                        monkeypatch.setenv("http_proxy", proxy.url)
                        monkeypatch.setenv("https_proxy", proxy.url)
                    session, arguments = (_filled(part, proxy) for part in CASES[case])
                    result = await outcome(client, session, base + "/echo/x", arguments)
                    text = repr((result, proxy.seen()))
                    port = proxy.url.rpartition(":")[2]
                    told.append(text.replace(port, "PORT"))
        assert told[1] == told[0]
        return told[1]

    run_on(rondel_loop, main)


def test_bypassed(rondel_loop: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", HOST)

    async def main() -> None:
        async with web_server() as base:
            for client in CLIENTS:
                async with (
                    client.ClientSession(trust_env=True) as session,
                    session.get(base + "/small") as response,
                ):
                    assert response.status == 200

    run_on(rondel_loop, main)


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
def test_tls_to_the_proxy(rondel_loop: Any, secure: bool) -> None:
    """TLS to the proxy, and for https TLS within it. aiohttp warns of that; ours just works."""

    async def main() -> None:
        async with (
            web_server(server_context() if secure else None) as base,
            proxy_server(tls=True) as proxy,
        ):
            arguments = {"proxy": proxy.url}
            told = await outcome(CLIENTS[1], {}, base + "/echo", arguments)
            assert [status for status, *_ in told] == [200, 200]
            assert len(proxy.heads) == 1

    run_on(rondel_loop, main)
