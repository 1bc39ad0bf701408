"""Servers within the program, for tests: a function or an ASGI application answers the requests.

They take the place of a session's connector. Requests and responses are real HTTP/1.1 and go
through the client's own parser; only the socket is missing.
"""

from __future__ import annotations

import asyncio
import inspect
import json as json_module
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

from multidict import CIMultiDict
from yarl import URL

from .._rondel import HttpConnection
from .connector import BaseConnector, ConnectionKey

ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]


class MockRequest:
    """A request that a handler gets: `method`, `url`, `headers` and the whole `body`."""

    __slots__ = ("body", "headers", "method", "url")

    def __init__(self, method: str, url: URL, headers: CIMultiDict[str], body: bytes) -> None:
        self.method = method
        self.url = url
        self.headers = headers
        self.body = body

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.method} {self.url}>"

    def text(self) -> str:
        """The body as UTF-8."""
        return self.body.decode()

    def json(self) -> Any:
        """The body as JSON."""
        return json_module.loads(self.body)


class MockResponse:
    """What a handler answers.

    The body is one of `body` (bytes, or an async iterable of bytes, which goes in HTTP chunks),
    `text` and `json`.
    """

    __slots__ = ("body", "headers", "reason", "status")

    def __init__(
        self,
        status: int = 200,
        *,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
        body: bytes | AsyncIterable[bytes] = b"",
        text: str | None = None,
        json: Any = None,
        reason: str | None = None,
    ) -> None:
        self.status = status
        self.headers: CIMultiDict[str] = CIMultiDict(headers or {})
        self.reason = _phrase(status) if reason is None else reason
        self.body = body
        if text is not None:
            self.body = text.encode()
            self.headers.setdefault("Content-Type", "text/plain; charset=utf-8")
        elif json is not None:
            self.body = json_module.dumps(json).encode()
            self.headers.setdefault("Content-Type", "application/json")


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


Handler = Callable[[MockRequest], MockResponse | Awaitable[MockResponse]]


class _Wire(asyncio.Transport):
    """The transport of a connection whose server is in this program."""

    def __init__(self, key: ConnectionKey, connection: HttpConnection, server: _Server) -> None:
        super().__init__()
        self._connection = connection
        self._server = server
        self._loop = asyncio.get_running_loop()
        scheme = "https" if key.is_ssl else "http"
        self._origin = URL.build(scheme=scheme, host=key.host, port=key.port)
        self._arrived = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._room = asyncio.Event()
        self._room.set()

    def write(self, data: Any) -> None:
        self._arrived += data
        request = _request(self._arrived, self._origin) if self._task is None else None
        if request is None and self._waits_for_continue():
            interim = b"HTTP/1.1 100 Continue\r\n\r\n"
            self._loop.call_soon(self._connection.data_received, interim)
        if request is not None:
            self._task = self._loop.create_task(self._answer(request))

    def _waits_for_continue(self) -> bool:
        """Whether what arrived is a head that asks whether its body may follow."""
        head, end, rest = self._arrived.partition(b"\r\n\r\n")
        return bool(end) and not rest and b"\r\nexpect: 100-continue" in head.lower()

    async def _answer(self, request: MockRequest) -> None:
        try:
            await self._server.answer(request, self)
        except Exception as error:
            self._task = None
            self._connection.fail_with(error)

    async def deliver(self, data: bytes, last: bool = False) -> None:
        """Send to the client, when it reads; `last` of a response."""
        await self._room.wait()
        if last:
            self._task = None
        if data and not self._closing:
            self._connection.data_received(data)

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._room.clear()

    def resume_reading(self) -> None:
        self._room.set()

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._room.set()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        self._loop.call_soon(self._connection.connection_lost, None)

    def abort(self) -> None:
        self.close()


def _request(arrived: bytearray, origin: URL) -> MockRequest | None:
    """Takes a request out of what has arrived, if it is complete."""
    head, end, rest = arrived.partition(b"\r\n\r\n")
    if not end:
        return None
    first, *lines = head.decode().split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers: CIMultiDict[str] = CIMultiDict()
    for line in lines:
        name, _, value = line.partition(":")
        headers.add(name, value.strip())
    if "chunked" in headers.get("Transfer-Encoding", ""):
        body, used = _unchunked(rest)
    else:
        used = int(headers.get("Content-Length", "0"))
        body = bytes(rest[:used])
        used = used if len(rest) >= used else -1
    if used < 0:
        return None
    del arrived[: len(head) + len(end) + used]
    url = URL(target, encoded=True)
    return MockRequest(method, url if url.absolute else origin.join(url), headers, body)


def _unchunked(data: bytearray) -> tuple[bytes, int]:
    """A body out of its HTTP chunks and how long they are; -1 when they are incomplete."""
    body, at = bytearray(), 0
    while (end := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:end], 16)
        at = end + 2 + size + 2
        if len(data) < at:
            break
        body += data[end + 2 : end + 2 + size]
        if not size:
            return bytes(body), at
    return b"", -1


