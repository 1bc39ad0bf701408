"""A long stream whose content, memory and back pressure are checked while it flows."""

import asyncio
import random
import resource
from collections.abc import AsyncIterator
from pathlib import Path

MIB = 1 << 20


def resident() -> int:
    """This process's resident memory in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Pattern:
    """An endless body whose every position can be checked, and which needs no memory.

    It repeats after an odd number of bytes, so that no chunk, buffer or page size divides the
    period: content that is shifted does not match.
    """

    PERIOD = MIB + 7

    def __init__(self) -> None:
        block = random.Random(0).randbytes(self.PERIOD)
        self._twice = block + block

    def at(self, offset: int, size: int) -> bytes:
        """The bytes from this offset on; at most a period."""
        start = offset % self.PERIOD
        return self._twice[start : start + size]


class Flow:
    """Sends and receives `total` bytes of a pattern, watching memory and back pressure."""

    CHUNK = 256 << 10
    STALLS = 4
    # What may be under way while the receiver does not read: the transport's and aiohttp's
    # buffers (some 100 KiB) and the kernel's for both ends (tcp_wmem and tcp_rmem, by default up
    # to 4 and 6 MiB, more where tuned). Without back pressure all the rest of the body would be.
    AHEAD = 32 * MIB
    # What the process may grow by: as AHEAD is mostly the kernel's memory, this is far above what
    # the buffers need, and 1/32 of what is streamed.
    GROWTH = 32 * MIB

    def __init__(self, total: int) -> None:
        self.total = total
        self.sent = 0
        self.received = 0
        self.furthest = 0
        self.grown = 0
        self._pattern = Pattern()

    async def body(self) -> AsyncIterator[bytes]:
        while self.sent < self.total:
            size = min(self.CHUNK, self.total - self.sent)
            chunk = self._pattern.at(self.sent, size)
            self.sent += size
            yield chunk

    async def consume(self, chunks: AsyncIterator[bytes]) -> None:
        first = 0
        stall = self.total // (self.STALLS + 1)
        next_stall = next_look = stall // 4
        async for chunk in chunks:
            assert chunk == self._pattern.at(self.received, len(chunk))
            self.received += len(chunk)
            if self.received >= next_stall:
                next_stall += stall
                await asyncio.sleep(0.1)
                self.furthest = max(self.furthest, self.sent - self.received)
            if self.received >= next_look:
                next_look += 4 * MIB
                first = first or resident()
                self.grown = max(self.grown, resident() - first)

    def check(self) -> None:
        assert self.received == self.sent == self.total
        assert 0 < self.furthest < self.AHEAD
        assert self.grown < self.GROWTH
