"""Servers that the load generator drives: ``python servers.py KIND --loop NAME``.

Once it serves, a server prints one JSON object with its address, and runs until it is killed. It
prints ``unsupported`` instead if the loop has not got what it takes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import loops

HOST = "127.0.0.1"
#: Enough for every connection of the largest row; asyncio's default of 100 makes SYNs be dropped.
BACKLOG = 4096
READ_SIZE = 64 * 1024
#: Linux's names for sizes above the system's limit, which root may set; Python has no constants.
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
DATAGRAM_BUFFER = 8 << 20

Server = Callable[[argparse.Namespace], Awaitable[None]]
SERVERS: dict[str, Server] = {}


def kind(name: str) -> Callable[[Server], Server]:
    def register(server: Server) -> Server:
        SERVERS[name] = server
        return server

    return register


async def announce(address: str | tuple[Any, ...]) -> None:
    """Tells the parent where to connect, and gives the loop to the server for good."""
    loop = asyncio.get_running_loop()
    text = address if isinstance(address, str) else f"{address[0]}:{address[1]}"
    found = {"address": text, "pid": os.getpid(), "loop": type(loop).__qualname__}
    print(json.dumps(found), flush=True)
    await loop.create_future()


def server_context(directory: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Path(directory, "cert.pem"), Path(directory, "key.pem"))
    return context


def listening_socket() -> tuple[socket.socket, Any]:
    """A listener and its address, which must be known before a loop adopts the descriptor.

    asyncio sets TCP_NODELAY only where the protocol is named; without it a server that writes head
    and body apart waits 40 ms for an acknowledgement.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind((HOST, 0))
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener, listener.getsockname()


# --- protocols ----------------------------------------------------------------------------------
# Not every loop's transports are instances of asyncio's, so nothing here checks what it gets.


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class BufferedEcho(asyncio.BufferedProtocol):
    """Echoes from its read buffer without a copy.

    A transport may keep the view that it could not write whole (asyncio's does, from 3.12 on), so
    that buffer is then left to it.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self.view = memoryview(bytearray(READ_SIZE))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.view

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(self.view[:nbytes])
        if self.transport.get_write_buffer_size():
            self.view = memoryview(bytearray(READ_SIZE))


class DatagramEcho(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(data, addr)


async def serve_protocol(
    factory: Callable[[], asyncio.BaseProtocol], context: ssl.SSLContext | None = None
) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(factory, HOST, 0, backlog=BACKLOG, ssl=context)
    await announce(server.sockets[0].getsockname())


@kind("protocol")
async def protocol(options: argparse.Namespace) -> None:
    await serve_protocol(Echo)


@kind("buffered")
async def buffered(options: argparse.Namespace) -> None:
    await serve_protocol(BufferedEcho)


@kind("tls_protocol")
async def tls_protocol(options: argparse.Namespace) -> None:
    await serve_protocol(Echo, server_context(options.cert))


@kind("unix")
async def unix(options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    await loop.create_unix_server(Echo, options.path, backlog=BACKLOG)
    await announce(options.path)


@kind("udp")
async def udp(options: argparse.Namespace) -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for option, fallback in (
        (SO_RCVBUFFORCE, socket.SO_RCVBUF),
        (SO_SNDBUFFORCE, socket.SO_SNDBUF),
    ):
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, DATAGRAM_BUFFER)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, fallback, DATAGRAM_BUFFER)
    sock.bind((HOST, 0))
    sock.setblocking(False)
    address = sock.getsockname()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(DatagramEcho, sock=sock)
    await announce(address)
    transport.close()


# --- streams and sockets ------------------------------------------------------------------------


async def echo_streams(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(READ_SIZE):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def serve_streams(context: ssl.SSLContext | None = None) -> None:
    server = await asyncio.start_server(echo_streams, HOST, 0, backlog=BACKLOG, ssl=context)
    await announce(server.sockets[0].getsockname())


@kind("streams")
async def streams(options: argparse.Namespace) -> None:
    await serve_streams()


@kind("tls_streams")
async def tls_streams(options: argparse.Namespace) -> None:
    await serve_streams(server_context(options.cert))


@kind("sock")
async def sock(options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    listener, address = listening_socket()
    tasks: set[asyncio.Task[None]] = set()

    async def echo(connection: socket.socket) -> None:
        with connection:
            try:
                while data := await loop.sock_recv(connection, READ_SIZE):
                    await loop.sock_sendall(connection, data)
            except ConnectionError:
                pass

    async def accept() -> None:
        while True:
            connection, _ = await loop.sock_accept(listener)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = loop.create_task(echo(connection))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    accepting = loop.create_task(accept())
    accepting.add_done_callback(lambda task: task.result())
    await announce(address)


# --- http ---------------------------------------------------------------------------------------

PLAINTEXT = b"Hello, World!"
TEN_KIB = b"x" * 10 * 1024


@kind("uvicorn")
async def uvicorn(options: argparse.Namespace) -> None:
    import uvicorn

    def answer(body: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
        length = str(len(body)).encode()
        headers = [(b"content-type", b"text/plain"), (b"content-length", length)]
        start = {"type": "http.response.start", "status": 200, "headers": headers}
        return start, {"type": "http.response.body", "body": body}

    answers = {"/plaintext": answer(PLAINTEXT), "/10k": answer(TEN_KIB)}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        start, body = answers[scope["path"]]
        await send(start)
        await send(body)

    listener, address = listening_socket()
    config = uvicorn.Config(
        app,
        http="httptools",
        loop="none",
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="error",
    )
    server = uvicorn.Server(config)
    serving = asyncio.get_running_loop().create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    if serving.done():
        raise RuntimeError("uvicorn did not start") from serving.exception()
    await announce(address)


@kind("aiohttp")
async def aiohttp(options: argparse.Namespace) -> None:
    from aiohttp import web

    async def plaintext(request: web.Request) -> web.Response:
        return web.Response(body=PLAINTEXT, content_type="text/plain")

    async def ten_kib(request: web.Request) -> web.Response:
        return web.Response(body=TEN_KIB, content_type="text/plain")

    app = web.Application()
    app.router.add_get("/plaintext", plaintext)
    app.router.add_get("/10k", ten_kib)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    listener, address = listening_socket()
    await web.SockSite(runner, listener, backlog=BACKLOG).start()
    await announce(address)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=SERVERS)
    parser.add_argument("--loop", default="asyncio")
    parser.add_argument("--path", default="", help="the socket's path, for unix")
    parser.add_argument("--cert", default="", help="the folder of cert.pem and key.pem, for tls")
    options = parser.parse_args()
    # An orderly end: an instrumented rondel leaves its counts then (scripts/pgo.py).
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        loop = loops.factory(options.loop)()
        loops.identify(loop, options.loop)
        asyncio.set_event_loop(loop)
        loop.run_until_complete(SERVERS[options.kind](options))
    except Exception as error:
        what = "unsupported" if loops.is_missing_feature(error) else "failed"
        print(json.dumps({what: loops.reason(error)}), flush=True)


if __name__ == "__main__":
    main()
