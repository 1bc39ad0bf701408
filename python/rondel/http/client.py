"""The session: requests, redirects, cookies, and what all requests have in common."""

from __future__ import annotations

import asyncio
import json as json_module
import warnings
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

from multidict import CIMultiDict
from yarl import URL

from .connector import (
    BaseConnector,
    TCPConnector,
    running_loop,
)
from .context import RequestContext
from .cookies import AbstractCookieJar, CookieJar, LooseCookies, plain_cookies
from .exceptions import (
    ClientPayloadError,
    TooManyRedirects,
)
from .formdata import Payload, payload_of
from .options import DEFAULT_TIMEOUT, BasicAuth, ClientTimeout
from .repeating import REDIRECTS, Begun
from .request import Exchange, Headers, merged, prepare
from .response import ClientResponse, HttpVersion, HttpVersion11
from .sending import Sender
from .tls import SSLArgument, check_ssl
from .urls import full_url, redirected

if TYPE_CHECKING:
    from .middlewares import ClientMiddlewareType
    from .proxy import Proxy
    from .retrying import Retry
    from .tracing import TraceConfig, Tracing
    from .ws_connect import WebSocketContext

RaiseForStatus = bool | Callable[[ClientResponse], Coroutine[Any, Any, None]] | None

_UNSET: Any = object()
_REMEMBERED_URLS = 512
#: Beyond twice so many bytes that were not read a connection stops reading (aiohttp's figure).
_READ_BUFSIZE = 2**16


