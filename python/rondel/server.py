"""The listening server that create_server() returns."""

import asyncio
import socket
import ssl
import sys
import weakref
from asyncio.trsock import TransportSocket
from collections.abc import Callable
from typing import TYPE_CHECKING

from . import _rondel

if TYPE_CHECKING:
    from .loop import Loop


class Server(asyncio.AbstractServer):
    """Listens on sockets until it is closed; an ``asyncio.Server`` in behaviour.

    Made by :meth:`rondel.Loop.create_server`.
    """

    def __init__(
        self,
        loop: "Loop",
        sockets: list[socket.socket],
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        backlog: int,
        ssl_context: ssl.SSLContext | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> None:
        self._loop = loop
        self._sockets: list[socket.socket] | None = sockets
        self._listeners: list[_rondel.Listener] = []
        # Weakly, so that a connection which the program forgot can be collected.
        self._transports: dict[int, weakref.ref[asyncio.Transport]] = {}
        self._waiters: list[asyncio.Future[None]] | None = []
        self._protocol_factory = protocol_factory
        self._backlog = backlog
        self._ssl_context = ssl_context
        self._ssl_handshake_timeout = ssl_handshake_timeout
        self._ssl_shutdown_timeout = ssl_shutdown_timeout
        self._serving = False
        self._serving_forever_fut: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} sockets={self.sockets!r}>"

    def _attach(self, transport: asyncio.Transport) -> None:
        self._transports[id(transport)] = weakref.ref(transport)

    def _detach(self, transport: asyncio.Transport) -> None:
        self._forget(id(transport))

    def _forget(self, identity: int) -> None:
        """A connection is gone; by its id(), since the transport may be gone as well."""
        self._transports.pop(identity, None)
        if not self._transports and self._sockets is None:
            self._wakeup()

    def _wakeup(self) -> None:
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    def _start_serving(self) -> None:
        if self._serving or self._sockets is None:
            return
        self._serving = True
        for sock in self._sockets:
            sock.listen(self._backlog)
            listener = _rondel.Listener(
                self._loop,
                sock,
                self._protocol_factory,
                self,
                self._backlog,
                self._ssl_context,
                self._ssl_handshake_timeout,
                self._ssl_shutdown_timeout,
            )
            listener.start()
            self._listeners.append(listener)

    def get_loop(self) -> "Loop":
        """The loop that the server belongs to."""
        return self._loop

    def is_serving(self) -> bool:
        """Whether the server accepts connections."""
        return self._serving

    @property
    def sockets(self) -> tuple[TransportSocket, ...]:
        """The listening sockets; empty once the server is closed."""
        return tuple(TransportSocket(sock) for sock in self._sockets or ())

    def close(self) -> None:
        """Stop listening. Connections stay open; see :meth:`close_clients`."""
        sockets, self._sockets = self._sockets, None
        if sockets is None:
            return
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener.stop()
        for sock in sockets:
            self._loop._stop_serving(sock)
        self._serving = False
        future, self._serving_forever_fut = self._serving_forever_fut, None
        if future is not None and not future.done():
            future.cancel()
        if not self._transports:
            self._wakeup()

    def _connected(self) -> list[asyncio.Transport]:
        found = [reference() for reference in self._transports.values()]
        return [transport for transport in found if transport is not None]

    def close_clients(self) -> None:
        """Close all connections, after what they have queued is sent."""
        for transport in self._connected():
            transport.close()

    def abort_clients(self) -> None:
        """Close all connections at once."""
        for transport in self._connected():
            transport.abort()

    async def start_serving(self) -> None:
        """Accept connections; does nothing when the server does so already."""
        self._start_serving()
        await asyncio.sleep(0)

    async def serve_forever(self) -> None:
        """Accept connections until the coroutine is cancelled, which closes the server."""
        if self._serving_forever_fut is not None:
            raise RuntimeError(f"server {self!r} is already being awaited on serve_forever()")
        if self._sockets is None:
            raise RuntimeError(f"server {self!r} is closed")
        self._start_serving()
        self._serving_forever_fut = self._loop.create_future()
        try:
            await self._serving_forever_fut
        except asyncio.CancelledError:
            try:
                self.close()
                if sys.version_info >= (3, 14):
                    self.close_clients()
                await self.wait_closed()
            finally:
                raise
        finally:
            self._serving_forever_fut = None

    async def wait_closed(self) -> None:
        """Wait until the server is closed and its connections are gone.

        On Python 3.11 this returns at once when the server is closed already, as asyncio's did.
        """
        if self._waiters is None or (sys.version_info < (3, 12) and self._sockets is None):
            return
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter
