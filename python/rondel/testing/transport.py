"""One end of a connection in memory."""

import asyncio
import collections
import errno
import os
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loop import Loop
    from .network import Connections, MemoryServer

_HIGH = 64 * 1024


class MemorySocket:
    """What ``get_extra_info("socket")`` returns: it has names, and takes options in vain."""

    def __init__(self, name: Any, peer: Any) -> None:
        self._name = name
        self._peer = peer
        self.family = socket.AF_INET if isinstance(name or peer, tuple) else socket.AF_UNIX
        self.type = socket.SOCK_STREAM
        self.proto = 0

    def getsockname(self) -> Any:
        """The address of this end: (host, port), or a path."""
        return self._name

    def getpeername(self) -> Any:
        """The address of the other end."""
        return self._peer

    def setsockopt(self, *args: Any) -> None:
        """Do nothing."""

    def fileno(self) -> int:
        """-1: there is no descriptor."""
        return -1


class MemoryTransport(asyncio.Transport):
    """A transport whose other end is in the same loop.

    What is written is cut into pieces, each with the time of its arrival; a timer gives one after
    the other to the other end's protocol.
    """

    def __init__(
        self,
        loop: "Loop",
        connections: "Connections",
        sock: MemorySocket,
        protocol: asyncio.BaseProtocol | None = None,
        server: "MemoryServer | None" = None,
    ) -> None:
        super().__init__(
            {"socket": sock, "sockname": sock.getsockname(), "peername": sock.getpeername()}
        )
        self._loop = loop
        self._connections = connections
        self._protocol: Any = protocol
        self._server = server
        self._peer: MemoryTransport
        #: Pieces on their way to this end: when they arrive, and data, None for the end of it, or
        #: what breaks the connection.
        self._arriving: collections.deque[tuple[float, bytes | Exception | None]]
        self._arriving = collections.deque()
        self._last_arrival = 0.0
        self._timer: asyncio.Handle | None = None
        self._reading = True
        self._closing = False
        self._lost = False
        self._eof_written = False
        self._unread = 0
        self._high, self._low = _HIGH, _HIGH // 4
        self._writing_paused = False
        if server is not None:
            server._attach(self)

    def join(self, peer: "MemoryTransport") -> None:
        """Make two transports the ends of one connection."""
        self._peer, peer._peer = peer, self

    def begin(self) -> None:
        """Make a server's protocol and tell it that it is connected."""
        assert self._server is not None
        try:
            self._protocol = self._server._protocol_factory()
        except BaseException:
            self._server._detach(self)
            self._lost = self._closing = True
            self._send(_reset())
            raise
        self._protocol.connection_made(self)

    # What is on its way.

    def _send(self, content: bytes | Exception | None) -> None:
        """Put a piece on its way to the other end."""
        tape, network = self._loop.tape, self._connections.network
        peer = self._peer
        arrival = self._loop.time() + self._connections.latency()
        if tape.chance(network.loss):
            arrival += network.retransmission
        peer._last_arrival = max(peer._last_arrival, arrival)
        if isinstance(content, bytes) and tape.chance(network.disconnect):
            content = _reset()
            self._arriving.append((peer._last_arrival, _reset()))
            self._schedule()
        peer._arriving.append((peer._last_arrival, content))
        peer._schedule()

    def _schedule(self) -> None:
        if self._timer is not None or not self._arriving:
            return
        arrival, content = self._arriving[0]
        if self._reading or self._lost or isinstance(content, Exception):
            self._timer = self._loop.call_at(arrival, self._arrive)

    def _arrive(self) -> None:
        self._timer = None
        content = self._arriving[0][1]
        if not (self._reading or self._lost or isinstance(content, Exception)):
            return
        self._arriving.popleft()
        if isinstance(content, bytes):
            self._peer._taken(len(content))
        if self._lost:
            # Nobody reads here any more, which the other end is told when it goes on to write.
            if isinstance(content, bytes):
                self._send(_reset())
        elif isinstance(content, Exception):
            self._lose(content)
        elif content is None:
            self._call(self._tell_end)
        else:
            self._call(self._give, content)
        self._schedule()

    def _call(self, function: Any, *args: Any) -> None:
        try:
            function(*args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._loop.call_exception_handler(
                {
                    "message": "Fatal error: protocol.data_received() call failed.",
                    "exception": exc,
                    "transport": self,
                    "protocol": self._protocol,
                }
            )
            self._send(_reset())
            self._lose(exc)

    def _give(self, data: bytes) -> None:
        protocol: Any = self._protocol
        if not isinstance(protocol, asyncio.BufferedProtocol):
            protocol.data_received(data)
            return
        while data:
            buffer = memoryview(protocol.get_buffer(len(data))).cast("B")
            size = min(len(buffer), len(data))
            if not size:
                raise RuntimeError("get_buffer() returned an empty buffer")
            buffer[:size] = data[:size]
            protocol.buffer_updated(size)
            data = data[size:]

    def _tell_end(self) -> None:
        protocol: Any = self._protocol
        if not protocol.eof_received():
            self.close()

    def _taken(self, size: int) -> None:
        """The other end's protocol, or nobody, has got so many bytes."""
        self._unread -= size
        if self._writing_paused and self._unread <= self._low and not self._lost:
            self._writing_paused = False
            self._protocol.resume_writing()

    def _lose(self, error: BaseException | None) -> None:
        """The connection is gone, for this end; what still arrives is answered with a reset."""
        if not self._lost:
            self._lost = self._closing = True
            self._loop.call_soon(self._connection_lost, error)
            self._schedule()

    def _connection_lost(self, error: BaseException | None) -> None:
        try:
            self._protocol.connection_lost(error)
        finally:
            if self._server is not None:
                self._server._detach(self)

    # asyncio's interface.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send data. It arrives in one piece or several."""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(
                f"data argument must be a bytes-like object, not {type(data).__name__!r}"
            )
        if self._eof_written:
            raise RuntimeError("Cannot call write() after write_eof()")
        if not data or self._closing:
            return
        rest = bytes(data)
        self._unread += len(rest)
        tape = self._loop.tape
        while len(rest) > 1 and tape.chance(self._connections.network.split):
            size = 1 + tape.below(len(rest) - 1)
            self._send(rest[:size])
            rest = rest[size:]
        self._send(rest)
        if self._unread > self._high and not self._writing_paused:
            self._writing_paused = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Send all of it."""
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        """Yes."""
        return True

    def write_eof(self) -> None:
        """Tell the other end that nothing more comes."""
        if not self._eof_written and not self._closing:
            self._eof_written = True
            self._send(None)

    def close(self) -> None:
        """Close this end. What was written arrives."""
        if not self._closing:
            if not self._eof_written:
                self._send(None)
            self._lose(None)

    def abort(self) -> None:
        """Break the connection: the other end gets ConnectionResetError."""
        if not self._lost:
            self._send(_reset())
            self._lose(None)

    def is_closing(self) -> bool:
        """Whether the transport is closed or about to be."""
        return self._closing

    def pause_reading(self) -> None:
        """Give the protocol no more data."""
        self._reading = False

    def resume_reading(self) -> None:
        """Give the protocol data again."""
        if not self._reading:
            self._reading = True
            self._schedule()

    def is_reading(self) -> bool:
        """Whether the protocol gets data."""
        return self._reading and not self._closing

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Set who gets the data."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Who gets the data."""
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def get_write_buffer_size(self) -> int:
        """How many bytes the other end has not got yet."""
        return self._unread

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """The low and the high mark of flow control."""
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the marks of flow control, in bytes."""
        if high is None:
            high = _HIGH if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._high, self._low = high, low


def _reset() -> ConnectionResetError:
    return ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