class ClientSession:
    """Makes requests and keeps connections, cookies and defaults between them.

    `base_url` is put before URLs that are relative. `headers`, `cookies`, `auth`, `timeout`,
    `raise_for_status` (True, or an async function of the response) and `skip_auto_headers` hold for
    all requests. `connector` is the pool of connections; the session closes it at its end unless
    `connector_owner` is False. `proxy` is a URL; with `trust_env` the environment names proxies and
    `~/.netrc` credentials. `trace_configs` are told of each step. `retry` repeats what fails.
    """

    def __init__(
        self,
        base_url: str | URL | None = None,
        *,
        connector: BaseConnector | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        cookies: LooseCookies | None = None,
        headers: Headers | None = None,
        skip_auto_headers: Iterable[str] | None = None,
        auth: BasicAuth | None = None,
        json_serialize: Callable[[Any], str] = json_module.dumps,
        json_serialize_bytes: Callable[[Any], bytes] | None = None,
        response_class: type[ClientResponse] = ClientResponse,
        cookie_jar: AbstractCookieJar | None = None,
        connector_owner: bool = True,
        raise_for_status: RaiseForStatus = False,
        timeout: ClientTimeout | float | None = _UNSET,
        auto_decompress: bool = True,
        trust_env: bool = False,
        requote_redirect_url: bool = True,
        trace_configs: list[TraceConfig] | None = None,
        read_bufsize: int = _READ_BUFSIZE,
        fallback_charset_resolver: Callable[[ClientResponse, bytes], str] | None = None,
        proxy: str | URL | None = None,
        proxy_auth: BasicAuth | None = None,
        middlewares: Sequence[ClientMiddlewareType] = (),
        retry: Retry | None = None,
    ) -> None:
        del loop
        self._loop = running_loop()
        self._base_url = URL(base_url) if base_url is not None else None
        if self._base_url is not None and not self._base_url.absolute:
            raise ValueError(f"Absolute URL expected, got {base_url!r}")
        if auth is not None and not isinstance(auth, BasicAuth):
            raise TypeError("BasicAuth() tuple is required instead")
        self._connector = TCPConnector() if connector is None else connector
        self._owner = connector_owner
        self._closed = False
        self._cookie_jar = CookieJar() if cookie_jar is None else cookie_jar
        if cookies:
            self._cookie_jar.update_cookies(cookies)
        self._headers = CIMultiDict(headers or {})
        self._skipped = frozenset(name.lower() for name in skip_auto_headers or ())
        self._auth = auth
        self._json_serialize = json_serialize
        self._json_serialize_bytes = json_serialize_bytes
        self.response_class = response_class
        self._raise_for_status = raise_for_status
        self._timeout = DEFAULT_TIMEOUT if timeout is _UNSET else _timeout(timeout)
        self._auto_decompress = auto_decompress
        self._read_bufsize = None if read_bufsize == _READ_BUFSIZE else read_bufsize
        self._requote = requote_redirect_url
        self.resolve_charset = fallback_charset_resolver or (lambda _response, _body: "utf-8")
        self._trust_env = trust_env
        self._proxy = proxy
        self._proxy_auth = proxy_auth
        self._trace_configs = trace_configs or []
        for config in self._trace_configs:
            config.freeze()
        self.retry = retry
        self._middlewares = middlewares
        self.is_plain = retry is None and not self._trace_configs
        # Exchanges of plain requests that were made before.
        self._remembers = not (trust_env or proxy or self._trace_configs or middlewares)
        self._prepared: dict[tuple[str, str], Exchange] = {}

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and self._owner and not self._connector.closed:
            text = f"Unclosed client session {self!r}"
            warnings.warn(text, ResourceWarning, stacklevel=2, source=self)

    # Requests.

    def request(self, method: str, url: str | URL, **arguments: Any) -> RequestContext:
        """Make a request: `async with` it, or await it and release the response."""
        return RequestContext(self, method, url, **arguments)

    def get(self, url: str | URL, **arguments: Any) -> RequestContext:
        """Make a GET request."""
        return RequestContext(self, "GET", url, **arguments)

    def options(self, url: str | URL, **arguments: Any) -> RequestContext:
        """Make an OPTIONS request."""
        return RequestContext(self, "OPTIONS", url, **arguments)

    def head(
        self, url: str | URL, *, allow_redirects: bool = False, **arguments: Any
    ) -> RequestContext:
        """Make a HEAD request; redirects are followed only when asked for."""
        return RequestContext(self, "HEAD", url, allow_redirects=allow_redirects, **arguments)

    def post(self, url: str | URL, *, data: Any = None, **arguments: Any) -> RequestContext:
        """Make a POST request."""
        return RequestContext(self, "POST", url, data=data, **arguments)

    def put(self, url: str | URL, *, data: Any = None, **arguments: Any) -> RequestContext:
        """Make a PUT request."""
        return RequestContext(self, "PUT", url, data=data, **arguments)

    def patch(self, url: str | URL, *, data: Any = None, **arguments: Any) -> RequestContext:
        """Make a PATCH request."""
        return RequestContext(self, "PATCH", url, data=data, **arguments)

    def delete(self, url: str | URL, **arguments: Any) -> RequestContext:
        """Make a DELETE request."""
        return RequestContext(self, "DELETE", url, **arguments)

    def ws_connect(self, url: str | URL, **arguments: Any) -> WebSocketContext:
        """Open a WebSocket: `async with` it, or await it and close what it gives.

        The arguments are those of `rondel.http.ws_connect.connect`.
        """
        from .ws_connect import WebSocketContext, connect

        return WebSocketContext(connect(self, url, **arguments))

    def start(self, **arguments: Any) -> Coroutine[Any, Any, ClientResponse]:
        """A request with its trace hooks, if there are some."""
        if not self._trace_configs:
            return self._request(**arguments)
        from .tracing import traced

        return traced(self, self._trace_configs, arguments)

    async def _request(
        self,
        method: str,
        str_or_url: str | URL,
        *,
        params: Any = None,
        data: Any = None,
        json: Any = None,
        cookies: LooseCookies | None = None,
        headers: Headers | None = None,
        skip_auto_headers: Iterable[str] | None = None,
        auth: BasicAuth | None = None,
        allow_redirects: bool = True,
        max_redirects: int = 10,
        compress: Any = None,
        chunked: bool | None = None,
        expect100: bool = False,
        raise_for_status: RaiseForStatus = None,
        read_until_eof: bool = True,
        proxy: str | URL | None = None,
        proxy_auth: BasicAuth | None = None,
        timeout: ClientTimeout | float | None = _UNSET,
        ssl: SSLArgument | None = True,
        server_hostname: str | None = None,
        proxy_headers: Headers | None = None,
        trace_request_ctx: Any = None,
        read_bufsize: int | None = None,
        auto_decompress: bool | None = None,
        middlewares: Sequence[ClientMiddlewareType] | None = None,
        _context: RequestContext | None = None,
        _switch: int = 0,
        _tracing: Tracing | None = None,
        _begun: Begun | None = None,
    ) -> ClientResponse:
        if self._closed and _begun is None:
            raise RuntimeError("Session is closed")
        if not read_until_eof:
            raise NotImplementedError("rondel.http does not support read_until_eof=False yet")
        limits = self._timeout if timeout is _UNSET else _timeout(timeout)
        deadline = self._loop.time() + limits.total if limits.total else None
        decode = self._auto_decompress if auto_decompress is None else auto_decompress
        method = method.upper()
        exchange = None
        remember = (
            params is None
            and data is None
            and json is None
            and cookies is None
            and headers is None
            and skip_auto_headers is None
            and auth is None
            and chunked is None
            and not expect100
            and middlewares is None
            and server_hostname is None
            and proxy is None
            and (ssl is True or ssl is None)
            and type(str_or_url) is str
            and not len(self._cookie_jar)
            and self._remembers
        )
        if _begun is not None:
            exchange, deadline, remember = _begun.exchange, _begun.deadline, True
        elif remember:
            exchange = self._prepared.get((method, str_or_url))  # type: ignore[arg-type]
        if exchange is not None:
            url = exchange.url
        else:
            if data is not None and json is not None:
                raise ValueError("data and json parameters can not be used at the same time")
            url = full_url(str_or_url, self._base_url)
            if auth is not None and url.raw_user is not None:
                raise ValueError("Cannot combine AUTH argument with credentials encoded in URL")
            if json is not None:
                data = Payload("application/json", self._json(json))
            remember = remember and url.raw_user is None
            all_headers = merged(self._headers, headers)
            skipped = self._skipped
            if skip_auto_headers is not None:
                skipped |= {name.lower() for name in skip_auto_headers}
            own_cookies = plain_cookies(cookies) if cookies is not None else {}
            payload = payload_of(data) if data is not None else None
            if compress and payload is not None:
                from .compressing import compressed

                payload = compressed(payload, compress)
            tls = True if ssl is None else check_ssl(ssl)
            chosen = self._chosen_proxy(proxy, proxy_auth, proxy_headers)
            own_auth = auth
            if _tracing is not None:
                await _tracing.start(method, url.update_query(params or {}), all_headers)
        history: list[ClientResponse] = []
        sender: Sender | None = None
        while True:
            if exchange is None:
                if params:
                    url = url.extend_query(params)
                if self._trust_env:
                    auth = own_auth or await self._netrc_auth(url, all_headers)
                    if proxy is None and self._proxy is None:
                        from .proxy import find_proxy

                        chosen = await find_proxy(self._loop, url)
                url, authorization = self._authorized(url, auth, all_headers)
                exchange = prepare(
                    method,
                    url,
                    all_headers,
                    skipped=skipped,
                    cookies={**self._cookie_jar.filter_cookies(url), **own_cookies},
                    authorization=authorization,
                    payload=payload,
                    chunked=chunked,
                    expect100=expect100,
                    ssl=tls,
                    server_hostname=server_hostname,
                    proxy=chosen,
                    upgrade=_switch != 0,
                )
                if remember and not history:
                    if len(self._prepared) >= _REMEMBERED_URLS:
                        self._prepared.clear()
                    self._prepared[method, str_or_url] = exchange  # type: ignore[index]
            response = None
            if _begun is not None:
                response, _begun = _begun.response, None
                if response is None:
                    sender = Sender(self, limits, deadline, decode, _switch, _tracing)
                    sender.again = False
            if response is None:
                if sender is None:
                    sender = Sender(self, limits, deadline, decode, _switch, _tracing)
                sender.history = tuple(history)
                chain = self._middlewares if middlewares is None else middlewares
                if chain:
                    from .middlewares import run

                    response = await run(chain, self, exchange, sender, skipped)
                else:
                    response = await sender.send(exchange)
            if response._head.has("set-cookie"):
                self._keep_cookies(response)
            limit = self._read_bufsize if read_bufsize is None else read_bufsize
            if limit is not None:
                response.content.set_limit(limit)
            if not allow_redirects or response.status not in REDIRECTS:
                break
            if _tracing is not None:
                await _tracing.redirect(response)
            location = response.headers.get("Location") or response.headers.get("URI")
            history.append(response)
            if max_redirects and len(history) >= max_redirects:
                response.close()
                raise TooManyRedirects(history[0].request_info, tuple(history))
            if location is None:
                response._history = tuple(history)  # itself included, as with aiohttp
                break
            if remember:
                # The first step was a plain request: what the next ones start from is the defaults.
                all_headers, skipped, own_cookies = merged(self._headers, None), self._skipped, {}
                payload, tls, chosen, own_auth = None, True, None, None
            if (response.status == 303 and method != "HEAD") or (
                response.status in (301, 302) and method == "POST"
            ):
                method, payload = "GET", None
                all_headers.popall("Content-Length", None)
            elif payload is not None and not payload.replayable:
                response.close()
                raise ClientPayloadError(
                    "Cannot follow redirect with a consumed request body. Use bytes, a seekable "
                    "file-like object, or set allow_redirects=False."
                )
            url = redirected(response, url, location, self._requote)
            response.release()
            if url.origin() != exchange.url.origin():
                auth, own_auth, own_cookies = None, None, {}
                for name in ("Authorization", "Cookie", "Proxy-Authorization"):
                    all_headers.popall(name, None)
            params = None
            exchange = None
            if _tracing is not None:
                _tracing.method, _tracing.url = method, url
        if raise_for_status is not None or self._raise_for_status:
            await self.check(response, raise_for_status)
        if _context is not None:
            _context.response = response
        return response

    # Parts of a request.

    async def check(self, response: ClientResponse, raise_for_status: RaiseForStatus) -> None:
        """Raise what `raise_for_status` asks for; None is the session's own setting."""
        check = self._raise_for_status if raise_for_status is None else raise_for_status
        try:
            if check is True:
                response.raise_for_status()
            elif check:
                await check(response)
        except BaseException:
            response.close()
            raise

    def _authorized(
        self, url: URL, auth: BasicAuth | None, headers: CIMultiDict[str]
    ) -> tuple[URL, str | None]:
        """The URL without credentials, and the value for Authorization."""
        if url.raw_user is not None or url.raw_password is not None:
            auth = BasicAuth(url.user or "", url.password or "")
            url = url.with_user(None)
        ours = self._base_url is None or self._base_url.origin() == url.origin()
        if auth is None and ours:
            auth = self._auth
        if auth is None:
            return url, None
        if not isinstance(auth, BasicAuth):
            raise TypeError("BasicAuth() tuple is required instead")
        if "Authorization" in headers:
            raise ValueError(
                "Cannot combine AUTHORIZATION header with AUTH argument or credentials "
                "encoded in URL"
            )
        return url, auth.encode()

    def _json(self, value: Any) -> bytes:
        if self._json_serialize_bytes is not None:
            return self._json_serialize_bytes(value)
        return self._json_serialize(value).encode()

    def _chosen_proxy(
        self, proxy: str | URL | None, auth: BasicAuth | None, headers: Headers | None
    ) -> Proxy | None:
        proxy = self._proxy if proxy is None else proxy
        if proxy is None:
            return None
        from .proxy import proxy_of

        return proxy_of(proxy, self._proxy_auth if auth is None else auth, headers)

    async def _netrc_auth(self, url: URL, headers: CIMultiDict[str]) -> BasicAuth | None:
        """What ~/.netrc has for the host, unless the request has credentials already."""
        ours = self._auth is not None and (
            self._base_url is None or self._base_url.origin() == url.origin()
        )
        if ours or url.raw_user is not None or url.host is None or "Authorization" in headers:
            return None
        from .proxy import netrc_auth

        return await self._loop.run_in_executor(None, netrc_auth, url.host)

    def _keep_cookies(self, response: ClientResponse) -> None:
        fields = response.headers.getall("Set-Cookie", ())
        jar = self._cookie_jar
        if isinstance(jar, CookieJar):
            jar.update_cookies_from_headers(fields, response.url)
        else:
            jar.update_cookies(response.cookies, response.url)

    # The session itself.

    @property
    def closed(self) -> bool:
        """Whether close() or detach() was called."""
        return self._closed

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop on which the session was made."""
        return self._loop

    @property
    def connector(self) -> BaseConnector:
        """The pool of connections."""
        return self._connector

    @property
    def connector_owner(self) -> bool:
        """Whether close() closes the pool too."""
        return self._owner

    @property
    def cookie_jar(self) -> AbstractCookieJar:
        """The cookies."""
        return self._cookie_jar

    @property
    def headers(self) -> CIMultiDict[str]:
        """The header fields of all requests; changes count for requests that are made later."""
        self._remembers = False
        return self._headers

    @property
    def skip_auto_headers(self) -> frozenset[str]:
        """The names (in lower case) of fields that are not added by themselves."""
        return self._skipped

    @property
    def auth(self) -> BasicAuth | None:
        """The credentials of all requests."""
        return self._auth

    @property
    def timeout(self) -> ClientTimeout:
        """The limits of all requests."""
        return self._timeout

    @property
    def json_serialize(self) -> Callable[[Any], str]:
        """What makes text of `json=`."""
        return self._json_serialize

    @property
    def raise_for_status(self) -> RaiseForStatus:
        """Whether a status of 400 or more raises."""
        return self._raise_for_status

    @property
    def auto_decompress(self) -> bool:
        """Whether content encodings are undone."""
        return self._auto_decompress

    @property
    def requote_redirect_url(self) -> bool:
        """Whether the URLs of redirects are quoted anew."""
        return self._requote

    @property
    def trust_env(self) -> bool:
        """Whether the environment names proxies."""
        return self._trust_env

    @property
    def trace_configs(self) -> list[TraceConfig]:
        """What is told of each step."""
        return self._trace_configs

    @property
    def version(self) -> HttpVersion:
        """The version of HTTP."""
        return HttpVersion11

    @property
    def middlewares(self) -> Sequence[ClientMiddlewareType]:
        """What all requests go through."""
        return self._middlewares

    async def close(self) -> None:
        """Close the session, and its connections if the pool is its own."""
        if not self._closed:
            self._closed = True
            if self._owner:
                await self._connector.close()

    def detach(self) -> None:
        """Close the session but not its pool."""
        self._closed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()


def _timeout(timeout: ClientTimeout | float | None) -> ClientTimeout:
    return timeout if isinstance(timeout, ClientTimeout) else ClientTimeout(total=timeout)
