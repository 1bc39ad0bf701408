"""HTTP on the loop: a client with aiohttp's interface, and downloads.

``from rondel import http as aiohttp`` is all that a program written for aiohttp's client needs; its
connections live on rondel's own event loop, and it raises RuntimeError on another (docs/http.md).

``await download(urls, to=folder)`` and ``async for done in downloads(urls, to=folder)`` run the
engine of ``rondel get`` on a thread of its own, beside any asyncio loop. docs/downloads.md tells
how it works.
"""

from .._rondel import HttpBody as StreamReader
from .client import ClientSession, RequestContext, request
from .connector import BaseConnector, ConnectionKey, TCPConnector, UnixConnector
from .cookies import AbstractCookieJar, CookieJar, DummyCookieJar
from .downloading import (
    ActiveDownload,
    Downloaded,
    DownloadError,
    DownloadProgress,
    File,
    download,
    downloads,
)
from .exceptions import *  # noqa: F403
from .exceptions import __all__ as _exceptions
from .formdata import FormData
from .options import BasicAuth, ClientTimeout
from .response import ClientResponse, HttpVersion, RequestInfo

__all__ = (
    *_exceptions,
    "AbstractCookieJar",
    "ActiveDownload",
    "BaseConnector",
    "BasicAuth",
    "ClientResponse",
    "ClientSession",
    "ClientTimeout",
    "ConnectionKey",
    "CookieJar",
    "DownloadError",
    "DownloadProgress",
    "Downloaded",
    "DummyCookieJar",
    "File",
    "FormData",
    "HttpVersion",
    "RequestContext",
    "RequestInfo",
    "StreamReader",
    "TCPConnector",
    "UnixConnector",
    "download",
    "downloads",
    "request",
)
