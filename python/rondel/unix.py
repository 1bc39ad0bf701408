"""Unix sockets: create_unix_connection() and create_unix_server().

The transports are those of TCP. What differs is where a server is found: in the file system, where
somebody has to clean up, or under an abstract name (a zero byte first), where the kernel does.
"""

import asyncio
import errno
import os
import socket
import ssl as ssl_module
import stat
import sys
from typing import TYPE_CHECKING, Any, cast

from .connecting import Connecting, ProtocolFactory, _check_ssl_arguments, logger
from .server import Server

if TYPE_CHECKING:
    from .loop import Loop

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]


class Unix(Connecting):
    """Clients and servers of Unix stream sockets."""

    def __init__(self) -> None:
        super().__init__()
        # The inode of each server's file tells whether it is still the server's.
        self._unix_server_sockets: dict[socket.socket, int] = {}

    async def create_unix_connection(
        self,
        protocol_factory: ProtocolFactory,
        path: Path | None = None,
        *,
        ssl: bool | ssl_module.SSLContext | None = None,
        sock: socket.socket | None = None,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> tuple[asyncio.Transport, Any]:
        """Connect to a Unix stream server; return the transport and the protocol.

        Either the ``path`` of the server or a connected ``sock``. Raises OSError when nobody
        listens there.
        """
        if ssl and server_hostname is None:
            raise ValueError("you have to pass server_hostname when using ssl")
        _check_ssl_arguments(
            ssl,
            server_hostname=server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        _check_path_or_sock(path, sock, "no path and sock were specified")
        if path is not None:
            path = os.fspath(path)
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.setblocking(False)
                await self.sock_connect(sock, path)
            except BaseException:
                sock.close()
                raise
        return await self._transport_for(
            cast("socket.socket", sock),
            protocol_factory,
            ssl,
            server_hostname=server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )

    async def create_unix_server(  # type: ignore[override]
        self,
        protocol_factory: ProtocolFactory,
        path: Path | None = None,
        *,
        sock: socket.socket | None = None,
        backlog: int = 100,
        ssl: ssl_module.SSLContext | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        start_serving: bool = True,
        **kwargs: Any,
    ) -> Server:
        """Listen for connections on a Unix stream socket; return the server.

        A socket left behind at ``path`` is removed first. From Python 3.13 on, the server removes
        its own when it is closed, unless ``cleanup_socket=False`` is given. Raises OSError when
        the address cannot be bound.
        """
        cleanup_socket = _take_cleanup_socket(kwargs)
        if isinstance(ssl, bool):
            raise TypeError("ssl argument must be an SSLContext or None")
        _check_ssl_arguments(
            ssl,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        _check_path_or_sock(path, sock, "path was not specified, and no sock specified")
        if path is not None:
            sock = _bound(os.fspath(path))
        listening = cast("socket.socket", sock)
        if cleanup_socket:
            self._remember_file(listening)
        listening.setblocking(False)

        server = Server(
            cast("Loop", self),
            [listening],
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
        return server

    def _remember_file(self, sock: socket.socket) -> None:
        address = sock.getsockname()
        if is_abstract(address):
            return
        try:
            self._unix_server_sockets[sock] = os.stat(address).st_ino
        except FileNotFoundError:
            pass

    def _stop_serving(self, sock: socket.socket) -> None:
        inode = self._unix_server_sockets.pop(sock, None)
        path = sock.getsockname() if inode is not None else None
        super()._stop_serving(sock)
        if path is None:
            return
        try:
            if os.stat(path).st_ino == inode:
                os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as exc:
            logger.error("Unable to clean up listening UNIX socket %r: %r", path, exc)


def is_abstract(address: str | bytes) -> bool:
    """Whether a Unix socket's address is a name in the abstract namespace, or none at all."""
    return address[:1] in ("", b"", "\0", b"\0")


def remove_stale_socket(path: str | bytes) -> None:
    """Remove the file of a Unix socket whose owner is gone; anything else is left where it is."""
    try:
        if stat.S_ISSOCK(os.stat(path).st_mode):
            os.remove(path)
    except FileNotFoundError:
        pass
    except OSError as exc:
        # The directory may allow nothing but to make the socket, which is then tried.
        logger.error("Unable to check or remove stale UNIX socket %r: %r", path, exc)


def _bound(path: str | bytes) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if not is_abstract(path):
            remove_stale_socket(path)
        sock.bind(path)
    except BaseException as exc:
        sock.close()
        if isinstance(exc, OSError) and exc.errno == errno.EADDRINUSE:
            message = f"Address {path!r} is already in use"
            raise OSError(errno.EADDRINUSE, message) from None
        raise
    return sock


def _take_cleanup_socket(kwargs: dict[str, Any]) -> bool:
    since_3_13 = sys.version_info >= (3, 13)
    cleanup_socket = kwargs.pop("cleanup_socket", True) if since_3_13 else False
    for name in kwargs:
        raise TypeError(f"create_unix_server() got an unexpected keyword argument {name!r}")
    return bool(cleanup_socket)


def _check_path_or_sock(path: Path | None, sock: socket.socket | None, neither: str) -> None:
    if path is not None:
        if sock is not None:
            raise ValueError("path and sock can not be specified at the same time")
        return
    if sock is None:
        raise ValueError(neither)
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        raise ValueError(f"A UNIX Domain Stream Socket was expected, got {sock!r}")
