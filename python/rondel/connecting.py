"""Making connections and servers: create_connection(), create_server(), sock_connect().

This runs once per connection; what follows on the connection is native.
"""

import asyncio
import collections
import collections.abc
import errno
import functools
import itertools
import logging
import socket
import ssl as ssl_module
import sys
from asyncio import staggered
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from .executor import AddrInfo, is_literal
from .server import Server
from .tls import Tls

if TYPE_CHECKING:
    from .loop import Loop

logger = logging.getLogger("asyncio")

ProtocolFactory = Callable[[], asyncio.BaseProtocol]
Pair = tuple[asyncio.Transport, Any]


class Connecting(Tls):
    """TCP clients and servers, plain and over TLS."""

    async def create_connection(
        self,
        protocol_factory: ProtocolFactory,
        host: str | None = None,
        port: int | str | None = None,
        *,
        ssl: bool | ssl_module.SSLContext | None = None,
        family: int = 0,
        proto: int = 0,
        flags: int = 0,
        sock: socket.socket | None = None,
        local_addr: tuple[str, int] | None = None,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        happy_eyeballs_delay: float | None = None,
        interleave: int | None = None,
        all_errors: bool = False,
    ) -> Pair:
        """Connect to a stream server; return the transport and the protocol.

        Either ``host`` and ``port`` or a connected ``sock``. With ``happy_eyeballs_delay``
        (seconds) the addresses of a host are raced as RFC 8305 describes. Raises OSError when no
        address could be connected to (with ``all_errors``, an ExceptionGroup of all errors).

        ``ssl`` is a context, or True for ssl.create_default_context(). The certificate must be for
        ``server_hostname``, by default ``host``. A handshake that takes longer than
        ``ssl_handshake_timeout`` seconds (default 60) raises ConnectionAbortedError, one that
        fails ssl.SSLError; a shutdown has ``ssl_shutdown_timeout`` seconds (default 30).
        """
        _check_ssl_arguments(
            ssl,
            server_hostname=server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        if ssl:
            if server_hostname is None and not host:
                raise ValueError("You must set server_hostname when using ssl without a host")
            if server_hostname is None:
                server_hostname = host
        if sock is not None:
            _refuse_ssl_socket(sock)
        has_options = ssl or sock or local_addr or proto or flags or all_errors
        if not has_options and happy_eyeballs_delay is None and self._connects_natively():
            connecting = self._create_connection(protocol_factory, host, port, family)
            if connecting is not None:
                return cast(Pair, await connecting)
        if happy_eyeballs_delay is not None and interleave is None:
            interleave = 1

        if host is not None or port is not None:
            if sock is not None:
                raise ValueError("host/port and sock can not be specified at the same time")
            resolve = functools.partial(
                self._resolve, family=family, type=socket.SOCK_STREAM, proto=proto, flags=flags
            )
            infos = await resolve((host, port))
            local_infos = await resolve(local_addr) if local_addr is not None else None
            if not infos or local_infos == []:
                raise OSError("getaddrinfo() returned empty list")
            if interleave:
                infos = _interleave(infos, interleave)
            sock = await self._connect_any(infos, local_infos, happy_eyeballs_delay, all_errors)
        elif sock is None:
            raise ValueError("host and port was not specified and no sock specified")
        elif sock.type != socket.SOCK_STREAM:
            raise ValueError(f"A Stream Socket was expected, got {sock!r}")

        transport, protocol = await self._transport_for(
            sock,
            protocol_factory,
            ssl,
            server_hostname=server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        if self.get_debug():
            shown = transport.get_extra_info("socket")
            logger.debug("%r connected to %s:%r: (%r, %r)", shown, host, port, transport, protocol)
        return transport, protocol

    def _connects_natively(self) -> bool:
        """Whether nobody has to see the steps: neither debug mode nor an override of one."""
        return (
            not self.get_debug()
            and type(self).sock_connect is _SOCK_CONNECT
            and type(self)._make_socket_transport is _MAKE_TRANSPORT
            and self.__dict__.keys().isdisjoint(_STEPS)
        )

    async def connect_accepted_socket(  # type: ignore[override]
        self,
        protocol_factory: ProtocolFactory,
        sock: socket.socket,
        *,
        ssl: ssl_module.SSLContext | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> Pair:
        """Make a transport of a connection that the program accepted itself."""
        if sock.type != socket.SOCK_STREAM:
            raise ValueError(f"A Stream Socket was expected, got {sock!r}")
        _check_ssl_arguments(
            ssl,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        _refuse_ssl_socket(sock)
        transport, protocol = await self._transport_for(
            sock,
            protocol_factory,
            ssl,
            server_side=True,
            server_hostname="",
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        if self.get_debug():
            shown = transport.get_extra_info("socket")
            logger.debug("%r handled: (%r, %r)", shown, transport, protocol)
        return transport, protocol

    async def _transport_for(
        self,
        sock: socket.socket,
        protocol_factory: ProtocolFactory,
        ssl: bool | ssl_module.SSLContext | None = None,
        **tls: Any,
    ) -> Pair:
        """Wait for the connection to be made, over TLS with ``ssl``."""
        transport: asyncio.Transport
        try:
            sock.setblocking(False)
            protocol = protocol_factory()
            waiter = self.create_future()
            if ssl:
                context = None if isinstance(ssl, bool) else ssl
                transport = self._make_ssl_transport(sock, protocol, context, waiter, **tls)
            else:
                transport = self._make_socket_transport(sock, protocol, waiter)
        except BaseException:
            sock.close()  # nobody else will
            raise
        try:
            await waiter
        except BaseException:
            transport.close()
            del waiter  # its exception's traceback holds this frame
            raise
        return transport, protocol

    async def _resolve(
        self,
        address: Any,
        *,
        family: int = 0,
        type: int = socket.SOCK_STREAM,
        proto: int = 0,
        flags: int = 0,
    ) -> list[AddrInfo]:
        """Addresses for a host and port, through the loop's getaddrinfo() unless it is literal."""
        host, port = address[:2]
        info = _literal_info(host, port, family, type, proto, *address[2:])
        if info is not None:
            return [info]
        return await self.getaddrinfo(
            host, port, family=family, type=type, proto=proto, flags=flags
        )

    async def _connect_any(
        self,
        infos: list[AddrInfo],
        local_infos: list[AddrInfo] | None,
        delay: float | None,
        all_errors: bool,
    ) -> socket.socket:
        errors: list[list[OSError]] = []
        sock: socket.socket | None = None
        if delay is None:
            for info in infos:
                try:
                    sock = await self._connect_one(errors, info, local_infos)
                    break
                except OSError:
                    continue
        else:
            attempts = (
                functools.partial(self._connect_one, errors, info, local_infos) for info in infos
            )
            sock = (await staggered.staggered_race(attempts, delay, loop=cast("Loop", self)))[0]
        if sock is not None:
            return sock
        try:
            raise _combined([error for attempt in errors for error in attempt], all_errors)
        finally:
            # The traceback of what was raised holds this frame, and what the race used holds the
            # lists: without this the exception would be part of a cycle.
            for attempt in errors:
                attempt.clear()
            errors.clear()

    async def _connect_one(
        self,
        errors: list[list[OSError]],
        info: AddrInfo,
        local_infos: list[AddrInfo] | None,
    ) -> socket.socket:
        mine: list[OSError] = []
        errors.append(mine)
        family, type_, proto, _, address = info
        sock = None
        try:
            sock = socket.socket(family=family, type=type_, proto=proto)
            sock.setblocking(False)
            if local_infos is not None:
                _bind_any(sock, family, local_infos, mine)
            await self.sock_connect(sock, address)
            return sock
        except BaseException as exc:
            if isinstance(exc, OSError):
                mine.append(exc)
            if sock is not None:
                sock.close()
            raise
        finally:
            errors, mine = [], []

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        """Connect a socket of the program's to an address; a host name is resolved first."""
        _refuse_ssl_socket(sock)
        if self.get_debug() and sock.gettimeout() != 0:
            raise ValueError("the socket must be non-blocking")
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            infos = await self._resolve(
                address, family=sock.family, type=sock.type, proto=sock.proto
            )
            address = infos[0][4]
        await self._sock_connect(sock, address)

    async def create_server(  # type: ignore[override]
        self,
        protocol_factory: ProtocolFactory,
        host: str | Sequence[str] | None = None,
        port: int | str | None = None,
        *,
        family: int = socket.AF_UNSPEC,
        flags: int = socket.AI_PASSIVE,
        sock: socket.socket | None = None,
        backlog: int = 100,
        ssl: ssl_module.SSLContext | None = None,
        reuse_address: bool | None = None,
        reuse_port: bool | None = None,
        keep_alive: bool | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        start_serving: bool = True,
    ) -> Server:
        """Listen for stream connections; return the server.

        ``host`` may be a sequence of hosts; None or "" means all interfaces. Raises OSError when
        an address cannot be bound. With ``ssl`` connections are TLS connections; the protocol
        knows of one when its handshake is done, within ``ssl_handshake_timeout`` seconds.
        """
        if isinstance(ssl, bool):
            raise TypeError("ssl argument must be an SSLContext or None")
        _check_ssl_arguments(
            ssl is not None,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        if sock is not None:
            _refuse_ssl_socket(sock)

        if host is not None or port is not None:
            if sock is not None:
                raise ValueError("host/port and sock can not be specified at the same time")
            infos = await self._resolve_hosts(host, port, family, flags)
            options = [socket.SO_REUSEADDR] if reuse_address is not False else []
            if keep_alive:
                options.append(socket.SO_KEEPALIVE)
            sockets = self._bind_all(infos, options, bool(reuse_port))
        elif sock is None:
            raise ValueError("Neither host/port nor sock were specified")
        elif sock.type != socket.SOCK_STREAM:
            raise ValueError(f"A Stream Socket was expected, got {sock!r}")
        else:
            sockets = [sock]
        for listening in sockets:
            listening.setblocking(False)

        server = Server(
            cast("Loop", self),
            sockets,
            protocol_factory,
            backlog,
            ssl,
            ssl_handshake_timeout,
            ssl_shutdown_timeout,
        )
        if start_serving:
            server._start_serving()
            # One turn, after which connections are accepted.
            await asyncio.sleep(0)
        if self.get_debug():
            logger.info("%r is serving", server)
        return server

    def _stop_serving(self, sock: socket.socket) -> None:
        """Close a listening socket; its listener has stopped."""
        sock.close()

    async def _resolve_hosts(self, host: Any, port: Any, family: int, flags: int) -> list[AddrInfo]:
        if host == "":
            hosts: Iterable[str | None] = [None]
        elif isinstance(host, str) or not isinstance(host, collections.abc.Iterable):
            hosts = [host]
        else:
            hosts = host
        found = await asyncio.gather(*[self._resolve_host(h, port, family, flags) for h in hosts])
        # Each address once, also when several hosts resolve to it; in order, unlike a set.
        return list(dict.fromkeys(itertools.chain.from_iterable(found)))

    async def _resolve_host(self, host: Any, port: Any, family: int, flags: int) -> list[AddrInfo]:
        infos = await self._resolve((host, port), family=family, flags=flags)
        if not infos:
            raise OSError(f"getaddrinfo({host!r}) returned empty list")
        return infos

    def _bind_all(
        self, infos: list[AddrInfo], options: list[int], reuse_port: bool
    ) -> list[socket.socket]:
        sockets: list[socket.socket] = []
        try:
            for family, type_, proto, _, address in infos:
                try:
                    sock = socket.socket(family, type_, proto)
                except OSError:
                    # The system has no such family.
                    if self.get_debug():
                        logger.warning(
                            "create_server() failed to create socket.socket(%r, %r, %r)",
                            family,
                            type_,
                            proto,
                            exc_info=True,
                        )
                    continue
                sockets.append(sock)
                for option in options:
                    sock.setsockopt(socket.SOL_SOCKET, option, True)
                if reuse_port and family in (socket.AF_INET, socket.AF_INET6):
                    _set_reuse_port(sock)
                if family == socket.AF_INET6:
                    # Else the socket would take the IPv4 port too, which has its own.
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, True)
                try:
                    sock.bind(address)
                except OSError as exc:
                    message = _bind_error(address, exc)
                    if exc.errno != errno.EADDRNOTAVAIL or sys.version_info < (3, 13):
                        raise OSError(exc.errno, message) from None
                    # The family is known but not enabled.
                    sockets.pop().close()
                    self._warn_in_debug(message)
            if not sockets:
                tried = [info[4] for info in infos]
                raise OSError(f"could not bind on any address out of {tried!r}")
        except BaseException:
            for sock in sockets:
                sock.close()
            raise
        return sockets

    def _warn_in_debug(self, message: str) -> None:
        if self.get_debug():
            logger.warning(message)


#: The steps of connecting that a program may replace, and what they are if it did not.
_STEPS = ("sock_connect", "_make_socket_transport")
_SOCK_CONNECT = Connecting.sock_connect
_MAKE_TRANSPORT = Connecting._make_socket_transport


def _check_ssl_arguments(ssl: object, **arguments: object) -> None:
    for name, value in arguments.items():
        if value is not None and not ssl:
            raise ValueError(f"{name} is only meaningful with ssl")


def _refuse_ssl_socket(sock: object) -> None:
    if isinstance(sock, ssl_module.SSLSocket):
        raise TypeError("Socket cannot be of type SSLSocket")


def _set_reuse_port(sock: socket.socket) -> None:
    if not hasattr(socket, "SO_REUSEPORT"):
        raise ValueError("reuse_port not supported by socket module")
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError:
        raise ValueError(
            "reuse_port not supported by socket module, SO_REUSEPORT defined but not implemented."
        ) from None


def _bind_error(address: object, exc: OSError) -> str:
    # asyncio's words, which programs show to their users and some look at.
    reason = str(exc) if sys.version_info >= (3, 13) else str(exc.strerror)
    return f"error while attempting to bind on address {address!r}: {reason.lower()}"


def _bind_any(
    sock: socket.socket, family: int, local_infos: list[AddrInfo], errors: list[OSError]
) -> None:
    """Bind to the first local address of the family that works."""
    for local_family, _, _, _, address in local_infos:
        if local_family != family:
            continue
        try:
            sock.bind(address)
            return
        except OSError as exc:
            errors.append(OSError(exc.errno, _bind_error(address, exc)))
    if errors:
        raise errors.pop()
    raise OSError(f"no matching local address with {family=} found")


def _combined(errors: list[OSError], all_errors: bool) -> Exception:
    """The one exception that tells about all failed attempts."""
    if not errors:
        return TimeoutError("create_connection failed")
    if all_errors:
        return ExceptionGroup("create_connection failed", errors)
    if all(str(error) == str(errors[0]) for error in errors):
        return errors[0]
    return OSError("Multiple exceptions: " + ", ".join(str(error) for error in errors))


def _interleave(infos: list[AddrInfo], first: int) -> list[AddrInfo]:
    """Alternate between address families, with ``first`` of the first family before that."""
    families: dict[int, list[AddrInfo]] = collections.defaultdict(list)
    for info in infos:
        families[info[0]].append(info)
    groups = list(families.values())
    head = groups[0][: first - 1] if first > 1 else []
    groups[0] = groups[0][len(head) :]
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*groups))
    return head + [info for info in rounds if info is not None]


def _literal_info(
    host: Any, port: Any, family: int, type_: int, proto: int, flowinfo: int = 0, scope_id: int = 0
) -> AddrInfo | None:
    """What getaddrinfo() would say of an address that needs no look-up, or None."""
    if type_ & 0xF == socket.SOCK_STREAM:
        proto = proto or socket.IPPROTO_TCP
    elif type_ & 0xF == socket.SOCK_DGRAM:
        proto = proto or socket.IPPROTO_UDP
    else:
        return None
    if proto not in (0, socket.IPPROTO_TCP, socket.IPPROTO_UDP):
        return None
    if port is None or port in ("", b""):
        port = 0
    try:
        port = int(port)
    except (TypeError, ValueError):
        return None  # a service name
    if isinstance(host, bytes):
        host = host.decode("idna")
    if not is_literal(host):
        return None
    family_of_host = socket.AF_INET6 if ":" in host else socket.AF_INET
    if family not in (socket.AF_UNSPEC, family_of_host):
        return None
    if family_of_host == socket.AF_INET6:
        return family_of_host, type_, proto, "", (host, port, flowinfo, scope_id)
    return family_of_host, type_, proto, "", (host, port)
