"""rondel.http's sessions: the pool, limits, timeouts, cancellation, TLS, what is left behind."""

import asyncio
import contextlib
import gc
import shutil
import subprocess
import sys
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from http_peers import BIG, CLIENTS, lineage, raw_server, web_server
from rondel import http
from support import collected, open_fds, run_on, unused_port
from tls import client_context, server_context

pytestmark = pytest.mark.usefixtures("no_descriptor_left")

EXAMPLES = Path(__file__).parent.parent / "examples"


@contextlib.asynccontextmanager
async def counting_server(delay: float = 0) -> AsyncIterator[tuple[str, dict[str, int]]]:
    """Answers every request with the number of its connection; counts connections."""
    seen = {"connections": 0, "now": 0, "most": 0}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen["connections"] += 1
        own = b"%d" % seen["connections"]
        while True:
            await reader.readuntil(b"\r\n\r\n")
            seen["now"] += 1
            seen["most"] = max(seen["most"], seen["now"])
            await asyncio.sleep(delay)
            seen["now"] -= 1
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(own), own))

    async with raw_server(serve) as url:
        yield url, seen


def test_connections_are_kept(rondel_loop: Any) -> None:
    async def main() -> None:
        async with counting_server() as (url, seen), http.ClientSession() as session:
            for _ in range(5):
                async with session.get(url) as response:
                    assert await response.read() == b"1"
                    assert response.connection is None and response.closed
            bodies = await asyncio.gather(*[text(session, url) for _ in range(10)])
            assert sorted(map(int, bodies)) == list(range(1, 11))
            assert sorted(await asyncio.gather(*[text(session, url) for _ in range(10)])) == sorted(
                bodies
            )
            assert seen["connections"] == 10

    async def text(session: http.ClientSession, url: str) -> str:
        async with session.get(url) as response:
            return await response.text()

    run_on(rondel_loop, main)


@pytest.mark.parametrize("options", [{"force_close": True}, {"keepalive_timeout": 0.02}])
def test_connections_are_not_kept(rondel_loop: Any, options: dict[str, Any]) -> None:
    async def main() -> None:
        connector = http.TCPConnector(**options)
        async with counting_server() as (url, _), http.ClientSession(connector=connector) as s:
            for number in range(1, 4):
                async with s.get(url) as response:
                    assert await response.read() == b"%d" % number
                await asyncio.sleep(0.1)

    run_on(rondel_loop, main)


@pytest.mark.parametrize("options", [{"limit": 3}, {"limit": 0, "limit_per_host": 3}])
def test_limits(rondel_loop: Any, options: dict[str, Any]) -> None:
    async def main() -> None:
        connector = http.TCPConnector(**options)
        async with counting_server(0.005) as (url, seen):
            async with http.ClientSession(connector=connector) as session:
                served: list[int] = []

                async def ask(number: int) -> None:
                    async with session.get(url) as response:
                        await response.read()
                        served.append(number)

                tasks = [asyncio.create_task(ask(number)) for number in range(20)]
                await asyncio.sleep(0.001)
                for task in tasks[5:8]:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                assert seen["most"] == 3 and seen["connections"] <= 3
                assert sorted(served) == [n for n in range(20) if n not in (5, 6, 7)]
                assert connector._taken == 0 and not connector._taken_per_host

    run_on(rondel_loop, main)


def test_unread_body_ends_the_connection(rondel_loop: Any) -> None:
    async def main() -> None:
        async with web_server() as base, http.ClientSession() as session:
            for end in ("leave", "close", "release", "read some"):
                response = await session.get(base + "/big")
                if end == "leave":
                    async with response:
                        pass
                elif end == "close":
                    response.close()
                elif end == "release":
                    await response.release()
                else:
                    assert await response.content.read(10) == BIG[:10]
                    response.release()
                assert response.closed
                with pytest.raises(http.ClientConnectionError, match="Connection closed"):
                    await response.read()
            assert session.connector._taken == 0

    run_on(rondel_loop, main)


TIMEOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "total before": ("/slow?before=30", {"total": 0.1}),
    "total within": ("/slow?within=30", {"total": 0.1}),
    "silence before": ("/slow?before=30", {"sock_read": 0.1}),
    "silence within": ("/slow?within=30", {"sock_read": 0.1}),
    "enough": ("/slow?before=0.02&within=0.02", {"total": 30, "sock_read": 10, "connect": 10}),
}


@pytest.mark.parametrize("case", TIMEOUTS)
@pytest.mark.parametrize("where", ["session", "request"])
def test_timeouts(rondel_loop: Any, case: str, where: str) -> None:
    path, limits = TIMEOUTS[case]

    async def main() -> None:
        seen: list[Any] = []
        async with web_server() as base:
            for client in CLIENTS:
                timeout = {"timeout": client.ClientTimeout(**limits)}
                of_session, of_request = (timeout, {}) if where == "session" else ({}, timeout)
                stage = "request"
                async with client.ClientSession(**of_session) as session:
                    try:
                        async with session.get(base + path, **of_request) as response:
                            stage = "body"
                            seen.append(await response.read())
                    except (TimeoutError, client.ClientError) as error:
                        seen.append((stage, lineage(error)))
        assert seen[0] == seen[1]

    run_on(rondel_loop, main)


def test_connect_timeouts(rondel_loop: Any) -> None:
    async def main() -> None:
        release = asyncio.Event()

        async def never(*args: Any, **kwargs: Any) -> Any:
            await release.wait()

        rondel_loop.create_connection = never
        seen: list[Any] = []
        for limits in ({"connect": 0.05}, {"sock_connect": 0.05}, {"total": 0.05}):
            async with http.ClientSession(timeout=http.ClientTimeout(**limits)) as session:
                with pytest.raises(asyncio.TimeoutError) as raised:
                    await session.get("http://127.0.0.1:1/")
                seen.append(type(raised.value))
                assert session.connector._taken == 0
        assert seen == [http.ConnectionTimeoutError, http.ConnectionTimeoutError, TimeoutError]
        del rondel_loop.create_connection
        # Waiting for a slot counts too.
        connector = http.TCPConnector(limit=1)
        async with web_server() as base, http.ClientSession(connector=connector) as session:
            async with session.get(base + "/slow?within=30"):
                with pytest.raises(http.ConnectionTimeoutError):
                    await session.get(base + "/small", timeout=http.ClientTimeout(connect=0.05))

    run_on(rondel_loop, main)


@pytest.mark.parametrize("path", ["/slow?before=30", "/slow?within=30", "/small"])
def test_cancellation(rondel_loop: Any, path: str) -> None:
    async def main() -> None:
        async with web_server() as base, http.ClientSession() as session:

            async def ask() -> None:
                async with session.get(base + path) as response:
                    await response.read()

            for turns in range(30):
                task = asyncio.create_task(ask())
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                assert session.connector._taken == 0
            async with session.get(base + "/small") as response:
                assert await response.read() == b"x" * 1024

    run_on(rondel_loop, main)


def test_cancelled_when_the_response_is_there(rondel_loop: Any) -> None:
    """The connection may be lent again by then, and must not be closed under the next request."""

    async def main() -> None:
        connector = http.TCPConnector(limit=1)
        async with counting_server() as (url, _), http.ClientSession(connector=connector) as s:

            async def ask() -> bytes:
                async with s.get(url) as response:
                    return await response.read()

            await ask()
            for turns in range(1, 12):
                first, second = asyncio.create_task(ask()), asyncio.create_task(ask())
                for _ in range(turns):
                    await asyncio.sleep(0)
                    await asyncio.sleep(0.0005)
                first.cancel()
                await asyncio.gather(first, return_exceptions=True)
                await second

    run_on(rondel_loop, main)


