"""aiohttp, unmodified: its server and its client against each other on one loop."""

import asyncio
import contextlib
import functools
import gc
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import (
    ClientConnectorError,
    ClientSession,
    ClientTimeout,
    TCPConnector,
    WSCloseCode,
    WSMsgType,
    web,
)
from flow import Flow
from support import HOST, open_fds, until, unused_port

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]
PROGRAMS = Path(__file__).parent / "programs"
MIB = 1 << 20


@contextlib.asynccontextmanager
async def serving(
    *routes: web.AbstractRouteDef, **options: Any
) -> AsyncIterator[tuple[str, web.AppRunner]]:
    """An aiohttp server with these routes on the running loop; its address and its runner."""
    app = web.Application(client_max_size=1 << 40)
    app.add_routes(routes)
    runner = web.AppRunner(app, access_log=None, **options)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, 0, backlog=2048).start()
        yield f"http://{HOST}:{runner.addresses[0][1]}", runner
    finally:
        await runner.cleanup()


async def idle(runner: web.AppRunner, fds: int) -> None:
    """Wait until the server has no connection, this task is alone and no fd is left over."""
    server = runner.server
    assert server is not None
    await until(lambda: not server.connections)
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})
    await until(lambda: open_fds() <= fds)


@pytest.fixture
def many_files() -> Iterator[None]:
    """Raise the limit on open files: a socket at each end of 1,000 connections, and some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 3000
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"at most {hard} files may be open here, {needed} are needed")
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- connections ------------------------------------------------------------------------------


def test_keep_alive_reuses_the_connection(run: Run) -> None:
    peers: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        assert request.transport is not None
        peers.append(request.transport.get_extra_info("peername"))
        return web.Response(body=await request.read())

    async def main() -> None:
        async with serving(web.post("/", handler)) as (url, _), ClientSession() as session:
            for number in range(50):
                body = b"%d" % number * number
                async with session.post(url, data=body) as response:
                    assert response.status == 200
                    assert await response.read() == body
            async with session.post(url, headers={"Connection": "close"}) as response:
                assert response.headers["Connection"] == "close"
            async with session.post(url) as response:
                pass

    run(main)
    assert len(set(peers[:51])) == 1
    assert peers[51] != peers[50]


def test_requests_sent_at_once_are_answered_in_order(run: Run) -> None:
    async def handler(request: web.Request) -> web.Response:
        number = int(request.match_info["number"])
        # The first ones take longest: their successors must wait for them.
        await asyncio.sleep(0.02 * (5 - number))
        return web.Response(text=f"answer {number}")

    async def main() -> bytes:
        async with serving(web.get("/{number}", handler)) as (url, _):
            reader, writer = await asyncio.open_connection(HOST, int(url.rpartition(":")[2]))
            for number in range(5):
                last = "Connection: close\r\n" if number == 4 else ""
                writer.write(f"GET /{number} HTTP/1.1\r\nHost: here\r\n{last}\r\n".encode())
            received = await reader.read()
            writer.close()
            await writer.wait_closed()
            return received

    received: bytes = run(main)
    positions = [received.index(b"answer %d" % number) for number in range(5)]
    assert positions == sorted(positions)
    assert received.count(b"HTTP/1.1 200 OK") == 5


def test_a_host_name_is_resolved(run: Run) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(text=request.host)

    async def main() -> None:
        async with serving(web.get("/", handler)) as (url, _), ClientSession() as session:
            url = url.replace(HOST, "localhost")
            async with session.get(url) as response:
                assert url == f"http://{await response.text()}"

    run(main)


def test_a_closed_port_is_an_error_of_the_client(run: Run) -> None:
    async def main() -> None:
        before = open_fds()
        async with ClientSession() as session:
            for _ in range(10):
                with pytest.raises(ClientConnectorError) as caught:
                    await session.get(f"http://{HOST}:{unused_port()}/")
                assert isinstance(caught.value.os_error, ConnectionRefusedError)
        await until(lambda: open_fds() <= before)

    run(main)


def test_a_client_timeout_closes_the_connection(run: Run) -> None:
    async def handler(request: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    async def main() -> None:
        async with serving(web.get("/", handler), handler_cancellation=True) as (url, runner):
            before = open_fds()
            async with ClientSession(timeout=ClientTimeout(total=0.1)) as session:
                with pytest.raises(TimeoutError):
                    await session.get(url)
                await idle(runner, before)

    run(main)


@pytest.mark.timeout(60)
def test_1000_requests_are_in_progress_at_once(run: Run, many_files: None) -> None:
    number = 1000
    waiting = 0

    async def main() -> None:
        together = asyncio.Event()

        async def handler(request: web.Request) -> web.Response:
            nonlocal waiting
            waiting += 1
            if waiting == number:
                together.set()
            await together.wait()
            return web.Response(text=request.match_info["number"])

        async def get(session: ClientSession, url: str, index: int) -> None:
            async with session.get(f"{url}/{index}") as response:
                assert await response.text() == str(index)

        async with serving(web.get("/{number}", handler)) as (url, runner):
            before = open_fds()
            async with ClientSession(connector=TCPConnector(limit=0)) as session:
                await asyncio.gather(*(get(session, url, index) for index in range(number)))
                # Two descriptors each: this is both ends.
                assert open_fds() >= before + 2 * number
            await idle(runner, before)

    run(main, limit=50)
    assert waiting == number


# --- bodies -----------------------------------------------------------------------------------


def test_chunked_both_ways(run: Run) -> None:
    sizes = [1, 2, 65_535, 65_536, 65_537, 3, 1, 300_000, 1]
    chunks = [random.Random(size).randbytes(size) for size in sizes]
    seen: list[bytes] = []

    async def body() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk
            await asyncio.sleep(0)

    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.headers["Transfer-Encoding"] == "chunked"
        assert "Content-Length" not in request.headers
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        async for chunk, _ in request.content.iter_chunks():
            seen.append(chunk)
            await response.write(chunk[::-1])
        await response.write_eof()
        return response

    async def main() -> bytes:
        async with serving(web.post("/", handler)) as (url, _), ClientSession() as session:
            async with session.post(url, data=body()) as response:
                assert response.headers["Transfer-Encoding"] == "chunked"
                return await response.read()

    received = run(main)
    assert b"".join(seen) == b"".join(chunks)
    assert received == b"".join(chunk[::-1] for chunk in seen)


def test_a_file_response(run: Run, tmp_path: Path) -> None:
    """Works whether or not the loop has sendfile: aiohttp falls back where it has not."""
    content = random.Random(1).randbytes(5 * MIB + 17)
    path = tmp_path / "served.bin"
    path.write_bytes(content)

    async def handler(request: web.Request) -> web.FileResponse:
        return web.FileResponse(path)

    async def main() -> None:
        async with serving(web.get("/", handler)) as (url, _), ClientSession() as session:
            async with session.get(url) as response:
                assert await response.read() == content
            async with session.get(url, headers={"Range": "bytes=4000000-"}) as response:
                assert response.status == 206
                assert await response.read() == content[4_000_000:]

    run(main)


def flow_for(loop: Loop) -> Flow:
    """1 GiB on rondel; less on asyncio, where it only shows that the test is right."""
    ours = type(loop).__module__.partition(".")[0] == "rondel"
    return Flow(1 << 30 if ours else 128 * MIB)


@pytest.mark.timeout(120)
def test_1_gib_down_with_flat_memory(run: Run, loop: Loop) -> None:
    flow = flow_for(loop)

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(flow.total)})
        await response.prepare(request)
        async for chunk in flow.body():
            await response.write(chunk)
        return response

    async def main() -> None:
        async with serving(web.get("/", handler)) as (url, _), ClientSession() as session:
            async with session.get(url, timeout=ClientTimeout(total=None)) as response:
                await flow.consume(response.content.iter_any())

    run(main, limit=100)
    flow.check()


@pytest.mark.timeout(120)
def test_1_gib_up_with_flat_memory(run: Run, loop: Loop) -> None:
    flow = flow_for(loop)

    async def handler(request: web.Request) -> web.Response:
        await flow.consume(request.content.iter_any())
        return web.Response(text=str(flow.received))

    async def main() -> None:
        async with serving(web.put("/", handler)) as (url, _), ClientSession() as session:
            async with session.put(
                url, data=flow.body(), timeout=ClientTimeout(total=None)
            ) as response:
                assert await response.text() == str(flow.total)

    run(main, limit=100)
    flow.check()


# --- peers that go away -----------------------------------------------------------------------


@pytest.mark.parametrize("abortive", [False, True], ids=["fin", "rst"])
def test_a_client_leaves_while_it_downloads(run: Run, abortive: bool) -> None:
    errors: list[BaseException] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(bytes(100_000))
        except BaseException as error:
            errors.append(error)
            raise

    async def main() -> None:
        async with serving(web.get("/", handler)) as (url, runner):
            before = open_fds()
            for _ in range(20):
                async with ClientSession() as session, session.get(url) as response:
                    await response.content.readexactly(MIB)
                    assert response.connection is not None
                    transport = response.connection.transport
                    assert transport is not None
                    if abortive:
                        sock = transport.get_extra_info("socket")
                        linger = struct.pack("ii", 1, 0)
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                        del sock
                        transport.abort()
                    else:
                        response.close()
            await idle(runner, before)

    run(main)
    assert len(errors) == 20
    assert {isinstance(error, ConnectionError) for error in errors} == {True}, errors


@pytest.mark.parametrize("abortive", [False, True], ids=["fin", "rst"])
def test_a_client_leaves_while_it_uploads(run: Run, abortive: bool) -> None:
    errors: list[BaseException] = []
    received = 0

    async def handler(request: web.Request) -> web.Response:
        nonlocal received
        try:
            async for chunk in request.content.iter_any():
                received += len(chunk)
        except BaseException as error:
            errors.append(error)
            raise
        return web.Response()

    def arrived(size: int) -> bool:
        return received == size

    async def main() -> None:
        async with serving(web.put("/", handler)) as (url, runner):
            before = open_fds()
            for number in range(1, 21):
                _, writer = await asyncio.open_connection(HOST, int(url.rpartition(":")[2]))
                writer.write(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
                writer.write(bytes(500_000))
                # Otherwise a reset could overtake the request.
                await until(functools.partial(arrived, 500_000 * number))
                if abortive:
                    writer.get_extra_info("socket").setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                    )
                writer.close()
                await writer.wait_closed()
            del writer
            await idle(runner, before)

    run(main)
    assert len(errors) == 20
    assert {isinstance(error, ConnectionResetError) for error in errors} == {True}, errors


def test_a_handler_is_cancelled_when_its_client_leaves(run: Run) -> None:
    cancelled = 0

    async def handler(request: web.Request) -> web.Response:
        nonlocal cancelled
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled += 1
            raise
        return web.Response()

    async def main() -> None:
        async with serving(web.get("/", handler), handler_cancellation=True) as (url, runner):
            before = open_fds()
            async with ClientSession() as session:
                tasks = [asyncio.create_task(session.get(url)) for _ in range(20)]
                server = runner.server
                assert server is not None
                await until(lambda: server.requests_count == 20)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                assert all(task.cancelled() for task in tasks)
                await idle(runner, before)

    run(main)
    assert cancelled == 20


def test_a_server_leaves_while_a_client_downloads(run: Run) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000000"})
        await response.prepare(request)
        await response.write(bytes(500_000))
        assert request.transport is not None
        request.transport.close()
        return response

    async def main() -> None:
        async with serving(web.get("/", handler)) as (url, runner):
            before = open_fds()
            async with ClientSession() as session:
                async with session.get(url) as response:
                    received = bytearray()
                    with pytest.raises(Exception, match="not completed"):
                        async for chunk in response.content.iter_any():
                            received += chunk
                    assert len(received) == 500_000
                await idle(runner, before)

    run(main)


# --- WebSocket --------------------------------------------------------------------------------


async def echo(request: web.Request) -> web.WebSocketResponse:
    websocket = web.WebSocketResponse(max_msg_size=16 * MIB)
    await websocket.prepare(request)
    async for message in websocket:
        if message.type is WSMsgType.TEXT:
            if message.data == "leave":
                await websocket.close(code=WSCloseCode.GOING_AWAY, message=b"as told")
            else:
                await websocket.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await websocket.send_bytes(message.data)
    return websocket


@pytest.mark.parametrize("compress", [0, 15], ids=["plain", "deflate"])
def test_websocket_echo(run: Run, compress: int) -> None:
    async def main() -> None:
        async with serving(web.get("/", echo)) as (url, runner):
            before = open_fds()
            async with ClientSession() as session:
                async with session.ws_connect(
                    url, compress=compress, max_msg_size=16 * MIB
                ) as socket_:
                    assert socket_.compress == compress
                    for size in (0, 1, 125, 126, 65_535, 65_536, 4 * MIB):
                        data = random.Random(size).randbytes(size)
                        await socket_.send_bytes(data)
                        assert await socket_.receive_bytes() == data
                    await socket_.send_str("grüße 🦀")
                    assert await socket_.receive_str() == "grüße 🦀"
                    # Many under way at once, in their order.
                    for number in range(1000):
                        await socket_.send_str(str(number))
                    assert [await socket_.receive_str() for _ in range(1000)] == [
                        str(number) for number in range(1000)
                    ]
                    await socket_.ping(b"are you there")
                    await socket_.send_str("leave")
                    message = await socket_.receive()
                    assert message.type is WSMsgType.CLOSE
                    assert (message.data, message.extra) == (1001, "as told")
                assert socket_.close_code == 1001
            await idle(runner, before)

    run(main)


def test_websocket_client_that_vanishes(run: Run) -> None:
    codes: list[int | None] = []

    async def handler(request: web.Request) -> web.WebSocketResponse:
        websocket = await echo(request)
        codes.append(websocket.close_code)
        return websocket

    async def main() -> None:
        async with serving(web.get("/", handler)) as (url, runner):
            before = open_fds()
            async with ClientSession() as session:
                socket_ = await session.ws_connect(url)
                await socket_.send_str("one")
                assert await socket_.receive_str() == "one"
                transport = socket_.get_extra_info("socket")
                transport.shutdown(socket.SHUT_RDWR)
                del transport
                await until(lambda: codes)
                await socket_.close()
            await idle(runner, before)

    run(main)
    assert codes == [1006]


# --- going down -------------------------------------------------------------------------------


def test_graceful_shutdown_finishes_what_runs(run: Run) -> None:
    async def main() -> None:
        started, finish = asyncio.Event(), asyncio.Event()

        async def slow(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b"first ")
            started.set()
            await finish.wait()
            await response.write(b"last")
            return response

        async with (
            serving(web.get("/", slow), shutdown_timeout=10) as (url, runner),
            ClientSession() as session,
        ):
            async with session.get(url) as response:
                await started.wait()
                cleanup = asyncio.create_task(runner.cleanup())
                await asyncio.sleep(0.1)
                assert not cleanup.done()
                with pytest.raises(ClientConnectorError):
                    await session.get(url)
                finish.set()
                assert await response.read() == b"first last"
            await asyncio.wait_for(cleanup, 5)

    run(main)


def test_run_app_ends_on_sigterm(loop_name: str) -> None:
    command = [sys.executable, str(PROGRAMS / "aiohttp_server.py"), loop_name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline())
            with socket.create_connection((HOST, port), timeout=10) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                # The handler has said that it runs, and runs on while the server goes down.
                assert process.stdout.readline() == "handler started\n"
                process.send_signal(signal.SIGTERM)
                assert process.stdout.readline() == "on_shutdown\n"
                received = b""
                while chunk := client.recv(65_536):
                    received += chunk
            assert received.endswith(b"\r\n\r\n" + loop_name.encode())
            assert process.stdout.read() == "on_cleanup\n"
            assert process.wait(10) == 0
        finally:
            process.kill()


def test_loops_run_aiohttp_one_after_another(loop_factory: Callable[[], Loop]) -> None:
    """What aiohttp keeps per loop, and the loop's own descriptors, go with the loop."""

    async def handler(request: web.Request) -> web.Response:
        return web.Response(text="yes")

    async def main() -> str:
        async with serving(web.get("/", handler)) as (url, _), ClientSession() as session:
            async with session.get(url) as response:
                return await response.text()

    def once() -> None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            assert runner.run(main()) == "yes"

    once()
    gc.collect()
    before = open_fds()
    for _ in range(20):
        once()
    gc.collect()
    assert open_fds() <= before


@pytest.fixture(params=["asyncio", "rondel"])
def loop_name(request: pytest.FixtureRequest) -> str:
    """The name by which a program in tests/programs chooses its loop."""
    return str(request.param)
