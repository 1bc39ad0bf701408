"""rondel.http beside aiohttp, both on rondel's loop: CPU time of the client's process.

    python benches/http_client.py [--requests N] [--concurrency N] [--rounds N]

The server is a process of its own that answers with prepared bytes. Clients take turns; the
median of their rounds is shown.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import ssl
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import rondel
import rondel.http
import trustme

HEAD = b"HTTP/1.1 200 OK\r\nServer: bench\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
SMALL = HEAD % 1024 + bytes(1024)
LARGE = 256 * 1024 * 1024


class Server(asyncio.Protocol):
    """Answers GET /small with 1 KiB, GET /large with 256 MiB."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.room = asyncio.Event()
        self.room.set()

    def pause_writing(self) -> None:
        self.room.clear()

    def resume_writing(self) -> None:
        self.room.set()

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"GET /small"):
            self.transport.write(SMALL)
        else:
            self.task = asyncio.ensure_future(self.send_large())

    async def send_large(self) -> None:
        self.transport.write(HEAD % LARGE)
        piece = bytes(256 * 1024)
        for _ in range(LARGE // len(piece)):
            self.transport.write(piece)
            await self.room.wait()


def serve(certificate: str | None, ports: Any) -> None:
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Server, "127.0.0.1", 0, ssl=context)
        ports.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    rondel.run(main())


async def small(client: Any, url: str, context: Any, count: int, concurrency: int) -> float:
    """CPU microseconds per GET of 1 KiB."""
    async with client.ClientSession(connector=client.TCPConnector(ssl=context)) as session:

        async def work(share: int) -> None:
            for _ in range(share):
                async with session.get(url + "/small") as response:
                    assert len(await response.read()) == 1024

        await asyncio.gather(*[work(3) for _ in range(concurrency)])
        start = time.process_time()
        await asyncio.gather(*[work(count // concurrency) for _ in range(concurrency)])
        return (time.process_time() - start) / (count // concurrency * concurrency) * 1e6


async def large(client: Any, url: str, context: Any, count: int, concurrency: int) -> float:
    """CPU seconds per GiB that is read 1,024 bytes at a time."""
    async with client.ClientSession(connector=client.TCPConnector(ssl=context)) as session:
        start = time.process_time()
        async with session.get(url + "/large") as response:
            size = 0
            while chunk := await response.content.read(1024):
                size += len(chunk)
        assert size == LARGE
        return (time.process_time() - start) * (1 << 30) / LARGE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    authority = trustme.CA()
    context = ssl.create_default_context()
    authority.configure_trust(context)
    Row = tuple[str, Callable[..., Awaitable[float]], str, Any, str]
    with tempfile.TemporaryDirectory() as directory:
        certificate = Path(directory) / "certificate.pem"
        leaf = authority.issue_cert("127.0.0.1")
        chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
        certificate.write_bytes(leaf.private_key_pem.bytes() + chain)
        processes, urls = [], []
        for given, scheme in ((None, "http"), (str(certificate), "https")):
            ports: Any = multiprocessing.Queue()
            process = multiprocessing.Process(target=serve, args=(given, ports), daemon=True)
            process.start()
            processes.append(process)
            urls.append(f"{scheme}://127.0.0.1:{ports.get()}")
        rows: list[Row] = [
            ("GET 1 KiB", small, urls[0], True, "us of CPU"),
            ("GET 1 KiB over TLS", small, urls[1], context, "us of CPU"),
            ("1 GiB by read(1024)", large, urls[0], True, "s of CPU"),
        ]
        for name, measure, url, ssl_argument, unit in rows:
            figures: dict[str, list[float]] = {"aiohttp": [], "rondel.http": []}
            for _ in range(options.rounds):
                for client in (aiohttp, rondel.http):
                    figure = rondel.run(
                        measure(client, url, ssl_argument, options.requests, options.concurrency)  # type: ignore[arg-type]
                    )
                    figures[client.__name__].append(figure)
            shown = "  ".join(f"{k} {statistics.median(v):7.2f}" for k, v in figures.items())
            print(f"{name:22} {shown}  {unit}", flush=True)
        for process in processes:
            process.terminate()
            process.join()


if __name__ == "__main__":
    main()
