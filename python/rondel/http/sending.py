"""An exchange on a connection: the request goes, the response's head comes, timers watch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .._rondel import HttpHead
from ..loop import Loop
from .exceptions import (
    BadHttpMessage,
    ClientConnectionError,
    ClientOSError,
    ClientPayloadError,
    ClientResponseError,
    ServerDisconnectedError,
    SocketTimeoutError,
)
from .formdata import Payload
from .http2 import Made
from .request import Exchange
from .response import ClientResponse

if TYPE_CHECKING:
    from .client import ClientSession
    from .options import ClientTimeout
    from .tracing import Tracing

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
# How often a request is made again that an HTTP/2 server has not begun with.
_MOST_REFUSALS = 5


class Sender:
    """Does the exchanges of one request: that of the request itself and those of its redirects."""

    __slots__ = (
        "again",
        "deadline",
        "decode",
        "history",
        "limits",
        "refusals",
        "session",
        "switch",
        "tracing",
    )

    def __init__(
        self,
        session: ClientSession,
        limits: ClientTimeout,
        deadline: float | None,
        decode: bool,
        switch: int,
        tracing: Tracing | None,
    ) -> None:
        self.session = session
        self.limits = limits
        self.deadline = deadline
        self.decode = decode
        self.switch = switch
        self.tracing = tracing
        #: Whether a connection that was lost may be replaced, which is done once.
        self.again = True
        #: How often the server has sent the request back unseen.
        self.refusals = 0
        #: The redirects before.
        self.history: tuple[ClientResponse, ...] = ()

    async def send(self, exchange: Exchange) -> ClientResponse:
        """Get a connection, send the request, and wait for the response's head."""
        connector = self.session.connector
        while True:
            connection = None
            if self.tracing is None:
                connection = connector.idle_connection(exchange.key)
            reused = connection is not None
            if connection is None:
                async with asyncio.timeout_at(self.deadline):
                    connection = await connector.connect(exchange.key, self.limits, self.tracing)
                reused = connection.arrivals > 0
            try:
                head = await send(
                    self.session._loop,
                    connection,
                    exchange,
                    self.decode,
                    self.deadline,
                    self.limits.sock_read,
                    connector.release,
                    self.switch,
                    self.tracing,
                )
            except (ClientOSError, ServerDisconnectedError) as error:
                payload = exchange.payload
                replayable = payload is None or payload.replayable
                if not (replayable and may_go_again(error, exchange.method)):
                    raise
                if error.unprocessed:
                    self.refusals += 1
                    if self.refusals > _MOST_REFUSALS:
                        raise
                    continue
                if not (self.again and reused):
                    raise
                self.again = False
            except BadHttpMessage as error:
                raise bad_message(exchange, self.history, error) from error
            else:
                response = self.session.response_class(
                    self.session,
                    exchange.method,
                    exchange.url,
                    exchange.headers,
                    head,
                    connection,
                    self.history,
                )
                response._tracing = self.tracing
                return response


def may_go_again(error: ClientConnectionError, method: str) -> bool:
    """Whether a request may be made again: it was not begun with, or twice does no harm."""
    if error.unprocessed is None:
        return method in IDEMPOTENT
    return error.unprocessed


def bad_message(
    exchange: Exchange, history: tuple[ClientResponse, ...], error: BadHttpMessage
) -> ClientResponseError:
    """What a program is told of an answer that is no HTTP."""
    return ClientResponseError(exchange.info(), history, status=400, message=str(error))


class Timers:
    """The timers of an exchange: all the time it may take, and how long the server is silent."""

    __slots__ = ("connection", "loop", "quiet", "seen", "silence", "silence_handle", "total_handle")

    def __init__(
        self, loop: Loop, connection: Made, deadline: float | None, silence: float
    ) -> None:
        self.loop = loop
        self.connection = connection
        self.seen = connection.arrivals
        self.quiet = 0
        self.silence = silence
        self.total_handle: asyncio.TimerHandle | None = None
        if deadline is not None:
            self.total_handle = loop.call_at(deadline, expired, connection)
        self.silence_handle: asyncio.TimerHandle | None = loop.call_later(silence / 4, self.listen)

    def listen(self) -> None:
        """Nothing may have come since the last look."""
        connection = self.connection
        seen = connection.arrivals
        if self.seen != seen or connection.reading_paused:
            self.seen = seen
            self.quiet = 0
        else:
            # Counted in looks and not from each arrival: exact to a quarter.
            self.quiet += 1
            if self.quiet >= 4:
                connection.fail_with(SocketTimeoutError("Timeout on reading data from socket"))
                return
        self.silence_handle = self.loop.call_later(self.silence / 4, self.listen)

    def cancel(self) -> None:
        """The exchange is over."""
        for handle in (self.total_handle, self.silence_handle):
            if handle is not None:
                handle.cancel()


