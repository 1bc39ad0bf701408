"""The session: requests, redirects, cookies, and what all requests have in common."""

from __future__ import annotations

import asyncio
import json as json_module
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Self

from multidict import CIMultiDict
from yarl import URL

from .._rondel import HttpConnection
from .connector import (
    BaseConnector,
    ConnectionKey,
    SSLArgument,
    TCPConnector,
    check_ssl,
    running_loop,
)
from .cookies import AbstractCookieJar, CookieJar, LooseCookies, plain_cookies
from .exceptions import (
    BadHttpMessage,
    ClientOSError,
    ClientPayloadError,
    ClientResponseError,
    InvalidUrlClientError,
    InvalidUrlRedirectClientError,
    NonHttpUrlClientError,
    NonHttpUrlRedirectClientError,
    ServerDisconnectedError,
    TooManyRedirects,
)
from .formdata import Payload, payload_of
from .options import DEFAULT_TIMEOUT, BasicAuth, ClientTimeout
from .request import Exchange, Headers, merged, prepare
from .response import ClientResponse
from .sending import begin, expired, send

RaiseForStatus = bool | Callable[[ClientResponse], Coroutine[Any, Any, None]] | None

_UNSET: Any = object()
_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_REMEMBERED_URLS = 512


class ClientSession:
    """Makes requests and keeps connections, cookies and defaults between them.

    `base_url` is put before URLs that are relative. `headers`, `cookies`, `auth`, `timeout`,
    `raise_for_status` (True, or an async function of the response) and `skip_auto_headers` hold for
    all requests. `connector` is the pool of connections; the session closes it at its end unless
    `connector_owner` is False.
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
        cookie_jar: AbstractCookieJar | None = None,
        connector_owner: bool = True,
        raise_for_status: RaiseForStatus = False,
        timeout: ClientTimeout | float | None = _UNSET,
        auto_decompress: bool = True,
        trust_env: bool = False,
        requote_redirect_url: bool = True,
        trace_configs: Any = None,
        read_bufsize: int = 2**16,
        fallback_charset_resolver: Callable[[ClientResponse, bytes], str] | None = None,
        proxy: Any = None,
        proxy_auth: Any = None,
        middlewares: Any = (),
    ) -> None:
        del loop, read_bufsize
        _refuse(trust_env=trust_env, trace_configs=trace_configs, proxy=proxy)
        _refuse(proxy_auth=proxy_auth, middlewares=middlewares)
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
        self._raise_for_status = raise_for_status
        self._timeout = DEFAULT_TIMEOUT if timeout is _UNSET else _timeout(timeout)
        self._auto_decompress = auto_decompress
        self._requote = requote_redirect_url
        self.resolve_charset = fallback_charset_resolver or (lambda _response, _body: "utf-8")
        # Exchanges of plain requests that were made before.
        self._remembers = True
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

    def ws_connect(self, url: str | URL, **arguments: Any) -> Any:
        """Not there yet."""
        raise NotImplementedError("rondel.http has no WebSocket client yet")

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
        proxy: Any = None,
        proxy_auth: Any = None,
        timeout: ClientTimeout | float | None = _UNSET,
        ssl: SSLArgument | None = True,
        server_hostname: str | None = None,
        proxy_headers: Any = None,
        trace_request_ctx: Any = None,
        read_bufsize: int | None = None,
        auto_decompress: bool | None = None,
        _context: RequestContext | None = None,
    ) -> ClientResponse:
        if self._closed:
            raise RuntimeError("Session is closed")
        if compress or expect100 or proxy or proxy_auth or not read_until_eof:
            _refuse(compress=compress, expect100=expect100, proxy=proxy, proxy_auth=proxy_auth)
            _refuse(**{"read_until_eof=False": not read_until_eof})
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
            and server_hostname is None
            and (ssl is True or ssl is None)
            and type(str_or_url) is str
            and not len(self._cookie_jar)
            and self._remembers
        )
        if remember:
            exchange = self._prepared.get((method, str_or_url))  # type: ignore[arg-type]
        if exchange is not None:
            url = exchange.url
        else:
            if data is not None and json is not None:
                raise ValueError("data and json parameters can not be used at the same time")
            url = self._full_url(str_or_url)
            if auth is not None and url.raw_user is not None:
                raise ValueError("Cannot combine AUTH argument with credentials encoded in URL")
            if json is not None:
                data = Payload("application/json", self._json_serialize(json).encode())
            remember = remember and url.raw_user is None
            all_headers = merged(self._headers, headers)
            skipped = self._skipped
            if skip_auto_headers is not None:
                skipped |= {name.lower() for name in skip_auto_headers}
            own_cookies = plain_cookies(cookies) if cookies is not None else {}
            payload = payload_of(data) if data is not None else None
            tls = True if ssl is None else check_ssl(ssl)
        history: list[ClientResponse] = []
        retried = False
        while True:
            if exchange is None:
                if params:
                    url = url.extend_query(params)
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
                    ssl=tls,
                    server_hostname=server_hostname,
                )
                if remember and not history:
                    if len(self._prepared) >= _REMEMBERED_URLS:
                        self._prepared.clear()
                    self._prepared[method, str_or_url] = exchange  # type: ignore[index]
            connection = self._connector.idle_connection(exchange.key)
            reused = connection is not None
            if connection is None:
                connection = await self._connect(exchange.key, limits, deadline)
            try:
                if remember and not history and not limits.sock_read:
                    # As send() does it, for a request without a body: one coroutine less.
                    timer = None
                    if deadline is not None:
                        timer = self._loop.call_at(deadline, expired, connection)
                    number = begin(
                        connection,
                        exchange.head,
                        method == "HEAD",
                        False,
                        decode,
                        timer,
                        self._connector.release,
                    )
                    try:
                        head = await connection.response()
                    except BaseException:
                        connection.close(number)
                        raise
                else:
                    head = await send(
                        self._loop,
                        connection,
                        exchange,
                        decode,
                        deadline,
                        limits.sock_read,
                        self._connector.release,
                    )
            except (ClientOSError, ServerDisconnectedError):
                # The server may have closed it before it saw the request.
                payload = exchange.payload
                again = payload is None or payload.replayable
                if not reused or retried or not again or method not in _IDEMPOTENT:
                    raise
                retried = True
                continue
            except BadHttpMessage as error:
                raise ClientResponseError(
                    exchange.info(), tuple(history), status=400, message=str(error)
                ) from error
            response = ClientResponse(
                self, method, exchange.url, exchange.headers, head, connection, tuple(history)
            )
            if head.has("set-cookie"):
                self._keep_cookies(response)
            if not allow_redirects or response.status not in _REDIRECTS:
                break
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
                payload, tls = None, True
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
            url = self._redirected(response, url, location)
            response.release()
            if url.origin() != exchange.url.origin():
                auth, own_cookies = None, {}
                for name in ("Authorization", "Cookie", "Proxy-Authorization"):
                    all_headers.popall(name, None)
            params = None
            exchange = None
        check = self._raise_for_status if raise_for_status is None else raise_for_status
        if check:
            try:
                if check is True:
                    response.raise_for_status()
                else:
                    await check(response)
            except BaseException:
                response.close()
                raise
        if _context is not None:
            _context.response = response
        return response

    # Parts of a request.

    def _full_url(self, str_or_url: str | URL) -> URL:
        try:
            url = URL(str_or_url)
            if self._base_url is not None and not url.absolute:
                url = self._base_url.join(url)
        except (TypeError, ValueError) as error:
            raise InvalidUrlClientError(str_or_url) from error
        if url.scheme not in ("http", "https"):
            if not url.scheme:
                raise InvalidUrlClientError(url)
            raise NonHttpUrlClientError(url)
        if not url.raw_host:
            raise InvalidUrlClientError(url)
        return url

    def _redirected(self, response: ClientResponse, url: URL, location: str) -> URL:
        try:
            target = URL(location, encoded=not self._requote)
        except ValueError as error:
            response.close()
            text = "Server attempted redirecting to a location that does not look like a URL"
            raise InvalidUrlRedirectClientError(location, text) from error
        if target.scheme not in ("http", "https", ""):
            response.close()
            raise NonHttpUrlRedirectClientError(location)
        authority = location.partition(":")[2].startswith("//")
        if not target.scheme or (target.scheme == url.scheme and not authority):
            # "http:path" is a reference to where we are, as browsers take it.
            target = url.join(target)
        if not target.raw_host:
            response.close()
            raise InvalidUrlRedirectClientError(target, "Invalid redirect URL origin")
        return target

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

    async def _connect(
        self, key: ConnectionKey, limits: ClientTimeout, deadline: float | None
    ) -> HttpConnection:
        if deadline is None:
            return await self._connector.connect(key, limits)
        async with asyncio.timeout_at(deadline):
            return await self._connector.connect(key, limits)

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
        """Whether the environment names proxies: never, yet."""
        return False

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


def _refuse(**arguments: Any) -> None:
    """Say what is not there yet, rather than leave it out silently."""
    for name, value in arguments.items():
        if value:
            raise NotImplementedError(f"rondel.http does not support {name} yet")


class RequestContext(Coroutine[Any, Any, ClientResponse]):
    """What a session's methods return: to be awaited, or entered with `async with`."""

    __slots__ = ("_coroutine", "response")

    #: Set when there is one.
    response: ClientResponse

    def __init__(
        self, session: ClientSession, method: str, url: str | URL, **arguments: Any
    ) -> None:
        self._coroutine = session._request(method, url, _context=self, **arguments)

    def send(self, value: Any) -> Any:
        """Resume the request."""
        return self._coroutine.send(value)

    def throw(self, *exception: Any) -> Any:
        """Raise an exception in the request."""
        return self._coroutine.throw(*exception)

    def close(self) -> None:
        """Give the request up."""
        self._coroutine.close()

    def __await__(self) -> Any:
        return self._coroutine.__await__()

    def __aenter__(self) -> Coroutine[Any, Any, ClientResponse]:
        return self._coroutine

    def __aexit__(self, *exc_info: object) -> Awaitable[None]:
        return self.response.release()


class _SingleRequest:
    """A request with a session of its own."""

    __slots__ = ("_context", "_session")

    def __init__(self, context: RequestContext, session: ClientSession) -> None:
        self._context = context
        self._session = session

    async def __aenter__(self) -> ClientResponse:
        try:
            response: ClientResponse = await self._context
            return response
        except BaseException:
            await self._session.close()
            raise

    async def __aexit__(self, *exc_info: object) -> None:
        self._context.response.release()
        await self._session.close()


def request(
    method: str,
    url: str | URL,
    *,
    connector: BaseConnector | None = None,
    **arguments: Any,
) -> _SingleRequest:
    """Make one request with a session of its own; only for `async with`."""
    owner = connector is None
    if connector is None:
        connector = TCPConnector(force_close=True)
    session = ClientSession(connector=connector, connector_owner=owner)
    return _SingleRequest(RequestContext(session, method, url, **arguments), session)
