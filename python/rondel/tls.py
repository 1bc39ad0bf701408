"""TLS connections: making their transports, and loop.start_tls()."""

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING, Any, cast

from ._rondel import StreamReader, TLSProtocol, TLSTransport
from .subprocesses import Subprocesses

if TYPE_CHECKING:
    from .loop import Loop
    from .server import Server


class Tls(Subprocesses):
    """TLS over a socket, and over a transport that is there already."""

    def _make_ssl_transport(
        self,
        rawsock: socket.socket,
        protocol: asyncio.BaseProtocol,
        sslcontext: ssl.SSLContext | None,
        waiter: asyncio.Future[Any] | None = None,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        extra: dict[str, Any] | None = None,
        server: "Server | None" = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> TLSTransport:
        layer = TLSProtocol(
            cast("Loop", self),
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        self._make_socket_transport(rawsock, layer, extra=extra, server=server)
        return layer._app_transport

    async def start_tls(
        self,
        transport: asyncio.BaseTransport,
        protocol: asyncio.BaseProtocol,
        sslcontext: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> TLSTransport:
        """Start TLS on a connection; return the transport that ``protocol`` uses from now on.

        What a StreamReader has received but nobody has read yet is taken as the beginning of what
        the peer says in TLS. Raises ssl.SSLError when the handshake fails, and
        ConnectionAbortedError when it takes longer than ``ssl_handshake_timeout`` seconds
        (default 60). TypeError for a transport that TLS cannot run over.
        """
        if not isinstance(sslcontext, ssl.SSLContext):
            raise TypeError(
                f"sslcontext is expected to be an instance of ssl.SSLContext, got {sslcontext!r}"
            )
        if not getattr(transport, "_start_tls_compatible", False):
            raise TypeError(f"transport {transport!r} is not supported by start_tls()")
        below = cast("asyncio.Transport", transport)
        waiter = self.create_future()
        layer = TLSProtocol(
            cast("Loop", self),
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            call_connection_made=False,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        above = layer._app_transport
        # Nothing may come before the protocol knows its transport.
        below.pause_reading()
        reader = getattr(protocol, "_stream_reader", None)
        if isinstance(reader, asyncio.StreamReader):
            _take_over(reader, layer)
        below.set_protocol(layer)
        started = self.call_soon(layer.connection_made, below)
        resumed = self.call_soon(below.resume_reading)
        try:
            await waiter
        except BaseException:
            below.close()
            started.cancel()
            resumed.cancel()
            del waiter  # its exception's traceback holds this frame
            raise
        if isinstance(reader, asyncio.StreamReader) and _transport_of(reader) is below:
            # CPython 3.14 does this in StreamWriter.start_tls(). Before, the reader went on to
            # pause and resume the transport below.
            reader._transport = above  # type: ignore[attr-defined]
        return above


def _transport_of(reader: asyncio.StreamReader) -> object:
    return getattr(reader, "_transport", None)


def _take_over(reader: asyncio.StreamReader, layer: TLSProtocol) -> None:
    """Move what the reader holds into the TLS input."""
    if isinstance(reader, StreamReader):
        layer._incoming.write(reader._take_over())
        return
    buffer: bytearray = reader._buffer  # type: ignore[attr-defined]
    if buffer:
        layer._incoming.write(buffer)
        buffer.clear()
    # The transport below is resumed in any case.
    reader._paused = False  # type: ignore[attr-defined]
