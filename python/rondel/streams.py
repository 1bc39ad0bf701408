"""asyncio's streams, native: StreamReader, StreamWriter and what makes them.

The classes have two bases each. The first is native and does what happens per packet; the second
is asyncio's class, whose own code does everything else.
"""

import asyncio
import asyncio.streams
import sys
from asyncio import events, format_helpers
from collections.abc import Awaitable, Callable
from types import FunctionType
from typing import Any

from . import _rondel
from .loop import Loop
from .unix import Path

_DEFAULT_LIMIT = 2**16

#: asyncio's own classes, for the native part: the names in asyncio may be given to others.
_StockReader = asyncio.StreamReader
_StockWriter = asyncio.StreamWriter
_StockProtocol = asyncio.StreamReaderProtocol

#: What a server calls for each connection, with its reader and writer.
ClientConnected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]


_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class StreamReader(_rondel.StreamReader, _StockReader):
    """What a connection receives, to be read as it comes, by lines, separators or sizes.

    A native ``asyncio.StreamReader``: the same methods, limits and exceptions. Reading what has
    arrived already takes no trip through the loop. ``limit`` is in bytes: of a line, and half of
    what is buffered before the transport is paused. ValueError when it is not positive.
    """

    def __init__(
        self, limit: int = _DEFAULT_LIMIT, loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        if limit <= 0:
            raise ValueError("Limit cannot be <= 0")
        if loop is None:
            loop = _get_event_loop()
        self._start(limit, loop)
        if loop.get_debug():
            self._source_traceback = format_helpers.extract_stack(sys._getframe(1))


class StreamWriter(_rondel.StreamWriter, _StockWriter):
    """The sending side of a connection, and the way to close it.

    A native ``asyncio.StreamWriter``: the same methods and exceptions.
    """

    def __init__(
        self,
        transport: asyncio.WriteTransport,
        protocol: asyncio.BaseProtocol,
        reader: asyncio.StreamReader | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        # drain() asks the reader for its exception.
        assert reader is None or isinstance(reader, _StockReader)
        self._start(transport, protocol, reader, loop)


if sys.version_info >= (3, 12):
    _get_event_loop = events.get_event_loop
else:
    # The depth of its DeprecationWarning is that of asyncio's own streams.
    _get_event_loop = events._get_event_loop  # type: ignore[attr-defined]


StreamReader._own_methods()
StreamWriter._own_methods()


class StreamReaderProtocol(_StockProtocol):
    """Between a transport and a StreamReader; a server's connections get native StreamWriters."""

    # asyncio's own method, which differs between Python's releases, with another StreamWriter.
    connection_made = FunctionType(
        _StockProtocol.connection_made.__code__,
        {**vars(asyncio.streams), "StreamWriter": StreamWriter},
        "connection_made",
    )


async def open_connection(
    host: str | None = None,
    port: int | str | None = None,
    *,
    limit: int = _DEFAULT_LIMIT,
    **kwds: Any,
) -> _Streams:
    """Connect to a server; return a reader and a writer.

    ``limit`` is the reader's, in bytes; everything else is as for ``loop.create_connection()``,
    errors included. On a loop that is not rondel's the streams are asyncio's.
    """
    loop = events.get_running_loop()
    if not isinstance(loop, Loop):
        stock: _Streams = await _stock["open_connection"](host, port, limit=limit, **kwds)
        return stock
    reader = StreamReader(limit=limit, loop=loop)
    protocol = StreamReaderProtocol(reader, loop=loop)
    transport, _ = await loop.create_connection(lambda: protocol, host, port, **kwds)
    return reader, StreamWriter(transport, protocol, reader, loop)


async def start_server(
    client_connected_cb: ClientConnected,
    host: str | list[str] | None = None,
    port: int | str | None = None,
    *,
    limit: int = _DEFAULT_LIMIT,
    **kwds: Any,
) -> asyncio.AbstractServer:
    """Serve connections: ``client_connected_cb(reader, writer)`` is called for each.

    If that is a coroutine function, it runs as a task; an exception of it goes to the loop's
    exception handler and closes the connection. ``limit`` is the readers', in bytes; everything
    else is as for ``loop.create_server()``, errors included. On a loop that is not rondel's the
    streams are asyncio's.
    """
    loop = events.get_running_loop()
    if not isinstance(loop, Loop):
        stock: asyncio.AbstractServer = await _stock["start_server"](
            client_connected_cb, host, port, limit=limit, **kwds
        )
        return stock
    factory = _protocol_factory(client_connected_cb, limit, loop)
    return await loop.create_server(factory, host, port, **kwds)


async def open_unix_connection(
    path: Path | None = None, *, limit: int = _DEFAULT_LIMIT, **kwds: Any
) -> _Streams:
    """Connect to a Unix socket's server; otherwise as open_connection()."""
    loop = events.get_running_loop()
    if not isinstance(loop, Loop):
        stock: _Streams = await _stock["open_unix_connection"](path, limit=limit, **kwds)
        return stock
    reader = StreamReader(limit=limit, loop=loop)
    protocol = StreamReaderProtocol(reader, loop=loop)
    transport, _ = await loop.create_unix_connection(lambda: protocol, path, **kwds)
    return reader, StreamWriter(transport, protocol, reader, loop)


async def start_unix_server(
    client_connected_cb: ClientConnected,
    path: Path | None = None,
    *,
    limit: int = _DEFAULT_LIMIT,
    **kwds: Any,
) -> asyncio.AbstractServer:
    """Serve connections on a Unix socket; otherwise as start_server()."""
    loop = events.get_running_loop()
    if not isinstance(loop, Loop):
        stock: asyncio.AbstractServer = await _stock["start_unix_server"](
            client_connected_cb, path, limit=limit, **kwds
        )
        return stock
    factory = _protocol_factory(client_connected_cb, limit, loop)
    return await loop.create_unix_server(factory, path, **kwds)


def _protocol_factory(
    client_connected_cb: ClientConnected, limit: int, loop: Loop
) -> Callable[[], StreamReaderProtocol]:
    def factory() -> StreamReaderProtocol:
        reader = StreamReader(limit=limit, loop=loop)
        return StreamReaderProtocol(reader, client_connected_cb, loop=loop)

    return factory


_OURS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (open_connection, start_server, open_unix_connection, start_unix_server)
}
#: asyncio's, for loops that are not rondel's.
_stock: dict[str, Callable[..., Any]] = {name: getattr(asyncio.streams, name) for name in _OURS}


def install() -> None:
    """Put the functions under asyncio's names.

    The classes stay: the native ones are subclasses of asyncio's, so ``isinstance`` holds for
    every stream, made before or after, and a program's own subclasses are what they were.
    """
    for name, ours in _OURS.items():
        for module in (asyncio, asyncio.streams):
            # What somebody else has put there stays.
            if getattr(module, name) is _stock[name]:
                setattr(module, name, ours)


def uninstall() -> None:
    """Undo install()."""
    for name, ours in _OURS.items():
        for module in (asyncio, asyncio.streams):
            if getattr(module, name) is ours:
                setattr(module, name, _stock[name])
