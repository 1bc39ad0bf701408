"""httpx and httpcore, which reach the network through anyio, against uvicorn's embedded server."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpcore
import httpx
import pytest
import uvicorn
from support import HOST, until, unused_port
from tls import NAME, certificate, client_context

Run = Callable[..., Any]
pytestmark = pytest.mark.timeout(20)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Echoes the body part by part; /slow never answers."""
    assert scope["type"] == "http"
    if scope["path"] == "/slow":
        while (await receive())["type"] != "http.disconnect":
            pass
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    more = True
    while more:
        message = await receive()
        more = message.get("more_body", False)
        await send({"type": "http.response.body", "body": message["body"], "more_body": more})


@contextlib.asynccontextmanager
async def serving(certificates: Path | None = None, **options: Any) -> AsyncIterator[str]:
    """A server in a task of the running loop, over TLS if it is told a place for its files."""
    if certificates is not None:
        chain, key = certificates / "chain.pem", certificates / "key.pem"
        certificate().cert_chain_pems[0].write_to_path(chain)
        certificate().private_key_pem.write_to_path(key)
        options |= {"ssl_certfile": str(chain), "ssl_keyfile": str(key)}
    config = uvicorn.Config(
        app, HOST, 0, loop="none", lifespan="off", log_level="critical", **options
    )
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    ticking = asyncio.create_task(server.main_loop())
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"{'https' if certificates else 'http'}://{NAME if certificates else HOST}:{port}"
    finally:
        server.should_exit = True
        await ticking
        await server.shutdown()


def client(**options: Any) -> httpx.AsyncClient:
    options.setdefault("verify", client_context())
    return httpx.AsyncClient(trust_env=False, timeout=10, **options)


@pytest.fixture(params=["plain", "tls"])
def certificates(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    """Where the server's certificate goes; None for a server without TLS."""
    return tmp_path if request.param == "tls" else None


def test_requests(run: Run, certificates: Path | None) -> None:
    async def main() -> None:
        async with serving(certificates) as url, client() as session:

            async def post(number: int) -> None:
                body = random.Random(number).randbytes(number * 20_000)
                answer = await session.post(url, content=body)
                assert (answer.status_code, answer.content) == (200, body)

            for number in range(3):
                await post(number)
            await asyncio.gather(*map(post, range(30)))

    run(main)


def test_streams_up_and_down(run: Run, certificates: Path | None) -> None:
    chunk = random.Random(1).randbytes(50_000)

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield chunk

    async def main() -> None:
        async with serving(certificates) as url, client() as session:
            async with session.stream("POST", url, content=parts()) as answer:
                got = b"".join([part async for part in answer.aiter_bytes()])
            assert got == chunk * 40
            # A response that is left in its middle costs the connection, not the client.
            async with session.stream("POST", url, content=parts()) as answer:
                async for _ in answer.aiter_raw(1000):
                    break
            assert (await session.post(url, content=b"one")).content == b"one"

    run(main)


def test_timeouts_and_cancellation(run: Run, certificates: Path | None) -> None:
    async def main() -> None:
        async with serving(certificates) as url, client() as session:
            with pytest.raises(httpx.ReadTimeout):
                await session.get(f"{url}/slow", timeout=httpx.Timeout(10, read=0.1))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await session.get(f"{url}/slow")
            assert (await session.post(url, content=b"one")).content == b"one"

    run(main)


def test_errors_of_connecting(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with client() as session:
            with pytest.raises(httpx.ConnectError):
                await session.get(f"http://{HOST}:{unused_port()}")
        async with serving(tmp_path) as url, client(verify=client_context(trust=False)) as session:
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await session.get(url)

    run(main)


def test_connections_are_kept_and_closed(run: Run, certificates: Path | None) -> None:
    async def main() -> None:
        async with serving(certificates) as url:
            pool = httpcore.AsyncConnectionPool(ssl_context=client_context(), max_connections=2)
            async with pool:
                answers = await asyncio.gather(
                    *(pool.request("POST", url, content=b"%d" % number) for number in range(20))
                )
                assert [answer.content for answer in answers] == [b"%d" % n for n in range(20)]
                assert 1 <= len(pool.connections) <= 2
                assert all(connection.is_idle() for connection in pool.connections)
            assert pool.connections == []
        await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})

    run(main)
