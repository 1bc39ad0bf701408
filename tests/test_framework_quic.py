"""aioquic: QUIC and HTTP/3 over UDP, its server and its client against each other on one loop."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aioquic.asyncio import QuicConnectionProtocol, connect, serve
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ProtocolNegotiated, QuicEvent
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from support import HOST
from tls import NAME, authority, certificate

Run = Callable[..., Any]
pytestmark = pytest.mark.timeout(20)


def server_configuration(*protocols: str) -> QuicConfiguration:
    made = certificate()
    return QuicConfiguration(
        is_client=False,
        alpn_protocols=list(protocols),
        certificate=x509.load_pem_x509_certificate(made.cert_chain_pems[0].bytes()),
        private_key=load_pem_private_key(made.private_key_pem.bytes(), None),
    )


def client_configuration(*protocols: str, trust: bool = True) -> QuicConfiguration:
    configuration = QuicConfiguration(
        is_client=True, alpn_protocols=list(protocols), server_name=NAME
    )
    if trust:
        configuration.load_verify_locations(cadata=authority().cert_pem.bytes())
    return configuration


@contextlib.asynccontextmanager
async def serving(alpn: str, **options: Any) -> AsyncIterator[int]:
    """A QUIC server on the running loop, and its port."""
    server = await serve(HOST, 0, configuration=server_configuration(alpn), **options)
    try:
        # aioquic names no other way to the port that the system chose.
        transport = server._transport
        yield transport.get_extra_info("sockname")[1]
    finally:
        server.close()
        await asyncio.sleep(0)


def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The handler of a stream, for aioquic, is a plain function; the work is a task's."""

    async def copy() -> None:
        writer.write(await reader.read())
        writer.write_eof()

    tasks.add(task := asyncio.get_running_loop().create_task(copy()))
    task.add_done_callback(tasks.discard)


tasks: set[asyncio.Task[None]] = set()


async def ask(client: QuicConnectionProtocol, data: bytes) -> bytes:
    reader, writer = await client.create_stream()
    writer.write(data)
    writer.write_eof()
    return await reader.read()


def test_streams(run: Run) -> None:
    async def main() -> None:
        async with serving("echo", stream_handler=echo) as port:
            async with connect(HOST, port, configuration=client_configuration("echo")) as client:
                await client.ping()
                for size in (1, 1200, 200_000):
                    data = random.Random(size).randbytes(size)
                    assert await ask(client, data) == data
                bodies = [b"%d" % number * 1000 for number in range(20)]
                assert await asyncio.gather(*(ask(client, body) for body in bodies)) == bodies

    run(main)


def test_several_connections(run: Run) -> None:
    async def one(port: int, number: int) -> None:
        configuration = client_configuration("echo")
        async with connect(HOST, port, configuration=configuration) as client:
            assert await ask(client, b"%d" % number) == b"%d" % number

    async def main() -> None:
        async with serving("echo", stream_handler=echo) as port:
            await asyncio.gather(*(one(port, number) for number in range(8)))

    run(main)


def test_the_certificate_is_not_trusted(run: Run) -> None:
    async def main() -> None:
        async with serving("echo", stream_handler=echo) as port:
            configuration = client_configuration("echo", trust=False)
            with pytest.raises(ConnectionError):
                async with connect(HOST, port, configuration=configuration):
                    pass

    run(main)


class Http3(QuicConnectionProtocol):
    """What client and server of HTTP/3 share: the connection and what it brings."""

    http: H3Connection | None = None

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ProtocolNegotiated):
            self.http = H3Connection(self._quic)
        if self.http is not None:
            for received in self.http.handle_event(event):
                self.received(received)

    def received(self, event: H3Event) -> None:
        raise NotImplementedError


class Http3Server(Http3):
    """Answers a request with its path and its body."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.bodies: dict[int, bytes] = {}

    def received(self, event: H3Event) -> None:
        if isinstance(event, HeadersReceived):
            self.bodies[event.stream_id] = dict(event.headers)[b":path"] + b" "
        elif isinstance(event, DataReceived):
            self.bodies[event.stream_id] += event.data
        if getattr(event, "stream_ended", False):
            assert self.http is not None
            self.http.send_headers(event.stream_id, [(b":status", b"200")])
            self.http.send_data(event.stream_id, self.bodies.pop(event.stream_id), end_stream=True)
            self.transmit()


class Http3Client(Http3):
    """Sends requests and waits for their responses."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.parts: dict[int, bytearray] = {}
        self.waiters: dict[int, asyncio.Future[bytes]] = {}

    async def post(self, path: bytes, body: bytes) -> bytes:
        assert self.http is not None
        stream = self._quic.get_next_available_stream_id()
        headers = [
            (b":method", b"POST"),
            (b":scheme", b"https"),
            (b":authority", NAME.encode()),
            (b":path", path),
        ]
        self.parts[stream] = bytearray()
        self.waiters[stream] = asyncio.get_running_loop().create_future()
        self.http.send_headers(stream, headers)
        self.http.send_data(stream, body, end_stream=True)
        self.transmit()
        return await self.waiters[stream]

    def received(self, event: H3Event) -> None:
        if isinstance(event, HeadersReceived):
            assert dict(event.headers)[b":status"] == b"200"
        elif isinstance(event, DataReceived):
            self.parts[event.stream_id] += event.data
        if getattr(event, "stream_ended", False):
            self.waiters[event.stream_id].set_result(bytes(self.parts[event.stream_id]))


def test_http3(run: Run) -> None:
    async def main() -> None:
        async with serving(H3_ALPN[0], create_protocol=Http3Server) as port:
            configuration = client_configuration(*H3_ALPN)
            async with connect(
                HOST, port, configuration=configuration, create_protocol=Http3Client
            ) as client:
                assert isinstance(client, Http3Client)

                async def one(number: int) -> None:
                    body = random.Random(number).randbytes(number * 1000)
                    assert await client.post(b"/%d" % number, body) == b"/%d " % number + body

                await asyncio.gather(*map(one, range(20)))

    run(main)
