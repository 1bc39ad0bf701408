"""`rondel get` over HTTP/2: few connections, ranges, and servers that refuse or break off."""

import asyncio
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import pytest
from tls import authority, server_context
from web import LIMIT, Nginx, Odd, events, files, get

pytestmark = pytest.mark.timeout(2 * LIMIT)

CONTENT = random.Random(2).randbytes(1_500_000)
#: Bytes in a frame that every client takes.
FRAME = 16_384


@pytest.fixture(scope="module")
def nginx() -> Iterator[Nginx]:
    with Nginx().running() as server:
        yield server


def test_many_files_come_over_one_connection(nginx: Nginx, tmp_path: Path) -> None:
    trust = ("--ca-file", nginx.folder / "ca.pem", "-j", 32, "--per-host", 32)
    urls = [f"{nginx.tls_url}/connection/{number}" for number in range(300)]
    (tmp_path / "list").write_text("\n".join(urls))
    for option, most in ((), 1), (("--http1.1",), 32):
        result = get(*trust, *option, "-i", "list", "-o", f"out{most}", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        found = files(tmp_path / f"out{most}")
        assert len(found) == 300
        assert len(set(found.values())) <= most


def test_ranges_and_conditions(nginx: Nginx, tmp_path: Path) -> None:
    content = CONTENT * 6
    nginx.file("large", content)
    # Each request is served slowly enough for a second one to take its half.
    url = f"{nginx.tls_url}/slow/large"
    trust = ("--ca-file", nginx.folder / "ca.pem")
    result = get(*trust, "--segments", 2, url, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert files(tmp_path) == {"large": content}
    statuses = [line.split('"')[1:3] for line in nginx.requests("/large")]
    assert all("HTTP/2.0" in request for request, _ in statuses)
    assert sum(status.split()[0] == "206" for _, status in statuses) >= 1
    again = get(*trust, url, cwd=tmp_path)
    assert "1 unchanged" in again.stderr
    assert '" 304 ' in nginx.requests("/large")[-1]


class Stream:
    """A request as the server of `Http2` got it, and what can be done with it."""

    def __init__(
        self, wire: h2.connection.H2Connection, number: int, headers: dict[str, str]
    ) -> None:
        self.wire = wire
        self.number = number
        self.headers = headers

    def refuse(self) -> None:
        self.wire.reset_stream(self.number, h2.errors.ErrorCodes.REFUSED_STREAM)

    def leave(self) -> None:
        """Say that this request, and later ones, will not be looked at."""
        self.wire.close_connection(last_stream_id=self.number - 2)

    def serve(self, most: int | None = None) -> None:
        """The content from where it is asked for; broken off after `most` bytes."""
        start = int(self.headers.get("range", "bytes=0-")[6:].split("-")[0])
        headers = [("etag", '"v1"'), ("accept-ranges", "bytes")]
        headers.append(("content-length", str(len(CONTENT) - start)))
        if start:
            whole = len(CONTENT)
            headers.append(("content-range", f"bytes {start}-{whole - 1}/{whole}"))
        status = (":status", "206" if start else "200")
        self.wire.send_headers(self.number, [status, *headers])
        body = CONTENT[start:][:most]
        for at in range(0, len(body), FRAME):
            self.wire.send_data(self.number, body[at : at + FRAME])
        if most is None:
            self.wire.end_stream(self.number)
        else:
            self.wire.reset_stream(self.number, h2.errors.ErrorCodes.INTERNAL_ERROR)


class Http2(Odd):
    """A server that does with each HTTP/2 request, by its count, what it was told."""

    def __init__(self, does: Callable[[int, Stream], None]) -> None:
        context = server_context()
        context.set_alpn_protocols(["h2"])
        super().__init__(self.unused, tls=context)
        self.does = does
        self.streams: list[Stream] = []

    async def unused(self, _request: object) -> None:
        raise NotImplementedError

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        wire = h2.connection.H2Connection(config)
        wire.initiate_connection()
        try:
            while True:
                writer.write(wire.data_to_send())
                await writer.drain()
                if wire.state_machine.state is h2.connection.ConnectionState.CLOSED:
                    # It is the client's to close it.
                    await reader.read()
                    return
                data = await reader.read(65_536)
                if not data:
                    return
                for event in wire.receive_data(data):
                    if isinstance(event, h2.events.RequestReceived):
                        stream = Stream(wire, event.stream_id, dict(event.headers))
                        self.streams.append(stream)
                        self.does(len(self.streams), stream)
        except (ConnectionError, h2.exceptions.ProtocolError):
            pass
        finally:
            writer.close()


def test_refused_requests_go_again_and_broken_ones_go_on(tmp_path: Path) -> None:
    def does(count: int, stream: Stream) -> None:
        # The third one gets a new connection, whose first stream is broken off.
        match count:
            case 1:
                stream.refuse()
            case 2:
                stream.leave()
            case 3:
                stream.serve(700_000)
            case _:
                stream.serve()

    authority().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with Http2(does).running() as server:
        url = f"{server.url}/file"
        result = get("--json", "--ca-file", "ca.pem", "-o", "out", url, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert files(tmp_path / "out") == {"file": CONTENT}
    told = events(result)
    # What the server did not look at is no failed attempt.
    assert [event["event"] for event in told].count("retry") == 1
    assert server.connections == 2
    assert len(server.streams) == 4
    assert server.streams[3].headers["range"] != "bytes=0-"
    assert server.streams[3].headers["if-range"] == '"v1"'
    assert told[-1]["failed"] == 0


def test_a_server_that_refuses_for_ever_is_given_up(tmp_path: Path) -> None:
    authority().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with Http2(lambda _, stream: stream.refuse()).running() as server:
        url = f"{server.url}/file"
        result = get("--retries=0", "--ca-file", "ca.pem", url, cwd=tmp_path)
    assert result.returncode == 3
    assert 1 < len(server.streams) < 20
