"""HTTP/2 servers for the client's tests: nginx before another server, and one that is told frame by
frame what to do.
"""

import asyncio
import contextlib
import functools
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
from rondel import http
from support import HOST
from tls import client_context, server_context
from web import NGINX, Nginx

PROXY = (
    NGINX.split("        root ")[0]
    + """
        client_max_body_size 0;
        location = /headers {{ return 200 "ready"; }}
        location = /protocol {{ return 200 "$server_protocol $connection"; }}
        location / {{
            proxy_pass http://$http_x_upstream;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_request_buffering off;
        }}
    }}
}}
"""
)


class Proxy(Nginx):
    """nginx, which passes requests on to the server that the field X-Upstream names."""

    configuration = PROXY


@contextlib.contextmanager
def nginx_proxy() -> Iterator[Proxy]:
    """A running one."""
    proxy = Proxy()
    with proxy.running():
        yield proxy


def offering(*protocols: str) -> http.TCPConnector:
    """A connector with a context of the program's own that offers these protocols."""
    return http.TCPConnector(ssl=_context(protocols or ("h2", "http/1.1")))


@functools.cache
def _context(protocols: tuple[str, ...]) -> ssl.SSLContext:
    context = client_context()
    context.set_alpn_protocols(protocols)
    return context


@dataclass
class Scripted:
    """A server of HTTP/2 that does for each event what `handle` does."""

    handle: Callable[["Scripted", "Peer", h2.events.Event], Awaitable[None]]
    settings: dict[h2.settings.SettingCodes, int] = field(default_factory=dict)
    peers: list["Peer"] = field(default_factory=list)
    url: str = ""

    @property
    def connections(self) -> int:
        return len(self.peers)


class Peer:
    """One connection of a Scripted server."""

    def __init__(self, writer: asyncio.StreamWriter, settings: dict[h2.settings.SettingCodes, int]):
        self.writer = writer
        self.protocol = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=False,
                header_encoding="utf-8",
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.protocol.local_settings = h2.settings.Settings(client=False, initial_values=settings)
        self.protocol.initiate_connection()
        #: Bytes of each stream's request body.
        self.received: dict[int, int] = {}
        self.requests: dict[int, dict[str, str]] = {}
        #: Streams that the client has reset, with the error's code.
        self.resets: dict[int, int] = {}
        self.most = self.now = 0

    def note(self, event: h2.events.Event) -> None:
        """Keeps what a test may ask for."""
        if isinstance(event, h2.events.RequestReceived):
            self.requests[event.stream_id] = dict(event.headers)
            self.now += 1
            self.most = max(self.most, self.now)
        elif isinstance(event, h2.events.DataReceived):
            before = self.received.get(event.stream_id, 0)
            self.received[event.stream_id] = before + len(event.data)
            self.protocol.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            self.resets[event.stream_id] = event.error_code

    def answer(self, stream: int, body: bytes = b"", status: str = "200", **fields: str) -> None:
        """A whole response, which must fit into the windows."""
        headers = [(":status", status), *((k.replace("_", "-"), v) for k, v in fields.items())]
        self.protocol.send_headers(stream, headers, end_stream=not body)
        if body:
            self.protocol.send_data(stream, body, end_stream=True)
        self.now -= 1

    def flush(self) -> None:
        self.writer.write(self.protocol.data_to_send())


@contextlib.asynccontextmanager
async def scripted(server: Scripted) -> AsyncIterator[Scripted]:
    """Run the server."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        peer = Peer(writer, server.settings)
        server.peers.append(peer)
        peer.flush()
        try:
            while data := await reader.read(65536):
                events = peer.protocol.receive_data(data)
                for event in events:
                    peer.note(event)
                for event in events:
                    await server.handle(server, peer, event)
                peer.flush()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            tasks.discard(task)

    context = server_context()
    context.set_alpn_protocols(["h2"])
    listener = await asyncio.start_server(serve, HOST, 0, ssl=context)
    server.url = f"https://localhost:{listener.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listener.close()
        for task in list(tasks):
            task.cancel()
        while tasks:
            await asyncio.sleep(0.001)
