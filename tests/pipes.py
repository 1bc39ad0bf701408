"""What the tests of pipes share: recording protocols, pipes with a transport at one end."""

import asyncio
import contextlib
import io
import os
from collections.abc import AsyncIterator
from typing import Any

from support import Recorder, turns


class Reader(Recorder):
    """A Recorder for transports that only read."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.ReadTransport)
        self.transport: Any = transport
        self.events.append("made")


class Writer(Recorder):
    """A Recorder for transports that only write."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self.transport: Any = transport
        self.events.append("made")


@contextlib.asynccontextmanager
async def reading(protocol: Any = None) -> AsyncIterator[tuple[Any, Any, int]]:
    """A read transport, its protocol and the descriptor of the writing end."""
    protocol = protocol or Reader()
    r, w = os.pipe()
    loop = asyncio.get_running_loop()
    transport: Any
    transport, _ = await loop.connect_read_pipe(lambda: protocol, io.FileIO(r, "r"))
    try:
        yield transport, protocol, w
    finally:
        with contextlib.suppress(OSError):
            os.close(w)
        transport.close()
        await turns(3)


@contextlib.asynccontextmanager
async def writing(protocol: Any = None) -> AsyncIterator[tuple[Any, Any, int]]:
    """A write transport, its protocol and the descriptor of the (non-blocking) reading end."""
    protocol = protocol or Writer()
    r, w = os.pipe()
    os.set_blocking(r, False)
    loop = asyncio.get_running_loop()
    transport: Any
    transport, _ = await loop.connect_write_pipe(lambda: protocol, io.FileIO(w, "w"))
    try:
        yield transport, protocol, r
    finally:
        with contextlib.suppress(OSError):
            os.close(r)
        if not protocol.lost:
            transport.abort()
        await turns(3)


async def drain(fd: int, count: int) -> bytes:
    """Read count bytes from a non-blocking descriptor."""
    out = bytearray()
    while len(out) < count:
        try:
            out += os.read(fd, count - len(out))
        except BlockingIOError:
            await asyncio.sleep(0.001)
    return bytes(out)


def fill(transport: Any) -> int:
    """Write until something is queued; how much was written in all."""
    total = 0
    while not transport.get_write_buffer_size():
        transport.write(b"f" * 4096)
        total += 4096
    return total
