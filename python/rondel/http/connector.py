"""Where connections come from: made, kept alive, counted, and closed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl as ssl_module
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from .._rondel import Http2Exchange, HttpConnection
from ..loop import Loop
from .exceptions import (
    ClientConnectionError,
    ClientConnectorCertificateError,
    ClientConnectorDNSError,
    ClientConnectorError,
    ClientConnectorSSLError,
    ClientError,
    ClientProxyConnectionError,
    ConnectionTimeoutError,
    UnixClientConnectorError,
)
from .fingerprint import Fingerprint
from .http2 import Made, SharedConnections
from .tls import SSLArgument, check_ssl, default_context

if TYPE_CHECKING:
    from .options import ClientTimeout
    from .proxy import Proxy
    from .tracing import Tracing

_NO_UPGRADE = (
    "The server has chosen HTTP/2, over which there is no WebSocket; give ws_connect() an "
    "SSLContext that offers http/1.1 only"
)
_NO_TUNNEL = (
    "The proxy has chosen HTTP/2, over which there is no tunnel; give the request an SSLContext "
    "that offers http/1.1 only"
)


class Resolver(Protocol):
    """Looks names up in place of the loop: aiohttp's resolvers, or anything like them."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[Any]:
        """Dictionaries whose `host` is an address; OSError."""


class ConnectionKey(NamedTuple):
    """What connections must have in common to stand in for each other."""

    host: str
    port: int | None
    is_ssl: bool
    ssl: SSLArgument
    server_hostname: str | None
    proxy: Proxy | None = None
    #: To be switched to another protocol, which is HTTP/1.1's.
    upgrade: bool = False


