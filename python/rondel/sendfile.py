"""Sending files: sendfile() and sock_sendfile(), by the system call where that is possible.

The system call is native; here are the checks before it, and the fall-back that reads the file in
the executor and writes what it read.
"""

import asyncio
import socket
import sys
from asyncio import constants
from typing import IO, Any

from .connecting import _refuse_ssl_socket
from .datagram import Datagram

# Bytes that the fall-back reads at a time (asyncio's figures).
SOCKET_BLOCK = 256 * 1024
TRANSPORT_BLOCK = 16 * 1024


class Sendfile(Datagram):
    """Sending the bytes of a file over a socket or a transport."""

    async def sock_sendfile(
        self,
        sock: socket.socket,
        file: IO[bytes],
        offset: int = 0,
        count: int | None = None,
        *,
        fallback: bool | None = True,
    ) -> int:
        """Send a file, opened in binary mode, over a stream socket; return how many bytes.

        ``offset`` says where in the file to begin, ``count`` how many bytes to send: None for all
        that follow. The file's position is after what was sent, also when an error ended it.
        Raises asyncio.SendfileNotAvailableError when the system call cannot do it and ``fallback``
        is false.
        """
        if self.get_debug() and sock.gettimeout() != 0:
            raise ValueError("the socket must be non-blocking")
        _refuse_ssl_socket(sock)
        _check_parameters(sock, file, offset, count)
        try:
            return await self._sock_sendfile_native(sock, file, offset, count)
        except asyncio.SendfileNotAvailableError:
            if not fallback:
                raise
        return await self._sock_sendfile_fallback(sock, file, offset, count)

    async def _sock_sendfile_fallback(
        self, sock: socket.socket, file: Any, offset: int, count: int | None
    ) -> int:
        _seek_first(file, offset)
        memory = memoryview(bytearray(min(count, SOCKET_BLOCK) if count else SOCKET_BLOCK))
        total = 0
        try:
            while view := _next_part(memory, count, total):
                read = await self.run_in_executor(None, file.readinto, view)
                if not read:
                    break
                await self.sock_sendall(sock, view[:read])
                total += read
            return total
        finally:
            _seek_behind(file, offset, total)

    async def sendfile(
        self,
        transport: asyncio.WriteTransport,
        file: IO[bytes],
        offset: int = 0,
        count: int | None = None,
        *,
        fallback: bool = True,
    ) -> int:
        """Send a file, opened in binary mode, over a transport; return how many bytes.

        As :meth:`sock_sendfile`. Meanwhile the transport does not read, and its write() raises
        RuntimeError. Raises RuntimeError for a transport that is closing or cannot do this.
        """
        if transport.is_closing():
            raise RuntimeError("Transport is closing")
        mode = getattr(transport, "_sendfile_compatible", _Mode.UNSUPPORTED)
        if mode is _Mode.UNSUPPORTED:
            raise RuntimeError(f"sendfile is not supported for transport {transport!r}")
        if mode is _Mode.TRY_NATIVE:
            try:
                _check_parameters(transport.get_extra_info("socket"), file, offset, count)
                return await self._sendfile_native(transport, file, offset, count)
            except asyncio.SendfileNotAvailableError:
                if not fallback:
                    raise
        if not fallback:
            raise RuntimeError(
                "fallback is disabled and native sendfile is not "
                f"supported for transport {transport!r}"
            )
        return await self._sendfile_fallback(transport, file, offset, count)

    async def _sendfile_fallback(
        self, transport: Any, file: Any, offset: int, count: int | None
    ) -> int:
        _seek_first(file, offset)
        memory = memoryview(bytearray(min(count, TRANSPORT_BLOCK) if count else TRANSPORT_BLOCK))
        total = 0
        stand_in = _StandIn(transport)
        try:
            while view := _next_part(memory, count, total):
                read = await self.run_in_executor(None, file.readinto, view)
                if not read:
                    break
                await stand_in.drain()
                transport.write(view[:read])
                total += read
            if sys.version_info >= (3, 14):
                await stand_in.drain()
            return total
        finally:
            _seek_behind(file, offset, total)
            stand_in.restore()


_Mode = constants._SendfileMode


class _StandIn(asyncio.Protocol):
    """Stands in for the transport's protocol while a file is sent, for the sake of flow control."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._protocol = transport.get_protocol()
        self._resume_reading = transport.is_reading()
        self._resume_writing = transport._protocol_paused
        self._room: asyncio.Future[None] | None = None
        transport.pause_reading()
        transport.set_protocol(self)
        if self._resume_writing:
            self.pause_writing()

    async def drain(self) -> None:
        if self._transport.is_closing():
            raise ConnectionError("Connection closed by peer")
        if self._room is not None:
            await self._room

    def pause_writing(self) -> None:
        if self._room is None:
            self._room = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    def data_received(self, data: bytes) -> None:
        raise RuntimeError("Invalid state: reading should be paused")

    def eof_received(self) -> bool | None:
        raise RuntimeError("Invalid state: reading should be paused")

    def connection_lost(self, exc: Exception | None) -> None:
        if self._room is not None and not self._room.done():
            # Whoever sends a file has not finished, so this is an error in any case.
            self._room.set_exception(exc or ConnectionError("Connection is closed by peer"))
        self._protocol.connection_lost(exc)

    def restore(self) -> None:
        """Give the transport back to its protocol."""
        self._transport.set_protocol(self._protocol)
        if self._resume_reading:
            self._transport.resume_reading()
        if self._room is not None:
            # Nobody waits for it any more.
            self._room.cancel()
        if self._resume_writing:
            self._protocol.resume_writing()


def _check_parameters(sock: Any, file: Any, offset: Any, count: Any) -> None:
    if "b" not in getattr(file, "mode", "b"):
        raise ValueError("file should be opened in binary mode")
    if sock.type != socket.SOCK_STREAM:
        raise ValueError("only SOCK_STREAM type sockets are supported")
    if count is not None:
        message = f"count must be a positive integer (got {count!r})"
        if not isinstance(count, int):
            raise TypeError(message)
        if count <= 0:
            raise ValueError(message)
    message = f"offset must be a non-negative integer (got {offset!r})"
    if not isinstance(offset, int):
        raise TypeError(message)
    if offset < 0:
        raise ValueError(message)


def _next_part(memory: memoryview, count: int | None, sent: int) -> memoryview:
    return memory[: count - sent] if count else memory


def _seek_first(file: Any, offset: int) -> None:
    # Until 3.13 an offset of 0 left the file where it was.
    if offset or (sys.version_info >= (3, 14) and hasattr(file, "seek")):
        file.seek(offset)


def _seek_behind(file: Any, offset: int, sent: int) -> None:
    if sent > 0 and hasattr(file, "seek"):
        file.seek(offset + sent)
