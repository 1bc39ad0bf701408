"""Middlewares: what requests go through on their way, and the request as they see it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from .connector import ConnectionKey
from .formdata import Payload, payload_of
from .options import BasicAuth
from .request import Exchange, frame
from .response import ClientResponse, HttpVersion, RequestInfo
from .sending import Sender

if TYPE_CHECKING:
    import asyncio

    from .client import ClientSession
    from .tls import SSLArgument

ClientHandlerType = Callable[["ClientRequest"], Awaitable[ClientResponse]]
ClientMiddlewareType = Callable[["ClientRequest", ClientHandlerType], Awaitable[ClientResponse]]

_NO_TYPE = "application/octet-stream"


class ClientRequest:
    """A request on its way: one for each redirect.

    A middleware may change `url`, `method`, `headers`, `chunked` and (by update_body()) the body
    before it calls the handler; it may call that more than once, or not at all.
    """

    version = HttpVersion(1, 1)

    def __init__(self, session: ClientSession, exchange: Exchange, skipped: frozenset[str]) -> None:
        self.method = exchange.method
        self.original_url = exchange.url
        self.url = exchange.url.with_fragment(None)
        self.headers: CIMultiDict[str] = exchange.headers
        self.chunked: bool | None = exchange.chunked or None
        self.server_hostname = exchange.key.server_hostname
        self._session = session
        self._payload = exchange.payload
        self._key = exchange.key
        self._skipped = skipped

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.method} {self.url}>"

    @property
    def session(self) -> ClientSession:
        """The session, for further requests (which go through the middlewares as well)."""
        return self._session

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop."""
        return self._session.loop

    @property
    def body(self) -> Payload | bytes:
        """The body; b"" when there is none. `await request.body.as_bytes()` reads a Payload."""
        return self._payload or b""

    @body.setter
    def body(self, value: Any) -> None:
        self._set_body(value)

    async def update_body(self, body: Any) -> None:
        """Give the request another body: what `data` may be, or None for none."""
        self._set_body(body)

    def _set_body(self, body: Any) -> None:
        headers = self.headers
        headers.popall("Content-Length", None)
        headers.popall("Transfer-Encoding", None)
        if self._payload is None and headers.get("Content-Type") == _NO_TYPE:
            headers.popall("Content-Type")  # what a request without a body says of it
        elif self._payload is not None and self._payload.encoding is not None:
            headers.popall("Content-Encoding", None)
        self._payload = None if body is None else payload_of(body)
        chunked = self.chunked if self._payload is not None else None
        self.chunked = frame(self.method, headers, self._skipped, self._payload, chunked) or None

    @property
    def compress(self) -> str | None:
        """How the body is compressed."""
        return self._payload.encoding if self._payload is not None else None

    def is_ssl(self) -> bool:
        """Whether it goes over TLS."""
        return self.url.scheme in ("https", "wss")

    @property
    def ssl(self) -> SSLArgument:
        """The argument `ssl`."""
        return self._key.ssl

    @property
    def proxy(self) -> URL | None:
        """The proxy's URL, without credentials."""
        return self._key.proxy.url if self._key.proxy is not None else None

    @property
    def proxy_auth(self) -> BasicAuth | None:
        """The credentials for the proxy."""
        proxy = self._key.proxy
        if proxy is None or proxy.authorization is None:
            return proxy.auth if proxy is not None else None
        try:
            return BasicAuth.decode(proxy.authorization)
        except ValueError:
            return None

    @property
    def proxy_headers(self) -> CIMultiDict[str] | None:
        """The header fields for the proxy alone."""
        return CIMultiDict(self._key.proxy.headers) if self._key.proxy is not None else None

    @property
    def host(self) -> str:
        """The URL's host."""
        return self.url.raw_host or ""

    @property
    def port(self) -> int | None:
        """The URL's port, or its scheme's."""
        return self.url.port

    @property
    def skip_auto_headers(self) -> CIMultiDict[None]:
        """The names (in lower case) of fields that are not added by themselves."""
        return CIMultiDict([(name, None) for name in sorted(self._skipped)])

    @property
    def request_info(self) -> RequestInfo:
        """As exceptions tell it."""
        headers = CIMultiDictProxy(self.headers)
        return RequestInfo(self.url, self.method, headers, self.original_url)

    @property
    def connection_key(self) -> ConnectionKey:
        """What connections for it have in common."""
        return self._key._replace(
            host=self.host,
            port=self.port,
            is_ssl=self.is_ssl(),
            server_hostname=self.server_hostname,
        )

    def exchange(self) -> Exchange:
        """The request as it is now, ready to be sent."""
        url = self.url
        if url.raw_host != self._key.host or url.port != self._key.port:
            self._key = self.connection_key
            self.headers["Host"] = url.host_port_subcomponent or ""
        elif url == self.original_url.with_fragment(None):
            url = self.original_url
        # A copy, since the response tells what was sent.
        headers = CIMultiDict(self.headers)
        key = self.connection_key
        return Exchange(self.method, url, key, headers, self._payload, bool(self.chunked))


async def run(
    middlewares: Sequence[ClientMiddlewareType],
    session: ClientSession,
    exchange: Exchange,
    sender: Sender,
    skipped: frozenset[str],
) -> ClientResponse:
    """Send a request through middlewares, the first of which is the outermost."""

    async def last(request: ClientRequest) -> ClientResponse:
        return await sender.send(request.exchange())

    handler: ClientHandlerType = last
    for middleware in reversed(middlewares):
        handler = _bound(middleware, handler)
    return await handler(ClientRequest(session, exchange, skipped))


def _bound(middleware: ClientMiddlewareType, handler: ClientHandlerType) -> ClientHandlerType:
    async def through(request: ClientRequest) -> ClientResponse:
        return await middleware(request, handler)

    return through
