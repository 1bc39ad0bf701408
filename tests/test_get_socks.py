"""`rondel get` through SOCKS proxies: versions 4, 4a and 5, who looks names up, passwords."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from socks_server import SocksServer
from support import HOST
from web import LIMIT, Nginx, Odd, files, get

pytestmark = pytest.mark.timeout(2 * LIMIT)

NAME = "name.invalid"


@pytest.fixture(scope="module")
def nginx() -> Iterator[Nginx]:
    with Nginx().running() as server:
        yield server


class Proxy(Odd):
    """A SOCKS server in a thread. It alone knows where `NAME` is."""

    def __init__(self, credentials: tuple[str, str] | None = None, reply: int = 0) -> None:
        super().__init__(self.unused)
        # The files' server does not listen on the IPv6 address that `localhost` may have.
        names = {NAME: HOST, "::1": HOST}
        self.server = SocksServer(credentials, reply, names=names)

    async def unused(self, _request: object) -> None:
        raise NotImplementedError

    def at(self, scheme: str, login: str = "") -> str:
        """Its URL."""
        return f"{scheme}://{login}{self.url.removeprefix('http://')}"

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.server.serve(reader, writer)


def test_every_version_brings_the_file(nginx: Nginx, tmp_path: Path) -> None:
    nginx.file("file", b"content")
    with (proxy := Proxy()).running():
        for scheme, host, kind in [
            ("socks5h", NAME, "5 name"),
            ("socks4a", NAME, "4 name"),
            ("socks5", HOST, "5 address"),
            # Looked up here.
            ("socks5", "localhost", "5 address"),
            ("socks4", "localhost", "4 address"),
        ]:
            out = tmp_path / f"{scheme}-{host}"
            url = f"http://{host}:{nginx.port}/file"
            result = get("--retries=0", "--proxy", proxy.at(scheme), "-o", out, url, cwd=tmp_path)
            assert result.returncode == 0, (scheme, result.stderr)
            assert files(out) == {"file": b"content"}
            told, place, port = proxy.server.asked[-1]
            assert (told, port) == (kind, nginx.port)
            assert place == NAME if host == NAME else place in (HOST, "::1")


def test_tls_goes_through_and_the_environment_is_heeded(nginx: Nginx, tmp_path: Path) -> None:
    nginx.file("file", b"content")
    with (proxy := Proxy()).running():
        trust = ("--ca-file", nginx.folder / "ca.pem")
        urls = [f"{nginx.tls_url}/protocol", f"http://{NAME}:{nginx.port}/file"]
        result = get(*trust, *urls, cwd=tmp_path, ALL_PROXY=proxy.at("socks5h"))
        assert result.returncode == 0, result.stderr
        assert files(tmp_path) == {"protocol": b"HTTP/2.0", "file": b"content"}
        # Nobody here looked the names up.
        asked = list(proxy.server.asked)
        assert {host for _, host, _ in asked} == {"localhost", NAME}
        around = {"ALL_PROXY": proxy.at("socks5h"), "no_proxy": HOST}
        direct = get(urls[1].replace(NAME, HOST), "-o", "direct", cwd=tmp_path, **around)
        assert direct.returncode == 0
        assert proxy.server.asked == asked


@pytest.mark.parametrize(
    ("scheme", "login", "reply", "status", "why"),
    [
        ("socks5", "me:p%3A@", 0, 0, ""),
        ("socks5", "me:other@", 0, 2, "refuses the name or the password"),
        ("socks5", "", 0, 2, "refuses to work without"),
        ("socks5h", "me:p%3A@", 4, 3, "the host is unreachable"),
        ("socks4", "me@", 0, 0, ""),
        ("socks4", "me@", 91, 3, "rejected"),
        ("socks4a", "me@", 93, 2, "refuses the user name"),
        ("http", "", 0, 3, ""),
    ],
)
def test_passwords_and_failures(
    nginx: Nginx, tmp_path: Path, scheme: str, login: str, reply: int, status: int, why: str
) -> None:
    url = nginx.file("file", b"content")
    with (proxy := Proxy(("me", "p:"), reply)).running():
        through = ("--retries=0", "--timeout=5", "--proxy", proxy.at(scheme, login))
        result = get(*through, url, "-o", "out", cwd=tmp_path)
    assert (result.returncode, why in result.stderr) == (status, True), result.stderr
    assert (tmp_path / "out" / "file").exists() == (status == 0)
    if scheme == "socks4" and not reply:
        assert proxy.server.asked == [("4 address me", HOST, nginx.port)]


def test_what_socks_4_cannot(tmp_path: Path) -> None:
    with (proxy := Proxy()).running():
        through = ("--retries=0", "--proxy", proxy.at("socks4"))
        result = get(*through, "http://[::1]:1/", cwd=tmp_path)
    assert (result.returncode, "SOCKS 4" in result.stderr) == (3, True), result.stderr
    closed = get(*through, "http://127.0.0.1:1/", cwd=tmp_path)
    assert (closed.returncode, "the proxy" in closed.stderr) == (3, True), closed.stderr
