"""A response, as `async with session.get(url) as response` gives it."""

from __future__ import annotations

import json as json_module
import re
import warnings
from collections.abc import Callable
from functools import cached_property
from http.cookies import SimpleCookie
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from multidict import CIMultiDict, CIMultiDictProxy

from .._rondel import HttpBody, HttpHead
from .exceptions import ClientConnectionError, ClientResponseError, ContentTypeError

if TYPE_CHECKING:
    from yarl import URL

    from .client import ClientSession
    from .fields import ContentDisposition, Links
    from .http2 import Made
    from .tracing import Tracing

_JSON_TYPE = re.compile(r"application/(?:[\w.+-]+?\+)?json$", re.IGNORECASE)


class HttpVersion(NamedTuple):
    """A version of HTTP."""

    major: int
    minor: int


HttpVersion10 = HttpVersion(1, 0)
HttpVersion11 = HttpVersion(1, 1)


class RequestInfo(NamedTuple):
    """What was asked for; `url` has no fragment, `real_url` is as it was given."""

    url: URL
    method: str
    headers: CIMultiDictProxy[str]
    real_url: URL


class _Done:
    """What release() returns: awaitable, and nothing to wait for."""

    __slots__ = ()

    def __await__(self) -> Any:
        return iter(())


_DONE = _Done()


