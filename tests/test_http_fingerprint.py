"""Certificates known by their fingerprint, with rondel.http and aiohttp."""

import asyncio
import hashlib
import ssl
from typing import Any

import pytest
from http_peers import CLIENTS, lineage, web_server
from rondel import http
from support import run_on
from test_http_proxy import proxy_server
from tls import server_context

pytestmark = pytest.mark.usefixtures("no_descriptor_left")


async def _fingerprint(url: str) -> bytes:
    host, port = url.removeprefix("https://").split(":")
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    tls = writer.get_extra_info("ssl_object")
    writer.close()
    return hashlib.sha256(tls.getpeercert(binary_form=True)).digest()


async def outcome(client: Any, url: str, where: str, digest: bytes, **arguments: Any) -> Any:
    pinned = client.Fingerprint(digest)
    connector = client.TCPConnector(ssl=pinned) if where == "connector" else None
    if where != "connector":
        arguments["ssl"] = pinned
    async with client.ClientSession(connector=connector) as session:
        try:
            told = []
            for _ in range(2):
                async with session.get(url, **arguments) as response:
                    told.append((response.status, await response.read()))
            return told
        except client.ServerFingerprintMismatch as error:
            return lineage(error), error.expected, error.got, error.host, str(error.args)


@pytest.mark.parametrize("where", ["request", "connector"])
@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("tunnel", [False, True])
def test_fingerprints(rondel_loop: Any, where: str, right: bool, tunnel: bool) -> None:
    async def main() -> None:
        async with web_server(server_context(expired=True)) as base, proxy_server() as proxy:
            digest = await _fingerprint(base)
            asked = digest if right else bytes(32)
            arguments = {"proxy": proxy.url} if tunnel else {}
            told = [await outcome(c, base + "/small", where, asked, **arguments) for c in CLIENTS]
            assert told[1][:4] == told[0][:4]
            assert (told[1][0] == (200, b"x" * 1024)) is right
            if not right:
                assert told[1][2] == digest

    run_on(rondel_loop, main)


def test_plain_http_is_not_checked(rondel_loop: Any) -> None:
    async def main() -> None:
        async with web_server() as base:
            told = [await outcome(c, base + "/small", "request", bytes(32)) for c in CLIENTS]
            assert told[1] == told[0] and told[1][0][0] == 200

    run_on(rondel_loop, main)


@pytest.mark.parametrize("size", [0, 16, 20, 31, 32, 33])
def test_what_is_no_fingerprint(size: int) -> None:
    told = []
    for client in CLIENTS:
        try:
            told.append(client.Fingerprint(bytes(size)).fingerprint)
        except ValueError as error:
            told.append(str(error))
    assert told[1] == told[0]
    assert http.Fingerprint(bytes(32)) == http.Fingerprint(bytes(32)) != http.Fingerprint(b"x" * 32)


def test_wrong_ssl_argument(rondel_loop: Any) -> None:
    async def main() -> None:
        for client in CLIENTS:
            with pytest.raises(TypeError, match="ssl should be SSLContext, bool, Fingerprint"):
                client.TCPConnector(ssl=5)
            async with client.ClientSession() as session:
                with pytest.raises(TypeError, match="ssl should be SSLContext, bool, Fingerprint"):
                    await session.get("https://127.0.0.1:1/", ssl="yes")

    run_on(rondel_loop, main)
