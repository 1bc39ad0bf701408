"""Opening a WebSocket: the request, and whether the server agrees."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import warnings
from collections.abc import Coroutine, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from multidict import CIMultiDict

from .._rondel import HttpConnection, HttpWebSocket
from .context import Deferred
from .exceptions import ClientConnectionResetError, WebSocketError, WSServerHandshakeError
from .websocket import (
    ClientWebSocketResponse,
    ClientWSTimeout,
    WSMessage,
    WSMessageTextBytes,
    WSMsgType,
)

if TYPE_CHECKING:
    from yarl import URL

    from .client import ClientSession
    from .options import BasicAuth
    from .request import Headers
    from .response import ClientResponse
    from .tls import SSLArgument

# RFC 6455, section 1.3.
_ACCEPT_KEY = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_UNSET: Any = object()
_KINDS = {kind.value: kind for kind in WSMsgType}


def _message(opcode: int, data: Any, extra: str) -> WSMessage:
    return WSMessage(_KINDS[opcode], data, extra)


def _raw_message(opcode: int, data: Any, extra: str) -> WSMessage | WSMessageTextBytes:
    if opcode == WSMsgType.TEXT:
        return WSMessageTextBytes(WSMsgType.TEXT, data, extra)
    return WSMessage(_KINDS[opcode], data, extra)


class WebSocketContext(Deferred[ClientWebSocketResponse]):
    """What `session.ws_connect()` returns: to be awaited, or entered with `async with`."""

    __slots__ = ("_websocket",)

    def __init__(self, coroutine: Coroutine[Any, Any, ClientWebSocketResponse]) -> None:
        self._coroutine = coroutine

    async def __aenter__(self) -> ClientWebSocketResponse:
        self._websocket: ClientWebSocketResponse = await self._coroutine
        return self._websocket

    async def __aexit__(self, *exc_info: object) -> None:
        await self._websocket.close()


async def connect(
    session: ClientSession,
    url: str | URL,
    *,
    method: str = "GET",
    protocols: Iterable[str] = (),
    timeout: ClientWSTimeout | float = _UNSET,
    receive_timeout: float | None = None,
    autoclose: bool = True,
    autoping: bool = True,
    heartbeat: float | None = None,
    auth: BasicAuth | None = None,
    origin: str | None = None,
    params: Any = None,
    headers: Headers | None = None,
    proxy: str | URL | None = None,
    proxy_auth: BasicAuth | None = None,
    ssl: SSLArgument | None = True,
    server_hostname: str | None = None,
    proxy_headers: Headers | None = None,
    compress: int = 0,
    max_msg_size: int = 4 * 1024 * 1024,
    decode_text: bool = True,
) -> ClientWebSocketResponse:
    """Open a WebSocket.

    `protocols`: subprotocols, the preferred one first. `heartbeat`: seconds of silence after which
    a ping is sent; without an answer in half of that the connection ends. `autoping`: pings are
    answered. `autoclose`: the peer's closing is answered. `compress`: bits of the window (9 to 15)
    for permessage-deflate, 0 for none. `max_msg_size`: messages of so many bytes are refused, 0 for
    no limit. `decode_text=False` gives texts as bytes.

    Raises WSServerHandshakeError when the server does not agree, and what a request raises.
    """
    limits = _limits(timeout, receive_timeout)
    key = base64.b64encode(os.urandom(16))
    protocols = list(protocols)
    fields = _request_fields(headers, protocols, origin, compress, key.decode())
    response = await session.start(
        method=method,
        str_or_url=url,
        params=params,
        headers=fields,
        auth=auth,
        proxy=proxy,
        proxy_auth=proxy_auth,
        ssl=ssl,
        server_hostname=server_hostname,
        proxy_headers=proxy_headers,
        _switch=101,
    )
    try:
        _check(response, key)
        chosen = _chosen_protocol(response, protocols)
        compress, forgetful = _agreed_compression(response, compress)
        connection = response.connection
        if not isinstance(connection, HttpConnection):
            raise ClientConnectionResetError("Cannot write to closing transport")
        makes = _message if decode_text else _raw_message
        arguments = (compress, forgetful, max_msg_size, decode_text)
        socket = HttpWebSocket(session.loop, connection, makes, WebSocketError, *arguments)
        connection.attach(socket)
    except BaseException:
        response.close()
        raise
    return ClientWebSocketResponse(
        response,
        connection,
        socket,
        protocol=chosen,
        timeout=limits,
        autoclose=autoclose,
        autoping=autoping,
        heartbeat=heartbeat,
        compress=compress,
        client_notakeover=forgetful,
    )


def _limits(timeout: ClientWSTimeout | float, receive: float | None) -> ClientWSTimeout:
    if timeout is _UNSET:
        limits = ClientWSTimeout(ws_close=10.0)
    elif isinstance(timeout, ClientWSTimeout):
        limits = timeout
    else:
        text = "parameter 'timeout' of type 'float' is deprecated, please use "
        text += "'timeout=ClientWSTimeout(ws_close=...)'"
        warnings.warn(text, DeprecationWarning, stacklevel=3)
        limits = ClientWSTimeout(ws_close=timeout)
    if receive is not None:
        text = "float parameter 'receive_timeout' is deprecated, please use parameter "
        text += "'timeout=ClientWSTimeout(ws_receive=...)'"
        warnings.warn(text, DeprecationWarning, stacklevel=3)
        limits = replace(limits, ws_receive=receive)
    return limits


def _request_fields(
    headers: Headers | None, protocols: list[str], origin: str | None, compress: int, key: str
) -> CIMultiDict[str]:
    fields = CIMultiDict(headers or {})
    fields.setdefault("Upgrade", "websocket")
    fields.setdefault("Connection", "Upgrade")
    fields.setdefault("Sec-WebSocket-Version", "13")
    fields["Sec-WebSocket-Key"] = key
    if protocols:
        fields["Sec-WebSocket-Protocol"] = ",".join(protocols)
    if origin is not None:
        fields["Origin"] = origin
    if compress:
        if not 9 <= compress <= 15:
            raise ValueError("Compress wbits must between 9 and 15, zlib does not support wbits=8")
        offer = "permessage-deflate; client_max_window_bits"
        if compress < 15:
            offer += f"; server_max_window_bits={compress}"
        fields["Sec-WebSocket-Extensions"] = offer
    return fields


def _handshake_error(response: ClientResponse, text: str) -> WSServerHandshakeError:
    return WSServerHandshakeError(
        response.request_info,
        response.history,
        message=text,
        status=response.status,
        headers=response.headers,
    )


def _check(response: ClientResponse, key: bytes) -> None:
    if response.status != 101:
        raise _handshake_error(response, "Invalid response status")
    headers = response.headers
    if headers.get("Upgrade", "").lower() != "websocket":
        raise _handshake_error(response, "Invalid upgrade header")
    if headers.get("Connection", "").lower() != "upgrade":
        raise _handshake_error(response, "Invalid connection header")
    digest = hashlib.sha1(key + _ACCEPT_KEY, usedforsecurity=False).digest()
    if headers.get("Sec-WebSocket-Accept", "") != base64.b64encode(digest).decode():
        raise _handshake_error(response, "Invalid challenge response")


def _chosen_protocol(response: ClientResponse, protocols: list[str]) -> str | None:
    named = response.headers.get("Sec-WebSocket-Protocol", "") if protocols else ""
    return next((name for part in named.split(",") if (name := part.strip()) in protocols), None)


_PARAMETERS = {
    "server_no_context_takeover": re.compile(r"^$"),
    "client_no_context_takeover": re.compile(r"^$"),
    "server_max_window_bits": re.compile(r"^(=\d+)?$"),
    "client_max_window_bits": re.compile(r"^(=\d+)?$"),
}


def _agreed_compression(response: ClientResponse, offered: int) -> tuple[int, bool]:
    """Bits of the window (0 without compression) and whether each message stands by itself."""
    answer = response.headers.get("Sec-WebSocket-Extensions") if offered else None
    if not answer:
        return 0, False
    for extension in answer.split(","):
        name, *parameters = [part.strip() for part in extension.split(";")]
        if name != "permessage-deflate":
            continue
        bits, forgetful = 15, False
        for parameter in parameters:
            kind, equals, value = parameter.partition("=")
            allowed = _PARAMETERS.get(kind)
            if allowed is None or not allowed.match(equals + value):
                rest = extension.partition("permessage-deflate")[2]
                raise _handshake_error(response, "Extension for deflate not supported" + rest)
            if kind == "client_max_window_bits" and value:
                bits = int(value)
                if not 9 <= bits <= 15:
                    raise _handshake_error(response, "Invalid window size")
            forgetful = forgetful or kind == "client_no_context_takeover"
        return bits, forgetful
    return 0, False
