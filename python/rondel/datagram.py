"""Datagram sockets: create_datagram_endpoint(), once per socket; what follows is native."""

import asyncio
import socket
import sys
from collections.abc import Callable
from typing import Any

from .connecting import _set_reuse_port, logger
from .unix import Unix, is_abstract, remove_stale_socket

# What one socket can be made for: family, protocol, and the addresses to bind and to connect to.
Candidate = tuple[int, int, Any, Any]


class AbstractDatagramTransport(asyncio.Transport, asyncio.DatagramTransport):
    """What isinstance() takes the native transport for; asyncio's own is a Transport too."""

    __slots__ = ()


class Datagram(Unix):
    """Endpoints of UDP, and of Unix datagram sockets."""

    async def create_datagram_endpoint(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], asyncio.DatagramProtocol],
        local_addr: tuple[str, int] | str | None = None,
        remote_addr: tuple[str, int] | str | None = None,
        *,
        family: int = 0,
        proto: int = 0,
        flags: int = 0,
        reuse_port: bool | None = None,
        allow_broadcast: bool | None = None,
        sock: socket.socket | None = None,
    ) -> tuple[asyncio.DatagramTransport, Any]:
        """Make a datagram endpoint; return the transport and the protocol.

        It is bound to ``local_addr`` and connected to ``remote_addr``, as far as these are given;
        with ``allow_broadcast`` it is not connected, but sends to ``remote_addr``. Addresses are
        (host, port) pairs, or paths when ``family`` is AF_UNIX. Or else ``sock`` is one that the
        program made. Raises OSError when no address can be used.
        """
        address = None
        if sock is not None:
            _refuse_stream_socket(sock)
            _refuse_options(
                local_addr=local_addr,
                remote_addr=remote_addr,
                family=family,
                proto=proto,
                flags=flags,
                reuse_port=reuse_port,
                allow_broadcast=allow_broadcast,
            )
            sock.setblocking(False)
        else:
            candidates = await self._datagram_candidates(
                local_addr, remote_addr, family, proto, flags
            )
            sock, address = await self._open_any(
                candidates, bool(reuse_port), bool(allow_broadcast)
            )

        try:
            protocol = protocol_factory()
            waiter = self.create_future()
            transport = self._make_datagram_transport(sock, protocol, address, waiter)
        except BaseException:
            sock.close()  # nobody else will
            raise
        if self.get_debug():
            if local_addr:
                logger.info(
                    "Datagram endpoint local_addr=%r remote_addr=%r created: (%r, %r)",
                    local_addr,
                    remote_addr,
                    transport,
                    protocol,
                )
            else:
                logger.debug(
                    "Datagram endpoint remote_addr=%r created: (%r, %r)",
                    remote_addr,
                    transport,
                    protocol,
                )
        try:
            await waiter
        except BaseException:
            transport.close()
            raise
        return transport, protocol

    async def _datagram_candidates(
        self, local_addr: Any, remote_addr: Any, family: int, proto: int, flags: int
    ) -> list[Candidate]:
        if not (local_addr or remote_addr):
            if family == 0:
                raise ValueError("unexpected address family")
            return [(family, proto, None, None)]
        if family == socket.AF_UNIX:
            for path in (local_addr, remote_addr):
                if path is not None and not isinstance(path, str):
                    raise TypeError("string is expected")
            if local_addr and not is_abstract(local_addr):
                remove_stale_socket(local_addr)
            return [(family, proto, local_addr or None, remote_addr or None)]

        locals_ = await self._datagram_addresses(local_addr, family, proto, flags)
        remotes = await self._datagram_addresses(remote_addr, family, proto, flags)
        # In the order of the look-ups; an address that was asked for must be there.
        candidates = [
            (family, proto, locals_.get((family, proto)), remotes.get((family, proto)))
            for family, proto in dict.fromkeys([*locals_, *remotes])
        ]
        usable = [
            (family, proto, local, remote)
            for family, proto, local, remote in candidates
            if not ((local_addr and local is None) or (remote_addr and remote is None))
        ]
        if not usable:
            raise ValueError("can not get address information")
        return usable

    async def _datagram_addresses(
        self, address: Any, family: int, proto: int, flags: int
    ) -> dict[tuple[int, int], Any]:
        """The last address for each family and protocol, as asyncio chooses it."""
        if address is None:
            return {}
        if not (isinstance(address, tuple) and len(address) == 2):
            raise TypeError("2-tuple is expected")
        infos = await self._resolve(
            address, family=family, type=socket.SOCK_DGRAM, proto=proto, flags=flags
        )
        if not infos:
            raise OSError("getaddrinfo() returned empty list")
        return {(info[0], info[2]): info[4] for info in infos}

    async def _open_any(
        self, candidates: list[Candidate], reuse_port: bool, allow_broadcast: bool
    ) -> tuple[socket.socket, Any]:
        """The first socket that can be made, and the address to which it sends."""
        errors: list[OSError] = []
        try:
            for family, proto, local, remote in candidates:
                sock = None
                try:
                    sock = socket.socket(family=family, type=socket.SOCK_DGRAM, proto=proto)
                    if reuse_port:
                        _set_reuse_port(sock)
                    if allow_broadcast:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                    sock.setblocking(False)
                    if local is not None:
                        sock.bind(local)
                    if remote is not None and not allow_broadcast:
                        await self.sock_connect(sock, remote)
                    return sock, remote
                except BaseException as exc:
                    if sock is not None:
                        sock.close()
                    if not isinstance(exc, OSError):
                        raise
                    errors.append(exc)
            raise errors[0]
        finally:
            # The traceback of what was raised holds this frame.
            errors = []


def _refuse_stream_socket(sock: socket.socket) -> None:
    if sys.version_info >= (3, 13):
        if sock.type == socket.SOCK_STREAM:
            raise ValueError(f"A datagram socket was expected, got {sock!r}")
    elif sock.type != socket.SOCK_DGRAM:
        raise ValueError(f"A UDP Socket was expected, got {sock!r}")


def _refuse_options(**options: object) -> None:
    given = ", ".join(f"{name}={value}" for name, value in options.items() if value)
    if given:
        raise ValueError(
            f"socket modifier keyword arguments can not be used when sock is specified. ({given})"
        )
