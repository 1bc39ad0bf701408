"""redis-py's asyncio client, which is written over asyncio's streams, against a real server."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import databases
import pytest
import redis.asyncio as aioredis
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from support import HOST

Run = Callable[..., Any]
pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def shared_server() -> Iterator[databases.Redis]:
    with databases.redis_server() as started:
        yield started


@pytest.fixture
def server(shared_server: databases.Redis) -> databases.Redis:
    """A running server; what a test stores has the test's own names."""
    return shared_server


WAYS = pytest.mark.parametrize("over", ["tcp", "unix", "tls"])


@contextlib.asynccontextmanager
async def client(
    server: databases.Redis, over: str = "tcp", **options: Any
) -> AsyncIterator[aioredis.Redis]:
    """A client of an emptied server. It tries nothing twice: that would hide what goes wrong."""
    async with aioredis.Redis(**address(server, over), **patience(0), **options) as made:
        await made.flushall()
        yield made


def patience(retries: int) -> dict[str, Any]:
    """Options: how often to try again, and time enough for a slow machine."""
    limits = {"socket_timeout": 45, "socket_connect_timeout": 45}
    return {"retry": Retry(ConstantBackoff(0.05), retries), **limits}


def address(server: databases.Redis, over: str) -> dict[str, Any]:
    if over == "unix":
        return {"unix_socket_path": str(server.path)}
    if over == "tls":
        ca = str(server.folder / "ca.pem")
        return {"host": HOST, "port": server.tls_port, "ssl": True, "ssl_ca_certs": ca}
    return {"host": HOST, "port": server.port}


@WAYS
@pytest.mark.usefixtures("no_descriptor_left")
def test_commands(run: Run, server: databases.Redis, over: str) -> None:
    async def main() -> None:
        async with client(server, over) as db:
            body = random.Random(1).randbytes(3_000_000)
            assert await db.set("body", body)
            assert await db.get("body") == body
            assert await db.get("missing") is None
            await asyncio.gather(*(db.incr("count") for _ in range(20)))
            assert await db.get("count") == b"20"
            await db.hset("hash", mapping={"name": "grüße 🦀", "size": 3})
            assert await db.hgetall("hash") == {
                b"name": "grüße 🦀".encode(),
                b"size": b"3",
            }
            await db.sadd("numbers", *range(1000))
            seen = {int(member) async for member in db.sscan_iter("numbers")}
            assert seen == set(range(1000))
            assert await db.eval("return {KEYS[1], ARGV[1]}", 1, "key", "value") == [
                b"key",
                b"value",
            ]
            with pytest.raises(exceptions.ResponseError, match="WRONGTYPE"):
                await db.lpush("body", "x")
            assert await db.ping()

    run(main, limit=45)


@WAYS
def test_pipeline(run: Run, server: databases.Redis, over: str) -> None:
    async def main() -> None:
        async with client(server, over, decode_responses=True) as db:
            async with db.pipeline(transaction=False) as pipe:
                for number in range(2000):
                    pipe.set(f"key {number}", f"value {number}" * 10)
                    pipe.get(f"key {number}")
                answers = await pipe.execute()
            assert answers[1::2] == [f"value {number}" * 10 for number in range(2000)]
            assert all(answers[::2])

            async with db.pipeline(transaction=True) as pipe:
                pipe.set("one", 1).incr("one").lpush("one", "x").incr("one")
                answers = await pipe.execute(raise_on_error=False)
                assert [answers[0], answers[1], answers[3]] == [True, 2, 3]
                assert isinstance(answers[2], exceptions.ResponseError)
            async with db.pipeline(transaction=True) as pipe:
                await pipe.watch("one")
                await db.set("one", 10)  # on another connection
                pipe.multi()
                pipe.set("one", 20)
                with pytest.raises(exceptions.WatchError):
                    await pipe.execute()
            assert await db.get("one") == "10"

    run(main)


@WAYS
@pytest.mark.usefixtures("no_descriptor_left")
def test_publish_and_subscribe(run: Run, server: databases.Redis, over: str) -> None:
    async def main() -> None:
        async with client(server, over, decode_responses=True) as db, db.pubsub() as listener:
            await listener.subscribe("news")
            await listener.psubscribe("other.*")
            kinds = [(await anext(listener.listen()))["type"] for _ in range(2)]
            assert kinds == ["subscribe", "psubscribe"]
            for number in range(300):
                channel = "other.thing" if number % 3 == 0 else "news"
                assert await db.publish(channel, str(number)) == 1
            got = [await anext(listener.listen()) for _ in range(300)]
            assert [message["data"] for message in got] == [str(number) for number in range(300)]
            assert [message["pattern"] for message in got[:3]] == ["other.*", None, None]

            assert await listener.get_message(timeout=0.02) is None
            waiting = asyncio.ensure_future(anext(listener.listen()))
            await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await db.publish("news", "after")
            message = await anext(listener.listen())
            assert message["data"] == "after"
            await listener.unsubscribe()
            await listener.punsubscribe()

    run(main)


