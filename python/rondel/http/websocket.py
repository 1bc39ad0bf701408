"""WebSockets: `session.ws_connect()` and what it gives."""

from __future__ import annotations

import asyncio
import json as json_module
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from .._rondel import HttpConnection, HttpWebSocket
from .exceptions import (
    ClientConnectionResetError,
    ClientError,
    EofStream,
    ServerDisconnectedError,
    ServerTimeoutError,
    WebSocketError,
    WSMessageTypeError,
)

if TYPE_CHECKING:
    from .response import ClientResponse


class WSCloseCode(IntEnum):
    """Why a WebSocket is closed (RFC 6455, section 7.4)."""

    OK = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    ABNORMAL_CLOSURE = 1006
    INVALID_TEXT = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    MANDATORY_EXTENSION = 1010
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    BAD_GATEWAY = 1014


class WSMsgType(IntEnum):
    """What a message is: an opcode, or from 0x100 on what happened to the connection."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    PING = 0x9
    PONG = 0xA
    CLOSE = 0x8
    CLOSING = 0x100
    CLOSED = 0x101
    ERROR = 0x102

    text = TEXT
    binary = BINARY
    ping = PING
    pong = PONG
    close = CLOSE
    closing = CLOSING
    closed = CLOSED
    error = ERROR


class WSMessage(NamedTuple):
    """A message: its kind, its data, and for CLOSE the peer's text in `extra`."""

    type: WSMsgType
    data: Any
    extra: str | None

    def json(self, *, loads: Callable[[Any], Any] = json_module.loads) -> Any:
        """The data as JSON."""
        return loads(self.data)


class WSMessageTextBytes(NamedTuple):
    """A text that was not decoded."""

    type: WSMsgType
    data: Any
    extra: str | None

    def json(self, *, loads: Callable[[Any], Any] = json_module.loads) -> Any:
        """The data as JSON."""
        return loads(self.data)


@dataclass(frozen=True, slots=True)
class ClientWSTimeout:
    """Limits in seconds, None for no limit.

    `ws_receive`: until the next message. `ws_close`: until the peer answers close().
    """

    ws_receive: float | None = None
    ws_close: float | None = None


_CLOSING = WSMessage(WSMsgType.CLOSING, None, None)
_CLOSED = WSMessage(WSMsgType.CLOSED, None, None)


