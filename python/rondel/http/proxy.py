"""Proxies: which one a request goes through, what it is told, and tunnels through it."""

from __future__ import annotations

import asyncio
import logging
import netrc
import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.request import getproxies, proxy_bypass

from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from .._rondel import HttpConnection
from .exceptions import BadHttpMessage, ClientHttpProxyError, ClientResponseError, InvalidURL
from .options import BasicAuth

if TYPE_CHECKING:
    from ..loop import Loop
    from .connector import ConnectionKey
    from .request import Headers

_logger = logging.getLogger("rondel.http")


class Proxy(NamedTuple):
    """A proxy and what it is told; `url` has no credentials."""

    url: URL
    authorization: str | None
    headers: tuple[tuple[str, str], ...]
    #: For a SOCKS proxy, which has no header fields.
    auth: BasicAuth | None = None

    @property
    def is_socks(self) -> bool:
        """Whether it speaks SOCKS and not HTTP."""
        return self.url.scheme.startswith("socks")


def proxy_of(url: str | URL, auth: BasicAuth | None, headers: Headers | None) -> Proxy | None:
    """The proxy of the arguments `proxy`, `proxy_auth` and `proxy_headers`; None for an empty URL.

    The URL's own credentials count when there is no `auth`. InvalidURL, ValueError.
    """
    try:
        url = URL(url)
    except ValueError as error:
        raise InvalidURL(url) from error
    if auth is not None and not isinstance(auth, BasicAuth):
        raise ValueError("proxy_auth must be None or BasicAuth() tuple")
    url, own = split_credentials(url)
    auth = auth or own
    if not url:
        return None
    if url.scheme.startswith("socks"):
        from .socks import check

        check(url, auth)
        return Proxy(url, None, (), auth)
    told = CIMultiDict(headers or {})
    authorization = told.pop("Authorization", None)
    if auth is not None:
        if authorization is not None:
            raise ValueError("Cannot combine AUTHORIZATION header with proxy_auth")
        authorization = auth.encode()
    return Proxy(url, authorization, tuple(told.items()))


def split_credentials(url: URL) -> tuple[URL, BasicAuth | None]:
    """A URL without credentials, and those it had."""
    if url.raw_user is None and url.raw_password is None:
        return url, None
    return url.with_user(None), BasicAuth(url.user or "", url.password or "")


# What the environment says, for `trust_env`; these read files, and run in a thread.


def _netrc() -> netrc.netrc | None:
    named = os.environ.get("NETRC")
    try:
        path = Path(named) if named is not None else Path.home() / ".netrc"
    except RuntimeError:
        return None
    try:
        return netrc.netrc(str(path))
    except netrc.NetrcParseError as error:
        _logger.warning("Could not parse .netrc file: %s", error)
    except OSError as error:
        if named or path.is_file():
            _logger.warning("Could not read .netrc file: %s", error)
    return None


def netrc_auth(host: str) -> BasicAuth | None:
    """The credentials for a host in ``$NETRC`` or ``~/.netrc``."""
    entries = _netrc()
    found = entries.authenticators(host) if entries is not None else None
    if found is None:
        return None
    login, account, password = found
    return BasicAuth(login or account, password or "")


def environment_proxy(url: URL) -> Proxy | None:
    """The proxy for a URL by ``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY``."""
    if url.host is None or proxy_bypass(url.host):
        return None
    proxies = getproxies()
    named = proxies.get(url.scheme) or proxies.get("all")
    if named is None:
        return None
    proxy, auth = split_credentials(URL(named))
    if proxy.scheme in ("https", "wss"):
        _logger.warning("%s proxies %s are not supported, ignoring", proxy.scheme.upper(), proxy)
        return None
    if auth is None and proxy.host is not None and not proxy.scheme.startswith("socks"):
        auth = netrc_auth(proxy.host)
    return proxy_of(proxy, auth, None)


# Tunnels.


async def tunnel(
    loop: Loop,
    proxy: Proxy,
    key: ConnectionKey,
    through: HttpConnection,
    connection: HttpConnection,
    context: ssl.SSLContext,
) -> None:
    """Make a tunnel through a proxy and speak TLS in it.

    `through` is connected to the proxy, `connection` is to be connected to the host. Raises
    ClientHttpProxyError when the proxy refuses.
    """
    from .request import header_field

    host = f"[{key.host}]" if ":" in key.host else key.host
    request = _connect_request(proxy, host, key.port)
    fields = "".join([header_field(name, value) for name, value in request.items()])
    data = f"CONNECT {host}:{key.port} HTTP/1.1\r\n{fields}\r\n".encode()
    try:
        through.expect_switch(200)
        through.start(data, False, False, False, None, None)
        try:
            head = await through.response()
        except BadHttpMessage as error:
            told = _told(proxy, key, host, request)
            raise ClientResponseError(told, (), status=400, message=str(error)) from error
        if head.status != 200:
            raise ClientHttpProxyError(
                _told(proxy, key, host, request),
                (),
                status=head.status,
                message=head.reason,
                headers=CIMultiDictProxy(CIMultiDict(head.fields())),
            )
        below = through.transport
        if below is None:
            raise ConnectionResetError("The proxy closed the connection")
        await speak_tls(loop, below, key, connection, context)
    except BaseException:
        through.close()
        raise


async def speak_tls(
    loop: Loop,
    below: asyncio.WriteTransport,
    key: ConnectionKey,
    connection: HttpConnection,
    context: ssl.SSLContext,
) -> None:
    """Speak TLS with the host, over a connection that a proxy has made."""
    name = (key.server_hostname or key.host).rstrip(".")
    above = await loop.start_tls(below, connection, context, server_hostname=name)
    if above is not None:
        connection.connection_made(above)


def _connect_request(proxy: Proxy, host: str, port: int | None) -> CIMultiDict[str]:
    from .request import AUTOMATIC

    fields = CIMultiDict(proxy.headers)
    fields["Host"] = host if port in (None, 443) else f"{host}:{port}"
    for name, value in AUTOMATIC:
        fields.setdefault(name, value)
    if proxy.authorization is not None:
        fields["Proxy-Authorization"] = proxy.authorization
    return fields


def _told(proxy: Proxy, key: ConnectionKey, host: str, headers: CIMultiDict[str]) -> Any:
    from .response import RequestInfo

    url = URL(f"https://{host}:{key.port}/")
    return RequestInfo(url, "CONNECT", CIMultiDictProxy(headers), proxy.url)


async def find_proxy(loop: asyncio.AbstractEventLoop, url: URL) -> Proxy | None:
    """environment_proxy(), not on the loop's thread."""
    return await loop.run_in_executor(None, environment_proxy, url)
