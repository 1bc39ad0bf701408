"""hypercorn serving an ASGI application, as a process of its own."""

import json
import random
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from servers import LIMIT, ServerProcess, running
from support import HOST
from tls import NAME, certificate, client_context
from websockets.sync.client import connect


@pytest.fixture(params=["asyncio", "rondel"])
def loop_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(loop_name: str, tmp_path: Path) -> Iterator[ServerProcess]:
    with running(["hypercorn_serve.py", loop_name], tmp_path / "log") as started:
        assert started.line() == "startup"
        yield started


def test_requests(server: ServerProcess, loop_name: str) -> None:
    body = random.Random(1).randbytes(1_000_000)
    with server.client() as client:
        for _ in range(10):
            client.request("GET", "/about")
            assert json.load(client.getresponse())["loop"] == loop_name
        client.request("POST", "/echo", body)
        assert client.getresponse().read() == body
    assert "Traceback" not in server.log()


def test_websocket(server: ServerProcess) -> None:
    with connect(f"ws://{HOST}:{server.port}/", max_size=None) as websocket:
        for size in (0, 125, 126, 65_536, 1_000_000):
            data = random.Random(size).randbytes(size)
            websocket.send(data)
            assert websocket.recv(LIMIT) == data
    assert server.line().startswith("websocket closed")
    assert "Traceback" not in server.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_shuts_down_gracefully(server: ServerProcess, number: signal.Signals) -> None:
    with server.client() as client:
        client.request("GET", "/held")
        assert server.line() == "held"
        lines, status = server.stop(number)
        assert client.getresponse().read() == b"done"
    assert (lines, status) == (["shutdown"], 0)
    assert "Traceback" not in server.log()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, server.port), timeout=LIMIT)


def test_tls_and_http2(loop_name: str, tmp_path: Path) -> None:
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    certificate().cert_chain_pems[0].write_to_path(chain)
    certificate().private_key_pem.write_to_path(key)
    command = ["hypercorn_serve.py", loop_name, str(chain), str(key)]
    with running(command, tmp_path / "log") as server:
        assert server.line() == "startup"
        url = f"https://{NAME}:{server.port}"
        context = client_context()
        with httpx.Client(
            verify=context, http2=True, http1=False, trust_env=False, timeout=LIMIT
        ) as client:
            answer = client.get(f"{url}/about")
            assert (answer.http_version, answer.json()["loop"]) == ("HTTP/2", loop_name)
            body = random.Random(2).randbytes(500_000)
            assert client.post(f"{url}/echo", content=body).content == body
        lines, status = server.stop(signal.SIGTERM)
        assert (lines, status) == (["shutdown"], 0)
        assert "Traceback" not in server.log()


def test_its_command_line_on_rondel(tmp_path: Path) -> None:
    """Without an option for the loop, by `rondel run`; its server runs in the first process."""
    command = ["-m", "rondel", "run", "-m", "hypercorn", "--workers=0", f"--bind={HOST}:0"]
    with running([*command, "asgi_app:app"], tmp_path / "log") as server:
        assert server.line() == "startup"
        with server.client() as client:
            client.request("GET", "/about")
            assert json.load(client.getresponse())["loop"] == "rondel"
        assert server.stop(signal.SIGTERM) == (["shutdown"], 0)
        assert "Traceback" not in server.log()