def expired(connection: Made) -> None:
    """Timer: the exchange took too long."""
    connection.fail_with(TimeoutError())


def begin(
    connection: Made,
    data: bytes,
    bodiless: bool,
    streamed: bool,
    decode: bool,
    timer: Any,
    release: Callable[[Made], None],
) -> int:
    """Begin an exchange, as HttpConnection.start(); when that fails the connection is closed."""
    try:
        return connection.start(data, bodiless, streamed, decode, timer, release)
    except BaseException:
        if timer is not None:
            timer.cancel()
        lent = connection.lent
        connection.close()
        if not lent:
            release(connection)
        raise


async def send(
    loop: Loop,
    connection: Made,
    exchange: Exchange,
    decode: bool,
    deadline: float | None,
    silence: float | None,
    release: Callable[[Made], None],
    switch: int = 0,
    tracing: Tracing | None = None,
) -> HttpHead:
    """Send a request and wait for its response's head; when that fails the connection is closed.

    `decode`: undo content encodings. `deadline` is a time of the loop, `silence` a number of
    seconds. `release` is called once, when the whole exchange is over. A response with the status
    `switch` switches the protocol.
    """
    timer: Any = None
    if silence:
        timer = Timers(loop, connection, deadline, silence)
    elif deadline is not None:
        timer = loop.call_at(deadline, expired, connection)
    payload = exchange.payload
    data = exchange.head
    expects = exchange.expects
    streamed = expects or (payload is not None and payload.data is None)
    if exchange.chunked and not streamed and not connection.FRAMED:
        data += _chunk(payload.data or b"" if payload is not None else b"") + _LAST_CHUNK
    elif payload is not None and not streamed:
        data += payload.data or b""
    if switch:
        connection.expect_switch(switch)
    number = begin(connection, data, exchange.method == "HEAD", streamed, decode, timer, release)
    go_ahead: asyncio.Future[None] | None = None
    if expects:
        go_ahead = loop.create_future()
        connection.expect_continue(go_ahead)
    try:
        if tracing is not None:
            await _tell_sent(tracing, exchange, streamed)
        if streamed:
            return await _upload(loop, connection, exchange, tracing, go_ahead)
        return await connection.response()
    except BaseException:
        # Not another's: when the response is complete the connection may be in use again.
        connection.close(number)
        raise


async def _tell_sent(tracing: Tracing, exchange: Exchange, streamed: bool) -> None:
    await tracing.headers_sent(exchange.method, exchange.url, exchange.headers)
    if exchange.payload is not None and exchange.payload.data and not streamed:
        await tracing.chunk_sent(exchange.method, exchange.url, exchange.payload.data)


async def _upload(
    loop: Loop,
    connection: Made,
    exchange: Exchange,
    tracing: Tracing | None,
    go_ahead: asyncio.Future[None] | None,
) -> HttpHead:
    """Send the body's pieces (after `go_ahead`) while the response may already come."""
    writer = loop.create_task(_write_body(connection, exchange, tracing, go_ahead))
    writer.add_done_callback(_written)
    connection.writer = writer  # keeps the task
    try:
        head = await connection.response()
    except BaseException:
        writer.cancel()
        raise
    if go_ahead is not None and not go_ahead.done():
        writer.cancel()  # the server has decided without the body
    return head


def _written(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()


_LAST_CHUNK = b"0\r\n\r\n"
_NOTHING = Payload(None, b"")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


async def _write_body(
    connection: Made,
    exchange: Exchange,
    tracing: Tracing | None,
    go_ahead: asyncio.Future[None] | None,
) -> None:
    payload = exchange.payload or _NOTHING
    chunked = exchange.chunked and not connection.FRAMED
    if go_ahead is not None:
        await go_ahead
    pieces = payload.pieces()
    left = int(length) if (length := exchange.headers.get("Content-Length")) else None
    try:
        async for piece in pieces:
            await connection.drain()
            data = bytes(piece)
            if left is not None:
                data = data[:left]
                left -= len(data)
            if tracing is not None:
                await tracing.chunk_sent(exchange.method, exchange.url, data)
            connection.write(_chunk(data) if chunked else data)
        if left:
            raise ClientPayloadError("The request's body is shorter than its Content-Length")
        if chunked:
            connection.write(_LAST_CHUNK)
        connection.sent()
    except (ClientOSError, ServerDisconnectedError):
        pass  # whoever waits for the response is told
    except Exception as error:
        connection.fail_with(error)
    finally:
        close = getattr(pieces, "aclose", None)
        if close is not None:
            await close()
