"""Certificates, and a TLS peer that needs no loop."""

import asyncio
import contextlib
import datetime
import functools
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple, TypeVar

import trustme
from support import Recorder, tcp_pair

T = TypeVar("T")

NAME = "localhost"


@functools.cache
def authority() -> trustme.CA:
    """The certificate authority of the tests; its key never leaves the process."""
    return trustme.CA()


@functools.cache
def certificate(name: str = NAME, expired: bool = False) -> trustme.LeafCert:
    """A certificate of the authority's for a host name."""
    if not expired:
        return authority().issue_cert(name, "127.0.0.1")
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    return authority().issue_cert(name, not_before=now - 10 * day, not_after=now - 5 * day)


def server_context(name: str = NAME, *, expired: bool = False) -> ssl.SSLContext:
    """A server's context with a certificate for the name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate(name, expired).configure_cert(context)
    return context


def client_context(*, trust: bool = True) -> ssl.SSLContext:
    """A client's context that verifies certificates; with trust, the authority's are good."""
    context = ssl.create_default_context()
    if trust:
        authority().configure_trust(context)
    return context


class Peer:
    """One end of a TLS connection over a plain non-blocking socket."""

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        *,
        server_side: bool = True,
        server_hostname: str | None = None,
    ) -> None:
        self.sock = sock
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.object = context.wrap_bio(
            self.incoming, self.outgoing, server_side=server_side, server_hostname=server_hostname
        )

    async def flush(self) -> None:
        """Send what TLS has to say."""
        data = self.outgoing.read()
        while data:
            try:
                data = data[self.sock.send(data) :]
            except BlockingIOError:
                await asyncio.sleep(0.001)

    async def step(self, operation: Callable[..., T], *args: Any) -> T:
        """Do a TLS operation to its end."""
        while True:
            try:
                result = operation(*args)
            except ssl.SSLWantReadError:
                await self.flush()
                await self.receive()
            else:
                await self.flush()
                return result

    async def receive(self) -> None:
        """Take ciphertext from the socket; ConnectionError at its end."""
        while True:
            try:
                data = self.sock.recv(1 << 16)
            except BlockingIOError:
                await asyncio.sleep(0.001)
                continue
            if not data:
                raise ConnectionError("the peer has closed without a close_notify")
            self.incoming.write(data)
            return

    async def handshake(self) -> None:
        await self.step(self.object.do_handshake)

    async def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[await self.step(self.object.write, view[: 1 << 18]) :]

    async def read(self, count: int) -> bytes:
        """Read exactly count bytes, or up to the peer's close_notify."""
        out = bytearray()
        while len(out) < count:
            try:
                chunk = await self.step(self.object.read, min(1 << 18, count - len(out)))
            except ssl.SSLZeroReturnError:
                break
            if not chunk:
                break
            out += chunk
        return bytes(out)

    async def unwrap(self) -> None:
        """Exchange close_notify."""
        await self.step(self.object.unwrap)

    def notify(self) -> bytes:
        """The ciphertext of a close_notify, unsent."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.object.unwrap()
        return self.outgoing.read()


class TlsEnds(NamedTuple):
    """A transport on the loop under test and the peer at its other end."""

    transport: asyncio.Transport
    protocol: Any
    peer: Peer


@contextlib.asynccontextmanager
async def connected_tls(
    protocol: Any = None, *, small: bool = False, **options: Any
) -> AsyncIterator[TlsEnds]:
    """A TLS client of the running loop, connected to a peer."""
    loop = asyncio.get_running_loop()
    protocol = Recorder() if protocol is None else protocol
    with tcp_pair(small=small) as (near, far):
        peer = Peer(far, server_context())
        shaking = asyncio.ensure_future(peer.handshake())
        transport, _ = await loop.create_connection(
            lambda: protocol, sock=near, ssl=client_context(), server_hostname=NAME, **options
        )
        await shaking
        try:
            yield TlsEnds(transport, protocol, peer)
        finally:
            transport.abort()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
