"""FastAPI on uvicorn, whose process runs on rondel; asyncio's loop beside it as the oracle."""

import http.client
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import LIMIT, ServerProcess, running
from support import HOST
from websockets.sync.client import connect

LOOPS = {"asyncio": "asyncio:SelectorEventLoop", "rondel": "rondel:new_event_loop"}


@pytest.fixture(params=LOOPS)
def loop_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(loop_name: str, tmp_path: Path) -> Iterator[ServerProcess]:
    command = ["-m", "uvicorn", "--loop", LOOPS[loop_name], "--port=0", "--no-access-log"]
    with running([*command, "fastapi_app:app"], tmp_path / "log") as started:
        assert started.line() == "startup"
        yield started


def ask(client: http.client.HTTPConnection, path: str, body: Any = None) -> tuple[int, Any]:
    """The status and the JSON of the answer."""
    if body is None:
        client.request("GET", path)
    else:
        client.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = client.getresponse()
    return response.status, json.load(response)


def test_requests(server: ServerProcess, loop_name: str) -> None:
    with server.client() as client:
        assert ask(client, "/about") == (200, {"loop": loop_name})
        assert ask(client, "/thread") == (200, {"main": False})
        assert ask(client, "/items", {"name": "nut", "count": 2}) == (
            200,
            {"name": "NUT", "count": 3},
        )
        status, problem = ask(client, "/items", {"name": "nut", "count": "many"})
        assert (status, problem["detail"][0]["loc"]) == (422, ["body", "count"])
        assert ask(client, "/missing") == (404, {"detail": "nothing here"})
        assert ask(client, "/resource") == (200, {"held": "resource"})
        assert server.line() == "resource closed"
        assert ask(client, "/background") == (200, None)
        assert server.line() == "in the background"
        client.request("GET", "/stream")
        expected = b"".join(b"%d;" % number * 1000 for number in range(100))
        assert client.getresponse().read() == expected
    assert "Traceback" not in server.log()


def test_websocket(server: ServerProcess) -> None:
    with connect(f"ws://{HOST}:{server.port}/echo/ann") as websocket:
        for number in range(100):
            websocket.send(f"grüße {number}")
        for number in range(100):
            assert json.loads(websocket.recv(LIMIT)) == {"to": "ann", "text": f"grüße {number}"}
    assert server.line() == "ann left"
    assert "Traceback" not in server.log()


def test_it_shuts_down_gracefully(server: ServerProcess) -> None:
    with server.client() as client:
        client.request("GET", "/held")
        assert server.line() == "held"
        lines, status = server.stop(signal.SIGTERM)
        assert json.load(client.getresponse()) == "done"
    assert (lines, status) == (["shutdown"], -signal.SIGTERM)
    assert "Traceback" not in server.log()
