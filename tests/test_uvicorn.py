"""uvicorn serving an ASGI application, as a process of its own, started as its users start it."""

import contextlib
import http.client
import json
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from support import HOST
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect
from websockets.typing import Subprotocol

PROGRAMS = Path(__file__).parent / "programs"
# What a user writes after --loop. The stock loop is named the same way as ours.
FACTORIES = {"asyncio": "asyncio:SelectorEventLoop", "rondel": "rondel:new_event_loop"}
LIMIT = 20


class Uvicorn:
    """A running server: its port, and what the application said on standard output."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log
        self.port = self._wait_for_port()

    def _wait_for_port(self) -> int:
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := re.search(rf"running on http://{HOST}:(\d+)", self.log()):
                return int(found[1])
            time.sleep(0.02)
        raise AssertionError(f"uvicorn did not start:\n{self.log()}")

    def log(self) -> str:
        """What uvicorn logged so far."""
        return self._log.read_text()

    def line(self) -> str:
        """The next line that the application prints; "" after the last."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def stop(self, number: signal.Signals) -> tuple[list[str], int]:
        """Send the signal; what the application printed from then on, and the exit status."""
        self.process.send_signal(number)
        assert self.process.stdout is not None
        lines = self.process.stdout.read().decode().split("\n")
        return lines[:-1], self.process.wait(LIMIT)

    @contextlib.contextmanager
    def client(self) -> Iterator[http.client.HTTPConnection]:
        """A connection to the server."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=LIMIT)
        with contextlib.closing(connection):
            yield connection


@contextlib.contextmanager
def running(command: list[str], log: Path) -> Iterator[Uvicorn]:
    """Start a server, wait until it listens; kill it afterwards if the test did not stop it."""
    error: IO[bytes]
    with (
        log.open("wb") as error,
        subprocess.Popen(
            [sys.executable, *command], cwd=PROGRAMS, stdout=subprocess.PIPE, stderr=error
        ) as process,
    ):
        try:
            yield Uvicorn(process, log)
        finally:
            process.kill()


def command_line(loop_name: str, *options: str) -> list[str]:
    return [
        "-m",
        "uvicorn",
        "--loop",
        FACTORIES[loop_name],
        "--port=0",
        "--no-access-log",
        *options,
        "asgi_app:app",
    ]


@pytest.fixture(params=["asyncio", "rondel"])
def loop_name(request: pytest.FixtureRequest) -> str:
    """The loop that the server runs on."""
    return str(request.param)


@pytest.fixture(params=["h11", "httptools"])
def server(loop_name: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Uvicorn]:
    """A server with each of uvicorn's HTTP implementations."""
    with running(command_line(loop_name, "--http", request.param), tmp_path / "log") as started:
        assert started.line() == "startup"
        yield started


def test_it_runs_on_the_loop_and_keeps_connections(server: Uvicorn, loop_name: str) -> None:
    with server.client() as client:
        client.connect()
        client_socket = client.sock
        for _ in range(20):
            client.request("GET", "/about")
            facts = json.load(client.getresponse())
            assert facts["loop"] == loop_name
            # http.client would have connected again had the server closed the connection.
            assert client.sock is client_socket
            assert facts["client"] == list(client_socket.getsockname())


def test_bodies_up_and_down(server: Uvicorn) -> None:
    body = random.Random(1).randbytes(3_000_017)
    with server.client() as client:
        client.request("POST", "/echo", body)
        assert client.getresponse().read() == body
        # Chunked, with a chunk of a single byte among them.
        parts = [body[:1], body[1:100_000], body[100_000:]]
        client.request("POST", "/echo", iter(parts), encode_chunked=True)
        response = client.getresponse()
        assert response.getheader("Transfer-Encoding") == "chunked"
        assert response.read() == body


def test_a_streamed_response_arrives_as_it_is_sent(server: Uvicorn) -> None:
    with server.client() as client, server.client() as other:
        client.request("GET", "/stream")
        response = client.getresponse()
        # Here although the response is not complete: what completes it is the next request.
        assert response.read(5) == b"first"
        other.request("POST", "/release")
        assert other.getresponse().status == 204
        assert response.read() == b"second"


