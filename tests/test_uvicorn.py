"""uvicorn serving an ASGI application, as a process of its own, started as its users start it."""

import contextlib
import json
import random
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import LIMIT, ServerProcess, running
from support import HOST
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect
from websockets.typing import Subprotocol

# What a user writes after --loop. The stock loop is named the same way as ours.
FACTORIES = {"asyncio": "asyncio:SelectorEventLoop", "rondel": "rondel:new_event_loop"}


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
def server(
    loop_name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[ServerProcess]:
    """A server with each of uvicorn's HTTP implementations."""
    with running(command_line(loop_name, "--http", request.param), tmp_path / "log") as started:
        assert started.line() == "startup"
        yield started


def test_it_runs_on_the_loop_and_keeps_connections(server: ServerProcess, loop_name: str) -> None:
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


def test_bodies_up_and_down(server: ServerProcess) -> None:
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


def test_a_streamed_response_arrives_as_it_is_sent(server: ServerProcess) -> None:
    with server.client() as client, server.client() as other:
        client.request("GET", "/stream")
        response = client.getresponse()
        # Here although the response is not complete: what completes it is the next request.
        assert response.read(5) == b"first"
        other.request("POST", "/release")
        assert other.getresponse().status == 204
        assert response.read() == b"second"


def test_an_endless_response_ends_with_its_client(server: ServerProcess) -> None:
    with server.client() as client:
        client.request("GET", "/big")
        assert len(client.getresponse().read(1_000_000)) == 1_000_000
    assert server.line() == "client left"
    with server.client() as client:
        client.request("GET", "/about")
        assert client.getresponse().status == 200


def test_many_clients_at_once(server: ServerProcess) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.client()) for _ in range(100)]
        for index, client in enumerate(clients):
            client.request("POST", "/echo", b"%d" % index * 1000)
        for index, client in enumerate(clients):
            assert client.getresponse().read() == b"%d" % index * 1000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_shuts_down_gracefully(server: ServerProcess, number: signal.Signals) -> None:
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