class ClientWebSocketResponse:
    """A WebSocket that is open. Made by `session.ws_connect()`."""

    def __init__(
        self,
        response: ClientResponse,
        connection: HttpConnection,
        socket: HttpWebSocket,
        *,
        protocol: str | None,
        timeout: ClientWSTimeout,
        autoclose: bool,
        autoping: bool,
        heartbeat: float | None,
        compress: int,
        client_notakeover: bool,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._response = response
        self._connection = connection
        self._socket = socket
        self._protocol = protocol
        self._timeout = timeout
        self._autoclose = autoclose
        self._autoping = autoping
        self._compress = compress
        self._client_notakeover = client_notakeover
        self._closed = False
        self._closing = False
        self._close_sent = False
        self._close_code: int | None = None
        self._exception: BaseException | None = None
        # Who receives, and who waits for that to end so that it can close.
        self._receiving = False
        self._receiver_left: asyncio.Future[None] | None = None
        self._heartbeat = heartbeat
        self._timer: asyncio.TimerHandle | None = None
        if heartbeat is not None:
            self._timer = self._loop.call_later(heartbeat, self._beat)

    # The heartbeat: a ping after so much silence, and an end when that changes nothing.

    def _beat(self) -> None:
        heartbeat = self._heartbeat or 0.0
        left = heartbeat - self._socket.silence()
        if left > 0.0005:
            self._timer = self._loop.call_later(left, self._beat)
            return
        try:
            self._write(WSMsgType.PING, b"", None)
        except Exception as error:
            self._end_by(error)
            return
        now = time.monotonic()
        self._timer = self._loop.call_later(heartbeat / 2, self._expect_answer, now)

    def _expect_answer(self, pinged: float) -> None:
        heartbeat = self._heartbeat or 0.0
        silence = self._socket.silence()
        if silence < time.monotonic() - pinged:
            self._timer = self._loop.call_later(heartbeat - silence, self._beat)
        else:
            text = f"No PONG received after {heartbeat / 2} seconds"
            self._end_by(ServerTimeoutError(text))

    def _end_by(self, error: BaseException) -> None:
        if self._closed:
            return
        self._set_closed()
        self._close_code = WSCloseCode.ABNORMAL_CLOSURE
        self._exception = error
        if self._receiving and not self._closing:
            self._socket.push(WSMessage(WSMsgType.ERROR, error, None))
        self._response.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_closed(self) -> None:
        self._closed = True
        self._stop_timer()

    def _set_closing(self) -> None:
        self._closing = True
        self._stop_timer()

    # What is known.

    @property
    def closed(self) -> bool:
        """Whether close() was called or the connection has ended."""
        return self._closed

    @property
    def close_code(self) -> int | None:
        """The peer's close code; 1006 when there was none; None while the WebSocket is open."""
        return self._close_code

    @property
    def protocol(self) -> str | None:
        """The subprotocol that the server chose."""
        return self._protocol

    @property
    def compress(self) -> int:
        """The compression window's bits; 0 without compression."""
        return self._compress

    @property
    def client_notakeover(self) -> bool:
        """Whether each message is compressed by itself."""
        return self._client_notakeover

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Information of the transport."""
        connection = self._response.connection
        transport = connection.transport if connection is not None else None
        return default if transport is None else transport.get_extra_info(name, default)

    def exception(self) -> BaseException | None:
        """What ended the connection, if something did."""
        return self._exception

    # Sending.

    def _write(self, opcode: int, data: Any, bits: int | None) -> None:
        connection = self._connection
        transport = connection.transport
        if (self._close_sent and not opcode & 8) or transport is None or transport.is_closing():
            raise ClientConnectionResetError("Cannot write to closing transport")
        connection.write(self._socket.frame(opcode, data, bits))

    async def send_frame(
        self, message: bytes, opcode: WSMsgType, compress: int | None = None
    ) -> None:
        """Send a frame; `compress` (9 to 15) compresses this one by itself."""
        self._write(opcode, message, compress or None)
        await self._connection.drain()

    async def ping(self, message: bytes = b"") -> None:
        """Send a ping."""
        await self.send_frame(message, WSMsgType.PING)

    async def pong(self, message: bytes = b"") -> None:
        """Send a pong."""
        await self.send_frame(message, WSMsgType.PONG)

    async def send_str(self, data: str, compress: int | None = None) -> None:
        """Send a text."""
        if not isinstance(data, str):
            raise TypeError(f"data argument must be str ({type(data)!r})")
        await self.send_frame(data.encode(), WSMsgType.TEXT, compress)

    async def send_bytes(self, data: bytes, compress: int | None = None) -> None:
        """Send bytes."""
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"data argument must be byte-ish ({type(data)!r})")
        await self.send_frame(data, WSMsgType.BINARY, compress)

    async def send_json(
        self,
        data: Any,
        compress: int | None = None,
        *,
        dumps: Callable[[Any], str] = json_module.dumps,
    ) -> None:
        """Send a text of JSON."""
        await self.send_str(dumps(data), compress)

    async def send_json_bytes(
        self, data: Any, compress: int | None = None, *, dumps: Callable[[Any], bytes]
    ) -> None:
        """Send JSON as bytes, which `dumps` makes."""
        await self.send_bytes(dumps(data), compress)

    async def close(self, *, code: int = WSCloseCode.OK, message: bytes = b"") -> bool:
        """Close the WebSocket and wait for the peer's answer; False if it was closed already."""
        if self._receiving and not self._closing:
            # Another task receives: it is told first.
            self._receiver_left = self._loop.create_future()
            self._set_closing()
            self._socket.push(_CLOSING)
            await self._receiver_left
        if self._closed:
            return False
        self._set_closed()
        text = message.encode() if isinstance(message, str) else message
        try:
            try:
                data = code.to_bytes(2, "big") + text
                await self.send_frame(data, WSMsgType.CLOSE)
            finally:
                self._close_sent = True
            while not self._close_code:
                async with asyncio.timeout(self._timeout.ws_close):
                    answer = await self._socket.read()
                if answer.type is WSMsgType.CLOSE:
                    self._close_code = answer.data
                    break
        except asyncio.CancelledError:
            self._close_code = WSCloseCode.ABNORMAL_CLOSURE
            raise
        except Exception as error:
            self._close_code = WSCloseCode.ABNORMAL_CLOSURE
            lost = isinstance(error, ServerDisconnectedError)
            self._exception = EofStream() if lost else error
        finally:
            self._response.close()
        return True

    # Receiving.

    async def receive(self, timeout: float | None = None) -> WSMessage:
        """The next message; of kind CLOSE, CLOSING, CLOSED or ERROR at the end.

        `timeout` in seconds goes before the WebSocket's own; TimeoutError.
        """
        limit = timeout or self._timeout.ws_receive
        while True:
            if self._receiving:
                raise RuntimeError("Concurrent call to receive() is not allowed")
            if self._closed:
                return _CLOSED
            if self._closing:
                await self.close()
                return _CLOSED
            try:
                message: WSMessage = await self._next(limit)
            except (asyncio.CancelledError, TimeoutError):
                self._close_code = WSCloseCode.ABNORMAL_CLOSURE
                raise
            except ServerDisconnectedError:
                await self.close()
                return _CLOSED
            except ClientError:
                return self._lost()
            except WebSocketError as error:
                self._close_code = error.code
                await self.close(code=error.code)
                return WSMessage(WSMsgType.ERROR, error, None)
            except Exception as error:
                self._exception = error
                self._set_closing()
                self._close_code = WSCloseCode.ABNORMAL_CLOSURE
                await self.close()
                return WSMessage(WSMsgType.ERROR, error, None)
            if not await self._handled(message):
                return message

    async def _next(self, limit: float | None) -> Any:
        self._receiving = True
        try:
            if not limit:
                return await self._socket.read()
            async with asyncio.timeout(limit):
                return await self._socket.read()
        finally:
            self._receiving = False
            waiting = self._receiver_left
            if waiting is not None and not waiting.done():
                waiting.set_result(None)

    def _lost(self) -> WSMessage:
        self._set_closed()
        self._close_code = WSCloseCode.ABNORMAL_CLOSURE
        return _CLOSED

    async def _handled(self, message: WSMessage) -> bool:
        """Do what the message asks for; returns whether the program does not see it."""
        kind = message.type
        if kind is WSMsgType.PING and self._autoping:
            await self.pong(message.data)
            return True
        if kind is WSMsgType.PONG and self._autoping:
            return True
        if kind is WSMsgType.CLOSE:
            self._set_closing()
            self._close_code = message.data
            if not self._closed and self._autoclose:
                await self.close()
        elif kind is WSMsgType.CLOSING:
            self._set_closing()
        return False

    async def _receive_kind(self, kind: WSMsgType, timeout: float | None) -> Any:
        message = await self.receive(timeout)
        if message.type is not kind:
            raise WSMessageTypeError(
                f"Received message {message.type}:{message.data!r} is not WSMsgType.{kind.name}"
            )
        return message.data

    async def receive_str(self, *, timeout: float | None = None) -> str:
        """The next message, which is a text; WSMessageTypeError."""
        data: str = await self._receive_kind(WSMsgType.TEXT, timeout)
        return data

    async def receive_bytes(self, *, timeout: float | None = None) -> bytes:
        """The next message, which is bytes; WSMessageTypeError."""
        data: bytes = await self._receive_kind(WSMsgType.BINARY, timeout)
        return data

    async def receive_json(
        self, *, loads: Callable[[str], Any] = json_module.loads, timeout: float | None = None
    ) -> Any:
        """The next message, which is a text of JSON."""
        return loads(await self.receive_str(timeout=timeout))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WSMessage:
        message = await self.receive()
        if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED):
            raise StopAsyncIteration
        return message

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()
