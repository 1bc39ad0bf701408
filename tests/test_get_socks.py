"""`rondel get` through SOCKS proxies: versions 4, 4a and 5, who looks names up, passwords."""

import asyncio
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import HOST
from web import LIMIT, Nginx, Odd, files, get

pytestmark = pytest.mark.timeout(2 * LIMIT)

NAME = "name.invalid"


@pytest.fixture(scope="module")
def nginx() -> Iterator[Nginx]:
    with Nginx().running() as server:
        yield server


class Proxy(Odd):
    """A SOCKS server. It alone knows where `NAME` is."""

    def __init__(self, user: str = "", password: str = "") -> None:
        super().__init__(self.unused)
        self.login = user.encode(), password.encode()
        #: What it was asked for: version, host, port.
        self.asked: list[tuple[int, str, int]] = []

    async def unused(self, _request: object) -> None:
        raise NotImplementedError

    def at(self, scheme: str, login: str = "") -> str:
        """Its URL."""
        return f"{scheme}://{login}{self.url.removeprefix('http://')}"

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            version = (await reader.readexactly(1))[0]
            talk = self.version5 if version == 5 else self.version4
            asked, yes, no = await talk(reader, writer)
            self.asked.append((version, *asked))
            host, port = asked
            try:
                far = await asyncio.open_connection(HOST if host == NAME else host, port)
            except OSError:
                writer.write(no)
                return
            writer.write(yes)
            await asyncio.gather(self.pump(reader, far[1]), self.pump(far[0], writer))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    @staticmethod
    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def version5(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[tuple[str, int], bytes, bytes]:
        methods = await reader.readexactly((await reader.readexactly(1))[0])
        wanted = 2 if self.login[0] else 0
        if wanted not in methods:
            writer.write(b"\x05\xff")
            raise ConnectionAbortedError
        writer.write(bytes([5, wanted]))
        if wanted:
            assert await reader.readexactly(1) == b"\x01"
            user = await reader.readexactly((await reader.readexactly(1))[0])
            password = await reader.readexactly((await reader.readexactly(1))[0])
            writer.write(b"\x01\x00" if (user, password) == self.login else b"\x01\x01")
        assert await reader.readexactly(3) == b"\x05\x01\x00"
        match await reader.readexactly(1):
            case b"\x01":
                host = socket.inet_ntop(socket.AF_INET, await reader.readexactly(4))
            case b"\x04":
                host = socket.inet_ntop(socket.AF_INET6, await reader.readexactly(16))
            case _:
                host = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
        (port,) = struct.unpack("!H", await reader.readexactly(2))
        # Its own address, in two of the three forms that there are.
        return (host, port), b"\x05\x00\x00\x03\x02me\x00\x50", b"\x05\x04\x00\x01" + bytes(6)

    async def version4(
        self, reader: asyncio.StreamReader, _writer: asyncio.StreamWriter
    ) -> tuple[tuple[str, int], bytes, bytes]:
        assert await reader.readexactly(1) == b"\x01"
        port, address = struct.unpack("!H4s", await reader.readexactly(6))
        user = (await reader.readuntil(b"\x00"))[:-1]
        host = socket.inet_ntop(socket.AF_INET, address)
        if address[:3] == bytes(3):
            host = (await reader.readuntil(b"\x00"))[:-1].decode()
        rejected = b"\x00\x5b" + bytes(6)
        accepted = b"\x00\x5a" + bytes(6)
        return (host, port), accepted if user == self.login[0] else rejected, rejected


def test_every_version_brings_the_file(nginx: Nginx, tmp_path: Path) -> None:
    nginx.file("file", b"content")
    with Proxy().running() as proxy:
        assert isinstance(proxy, Proxy)
        for scheme, host, told in [
            ("socks5h", NAME, (5, NAME)),
            ("socks4a", NAME, (4, NAME)),
            ("socks5", HOST, (5, HOST)),
            # Looked up here, to addresses of which the proxy reaches one.
            ("socks5", "localhost", (5, HOST)),
            ("socks4", "localhost", (4, HOST)),
        ]:
            out = tmp_path / f"{scheme}-{host}"
            url = f"http://{host}:{nginx.port}/file"
            result = get("--retries=0", "--proxy", proxy.at(scheme), "-o", out, url, cwd=tmp_path)
            assert result.returncode == 0, (scheme, result.stderr)
            assert files(out) == {"file": b"content"}
            assert proxy.asked[-1] == (*told, nginx.port)


def test_tls_goes_through_and_the_environment_is_heeded(nginx: Nginx, tmp_path: Path) -> None:
    nginx.file("file", b"content")
    with Proxy().running() as proxy:
        assert isinstance(proxy, Proxy)
        trust = ("--ca-file", nginx.folder / "ca.pem")
        urls = [f"{nginx.tls_url}/protocol", f"http://{NAME}:{nginx.port}/file"]
        result = get(*trust, *urls, cwd=tmp_path, ALL_PROXY=proxy.at("socks5h"))
        assert result.returncode == 0, result.stderr
        assert files(tmp_path) == {"protocol": b"HTTP/2.0", "file": b"content"}
        # Nobody here looked the names up.
        assert {host for _, host, _ in proxy.asked} == {"localhost", NAME}
        asked = len(proxy.asked)
        direct = get(urls[1].replace(NAME, HOST), "-o", "direct", cwd=tmp_path, no_proxy=HOST)
        assert direct.returncode == 0
        assert len(proxy.asked) == asked


def test_passwords_and_failures(nginx: Nginx, tmp_path: Path) -> None:
    url = nginx.file("file", b"content")
    with Proxy("me", "p:").running() as proxy:
        assert isinstance(proxy, Proxy)

        def through(scheme: str, login: str, url: str = url) -> tuple[int, str]:
            arguments = ("--retries=0", "--proxy", proxy.at(scheme, login), "-o", login or "none")
            result = get(*arguments, url, cwd=tmp_path)
            return result.returncode, result.stderr

        assert through("socks5", "me:p%3A@")[0] == 0
        assert through("socks4", "me@")[0] == 0
        for scheme, login, why in [
            ("socks5", "me:other@", "refuses the name or the password"),
            ("socks5", "", "refuses to work without"),
        ]:
            status, told = through(scheme, login)
            assert (status, why in told) == (2, True), told
        status, told = through("socks4", "you@")
        assert (status, "rejected" in told) == (3, True), told
        # Nothing listens there.
        status, told = through("socks5", "me:p%3A@", "http://127.0.0.1:1/")
        assert (status, "the host is unreachable" in told) == (3, True), told
        status, told = through("socks4", "me@", "http://[::1]:1/")
        assert (status, "SOCKS 4" in told) == (3, True), told
    closed = get("--retries=0", "--proxy", proxy.at("socks5"), url, cwd=tmp_path)
    assert (closed.returncode, "the proxy" in closed.stderr) == (3, True), closed.stderr