def test_an_endless_response_ends_with_its_client(server: Uvicorn) -> None:
    with server.client() as client:
        client.request("GET", "/big")
        assert len(client.getresponse().read(1_000_000)) == 1_000_000
    assert server.line() == "client left"
    with server.client() as client:
        client.request("GET", "/about")
        assert client.getresponse().status == 200


def test_many_clients_at_once(server: Uvicorn) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.client()) for _ in range(100)]
        for index, client in enumerate(clients):
            client.request("POST", "/echo", b"%d" % index * 1000)
        for index, client in enumerate(clients):
            assert client.getresponse().read() == b"%d" % index * 1000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_shuts_down_gracefully(server: Uvicorn, number: signal.Signals) -> None:
    with server.client() as client, server.client() as idle:
        idle.request("GET", "/about")
        idle.getresponse().read()
        client.request("GET", "/held")
        assert server.line() == "held"
        lines, status = server.stop(number)
        # The request under way was answered, and only then the application shut down.
        assert client.getresponse().read() == b"done"
        assert lines == ["shutdown"]
        assert idle.sock.recv(1) == b""
    assert "Application shutdown complete." in server.log()
    assert "Traceback" not in server.log()
    # uvicorn raises the signal again when all is done, so that a shell sees what ended it; its
    # command line takes the KeyboardInterrupt that SIGINT becomes for a normal end.
    assert status == (-signal.SIGTERM if number is signal.SIGTERM else 0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, server.port), timeout=LIMIT)


@pytest.mark.parametrize("implementation", ["websockets", "websockets-sansio", "wsproto"])
def test_websocket(loop_name: str, implementation: str, tmp_path: Path) -> None:
    command = command_line(loop_name, "--ws", implementation)
    with running(command, tmp_path / "log") as server:
        assert server.line() == "startup"
        url = f"ws://{HOST}:{server.port}/"
        with connect(url, subprotocols=[Subprotocol("chat")], max_size=None) as websocket:
            assert websocket.subprotocol == "chat"
            for size in (0, 1, 125, 126, 65_536, 1_000_000):
                data = random.Random(size).randbytes(size)
                websocket.send(data)
                assert websocket.recv(LIMIT) == data
            for number in range(200):
                websocket.send(f"grüße {number} 🦀")
            for number in range(200):
                assert websocket.recv(LIMIT) == f"grüße {number} 🦀"
        assert server.line() == "websocket closed 1000"

        with connect(url) as websocket:
            websocket.send("leave")
            with pytest.raises(ConnectionClosedError) as caught:
                websocket.recv(LIMIT)
            assert caught.value.rcvd is not None
            assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4001, "as told")

        with connect(url) as websocket:
            websocket.send("one")
            assert websocket.recv(LIMIT) == "one"
            websocket.socket.shutdown(socket.SHUT_RDWR)
            assert server.line() in ("websocket closed 1005", "websocket closed 1006")

        with connect(url) as websocket:
            lines, _ = server.stop(signal.SIGTERM)
            with pytest.raises(ConnectionClosedError) as caught:
                websocket.recv(LIMIT)
            assert caught.value.rcvd is not None
            # "Service Restart": uvicorn's word for going down.
            assert caught.value.rcvd.code == 1012
        assert lines == ["websocket closed 1012", "shutdown"]
        assert "Traceback" not in server.log()


def test_embedded_in_a_program(loop_name: str, tmp_path: Path) -> None:
    with running(["uvicorn_serve.py", loop_name], tmp_path / "log") as server:
        assert server.line() == "startup"
        with server.client() as client:
            client.request("GET", "/about")
            assert json.load(client.getresponse())["loop"] == loop_name
        lines, status = server.stop(signal.SIGTERM)
        assert (lines, status) == (["shutdown"], -signal.SIGTERM)
        assert "Traceback" not in server.log()