class ClientResponse:
    """A response whose head has arrived; its body is read from `content`.

    Made by a ClientSession. It is to be released: by leaving the `async with` that gave it, by
    reading it to its end, or by release() or close().
    """

    __slots__ = (
        "__dict__",
        "__weakref__",
        "_body",
        "_connection",
        "_head",
        "_history",
        "_released",
        "_request_headers",
        "_session",
        "_tracing",
        "_url",
        "content",
        "method",
        "status",
    )

    def __init__(
        self,
        session: ClientSession,
        method: str,
        url: URL,
        request_headers: CIMultiDict[str],
        head: HttpHead,
        connection: Made,
        history: tuple[ClientResponse, ...],
    ) -> None:
        self.method: str = method
        self.status: int = head.status
        self.content: HttpBody = head.content
        self._head = head
        self._session = session
        self._url = url
        self._request_headers = request_headers
        self._connection: Made | None = connection
        self._history = history
        self._body: bytes | None = None
        self._tracing: Tracing | None = None
        self._released = False

    def __del__(self) -> None:
        if not self._released and self._is_unfinished() and not self._session.loop.is_closed():
            warnings.warn(f"Unclosed response {self!r}", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}({self._url}) [{self.status} {self.reason}]>"

    # What came.

    @property
    def version(self) -> HttpVersion:
        """The server's version of HTTP."""
        return HttpVersion(*self._head.version)

    @cached_property
    def reason(self) -> str:
        """The text after the status."""
        return self._head.reason

    @property
    def ok(self) -> bool:
        """Whether the status is below 400."""
        return self.status < 400

    @property
    def url(self) -> URL:
        """What was asked for, after redirects and without a fragment."""
        url = self._url
        return url.with_fragment(None) if url.raw_fragment else url

    @property
    def real_url(self) -> URL:
        """What was asked for, after redirects, with its fragment."""
        return self._url

    @property
    def host(self) -> str | None:
        """The URL's host."""
        return self._url.host

    @cached_property
    def headers(self) -> CIMultiDictProxy[str]:
        """The header fields."""
        return CIMultiDictProxy(CIMultiDict(self._head.fields()))

    @property
    def raw_headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """The header fields as they were sent."""
        return self._head.raw_fields()

    @cached_property
    def cookies(self) -> SimpleCookie:
        """The cookies of this response."""
        from .cookies import parse_set_cookies

        cookies = SimpleCookie()
        for morsel in parse_set_cookies(self.headers.getall("Set-Cookie", ())):
            dict.__setitem__(cookies, morsel.key, morsel)
        return cookies

    @property
    def history(self) -> tuple[ClientResponse, ...]:
        """The responses that redirected to this one, the oldest first."""
        return self._history

    @cached_property
    def request_info(self) -> RequestInfo:
        """What was asked for."""
        headers = CIMultiDictProxy(self._request_headers)
        return RequestInfo(self.url, self.method, headers, self._url)

    @cached_property
    def _content_type(self) -> tuple[str, dict[str, str]]:
        from email.message import Message

        value = self.headers.get("Content-Type")
        if value is None:
            return "application/octet-stream", {}
        message = Message()
        message["Content-Type"] = value
        main, *parameters = message.get_params([(value, "")])
        # A value without a subtype counts as text/plain (RFC 2045, section 5.2).
        kind = main[0].lower()
        return kind if kind.count("/") == 1 else "text/plain", dict(parameters)

    @property
    def content_type(self) -> str:
        """The media type, without parameters."""
        return self._content_type[0]

    @property
    def charset(self) -> str | None:
        """The media type's charset."""
        return self._content_type[1].get("charset")

    @cached_property
    def links(self) -> Links:
        """The links of the field Link, by their `rel`."""
        from .fields import links

        return links(self.headers.getall("Link", ()), self.url)

    @cached_property
    def content_disposition(self) -> ContentDisposition | None:
        """The field Content-Disposition: what it is, and a file's name as the server has it."""
        from .fields import content_disposition

        return content_disposition(self.headers.get("Content-Disposition"))

    @property
    def content_length(self) -> int | None:
        """The field Content-Length."""
        length = self.headers.get("Content-Length")
        return None if length is None else int(length)

    @property
    def connection(self) -> Made | None:
        """The connection, until the body has arrived or the response is released."""
        return self._connection if self._is_unfinished() else None

    @property
    def closed(self) -> bool:
        """Whether nothing more is read from the connection."""
        return self._released or not self._is_unfinished()

    # Reading.

    async def read(self) -> bytes:
        """The whole body, also again later."""
        if self._body is None:
            try:
                self._body = await self.content.read()
                if self._tracing is not None:
                    from .tracing import TraceResponseChunkReceivedParams

                    parts = (self.method, self.url, self._body)
                    await self._tracing.tell(TraceResponseChunkReceivedParams(*parts))
            except BaseException:
                self.close()
                raise
        elif self._released:
            return self._body
        return self._body

    def get_encoding(self) -> str:
        """The encoding of text(): the charset if Python knows it, or UTF-8."""
        import codecs

        charset = self.charset
        if charset is not None:
            try:
                return codecs.lookup(charset).name
            except (LookupError, ValueError):
                pass
        if _JSON_TYPE.match(self.content_type):
            return "utf-8"
        if self._body is None:
            raise RuntimeError("Cannot compute fallback encoding of a not yet read body")
        return self._session.resolve_charset(self, self._body)

    async def text(self, encoding: str | None = None, errors: str = "strict") -> str:
        """The whole body as text."""
        body = self._body if self._body is not None else await self.read()
        return body.decode(encoding or self.get_encoding(), errors)

    async def json(
        self,
        *,
        encoding: str | None = None,
        loads: Callable[[str], Any] = json_module.loads,
        content_type: str | None = "application/json",
    ) -> Any:
        """The whole body as JSON; None when there is none.

        Raises ContentTypeError when the media type is not `content_type`; None accepts all.
        """
        body = self._body if self._body is not None else await self.read()
        if content_type and not self._is_of_type(content_type):
            sent = self.headers.get("Content-Type", "").lower()
            raise ContentTypeError(
                self.request_info,
                self._history,
                status=self.status,
                message=f"Attempt to decode JSON with unexpected mimetype: {sent}",
                headers=self.headers,
            )
        stripped = body.strip()
        if not stripped:
            return None
        return loads(stripped.decode(encoding or self.get_encoding()))

    def _is_of_type(self, expected: str) -> bool:
        if expected == "application/json":
            return _JSON_TYPE.match(self.content_type) is not None
        return expected in self.headers.get("Content-Type", "").lower()

    def raise_for_status(self) -> None:
        """Raise ClientResponseError when the status is 400 or more."""
        if self.status < 400:
            return
        error = ClientResponseError(
            self.request_info,
            self._history,
            status=self.status,
            message=self.reason,
            headers=self.headers,
        )
        self.release()
        raise error

    # The end.

    def _is_unfinished(self) -> bool:
        content = self.content
        return not content.is_eof() and content.exception() is None

    def _let_go(self) -> None:
        self._released = True
        connection, self._connection = self._connection, None
        content = self.content
        if content.exception() is None:
            if connection is not None and not content.is_eof():
                # What is still to come would have to be read first.
                connection.close()
            elif self._body is None:
                content.set_exception(ClientConnectionError("Connection closed"))

    def close(self) -> None:
        """Read no more: a connection on which something is still to come is closed."""
        if not self._released:
            self._let_go()

    def release(self) -> _Done:
        """Read no more; returns something that may be awaited."""
        if not self._released:
            self._let_go()
        return _DONE

    async def wait_for_close(self) -> None:
        """Release the response."""
        self.release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.release()
