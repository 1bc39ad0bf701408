"""A request made ready: its header fields, how its body is sent, and which connections serve it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from multidict import CIMultiDict, CIMultiDictProxy, MultiDict, MultiDictProxy
from yarl import URL

from .._rondel import __version__ as _version
from .connector import ConnectionKey
from .cookies import cookie_header
from .formdata import Payload
from .proxy import Proxy
from .response import RequestInfo

Headers = Mapping[str, str] | Iterable[tuple[str, str]]

_USER_AGENT = f"Python/{sys.version_info[0]}.{sys.version_info[1]} rondel/{_version}"
#: Header fields that requests have unless they have their own.
AUTOMATIC = (
    ("Accept", "*/*"),
    ("Accept-Encoding", "gzip, deflate, br, zstd"),
    ("User-Agent", _USER_AGENT),
)
# Methods whose requests have no body unless one is given.
_BODILESS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_FORBIDDEN = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


class Exchange:
    """A request that is ready to be sent, also more than once."""

    __slots__ = ("chunked", "expects", "head", "headers", "key", "method", "payload", "url")

    def __init__(
        self,
        method: str,
        url: URL,
        key: ConnectionKey,
        headers: CIMultiDict[str],
        payload: Payload | None,
        chunked: bool,
    ) -> None:
        self.method = method
        self.url = url
        self.key = key
        self.headers = headers
        self.payload = payload
        self.chunked = chunked
        #: The body waits for the server's 100 Continue.
        self.expects = "Expect" in headers and headers["Expect"].lower() == "100-continue"
        target = url.raw_path_qs
        if key.proxy is not None and not key.is_ssl and not key.proxy.is_socks:
            target = str(url.with_fragment(None))
        fields = "".join([header_field(name, value) for name, value in headers.items()])
        self.head = f"{method} {target} HTTP/1.1\r\n{fields}\r\n".encode()

    def info(self) -> RequestInfo:
        """As exceptions tell it."""
        headers = CIMultiDictProxy(self.headers)
        return RequestInfo(self.url.with_fragment(None), self.method, headers, self.url)


def header_field(name: str, value: str) -> str:
    """A header field's line; ValueError for what no header can carry."""
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"Invalid header name: {name!r}")
    if _FORBIDDEN.search(value):
        raise ValueError(
            "Forbidden control character detected in headers. Potential header injection attack."
        )
    return f"{name}: {value}\r\n"


def merged(defaults: CIMultiDict[str], headers: Headers | None) -> CIMultiDict[str]:
    """The session's header fields with a request's over them, as a new multi-dictionary."""
    result = CIMultiDict(defaults)
    if headers:
        given = headers
        if not isinstance(given, (MultiDict, MultiDictProxy)):
            given = CIMultiDict(given)
        seen: set[str] = set()
        for name, value in given.items():
            # The first one replaces the defaults; the same name again is another field.
            if name.lower() in seen:
                result.add(name, value)
            else:
                result[name] = value
                seen.add(name.lower())
    return result


def prepare(
    method: str,
    url: URL,
    given: CIMultiDict[str],
    *,
    skipped: frozenset[str],
    cookies: Mapping[str, Any],
    authorization: str | None,
    payload: Payload | None,
    chunked: bool | None,
    expect100: bool,
    ssl: Any,
    server_hostname: str | None,
    proxy: Proxy | None,
) -> Exchange:
    """Make a request ready.

    `skipped` are names (in lower case) of fields that are not added by themselves. ValueError
    for what no header can carry.
    """
    if not _TOKEN.fullmatch(method):
        raise ValueError(f"Method cannot contain non-token characters {method!r}")
    headers: CIMultiDict[str] = CIMultiDict()
    headers["Host"] = given.get("Host", url.host_port_subcomponent or "")
    for name, value in given.items():
        if name.lower() != "host":
            headers.add(name, value)
    for name, value in AUTOMATIC:
        if name not in headers and name.lower() not in skipped:
            headers[name] = value
    if cookies:
        sent = cookie_header(cookies.values())
        before = headers.get("Cookie")
        headers["Cookie"] = f"{before}; {sent}" if before else sent
    if authorization is not None:
        headers["Authorization"] = authorization
    if expect100:
        headers["Expect"] = "100-continue"
    in_chunks = frame(method, headers, skipped, payload, chunked)
    secure = url.scheme in ("https", "wss")
    if proxy is not None and not secure and proxy.authorization is not None:
        headers["Proxy-Authorization"] = proxy.authorization
    key = ConnectionKey(url.raw_host or "", url.port, secure, ssl, server_hostname, proxy)
    return Exchange(method, url, key, headers, payload, in_chunks)


def frame(
    method: str,
    headers: CIMultiDict[str],
    skipped: frozenset[str],
    payload: Payload | None,
    chunked: bool | None,
) -> bool:
    """Set the fields that describe the body; returns whether it goes in HTTP chunks."""
    if payload is not None and payload.encoding is not None:
        if headers.get("Content-Encoding"):
            raise ValueError("compress can not be set if Content-Encoding header is set")
        headers["Content-Encoding"] = payload.encoding
        chunked = True
    if payload is not None and payload.content_type and "content-type" not in skipped:
        headers.setdefault("Content-Type", payload.content_type)
    elif method in ("POST", "PUT", "PATCH") and "content-type" not in skipped:
        headers.setdefault("Content-Type", "application/octet-stream")
    if "chunked" in headers.get("Transfer-Encoding", "").lower():
        if chunked:
            raise ValueError('chunked can not be set if "Transfer-Encoding: chunked" header is set')
        return payload is not None
    if payload is None and not chunked:
        if method not in _BODILESS:
            headers.setdefault("Content-Length", "0")
        return False
    if chunked and "Content-Length" in headers:
        raise ValueError("chunked can not be set if Content-Length header is set")
    if "Content-Length" in headers:
        return False
    if payload is not None and payload.length is not None and not chunked:
        headers["Content-Length"] = str(payload.length)
        return False
    headers["Transfer-Encoding"] = "chunked"
    return True
