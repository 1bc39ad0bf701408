"""SOCKS proxies (RFC 1928, RFC 1929, SOCKS4a): a connection to the host, made by the proxy.

| URL | who looks names up |
| --- | --- |
| socks5, socks4 | we do, by the loop's getaddrinfo |
| socks5h, socks4a | the proxy |
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any

from yarl import URL

from .._rondel import HttpConnection
from .exceptions import ClientProxyConnectionError, InvalidURL
from .options import BasicAuth
from .proxy import speak_tls

if TYPE_CHECKING:
    from ..loop import Loop
    from .connector import ConnectionKey
    from .proxy import Proxy

_SCHEMES = ("socks5", "socks5h", "socks4", "socks4a")
_PORT = 1080

# RFC 1928, section 6, as the errors that the same failures have without a proxy.
_REPLIES = {
    1: (errno.ECONNABORTED, "general failure"),
    2: (errno.EACCES, "connection not allowed by ruleset"),
    3: (errno.ENETUNREACH, "network unreachable"),
    4: (errno.EHOSTUNREACH, "host unreachable"),
    5: (errno.ECONNREFUSED, "connection refused"),
    6: (errno.ETIMEDOUT, "time to live expired"),
    7: (errno.EOPNOTSUPP, "command not supported"),
    8: (errno.EAFNOSUPPORT, "address type not supported"),
}


class _Peer(asyncio.Protocol):
    """What the proxy says, read in parts of a known size."""

    def __init__(self) -> None:
        self._arrived = bytearray()
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None

    def data_received(self, data: bytes) -> None:
        self._arrived += data
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def has_more(self) -> bool:
        return bool(self._arrived) or self._ended

    async def read(self, count: int) -> bytes:
        while len(self._arrived) < count:
            if self._ended:
                raise OSError(errno.ECONNRESET, "the proxy closed the connection")
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        data = bytes(self._arrived[:count])
        del self._arrived[:count]
        return data


def check(url: URL, auth: BasicAuth | None) -> None:
    """InvalidURL for a proxy's URL that cannot be used, ValueError for its credentials."""
    if url.scheme not in _SCHEMES:
        raise InvalidURL(url, f"SOCKS proxies are {', '.join(_SCHEMES)}")
    if not url.raw_host:
        raise InvalidURL(url)
    if auth is not None and url.scheme.startswith("socks5"):
        for text in (auth.login, auth.password):
            if not 1 <= len(text.encode()) <= 255:
                raise ValueError("a SOCKS5 proxy's user name and password have 1 to 255 bytes")
    elif auth is not None and "\0" in auth.login:
        raise ValueError("a SOCKS4 proxy's user name has no zero byte")


async def connect(
    loop: Loop,
    proxy: Proxy,
    key: ConnectionKey,
    connection: HttpConnection,
    context: ssl.SSLContext | None,
    arguments: dict[str, Any],
) -> None:
    """Connect through a proxy, and speak TLS if there is a `context`.

    `arguments` are create_connection()'s for the way to the proxy. Raises
    ClientProxyConnectionError when the proxy cannot be reached or refuses.
    """
    peer = _Peer()
    url = proxy.url
    try:
        place = (url.host, url.port or _PORT)
        transport, _ = await loop.create_connection(lambda: peer, *place, **arguments)
    except OSError as error:
        raise _failure(key, url, error) from error
    try:
        try:
            await _negotiate(loop, peer, transport, proxy, key)
        except socket.gaierror:
            raise  # the host's own name
        except OSError as error:
            raise _failure(key, url, error) from error
        if context is None:
            transport.set_protocol(connection)
            connection.connection_made(transport)
            return
        await speak_tls(loop, transport, key, connection, context)
    except BaseException:
        transport.abort()
        raise


def _failure(key: ConnectionKey, url: URL, error: OSError) -> ClientProxyConnectionError:
    if isinstance(error, TimeoutError) and error.errno is None:
        raise error  # a limit of time, and not the system's
    text = f"{url.scheme} proxy {url.host}:{url.port or _PORT}: {error.strerror or error}"
    return ClientProxyConnectionError(key, OSError(error.errno, text))