def test_timeout_around(rondel_loop: Any) -> None:
    async def main() -> None:
        async with web_server() as base, http.ClientSession() as session:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05), session.get(base + "/slow?within=30") as response:
                    await response.content.read(1024)
                    await response.content.read(1024)
            assert session.connector._taken == 0

    run_on(rondel_loop, main)


def test_reading_slowly_stops_the_server(rondel_loop: Any) -> None:
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 200000000\r\n\r\n")
        piece = bytes(100_000)
        for _ in range(2000):
            writer.write(piece)
            sent += len(piece)
            await writer.drain()

    async def main() -> None:
        async with raw_server(flood) as url, http.ClientSession() as session:
            async with session.get(url) as response:
                await response.content.readexactly(1000)
                await asyncio.sleep(0.3)
                assert sent < 50_000_000
                await response.content.readexactly(20_000_000)

    run_on(rondel_loop, main)


def test_read_without_a_future(rondel_loop: Any) -> None:
    """What has arrived is read without going through the loop."""

    async def main() -> None:
        async with web_server() as base, http.ClientSession() as session:
            async with session.get(base + "/small") as response:
                while not response.content.is_eof():
                    await asyncio.sleep(0.001)
                turns = 0

                def count() -> None:
                    nonlocal turns
                    turns += 1

                rondel_loop.call_soon(count)
                assert await response.content.read(100) == b"x" * 100
                assert await response.read() == b"x" * 924
                assert turns == 0

    run_on(rondel_loop, main)


def test_reads_as_tasks(rondel_loop: Any) -> None:
    async def main() -> None:
        async with web_server() as base, http.ClientSession() as session:
            async with session.get(base + "/slow?within=0.05") as response:
                content = response.content
                assert await asyncio.wait_for(content.readexactly(10), 5) == b"0123456789"
                first = asyncio.create_task(content.read(5))
                await asyncio.sleep(0)
                with pytest.raises(RuntimeError, match="already waiting for incoming data"):
                    await content.read(5)
                assert await first == b"01234"

    run_on(rondel_loop, main)


def test_tls(rondel_loop: Any) -> None:
    async def main() -> None:
        async with web_server(server_context()) as base:
            connector = http.TCPConnector(ssl=client_context())
            async with http.ClientSession(connector=connector) as session:
                for _ in range(3):
                    async with session.get(base + "/big") as response:
                        assert await response.read() == BIG
            async with http.ClientSession() as session:
                async with session.get(base + "/small", ssl=client_context()) as response:
                    assert await response.read() == b"x" * 1024
                async with session.get(base + "/small", ssl=False) as response:
                    assert await response.read() == b"x" * 1024
            seen = []
            for client in CLIENTS:
                async with client.ClientSession() as session:
                    with pytest.raises(client.ClientConnectorCertificateError) as raised:
                        await session.get(base + "/small")
                    seen.append((lineage(raised.value), str(raised.value).split(":")[0]))
            assert seen[0] == seen[1]

    async def plain() -> None:
        async with web_server() as base:
            seen = []
            for client in CLIENTS:
                async with client.ClientSession() as session:
                    with pytest.raises(client.ClientConnectorError) as raised:
                        await session.get(base.replace("http", "https") + "/small")
                    seen.append(lineage(raised.value))
            assert seen[0] == seen[1]

    run_on(rondel_loop, plain)
    run_on(rondel_loop, main)


def test_unix_socket(rondel_loop: Any, tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Host: somewhere\r\n" in head
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()

    async def main() -> None:
        path = str(tmp_path / "s")
        server = await asyncio.start_unix_server(serve, path)
        async with http.ClientSession(connector=http.UnixConnector(path)) as session:
            async with session.get("http://somewhere/") as response:
                assert await response.text() == "ok"
        server.close()
        async with http.ClientSession(connector=http.UnixConnector(path + "x")) as session:
            with pytest.raises(http.UnixClientConnectorError):
                await session.get("http://somewhere/")

    run_on(rondel_loop, main)


def test_other_loops_are_refused() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="rondel's event loop only"):
            http.ClientSession()

    asyncio.new_event_loop().run_until_complete(main())


