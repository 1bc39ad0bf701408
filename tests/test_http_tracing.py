"""Trace hooks of rondel.http and of aiohttp, and requests that are made again."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
from http_peers import CLIENTS, lineage, raw_server, web_server
from rondel import http
from support import run_on

pytestmark = pytest.mark.usefixtures("no_descriptor_left")

SIGNALS = [
    "request_start",
    "request_chunk_sent",
    "response_chunk_received",
    "request_end",
    "request_exception",
    "request_redirect",
    "connection_queued_start",
    "connection_queued_end",
    "connection_create_start",
    "connection_create_end",
    "connection_reuseconn",
    "dns_resolvehost_start",
    "dns_resolvehost_end",
    "dns_cache_hit",
    "dns_cache_miss",
    "request_headers_sent",
]
OWN = ("user-agent", "accept-encoding")


def _told(params: Any) -> Any:
    told: dict[str, Any] = {"kind": type(params).__name__}
    for name in ("method", "url", "chunk", "host"):
        if hasattr(params, name):
            told[name] = getattr(params, name)
    if hasattr(params, "headers"):
        fields = params.headers.items()
        told["headers"] = sorted((k.lower(), v) for k, v in fields if k.lower() not in OWN)
    if hasattr(params, "response"):
        told["status"] = params.response.status
    if hasattr(params, "exception"):
        told["exception"] = lineage(params.exception)
    return told


def _config(client: Any, told: list[Any]) -> Any:
    config = client.TraceConfig()
    for signal in SIGNALS:

        async def hook(session: Any, context: Any, params: Any, signal: str = signal) -> None:
            assert isinstance(session, client.ClientSession)
            assert isinstance(context, SimpleNamespace)
            told.append((signal, context.trace_request_ctx, _told(params)))
            if signal == "request_start":
                params.headers["X-Traced"] = "yes"

        getattr(config, f"on_{signal}").append(hook)
    return config


async def _pieces() -> Any:
    for _ in range(3):
        yield b"piece"


CASES: dict[str, dict[str, Any]] = {
    "get": {"path": "/echo"},
    "params": {"path": "/echo", "params": {"a": "1"}},
    "bytes": {"path": "/echo", "method": "POST", "data": b"abc"},
    "pieces": {"path": "/echo", "method": "POST", "data": _pieces},
    "redirect": {"path": "/redirect?to=/small%3Fx=1"},
    "post and redirect": {"path": "/redirect?to=/small", "method": "POST", "data": b"x"},
    "loop": {"path": "/redirect?to=/redirect%3Fto=/redirect", "max_redirects": 2},
    "status": {"path": "/status/404", "raise_for_status": True},
    "name": {"path": "/small", "name": True},
    "refused": {"path": "http://127.0.0.1:1/"},
    "no URL": {"path": "ftp://127.0.0.1/"},
    "slow": {"path": "/slow?before=5", "timeout": 0.2},
}


@pytest.mark.parametrize("case", CASES)
def test_traces(rondel_loop: Any, case: str) -> None:
    async def program(client: Any, base: str) -> Any:
        arguments = dict(CASES[case])
        path, method = arguments.pop("path"), arguments.pop("method", "GET")
        if "timeout" in arguments:
            arguments["timeout"] = client.ClientTimeout(total=arguments["timeout"])
        if "data" in arguments and callable(arguments["data"]):
            arguments["data"] = arguments["data"]()
        if arguments.pop("name", False):
            base = base.replace("127.0.0.1", "localhost")
        told: list[Any] = []
        config = _config(client, told)
        async with client.ClientSession(trace_configs=[config]) as session:
            with pytest.raises(RuntimeError):
                config.on_request_start.append(None)
            for number in range(2):
                try:
                    url = base + path if path.startswith("/") else path
                    async with session.request(
                        method, url, trace_request_ctx=number, **arguments
                    ) as response:
                        await response.read()
                except (client.ClientError, TimeoutError):
                    pass
                if "data" in CASES[case] or "name" in CASES[case]:
                    break
        return told

    async def main() -> None:
        async with web_server() as base:
            told = [await program(client, base) for client in CLIENTS]
            assert told[1] == told[0]

    run_on(rondel_loop, main)


def test_waiting_for_a_connection_is_told(rondel_loop: Any) -> None:
    async def program(client: Any, base: str) -> list[str]:
        told: list[Any] = []
        connector = client.TCPConnector(limit=1)
        configs = [_config(client, told)]
        async with client.ClientSession(connector=connector, trace_configs=configs) as session:

            async def get() -> None:
                async with session.get(base + "/small") as response:
                    await response.read()

            await asyncio.gather(get(), get())
        return sorted(signal for signal, *_ in told)

    async def main() -> None:
        async with web_server() as base:
            told = [await program(client, base) for client in CLIENTS]
            assert told[1] == told[0]
            assert "connection_queued_end" in told[1]

    run_on(rondel_loop, main)


class Flaky:
    """Answers with these statuses one after the other (0: resets the connection), then with 200."""

    def __init__(self, *answers: int, header: str = "") -> None:
        self.answers = list(answers)
        self.header = header
        self.bodies: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            self.bodies.append(await reader.readexactly(int(length or b"0")))
            status = self.answers.pop(0) if self.answers else 200
            if not status:
                writer.transport.abort()
                return
            answer = f"HTTP/1.1 {status} x\r\n{self.header}Content-Length: 2\r\n\r\nok"
            writer.write(answer.encode())


FAST = {"backoff": 0.001, "jitter": 1.0}
RETRIES: dict[str, tuple[Flaky, http.Retry, dict[str, Any], Any, int]] = {
    "statuses": (Flaky(503, 429, 0, 500), http.Retry(attempts=5, **FAST), {}, 200, 5),
    "too many": (Flaky(503, 503, 503), http.Retry(attempts=2, **FAST), {}, 503, 2),
    "reset too often": (Flaky(*[0] * 9), http.Retry(2, **FAST), {}, "ServerDisconnectedError", 2),
    "other status": (Flaky(404), http.Retry(**FAST), {}, 404, 1),
    "chosen status": (Flaky(404), http.Retry(statuses={404}, **FAST), {}, 200, 2),
    "body": (Flaky(503), http.Retry(**FAST), {"method": "PUT", "data": b"body"}, 200, 2),
    "form": (Flaky(503), http.Retry(**FAST), {"method": "PUT", "data": {"a": "b"}}, 200, 2),
    "json": (Flaky(503), http.Retry(**FAST), {"method": "PUT", "json": [1]}, 200, 2),
    "post": (Flaky(503), http.Retry(**FAST), {"method": "POST", "data": b"body"}, 503, 1),
    "chosen post": (
        Flaky(503),
        http.Retry(methods={"POST"}, **FAST),
        {"method": "POST", "data": b"body"},
        200,
        2,
    ),
    "raise for status": (
        Flaky(503, 503),
        http.Retry(attempts=2, **FAST),
        {"raise_for_status": True},
        "ClientResponseError",
        2,
    ),
    "raised at once": (
        Flaky(404),
        http.Retry(**FAST),
        {"raise_for_status": True},
        "ClientResponseError",
        1,
    ),
    "patience": (
        Flaky(503, header="Retry-After: 100\r\n"),
        http.Retry(retry_after_max=10, **FAST),
        {},
        503,
        1,
    ),
    "date": (
        Flaky(503, header="Retry-After: Wed, 21 Oct 2015 07:28:00 GMT\r\n"),
        http.Retry(backoff=100, jitter=0),
        {},
        200,
        2,
    ),
}


@pytest.mark.parametrize("where", ["session", "request"])
@pytest.mark.parametrize("case", RETRIES)
def test_retries(rondel_loop: Any, case: str, where: str) -> None:
    flaky, retry, given, expected, attempts = RETRIES[case]
    server = Flaky(*flaky.answers, header=flaky.header)
    arguments: dict[str, Any] = {"method": "GET", **given}

    async def main() -> None:
        options = {"retry": retry}
        session_options, request_options = (options, {}) if where == "session" else ({}, options)
        async with (
            raw_server(server.serve) as url,
            http.ClientSession(**session_options) as session,
        ):
            seen: Any
            try:
                async with session.request(url=url, **arguments, **request_options) as response:
                    seen = response.status
                    assert await response.read() == b"ok"
            except http.ClientError as error:
                seen = type(error).__name__
            assert seen == expected
        bodies = server.bodies
        # A request on a connection that had been used may be repeated once more at once.
        assert len(bodies) in (attempts, attempts + 1)
        assert len(set(bodies)) == 1

    run_on(rondel_loop, main)


def test_retry_after_is_waited_for(rondel_loop: Any) -> None:
    async def main() -> None:
        server = Flaky(429, header="Retry-After: 1\r\n")
        async with (
            raw_server(server.serve) as url,
            http.ClientSession(retry=http.Retry(backoff=0)) as session,
        ):
            before = time.monotonic()
            async with session.get(url) as response:
                assert response.status == 200
            assert time.monotonic() - before >= 0.99

    run_on(rondel_loop, main)
