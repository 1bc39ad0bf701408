"""A small SOCKS server for tests: SOCKS4, 4a and 5, CONNECT only, on real sockets."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

from http_peers import relay, serving


class SocksServer:
    """Notes what it is asked for; `credentials` are what it wants, if any.

    `reply` is the code of a refusal, `raw` what it says instead of anything sensible. Names are
    those of `names`.
    """

    def __init__(
        self,
        credentials: tuple[str, str] | None = None,
        reply: int = 0,
        raw: bytes | None = None,
        names: dict[str, str] | None = None,
    ) -> None:
        self.credentials = credentials
        self.reply = reply
        self.raw = raw
        self.names = names or {}
        self.port = 0
        self.asked: list[tuple[str, str, int]] = []
        self.serving: set[asyncio.Task[Any]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        below: asyncio.StreamWriter | None = None
        try:
            version = (await reader.readexactly(1))[0]
            if self.raw is not None:
                writer.write(self.raw)
                return
            handshake = self._five if version == 5 else self._four
            place = await handshake(reader, writer)
            if place is not None:
                above, below = await asyncio.open_connection(*place)
                await asyncio.gather(relay(reader, below), relay(above, writer))
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            if below is not None:
                below.close()
            self.serving.discard(task)

    def _place(self, kind: str, host: str, port: int) -> tuple[str, int]:
        self.asked.append((kind, host, port))
        return self.names.get(host, host), port

    async def _five(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[str, int] | None:
        methods = await reader.readexactly((await reader.readexactly(1))[0])
        wanted = 0 if self.credentials is None else 2
        if wanted not in methods:
            writer.write(b"\x05\xff")
            return None
        writer.write(bytes([5, wanted]))
        if self.credentials is not None:
            assert (await reader.readexactly(1)) == b"\x01"
            given = []
            for _ in range(2):
                given.append((await reader.readexactly((await reader.readexactly(1))[0])).decode())
            right = tuple(given) == self.credentials
            writer.write(b"\x01\x00" if right else b"\x01\x01")
            if not right:
                return None
        assert (await reader.readexactly(3)) == b"\x05\x01\x00"
        kind = (await reader.readexactly(1))[0]
        if kind == 3:
            name, host = "name", (await _counted(reader)).decode()
        else:
            family, size = (socket.AF_INET, 4) if kind == 1 else (socket.AF_INET6, 16)
            name, host = "address", socket.inet_ntop(family, await reader.readexactly(size))
        place = self._place(f"5 {name}", host, *struct.unpack("!H", await reader.readexactly(2)))
        # Bound to a name, for the client to skip; in two pieces.
        writer.write(bytes([5, self.reply, 0]))
        await writer.drain()
        await asyncio.sleep(0)
        writer.write(b"\x03\x04here\x00\x01")
        return None if self.reply else place

    async def _four(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[str, int] | None:
        command, port, address = struct.unpack("!BH4s", await reader.readexactly(7))
        assert command == 1
        user = (await reader.readuntil(b"\0"))[:-1].decode()
        if address[:3] == bytes(3) and address[3]:
            name, host = "name", (await reader.readuntil(b"\0"))[:-1].decode()
        else:
            name, host = "address", socket.inet_ntoa(address)
        place = self._place(f"4 {name} {user}".strip(), host, port)
        writer.write(bytes([0, self.reply or 0x5A]) + bytes(6))
        return None if self.reply else place


async def _counted(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly((await reader.readexactly(1))[0])


@contextlib.asynccontextmanager
async def socks_server(make: Callable[[], SocksServer] = SocksServer) -> AsyncIterator[SocksServer]:
    proxy = make()
    async with serving(proxy) as proxy.port:
        yield proxy