def test_what_is_not_there_says_so(rondel_loop: Any) -> None:
    async def main() -> None:
        async with http.ClientSession() as session:
            with pytest.raises(NotImplementedError, match="read_until_eof=False"):
                await session.get("http://127.0.0.1/", read_until_eof=False)

    run_on(rondel_loop, main)


def test_closed_session(rondel_loop: Any) -> None:
    async def main() -> None:
        session = http.ClientSession()
        await session.close()
        assert session.closed and session.connector.closed
        with pytest.raises(RuntimeError, match="Session is closed"):
            await session.get("http://127.0.0.1/")
        with pytest.warns(ResourceWarning, match="Unclosed client session"):
            http.ClientSession()
            gc.collect()

    run_on(rondel_loop, main)


def test_single_request(rondel_loop: Any) -> None:
    async def main() -> None:
        async with web_server() as base:
            async with http.request("GET", base + "/small") as response:
                assert await response.read() == b"x" * 1024

    run_on(rondel_loop, main)


def test_nothing_is_left(rondel_loop: Any) -> None:
    refs: list[weakref.ref[Any]] = []

    async def main() -> None:
        async with web_server() as base:
            before = open_fds()
            async with http.ClientSession() as session:
                for path in ("/small", "/lines", "/encoded/gzip", "/status/404"):
                    async with session.get(base + path) as response:
                        await response.read()
                    refs.extend(map(weakref.ref, (response, response.content)))
                response = await session.get(base + "/big")
                with pytest.warns(ResourceWarning, match="Unclosed response"):
                    refs.append(weakref.ref(response))
                    del response
                    gc.collect()
                refs.append(weakref.ref(session))
                refs.extend(map(weakref.ref, session.connector._all))
            await asyncio.sleep(0.05)
            assert open_fds() <= before + 6  # the server's ends

    run_on(rondel_loop, main)
    assert all(collected(ref) for ref in refs)


def test_failed_exchanges_are_collected(rondel_loop: Any) -> None:
    """An exception that a body keeps has a traceback that leads back to the body."""
    refs: list[weakref.ref[Any]] = []
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"

    async def main() -> None:
        async with raw_server(answer) as url, http.ClientSession() as session:
            response = await session.get(url)
            refs.extend(map(weakref.ref, (response, response.content)))
            with contextlib.suppress(http.ClientPayloadError):
                await response.read()

    run_on(rondel_loop, main)
    assert all(collected(ref) for ref in refs)


def test_the_download_program(tmp_path: Path) -> None:
    """The user's program with only its import changed."""
    program = (EXAMPLES / "download.py").read_text()
    changed = program.replace("import aiohttp\n", "from rondel import http as aiohttp\n")
    assert changed != program
    (tmp_path / "program.py").write_text(changed)
    shutil.copy(EXAMPLES / "asked.py", tmp_path)
    served = tmp_path / "served"
    served.mkdir()
    for number in range(20):
        (served / f"{number}.bin").write_bytes(BIG[: number * 10_000])
    port = unused_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with subprocess.Popen(
        command, cwd=served, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            urls = [f"http://127.0.0.1:{port}/{number}.bin" for number in range(20)]
            _wait_for(port)
            target = str(tmp_path / "out")
            subprocess.run(
                [sys.executable, str(tmp_path / "program.py"), "-o", target, *urls],
                check=True,
                timeout=60,
            )
        finally:
            server.terminate()
    for number in range(20):
        assert (tmp_path / "out" / f"{number}.bin").read_bytes() == BIG[: number * 10_000]


def _wait_for(port: int) -> None:
    import socket
    import time

    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 5).close()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
