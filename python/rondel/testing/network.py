"""Connections in memory, whose delays, pieces and mishaps come from the tape."""

import asyncio
import dataclasses
import errno
import itertools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..connecting import Pair, ProtocolFactory
from ..server import Server
from .transport import MemorySocket, MemoryTransport

if TYPE_CHECKING:
    from .loop import Loop

#: A host and a port, or the path of a Unix socket and None.
Address = tuple[str, int | None]

#: A server on one of these is reached by any name.
_ANY = frozenset({"", "0.0.0.0", "::"})
_FIRST_FREE_PORT = 49152


@dataclasses.dataclass(frozen=True)
class Network:
    """How the connections of a test behave, by choices of the tape's.

    A connection keeps TCP's promises: what arrives, arrives in order and unharmed.

    Args:
        latency: The least and the longest time in seconds that data is under way.
        split: The probability that what is written arrives in several pieces.
        loss: The probability that a piece is lost and sent once more: it, and all that comes after
            it, arrives ``retransmission`` seconds later.
        retransmission: See ``loss``.
        disconnect: The probability, for each piece, that the connection breaks instead: both sides
            get ConnectionResetError.
        hosts: Names with their addresses. The tape decides in which order a name's addresses are
            found. Names that are not here are addresses themselves.

    """

    latency: tuple[float, float] = (0.001, 0.01)
    split: float = 0.25
    loss: float = 0.0
    retransmission: float = 0.2
    disconnect: float = 0.0
    hosts: dict[str, Sequence[str]] = dataclasses.field(default_factory=dict)


class MemoryServer(Server):
    """A server that listens in memory."""

    _loop: "Loop"

    def _start_serving(self) -> None:
        if self._serving or self._sockets is None:
            return
        self._serving = True

    @property
    def sockets(self) -> tuple[Any, ...]:
        """Objects with ``getsockname()``; empty once the server is closed."""
        return tuple(self._sockets or ())


class Connections:
    """The servers of one loop, and the way to them."""

    def __init__(self, loop: "Loop", network: Network) -> None:
        self._loop = loop
        self.network = network
        self._servers: dict[Address, MemoryServer] = {}
        self._ports = itertools.count(_FIRST_FREE_PORT)

    def latency(self) -> float:
        """How long the next piece is under way."""
        return self._loop.tape.between(*self.network.latency)

    def addresses_of(self, host: str) -> list[str]:
        """The addresses of a name, in the order in which they are found."""
        return self._loop.tape.shuffled(self.network.hosts.get(host, [host]))

    def listen(
        self, factory: ProtocolFactory, addresses: list[Address], start_serving: bool
    ) -> MemoryServer:
        """Make a server; port 0 means a free one. OSError (EADDRINUSE) if one is taken."""
        addresses = [(host, next(self._ports) if port == 0 else port) for host, port in addresses]
        for address in addresses:
            if address in self._servers:
                text = os.strerror(errno.EADDRINUSE).lower()
                raise OSError(
                    errno.EADDRINUSE,
                    f"error while attempting to bind on address {address!r}: {text}",
                )
        sockets: list[Any] = [MemorySocket(_name(address), None) for address in addresses]
        server = MemoryServer(self._loop, sockets, factory, 100)
        self._servers.update(dict.fromkeys(addresses, server))
        if start_serving:
            server._start_serving()
        return server

    def stop_listening(self, listening: MemorySocket) -> None:
        """Free the address of a server."""
        for address in list(self._servers):
            if _name(address) == listening.getsockname():
                del self._servers[address]

    def _server_at(self, address: Address) -> MemoryServer | None:
        host, port = address
        for name in (host, *_ANY):
            server = self._servers.get((name, port))
            if server is not None and server._serving:
                return server
        return None

    async def connect(self, factory: ProtocolFactory, addresses: list[Address]) -> Pair:
        """Connect to the first of the addresses that has a server."""
        for address in addresses:
            await asyncio.sleep(self.latency() + self.latency())
            server = self._server_at(address)
            if server is not None:
                return await self._connect_to(server, factory, address)
        raise ConnectionRefusedError(
            errno.ECONNREFUSED, f"Connect call failed {_name(addresses[-1])!r}"
        )

    async def _connect_to(
        self, server: MemoryServer, factory: ProtocolFactory, address: Address
    ) -> Pair:
        here = _name(("client", next(self._ports))) if address[1] is not None else ""
        there = _name(address)
        protocol = factory()
        ours = MemoryTransport(self._loop, self, MemorySocket(here, there), protocol)
        theirs = MemoryTransport(self._loop, self, MemorySocket(there, here), server=server)
        ours.join(theirs)
        connected = self._loop.create_future()
        self._loop.call_soon(protocol.connection_made, ours)
        self._loop.call_soon(theirs.begin)
        self._loop.call_soon(_set_unless_done, connected)
        try:
            await connected
        except BaseException:
            ours.close()
            raise
        return ours, protocol


def _name(address: Address) -> Any:
    return address if address[1] is not None else address[0]


def _set_unless_done(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
