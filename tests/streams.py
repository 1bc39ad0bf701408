"""Native streams for tests: over real connections, and fed by hand."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import rondel
from support import HOST, tcp_pair, turns
from tls import client_context

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

#: asyncio's class and ours.
READERS = [asyncio.StreamReader, rondel.StreamReader]


@contextlib.asynccontextmanager
async def served(
    handler: Callable[..., Any] | None = None, **options: Any
) -> AsyncIterator[tuple[Stream, Stream]]:
    """A connection of native streams: the client's reader and writer, and the server's."""
    accepted: asyncio.Future[Stream] = asyncio.get_running_loop().create_future()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set_result((reader, writer))

    limit = {"limit": options.pop("limit")} if "limit" in options else {}
    server = await rondel.start_server(handler or accept, HOST, 0, **limit, **options)
    if "ssl" in options:
        options = {"ssl": client_context(), "server_hostname": "localhost"}
    near = await rondel.open_connection(*server.sockets[0].getsockname(), **limit, **options)
    far = near if handler else await asyncio.wait_for(accepted, 10)
    try:
        yield near, far
    finally:
        for _, writer in (near, far):
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        server.close()
        await server.wait_closed()


@contextlib.asynccontextmanager
async def made_by_hand(
    reader: Any, protocol: Any = None
) -> AsyncIterator[tuple[Any, socket.socket]]:
    """A protocol for the reader on a connection of rondel's, and the socket at its other end."""
    protocol = protocol or asyncio.StreamReaderProtocol(reader)
    with tcp_pair() as (near, far):
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(lambda: protocol, sock=near)
        try:
            yield protocol, far
        finally:
            transport.abort()
            await turns(2)


def fed(
    data: bytes = b"", loop: asyncio.AbstractEventLoop | None = None, **kwargs: Any
) -> rondel.StreamReader:
    """A reader that has received data."""
    reader = rondel.StreamReader(loop=loop or asyncio.get_running_loop(), **kwargs)
    reader.feed_data(data)
    return reader