def _is_address(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            socket.inet_pton(family, host.partition("%")[0])
            return True
    return False


def running_loop() -> Loop:
    """The running loop; RuntimeError when there is none or it is not rondel's."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, Loop):
        raise RuntimeError(
            "rondel.http runs on rondel's event loop only (start the program with rondel.run() or "
            f"rondel.install()); this one is {type(loop).__module__}.{type(loop).__qualname__}"
        )
    return loop


class BaseConnector:
    """A pool of connections.

    `limit`: connections in use at the same time (0: no limit), `limit_per_host`: the same for one
    host, port and kind of TLS. `keepalive_timeout`: for how many seconds an unused connection is
    kept. `force_close`: keep none. On connections of HTTP/2 many requests go on at the same time:
    each counts for the limits as a connection would.
    """

    def __init__(
        self,
        *,
        keepalive_timeout: float | None = 15.0,
        force_close: bool = False,
        limit: int = 100,
        limit_per_host: int = 0,
        enable_cleanup_closed: bool = False,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        del enable_cleanup_closed, loop  # aiohttp's; the first is needless, the second implied
        self._loop = running_loop()
        self._keepalive = 15.0 if keepalive_timeout is None else keepalive_timeout
        self._force_close = force_close
        self._limit = limit
        self._limit_per_host = limit_per_host
        self._closed = False
        self._idle: dict[ConnectionKey, list[HttpConnection]] = {}
        self._all: set[HttpConnection] = set()
        self._shared = SharedConnections()
        # Slots that are taken: by connections in use and by those being made.
        self._taken = 0
        self._taken_per_host: dict[ConnectionKey, int] = {}
        self._waiters: deque[tuple[ConnectionKey, asyncio.Future[None]]] = deque()
        self._sweeper: asyncio.TimerHandle | None = None

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closed

    @property
    def force_close(self) -> bool:
        """Whether connections are closed after one request."""
        return self._force_close

    @property
    def limit(self) -> int:
        """How many connections may be in use at the same time; 0 is no limit."""
        return self._limit

    @property
    def limit_per_host(self) -> int:
        """How many connections to one host may be in use at the same time; 0 is no limit."""
        return self._limit_per_host

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._taken} in use>"

    def _has_room(self, key: ConnectionKey) -> bool:
        if self._limit and self._taken >= self._limit:
            return False
        of_host = self._limit_per_host
        return not of_host or self._taken_per_host.get(key, 0) < of_host

    def _take_slot(self, key: ConnectionKey) -> None:
        self._taken += 1
        if self._limit_per_host:
            self._taken_per_host[key] = self._taken_per_host.get(key, 0) + 1

    def _give_slot(self, key: ConnectionKey) -> None:
        self._taken -= 1
        if self._limit_per_host:
            left = self._taken_per_host[key] - 1
            if left:
                self._taken_per_host[key] = left
            else:
                del self._taken_per_host[key]
        if self._waiters:
            self._admit()

    def _admit(self) -> None:
        """Give free slots to those who have waited longest."""
        blocked = []
        while self._waiters:
            key, waiter = self._waiters.popleft()
            if waiter.done():
                continue
            if self._has_room(key):
                self._take_slot(key)
                waiter.set_result(None)
            else:
                blocked.append((key, waiter))
                if not self._limit_per_host:
                    break
        self._waiters.extendleft(reversed(blocked))

    def idle_connection(self, key: ConnectionKey) -> Made | None:
        """Take an unused connection, without waiting; None when there is none or no slot."""
        idle = self._idle.get(key)
        if not (idle or self._shared) or self._waiters or not self._has_room(key):
            return None
        connection: Made | None = self._pop(key, idle) if idle else None
        if connection is None:
            connection = self._shared.take(key)
        if connection is not None:
            self._take_slot(key)
        return connection

    def _pop(self, key: ConnectionKey, idle: list[HttpConnection]) -> HttpConnection | None:
        while idle:
            connection = idle.pop()
            if connection.reusable:
                return connection
            self._all.discard(connection)
        del self._idle[key]
        return None

    async def connect(
        self, key: ConnectionKey, timeout: ClientTimeout, tracing: Tracing | None = None
    ) -> Made:
        """Get a connection: an unused one, or a new one when a slot is free.

        Raises ConnectionTimeoutError and ClientConnectorError.
        """
        try:
            async with asyncio.timeout(timeout.connect or None):
                queued = tracing is not None and not self._can_start(key)
                if tracing is not None and queued:
                    await tracing.queued(True)
                await self._wait_for_slot(key)
                try:
                    if tracing is not None and queued:
                        await tracing.queued(False)
                    if self._closed:
                        raise ClientConnectionError("Connector is closed.")
                    idle = self._idle.get(key)
                    connection: Made | None = self._pop(key, idle) if idle else None
                    if connection is None:
                        connection = self._shared.take(key)
                    if tracing is not None:
                        connection = await self._traced(key, timeout, connection, tracing)
                    elif connection is None:
                        connection = await self._get(key, timeout)
                except BaseException:
                    self._give_slot(key)
                    raise
                return connection
        except ConnectionTimeoutError:
            raise
        except TimeoutError as error:
            raise ConnectionTimeoutError(f"Connection timeout to host {key.host}") from error

    async def _traced(
        self,
        key: ConnectionKey,
        timeout: ClientTimeout,
        idle: Made | None,
        tracing: Tracing,
    ) -> Made:
        if idle is not None:
            await tracing.reused()
            return idle
        await tracing.creating(True)
        with self._telling(key):
            await self._resolve_traced(key, tracing)
        connection = await self._get(key, timeout)
        await tracing.creating(False)
        return connection

    async def _resolve_traced(self, key: ConnectionKey, tracing: Tracing) -> None:
        """Tell how long a name takes: it is resolved here, and again while connecting."""

    def _can_start(self, key: ConnectionKey) -> bool:
        return not self._waiters and self._has_room(key)

    async def _wait_for_slot(self, key: ConnectionKey) -> None:
        if self._can_start(key):
            self._take_slot(key)
            return
        waiter = self._loop.create_future()
        self._waiters.append((key, waiter))
        try:
            await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._give_slot(key)
            raise

    @contextlib.contextmanager
    def _telling(
        self, key: ConnectionKey, kind: type[ClientConnectorError] | None = None
    ) -> Iterator[None]:
        """Makes of what goes wrong with connecting what a program is told."""
        try:
            yield
        except ClientError:
            raise
        except (ssl_module.CertificateError, ssl_module.SSLCertVerificationError) as error:
            raise ClientConnectorCertificateError(key, error) from error
        except ssl_module.SSLError as error:
            raise ClientConnectorSSLError(key, error) from error
        except socket.gaierror as error:
            raise ClientConnectorDNSError(key, error) from error
        except TimeoutError as error:
            if error.errno is None:  # not the system's own
                text = f"Connection timeout to host {key.host}"
                raise ConnectionTimeoutError(text) from error
            raise (kind(key, error) if kind else self._error(key, error)) from error
        except OSError as error:
            raise (kind(key, error) if kind else self._error(key, error)) from error

    async def _get(self, key: ConnectionKey, timeout: ClientTimeout) -> Made:
        if self._may_share(key):
            return await self._shared.get(key, lambda: self._make(key, timeout))
        return await self._make(key, timeout)

    def _may_share(self, key: ConnectionKey) -> bool:
        """Whether the server may choose HTTP/2."""
        return False

    async def _make(self, key: ConnectionKey, timeout: ClientTimeout) -> Made:
        connection = HttpConnection(self._loop)
        connection.key = key
        exchange = None
        with self._telling(key):
            async with asyncio.timeout(timeout.sock_connect or None):
                await self._open(key, connection)
                if connection.http2 is not None:
                    if key.upgrade:
                        connection.http2.close()
                        raise ClientConnectionError(_NO_UPGRADE)
                    exchange = await self._shared.adopt(key, connection.http2)
        if self._closed:
            self._shared.close()
            connection.close()
            raise ClientConnectionError("Connector is closed.")
        if exchange is not None:
            return exchange
        self._shared.is_other(key)
        self._all.add(connection)
        return connection

    def _error(self, key: ConnectionKey, error: OSError) -> ClientConnectorError:
        return ClientConnectorError(key, error)

    async def _open(self, key: ConnectionKey, connection: HttpConnection) -> None:
        raise NotImplementedError

    def release(self, connection: Made) -> None:
        """Take back a connection whose exchange is over; its slot becomes free."""
        key: ConnectionKey = connection.key
        if isinstance(connection, Http2Exchange):
            self._release_exchange(connection)
            return
        if connection.reusable and not self._force_close and not self._closed and self._keepalive:
            connection.idle_since = self._loop.time()
            idle = self._idle.get(key)
            if idle is None:
                self._idle[key] = [connection]
            else:
                idle.append(connection)
            if self._sweeper is None:
                self._sweeper = self._loop.call_later(self._keepalive, self._sweep)
        else:
            self._all.discard(connection)
            connection.close()
        self._give_slot(key)

    def _release_exchange(self, exchange: Http2Exchange) -> None:
        keep = bool(self._keepalive) and not self._force_close and not self._closed
        self._shared.released(exchange, self._loop.time(), keep)
        if keep and self._sweeper is None:
            self._sweeper = self._loop.call_later(self._keepalive, self._sweep)
        self._give_slot(exchange.key)

    def _sweep(self) -> None:
        """Close what has been unused for too long."""
        self._sweeper = None
        oldest = self._loop.time() - self._keepalive
        for key, idle in list(self._idle.items()):
            kept = []
            for connection in idle:
                if connection.reusable and connection.idle_since > oldest:
                    kept.append(connection)
                else:
                    self._all.discard(connection)
                    connection.close()
            if kept:
                self._idle[key] = kept
            else:
                del self._idle[key]
        since = [connection.idle_since for idle in self._idle.values() for connection in idle]
        if (shared := self._shared.sweep(oldest)) is not None:
            since.append(shared)
        if since:
            first = min(since)
            self._sweeper = self._loop.call_at(first + self._keepalive, self._sweep)

    async def close(self) -> None:
        """Close all connections, also those in use."""
        if self._closed:
            return
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        self._idle.clear()
        connections, self._all = self._all, set()
        for connection in connections:
            connection.close()
        self._shared.close()
        for _, waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(ClientConnectionError("Connector is closed."))
        self._waiters.clear()
        # A turn for the sockets to be closed in.
        await asyncio.sleep(0)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()


class TCPConnector(BaseConnector):
    """Connections over TCP, and over TLS where the URL says https.

    `ssl`: True checks certificates by the system's authorities, False checks nothing, a Fingerprint
    only that, and an `ssl.SSLContext` is used as it is. `family`, `local_addr`,
    `happy_eyeballs_delay` and `interleave` are those of `loop.create_connection`. Names are
    resolved by the loop's getaddrinfo, for each new connection; `use_dns_cache` and `ttl_dns_cache`
    are accepted and change nothing. A `resolver` is asked in place of getaddrinfo, and the
    addresses that it gives are tried one after the other.

    `http2`: servers are offered HTTP/2 beside HTTP/1.1 in the TLS handshake. A context of the
    program's own offers what its set_alpn_protocols() says, whatever `http2` is.
    """

    def __init__(
        self,
        *,
        ssl: SSLArgument = True,
        use_dns_cache: bool = True,
        ttl_dns_cache: int | None = 10,
        family: socket.AddressFamily = socket.AddressFamily.AF_UNSPEC,
        resolver: Resolver | None = None,
        local_addr: tuple[str, int] | None = None,
        happy_eyeballs_delay: float | None = 0.25,
        interleave: int | None = None,
        http2: bool = False,
        keepalive_timeout: float | None = 15.0,
        force_close: bool = False,
        limit: int = 100,
        limit_per_host: int = 0,
        enable_cleanup_closed: bool = False,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(
            keepalive_timeout=keepalive_timeout,
            force_close=force_close,
            limit=limit,
            limit_per_host=limit_per_host,
            enable_cleanup_closed=enable_cleanup_closed,
            loop=loop,
        )
        del ttl_dns_cache
        self._use_dns_cache = use_dns_cache
        self.ssl = check_ssl(ssl)
        self._resolver = resolver
        self._http2 = http2 and not force_close
        self._arguments: dict[str, Any] = {"family": family, "local_addr": local_addr}
        if happy_eyeballs_delay is not None:
            self._arguments["happy_eyeballs_delay"] = happy_eyeballs_delay
        if interleave is not None:
            self._arguments["interleave"] = interleave

    @property
    def family(self) -> socket.AddressFamily:
        """Of which the addresses are."""
        family: socket.AddressFamily = self._arguments["family"]
        return family

    @property
    def use_dns_cache(self) -> bool:
        """What it was made with; there is no cache."""
        return self._use_dns_cache

    def clear_dns_cache(self, host: str | None = None, port: int | None = None) -> None:
        """There is no cache that could be cleared."""

    async def _context(self, key: ConnectionKey) -> ssl_module.SSLContext | None:
        if not key.is_ssl:
            return None
        chosen = self._chosen(key)
        if isinstance(chosen, ssl_module.SSLContext):
            return chosen
        # Reading the system's authorities takes 10 ms and more: not on the loop's thread.
        http2 = self._http2 and not key.upgrade
        return await self._loop.run_in_executor(None, default_context, chosen is True, http2)

    def _chosen(self, key: ConnectionKey) -> SSLArgument:
        return self.ssl if key.ssl is True else key.ssl

    def _may_share(self, key: ConnectionKey) -> bool:
        # What a program's own context offers cannot be asked; the first connection tells.
        if not key.is_ssl or key.upgrade or self._force_close:
            return False
        return self._http2 or isinstance(self._chosen(key), ssl_module.SSLContext)

    async def _open(self, key: ConnectionKey, connection: HttpConnection) -> None:
        if key.proxy is None:
            await self._dial(key, connection)
        else:
            await self._open_through(key.proxy, key, connection)
        pinned = key.ssl if isinstance(key.ssl, Fingerprint) else self.ssl
        if key.is_ssl and isinstance(pinned, Fingerprint) and connection.transport is not None:
            try:
                pinned.check(connection.transport)
            except BaseException:
                connection.close()
                raise

    async def _open_through(
        self, proxy: Proxy, key: ConnectionKey, connection: HttpConnection
    ) -> None:
        url = proxy.url
        if proxy.is_socks:
            from .socks import connect

            context = await self._context(key)
            await connect(self._loop, proxy, key, connection, context, self._arguments)
            return
        proxy_key = ConnectionKey(
            url.raw_host or "", url.port, url.scheme == "https", key.ssl, None, upgrade=True
        )
        context = await self._context(key)
        through = connection if context is None else HttpConnection(self._loop)
        with self._telling(proxy_key, ClientProxyConnectionError):
            await self._dial(proxy_key, through)
        if context is not None:
            if through.http2 is not None:
                through.http2.close()
                raise ClientConnectionError(_NO_TUNNEL)
            from .proxy import tunnel

            await tunnel(self._loop, proxy, key, through, connection, context)

    async def _resolve_traced(self, key: ConnectionKey, tracing: Tracing) -> None:
        if key.proxy is not None or _is_address(key.host):
            return
        await tracing.resolving(key.host, True, missed=self._use_dns_cache)
        if await self._addresses(key) == [key.host]:
            await self._loop.getaddrinfo(key.host, key.port, type=socket.SOCK_STREAM)
        await tracing.resolving(key.host, False)

    async def _addresses(self, key: ConnectionKey) -> list[str]:
        """What the program's resolver says; the host itself when there is none."""
        if self._resolver is None or _is_address(key.host):
            return [key.host]
        family = self._arguments["family"]
        try:
            found = await self._resolver.resolve(key.host, key.port or 0, family=family)
        except OSError as error:
            raise ClientConnectorDNSError(key, error) from error
        if not found:
            raise ClientConnectorDNSError(key, OSError(None, "no addresses"))
        return [info["host"] for info in found]

    async def _dial(self, key: ConnectionKey, connection: HttpConnection) -> None:
        context = await self._context(key)
        *addresses, last = await self._addresses(key)
        for address in addresses:
            with contextlib.suppress(OSError):
                return await self._dial_address(address, key, connection, context)
        await self._dial_address(last, key, connection, context)

    async def _dial_address(
        self,
        address: str,
        key: ConnectionKey,
        connection: HttpConnection,
        context: ssl_module.SSLContext | None,
    ) -> None:
        await self._loop.create_connection(
            lambda: connection,
            address,
            key.port,
            ssl=context,
            server_hostname=(key.server_hostname or key.host) if context else None,
            **self._arguments,
        )


class UnixConnector(BaseConnector):
    """Connections to a Unix socket; the URLs' hosts are only named in the requests."""

    def __init__(self, path: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._path = path

    @property
    def path(self) -> str:
        """The socket's path."""
        return self._path

    def _error(self, key: ConnectionKey, error: OSError) -> ClientConnectorError:
        return UnixClientConnectorError(self._path, key, error)

    async def _open(self, key: ConnectionKey, connection: HttpConnection) -> None:
        if key.is_ssl:
            raise NotImplementedError("rondel.http does not speak TLS over Unix sockets")
        await self._loop.create_unix_connection(lambda: connection, self._path)
