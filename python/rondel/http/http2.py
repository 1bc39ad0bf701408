"""HTTP/2: connections that are shared by exchanges."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING

from .._rondel import Http2Connection, Http2Exchange, HttpConnection

if TYPE_CHECKING:
    from .connector import ConnectionKey

Made = HttpConnection | Http2Exchange
_REMEMBERED = 1024


class SharedConnections:
    """A connector's connections that speak HTTP/2.

    Which protocol a server speaks is known when the first connection to it is made. Until then, and
    while a connection of HTTP/2 is being made, others who want one wait for it.
    """

    def __init__(self) -> None:
        self._connections: dict[ConnectionKey, list[Http2Connection]] = {}
        self._dials: dict[ConnectionKey, asyncio.Future[None]] = {}
        # Servers that were found to speak HTTP/1.1.
        self._others: set[ConnectionKey] = set()

    def __iter__(self) -> Iterator[Http2Connection]:
        for connections in list(self._connections.values()):
            yield from connections

    def __bool__(self) -> bool:
        return bool(self._connections)

    def take(self, key: ConnectionKey) -> Http2Exchange | None:
        """An exchange on a connection that has room for one."""
        connections = self._connections.get(key)
        if not connections:
            return None
        for connection in connections:
            exchange = connection.exchange()
            if exchange is not None:
                exchange.key = key
                return exchange
        self._clean(key)
        return None

    def _clean(self, key: ConnectionKey) -> None:
        """Forget connections that take no more; their exchanges go on."""
        connections = self._connections.pop(key, [])
        if left := [one for one in connections if not one.closed]:
            self._connections[key] = left

    async def get(self, key: ConnectionKey, make: Callable[[], Awaitable[Made]]) -> Made:
        """An exchange or a connection of HTTP/1.1, new if need be."""
        if key in self._others:
            return await make()
        while True:
            exchange = self.take(key)
            if exchange is not None:
                return exchange
            dial = self._dials.get(key)
            if dial is None:
                break
            # Not cancelled with whoever waits; it is done also when that connection has failed.
            await asyncio.shield(dial)
            if key in self._others:
                return await make()
        dial = self._dials[key] = asyncio.get_running_loop().create_future()
        try:
            return await make()
        finally:
            del self._dials[key]
            dial.set_result(None)

    async def adopt(self, key: ConnectionKey, connection: Http2Connection) -> Http2Exchange:
        """Share a new connection when the server has said how; the first exchange on it."""
        try:
            await connection.opened()
            exchange = connection.exchange()
            if exchange is None:
                raise ConnectionResetError("The server has closed the HTTP/2 connection at once")
        except BaseException:
            connection.close()
            raise
        connection.key = key
        self._connections.setdefault(key, []).append(connection)
        exchange.key = key
        return exchange

    def is_other(self, key: ConnectionKey) -> None:
        """The server speaks HTTP/1.1."""
        if len(self._others) >= _REMEMBERED:
            self._others.clear()
        self._others.add(key)

    def released(self, exchange: Http2Exchange, now: float, keep: bool) -> None:
        """An exchange is over; `keep`: its connection stays for others."""
        connection = exchange.connection
        connection.idle_since = now
        if connection.active:
            return
        if not keep or connection.closed:
            connection.close()
            self._clean(connection.key)

    def sweep(self, oldest: float) -> float | None:
        """Close what has been unused since `oldest`; returns since when the next one is unused."""
        idle = []
        for connection in self:
            if connection.active:
                idle.append(oldest)
            elif connection.idle_since <= oldest or connection.closed:
                connection.close()
                self._clean(connection.key)
            else:
                idle.append(connection.idle_since)
        return min(idle, default=None)

    def close(self) -> None:
        """Close all connections."""
        connections, self._connections = list(self), {}
        for connection in connections:
            connection.close()
