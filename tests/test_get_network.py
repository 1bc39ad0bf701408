"""`rondel get` over a network that drops, delays and resets."""

import asyncio
import random
import subprocess
from pathlib import Path

import pytest
from support import HOST
from test_get import noise
from web import LIMIT, Request, files, get, odd

pytestmark = pytest.mark.timeout(3 * LIMIT)


class Network:
    """A way to a server on which no connection lasts.

    After some bytes it stalls, is reset or closed, if it was not refused or slow from the start.
    """

    FATES = ("reset", "stall", "refuse", "truncate", "slow")

    def __init__(self, port: int, seed: int) -> None:
        self._port = port
        self._random = random.Random(seed)
        self.fates: list[str] = []

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fate = self.FATES[len(self.fates) % len(self.FATES)]
        self.fates.append(fate)
        limit = self._random.randrange(150_000, 400_000)
        if fate == "refuse":
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection(HOST, self._port)
        asking = asyncio.create_task(self._copy(reader, far_writer))
        passed = 0
        try:
            while data := await far_reader.read(16_384):
                passed += len(data)
                if passed > limit:
                    if fate == "stall":
                        await asyncio.sleep(2)
                    break
                if fate == "slow":
                    await asyncio.sleep(0.01)
                writer.write(data)
                await writer.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            asking.cancel()
            far_writer.transport.abort()
            if fate == "truncate":
                writer.close()
            else:
                writer.transport.abort()

    @staticmethod
    async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(16_384):
            writer.write(data)
        writer.close()  # so that the other direction ends, too


def test_a_network_that_fails_costs_time_and_no_byte(tmp_path: Path) -> None:
    contents = {f"f{number}": noise(150_000 + number, number) for number in range(8)}

    async def handle(request: Request) -> None:
        await request.serve(contents[request.target[1:]])

    with odd(handle) as server:
        network = Network(int(server.url.rpartition(":")[2]), 5)

        async def main() -> subprocess.CompletedProcess[str]:
            between = await asyncio.start_server(network.connected, HOST, 0)
            port = between.sockets[0].getsockname()[1]
            urls = [f"http://{HOST}:{port}/{name}" for name in contents]
            options = ("--timeout", "0.5", "--retries", "50", "-j", "4")
            async with between:
                return await asyncio.to_thread(get, *options, *urls, cwd=tmp_path)

        result = asyncio.run(main())
    assert result.returncode == 0, result.stderr
    assert files(tmp_path) == contents
    # The proxy did its worst, and what was given up was told of.
    assert set(network.fates) == set(network.FATES)
    assert "; again " in result.stderr
