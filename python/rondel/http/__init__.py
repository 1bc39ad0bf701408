"""HTTP on the loop: a client with aiohttp's interface, and downloads.

``from rondel import http as aiohttp`` is all that a program written for aiohttp's client needs; its
connections live on rondel's own event loop, and it raises RuntimeError on another (docs/http.md).

``await download(urls, to=folder)`` and ``async for done in downloads(urls, to=folder)`` run the
engine of ``rondel get`` on a thread of its own, beside any asyncio loop. docs/downloads.md tells
how it works.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .._rondel import HttpBody as StreamReader
from .client import ClientSession
from .connector import BaseConnector, ConnectionKey, TCPConnector, UnixConnector
from .context import RequestContext, request
from .cookies import AbstractCookieJar, CookieJar, DummyCookieJar
from .downloading import (
    ActiveDownload,
    Downloaded,
    DownloadError,
    DownloadProgress,
    File,
    Options,
    download,
    downloads,
)
from .exceptions import *  # noqa: F403
from .exceptions import __all__ as _exceptions
from .fingerprint import Fingerprint
from .formdata import FormData
from .options import BasicAuth, ClientTimeout, encode_basic_auth
from .response import ClientResponse, HttpVersion, HttpVersion10, HttpVersion11, RequestInfo

if TYPE_CHECKING:
    from . import hdrs as hdrs
    from .digest_auth import DigestAuthMiddleware
    from .middlewares import ClientHandlerType, ClientMiddlewareType, ClientRequest
    from .retrying import Retry
    from .testing import ASGITransport, MockRequest, MockResponse, MockTransport
    from .tracing import (
        TraceConfig,
        TraceConnectionCreateEndParams,
        TraceConnectionCreateStartParams,
        TraceConnectionQueuedEndParams,
        TraceConnectionQueuedStartParams,
        TraceConnectionReuseconnParams,
        TraceDnsCacheHitParams,
        TraceDnsCacheMissParams,
        TraceDnsResolveHostEndParams,
        TraceDnsResolveHostStartParams,
        TraceRequestChunkSentParams,
        TraceRequestEndParams,
        TraceRequestExceptionParams,
        TraceRequestHeadersSentParams,
        TraceRequestRedirectParams,
        TraceRequestStartParams,
        TraceResponseChunkReceivedParams,
    )
    from .websocket import (
        ClientWebSocketResponse,
        ClientWSTimeout,
        WSCloseCode,
        WSMessage,
        WSMessageTextBytes,
        WSMsgType,
    )

# What not every program needs is imported when it is asked for.
_PLACES = {
    "Retry": "retrying",
    "DigestAuthMiddleware": "digest_auth",
    **dict.fromkeys(("ClientHandlerType", "ClientMiddlewareType", "ClientRequest"), "middlewares"),
    **dict.fromkeys(("ASGITransport", "MockRequest", "MockResponse", "MockTransport"), "testing"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "hdrs":
        return importlib.import_module(".hdrs", __name__)
    place = _PLACES.get(name, "tracing" if name.startswith("Trace") else "websocket")
    value = getattr(importlib.import_module(f".{place}", __name__), name)
    globals()[name] = value
    return value


__all__ = (
    *_exceptions,
    "AbstractCookieJar",
    "ActiveDownload",
    "BaseConnector",
    "BasicAuth",
    "ClientHandlerType",
    "ClientMiddlewareType",
    "ClientRequest",
    "ClientResponse",
    "ClientSession",
    "ClientTimeout",
    "ClientWSTimeout",
    "ClientWebSocketResponse",
    "ConnectionKey",
    "CookieJar",
    "DigestAuthMiddleware",
    "DownloadError",
    "DownloadProgress",
    "Downloaded",
    "DummyCookieJar",
    "File",
    "Fingerprint",
    "FormData",
    "HttpVersion",
    "HttpVersion10",
    "HttpVersion11",
    "Options",
    "RequestContext",
    "RequestInfo",
    "StreamReader",
    "TCPConnector",
    "UnixConnector",
    "ASGITransport",
    "MockRequest",
    "MockResponse",
    "MockTransport",
    "Retry",
    "TraceConfig",
    "TraceConnectionCreateEndParams",
    "TraceConnectionCreateStartParams",
    "TraceConnectionQueuedEndParams",
    "TraceConnectionQueuedStartParams",
    "TraceConnectionReuseconnParams",
    "TraceDnsCacheHitParams",
    "TraceDnsCacheMissParams",
    "TraceDnsResolveHostEndParams",
    "TraceDnsResolveHostStartParams",
    "TraceRequestChunkSentParams",
    "TraceRequestEndParams",
    "TraceRequestExceptionParams",
    "TraceRequestHeadersSentParams",
    "TraceRequestRedirectParams",
    "TraceRequestStartParams",
    "TraceResponseChunkReceivedParams",
    "WSMessageTextBytes",
    "WSCloseCode",
    "WSMessage",
    "WSMsgType",
    "download",
    "downloads",
    "encode_basic_auth",
    "hdrs",
    "request",
)