async def _negotiate(
    loop: Loop, peer: _Peer, transport: asyncio.WriteTransport, proxy: Proxy, key: ConnectionKey
) -> None:
    if key.port is None:
        raise OSError(errno.EINVAL, "the URL has no port")
    scheme = proxy.url.scheme
    host: str | IPv4Address | IPv6Address = key.host
    try:
        host = ip_address(key.host)
    except ValueError:
        if scheme in ("socks5", "socks4"):
            host = await _resolve(loop, key.host, key.port, scheme)
    if scheme.startswith("socks5"):
        await _version5(peer, transport, host, key.port, proxy.auth)
    else:
        await _version4(peer, transport, host, key.port, proxy.auth)
    if peer.has_more:
        raise OSError(errno.EPROTO, "the proxy sent more than it was asked for")


async def _resolve(loop: Loop, host: str, port: int, scheme: str) -> IPv4Address | IPv6Address:
    family = socket.AF_INET if scheme == "socks4" else socket.AF_UNSPEC
    found = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
    return ip_address(found[0][4][0])


async def _version5(
    peer: _Peer,
    transport: asyncio.WriteTransport,
    host: str | IPv4Address | IPv6Address,
    port: int,
    auth: BasicAuth | None,
) -> None:
    transport.write(b"\x05\x01\x00" if auth is None else b"\x05\x02\x00\x02")
    version, method = await peer.read(2)
    if version != 5:
        raise OSError(errno.EPROTO, "the proxy does not speak SOCKS5")
    if method == 2 and auth is not None:
        user, password = auth.login.encode(), auth.password.encode()
        credentials = b"\x01%c%b%c%b" % (len(user), user, len(password), password)
        transport.write(credentials)
        _, status = await peer.read(2)
        if status:
            raise OSError(errno.EACCES, "the user name or the password is wrong")
    elif method != 0:
        text = "credentials are required" if auth is None else "no way to authenticate in common"
        raise OSError(errno.EACCES, text)
    if isinstance(host, str):
        name = host.encode()
        if len(name) > 255:
            raise OSError(errno.ENAMETOOLONG, "the host's name is too long for a SOCKS proxy")
        address = b"\x03%c%b" % (len(name), name)
    else:
        address = (b"\x01" if host.version == 4 else b"\x04") + host.packed
    transport.write(b"\x05\x01\x00" + address + port.to_bytes(2, "big"))
    version, reply, _, kind = await peer.read(4)
    if reply:
        raise OSError(*_REPLIES.get(reply, (errno.EPROTO, f"unknown reply {reply}")))
    # Where the proxy connected from: of no use here.
    sizes = {1: 4, 4: 16, 3: (await peer.read(1))[0] if kind == 3 else 0}
    if version != 5 or kind not in sizes:
        raise OSError(errno.EPROTO, "the proxy's answer is malformed")
    await peer.read(sizes[kind] + 2)


async def _version4(
    peer: _Peer,
    transport: asyncio.WriteTransport,
    host: str | IPv4Address | IPv6Address,
    port: int,
    auth: BasicAuth | None,
) -> None:
    if isinstance(host, IPv6Address):
        raise OSError(errno.EAFNOSUPPORT, "SOCKS4 has no IPv6 addresses")
    user = auth.login.encode() if auth is not None else b""
    # An impossible address says that a name follows (SOCKS4a).
    address, name = b"\0\0\0\x01", b""
    if isinstance(host, str):
        name = host.encode() + b"\0"
    else:
        address = host.packed
    transport.write(b"\x04\x01" + port.to_bytes(2, "big") + address + user + b"\0" + name)
    zero, reply, *_ = await peer.read(8)
    if zero:
        raise OSError(errno.EPROTO, "the proxy does not speak SOCKS4")
    if reply != 0x5A:
        text = "request rejected" if reply == 0x5B else f"request rejected ({reply})"
        raise OSError(errno.ECONNREFUSED if reply == 0x5B else errno.EACCES, text)