class _Server:
    """Answers requests that come over a wire."""

    async def answer(self, request: MockRequest, wire: _Wire) -> None:
        raise NotImplementedError


async def _respond(
    wire: _Wire,
    request: MockRequest,
    status: int,
    reason: str,
    headers: list[tuple[str, str]],
    body: bytes | AsyncIterable[bytes],
) -> None:
    names = {name.lower() for name, _ in headers}
    chunked = not isinstance(body, bytes) and "content-length" not in names
    if request.method == "HEAD" or status in (204, 304):
        body, chunked = b"", False
    elif isinstance(body, bytes) and not names & {"content-length", "transfer-encoding"}:
        headers.append(("Content-Length", str(len(body))))
    if chunked:
        headers.append(("Transfer-Encoding", "chunked"))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    head = f"HTTP/1.1 {status} {reason}\r\n{lines}\r\n".encode()
    if isinstance(body, bytes):
        await wire.deliver(head + body, last=True)
        return
    await wire.deliver(head)
    async for piece in body:
        if piece:
            await wire.deliver(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
    await wire.deliver(b"0\r\n\r\n" if chunked else b"", last=True)


class _InProgram(BaseConnector, _Server):
    """A connector whose connections lead to a server in this program."""

    async def _open(self, key: ConnectionKey, connection: HttpConnection) -> None:
        connection.connection_made(_Wire(key, connection, self))


class MockTransport(_InProgram):
    """A connector whose requests a function answers.

    `handler` gets a MockRequest and returns a MockResponse; it may be async. What it raises, the
    request raises. The request's body is collected before the handler is called.
    """

    def __init__(self, handler: Handler, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._handler = handler

    async def answer(self, request: MockRequest, wire: _Wire) -> None:
        """Answer a request."""
        response = self._handler(request)
        if inspect.isawaitable(response):
            response = await response
        told = (response.status, response.reason, list(response.headers.items()))
        await _respond(wire, request, *told, response.body)


class ASGITransport(_InProgram):
    """A connector whose requests an ASGI application answers.

    What the application raises before its response has begun, the request raises. Its `lifespan` is
    not run, and WebSockets are not offered to it.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        root_path: str = "",
        client: tuple[str, int] = ("127.0.0.1", 123),
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self._app = app
        self._root_path = root_path
        self._client = client

    async def answer(self, request: MockRequest, wire: _Wire) -> None:
        """Answer a request."""
        messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue(1)
        received = False
        complete = asyncio.Event()

        async def receive() -> dict[str, Any]:
            nonlocal received
            if not received:
                received = True
                return {"type": "http.request", "body": request.body, "more_body": False}
            await complete.wait()
            return {"type": "http.disconnect"}

        async def run() -> None:
            await self._app(self._scope(request), receive, messages.put)

        app = asyncio.get_running_loop().create_task(run())
        try:
            start = await _next(messages, app)
            if start["type"] != "http.response.start":
                raise RuntimeError(f"Expected http.response.start, got {start['type']}")
            headers = [
                (n.decode("latin1"), v.decode("latin1")) for n, v in start.get("headers", ())
            ]
            first = await _next(messages, app)
            body: bytes | AsyncIterator[bytes] = bytes(first.get("body", b""))
            if first.get("more_body", False):
                body = _pieces(first, messages, app)
            status = start["status"]
            await _respond(wire, request, status, _phrase(status), headers, body)
            complete.set()
            await app
        finally:
            complete.set()
            app.cancel()

    def _scope(self, request: MockRequest) -> dict[str, Any]:
        url = request.url
        fields = request.headers.items()
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": url.scheme,
            "path": unquote(url.raw_path),
            "raw_path": url.raw_path.encode("ascii"),
            "query_string": url.raw_query_string.encode("ascii"),
            "root_path": self._root_path,
            "headers": [(n.lower().encode("latin1"), v.encode("latin1")) for n, v in fields],
            "client": self._client,
            "server": (url.host, url.port),
        }


async def _next(messages: asyncio.Queue[dict[str, Any]], app: asyncio.Task[None]) -> dict[str, Any]:
    """The application's next message; raises what it raised, RuntimeError when it returned."""
    getting = asyncio.ensure_future(messages.get())
    try:
        await asyncio.wait([getting, app], return_when=asyncio.FIRST_COMPLETED)
        if getting.done():
            return getting.result()
        if not messages.empty():
            return await getting
        await app
        raise RuntimeError("The ASGI application returned without a complete response")
    finally:
        getting.cancel()


async def _pieces(
    message: dict[str, Any], messages: asyncio.Queue[dict[str, Any]], app: asyncio.Task[None]
) -> AsyncIterator[bytes]:
    while True:
        yield bytes(message.get("body", b""))
        if not message.get("more_body", False):
            return
        message = await _next(messages, app)