async def blocked(db: aioredis.Redis) -> int:
    """How many clients wait in a blocking command."""
    return int((await db.info("clients"))["blocked_clients"])


@WAYS
@pytest.mark.usefixtures("no_descriptor_left")
def test_cancelled_blocking_pop(run: Run, server: databases.Redis, over: str) -> None:
    async def main() -> None:
        async with client(server, over) as db:

            async def pop() -> asyncio.Task[Any]:
                before = await blocked(db)
                task = asyncio.ensure_future(db.blpop(["queue"], timeout=60))
                while await blocked(db) == before:
                    await asyncio.sleep(0.005)
                return task

            tasks = [await pop() for _ in range(5)]
            await db.rpush("queue", "first")
            assert await tasks[0] == (b"queue", b"first")
            for task in tasks[1:3]:
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            # The server takes notice, and what comes goes to those that still wait.
            while await blocked(db) != 2:
                await asyncio.sleep(0.005)
            await db.rpush("queue", "second", "third")
            assert await asyncio.gather(*tasks[3:]) == [(b"queue", b"second"), (b"queue", b"third")]
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await db.blpop(["queue"], timeout=60)
            # No answer of a cancelled command reaches another one.
            assert await asyncio.gather(*(db.echo(str(i)) for i in range(10))) == [
                b"%d" % i for i in range(10)
            ]

    run(main)


@pytest.mark.usefixtures("no_descriptor_left")
def test_connection_pool(run: Run, server: databases.Redis) -> None:
    async def main() -> None:
        pool = aioredis.BlockingConnectionPool(
            **address(server, "tcp"), **patience(0), max_connections=3, timeout=20
        )
        async with aioredis.Redis.from_pool(pool) as db:
            await db.flushall()

            async def work(number: int) -> tuple[int, bytes]:
                async with db.pipeline(transaction=False) as pipe:
                    pipe.client_id()
                    pipe.echo(str(number))
                    identity, echoed = await pipe.execute()
                return identity, echoed

            done = await asyncio.gather(*map(work, range(100)))
            assert [echoed for _, echoed in done] == [b"%d" % number for number in range(100)]
            assert 1 <= len({identity for identity, _ in done}) <= 3

            pool.timeout = 0.05
            held = [asyncio.ensure_future(db.blpop(["queue"], timeout=60)) for _ in range(3)]
            await asyncio.sleep(0)
            with pytest.raises(exceptions.ConnectionError, match="No connection available"):
                await db.ping()
            for task in held:
                task.cancel()
            await asyncio.wait(held)
            assert await db.ping()

    run(main)


@pytest.mark.usefixtures("no_descriptor_left")
@pytest.mark.parametrize("over", ["tcp", "unix"])
def test_the_server_is_killed_and_comes_back(run: Run, over: str) -> None:
    async def main(server: databases.Redis) -> None:
        async with (
            client(server, over, decode_responses=True) as db,
            db.pubsub(ignore_subscribe_messages=True) as listener,
        ):
            await listener.subscribe("news")
            assert await listener.get_message(timeout=10) is None  # told that it is subscribed
            popping = asyncio.ensure_future(db.blpop(["queue"], timeout=60))
            while await blocked(db) == 0:
                await asyncio.sleep(0.005)
            server.kill()
            with pytest.raises(exceptions.ConnectionError):
                await popping
            with pytest.raises(exceptions.ConnectionError):
                await db.ping()

            server.start()
            assert await db.ping()
            assert await db.set("key", "value")
            # The subscription is made again with the connection.
            got = []
            async with asyncio.timeout(20):
                while not got:
                    await db.publish("news", "again")
                    with contextlib.suppress(exceptions.ConnectionError):
                        if message := await listener.get_message(timeout=0.05):
                            got.append(message["data"])
            assert got == ["again"]

            # With retries a program does not notice.
            server.kill()
            async with aioredis.Redis(**address(server, over), **patience(400)) as other:
                asking = asyncio.ensure_future(other.ping())
                await asyncio.sleep(0.1)
                assert not asking.done()
                await asyncio.to_thread(server.start)
                assert await asking

    with databases.redis_server() as server:
        run(main, server, limit=45)
