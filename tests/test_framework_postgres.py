"""asyncpg and psycopg against a real PostgreSQL server.

asyncpg has transports and protocols of its own, and start_tls; psycopg waits for libpq's socket by
add_reader() and add_writer().
"""

import asyncio
import contextlib
import datetime
import decimal
import io
import random
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import asyncpg
import databases
import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from support import until
from tls import client_context

Run = Callable[..., Any]
pytestmark = pytest.mark.timeout(90)  # the first one waits for initdb


@pytest.fixture(scope="module")
def server() -> Iterator[databases.Postgres]:
    with databases.postgres() as started:
        yield started


WAYS = pytest.mark.parametrize("over", ["tcp", "unix", "tls"])

BUSY = "SELECT count(*) FROM pg_stat_activity WHERE query = $1 AND state = 'active'"


# ---- asyncpg


@contextlib.asynccontextmanager
async def pg_connected(
    server: databases.Postgres, over: str = "tcp", **options: Any
) -> AsyncIterator[asyncpg.Connection]:
    login = server.login("unix" if over == "unix" else "tcp")
    # The server offers TLS, and asyncpg would take it.
    secure = client_context() if over == "tls" else False
    connection = await asyncpg.connect(**login, ssl=secure, timeout=30, **options)
    try:
        yield connection
    finally:
        await connection.close(timeout=10)


@WAYS
@pytest.mark.usefixtures("no_descriptor_left")
def test_asyncpg_queries(run: Run, server: databases.Postgres, over: str) -> None:
    async def main() -> None:
        async with pg_connected(server, over) as db:
            secure = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
            assert await db.fetchval(secure) is (over == "tls")
            row = await db.fetchrow(
                "SELECT $1::int, $2::text, $3::numeric, $4::timestamptz, $5::int[], $6::bytea",
                *(given := (
                    -7,
                    "grüße 🦀",
                    decimal.Decimal("1.50"),
                    datetime.datetime(2024, 2, 29, tzinfo=datetime.UTC),
                    [1, 2, None],
                    bytes(range(256)),
                )),
            )  # fmt: skip
            assert tuple(row) == given
            body = random.Random(1).randbytes(3_000_000)
            assert await db.fetchval("SELECT $1::bytea || $1::bytea", body) == body + body
            with pytest.raises(asyncpg.DivisionByZeroError):
                await db.fetchval("SELECT 1 / $1::int", 0)

            double = await db.prepare("SELECT $1::int * 2")
            assert [await double.fetchval(number) for number in range(50)] == [*range(0, 100, 2)]
            await db.execute("CREATE TEMPORARY TABLE item (id int PRIMARY KEY, name text)")
            await db.executemany(
                "INSERT INTO item VALUES ($1, $2)", [(i, f"item {i}") for i in range(5000)]
            )
            with pytest.raises(asyncpg.UniqueViolationError):
                await db.execute("INSERT INTO item VALUES (7, 'again')")
            async with db.transaction():
                seen = [r["id"] async for r in db.cursor("SELECT id FROM item ORDER BY id")]
            assert seen == [*range(5000)]

    run(main, limit=60)


@pytest.mark.usefixtures("no_descriptor_left")
def test_asyncpg_refused_logins(run: Run, server: databases.Postgres) -> None:
    async def main() -> None:
        login = server.login("tcp")
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(**login | {"password": "wrong"})
        with pytest.raises(asyncpg.InvalidCatalogNameError):
            await asyncpg.connect(**login, database="missing")
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncpg.connect(**login, ssl=client_context(trust=False))

    run(main)


def test_asyncpg_transactions(run: Run, server: databases.Postgres) -> None:
    async def main() -> None:
        async with pg_connected(server) as one, pg_connected(server) as two:
            await one.execute("CREATE TABLE account (id int)")
            count = "SELECT count(*) FROM account"
            try:
                with pytest.raises(ZeroDivisionError):
                    async with one.transaction():
                        await one.execute("INSERT INTO account VALUES (1)")
                        raise ZeroDivisionError
                assert await one.fetchval(count) == 0
                async with one.transaction(isolation="repeatable_read"):
                    await one.execute("INSERT INTO account VALUES (1)")
                    with pytest.raises(asyncpg.UndefinedTableError):
                        async with one.transaction():  # a savepoint
                            await one.execute("INSERT INTO account VALUES (2)")
                            await one.execute("SELECT * FROM missing")
                    assert await two.fetchval(count) == 0
                assert await two.fetch("SELECT id FROM account") == [(1,)]
            finally:
                await one.execute("DROP TABLE account")

    run(main)


@WAYS
def test_asyncpg_listen_and_notify(run: Run, server: databases.Postgres, over: str) -> None:
    async def main() -> None:
        async with pg_connected(server, over) as one, pg_connected(server, over) as two:
            got: list[tuple[int, str, str]] = []

            def heard(_: Any, pid: int, channel: str, payload: Any) -> None:
                got.append((pid, channel, payload))

            sender = two.get_server_pid()
            await one.add_listener("news", heard)
            for number in range(200):
                await two.execute("SELECT pg_notify('news', $1)", str(number))
            await until(lambda: len(got) == 200)
            assert got == [(sender, "news", str(number)) for number in range(200)]
            await one.remove_listener("news", heard)
            await two.execute("NOTIFY news, 'unheard'")
            assert await one.fetchval("SELECT 1") == 1
            assert len(got) == 200

    run(main)


def test_asyncpg_copy(run: Run, server: databases.Postgres) -> None:
    async def main() -> None:
        async with pg_connected(server) as db:
            await db.execute("CREATE TEMPORARY TABLE line (id int, text text)")
            records = [(number, f"line {number}" * 20) for number in range(20_000)]
            done = await db.copy_records_to_table("line", records=records)
            assert done == "COPY 20000"

            parts: list[bytes] = []

            async def take(part: bytes) -> None:
                parts.append(part)
                await asyncio.sleep(0)  # the server's data waits meanwhile

            await db.copy_from_query("SELECT * FROM line ORDER BY id", output=take)
            text = b"".join(parts)
            assert text == b"".join(b"%d\t%s\n" % (i, t.encode()) for i, t in records)

            async def chunks() -> AsyncIterator[bytes]:
                for start in range(0, len(text), 10_007):
                    yield text[start : start + 10_007]
                    await asyncio.sleep(0)

            assert await db.copy_to_table("line", source=chunks()) == "COPY 20000"
            sum_ = "SELECT sum(id), sum(length(text)) FROM line"
            expected = (2 * sum(range(20_000)), 2 * sum(len(t) for _, t in records))
            assert await db.fetchrow(sum_) == expected
            with pytest.raises(asyncpg.InvalidTextRepresentationError):
                await db.copy_to_table("line", source=io.BytesIO(b"not,a,row\n"))
            assert await db.fetchrow(sum_) == expected

    run(main, limit=60)


@WAYS
@pytest.mark.usefixtures("no_descriptor_left")
def test_asyncpg_cancels_queries(run: Run, server: databases.Postgres, over: str) -> None:
    async def main() -> None:
        async with pg_connected(server, over) as db, pg_connected(server, over) as other:
            pause = f"SELECT pg_sleep(600), '{over}'"
            with pytest.raises(TimeoutError):
                await db.fetch(pause, timeout=0.05)
            assert await db.fetchval("SELECT 1") == 1

            task = asyncio.ensure_future(db.fetch(pause))
            while await other.fetchval(BUSY, pause) != 1:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            # Neither goes on in the server.
            while await other.fetchval(BUSY, pause) != 0:
                await asyncio.sleep(0.01)
            assert await db.fetchval("SELECT 2") == 2

    run(main, limit=60)


@pytest.mark.usefixtures("no_descriptor_left")
def test_asyncpg_pool(run: Run, server: databases.Postgres) -> None:
    async def main() -> None:
        login = server.login("tcp")
        async with asyncpg.create_pool(**login, ssl=False, min_size=1, max_size=4) as pool:

            async def work(number: int) -> tuple[int, int]:
                async with pool.acquire() as db:
                    query = "SELECT pg_backend_pid(), $1::int FROM pg_sleep(0.002)"
                    return tuple(await db.fetchrow(query, number))

            done = await asyncio.gather(*map(work, range(60)))
            assert [number for _, number in done] == [*range(60)]
            assert 1 <= len({pid for pid, _ in done}) <= 4

            async with contextlib.AsyncExitStack() as stack:
                held = [await stack.enter_async_context(pool.acquire()) for _ in range(4)]
                with pytest.raises(TimeoutError):
                    await pool.acquire(timeout=0.05)
                # A connection that the server ends is replaced.
                lost = asyncio.Event()
                held[0].add_termination_listener(lambda _: lost.set())
                pid = held[0].get_server_pid()
                await held[1].execute("SELECT pg_terminate_backend($1)", pid)
                await asyncio.wait_for(lost.wait(), 10)
                with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
                    await held[0].fetchval("SELECT 1")
            assert len(await asyncio.gather(*map(work, range(20)))) == 20

    run(main, limit=60)


# ---- psycopg


@contextlib.asynccontextmanager
async def psy_connected(
    server: databases.Postgres, over: str = "tcp", **options: Any
) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    async with await psycopg.AsyncConnection.connect(
        **psy_login(server, over), autocommit=True, **options
    ) as connection:
        yield connection


def psy_login(server: databases.Postgres, over: str) -> dict[str, Any]:
    login = server.login("unix" if over == "unix" else "tcp")
    if over == "tls":
        login |= {"host": "localhost", "hostaddr": login["host"], "sslmode": "verify-full"}
        login["sslrootcert"] = str(server.folder / "ca.pem")
    else:
        login["sslmode"] = "disable"
    return login


async def value(db: psycopg.AsyncConnection[Any], query: Any, *args: Any) -> Any:
    row = await (await db.execute(query, args)).fetchone()
    assert row is not None
    return row[0]


async def active(db: psycopg.AsyncConnection[Any], query: str) -> int:
    return int(await value(db, BUSY.replace("$1", "%s"), query))


@WAYS
@pytest.mark.usefixtures("no_descriptor_left")
def test_psycopg_queries(run: Run, server: databases.Postgres, over: str) -> None:
    async def main() -> None:
        async with psy_connected(server, over) as db:
            secure = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
            assert await value(db, secure) is (over == "tls")
            body = random.Random(1).randbytes(3_000_000)
            assert await value(db, "SELECT %s::bytea || %s::bytea", body, body) == body + body
            with pytest.raises(psycopg.errors.DivisionByZero):
                await value(db, "SELECT 1 / %s", 0)

            await db.execute("CREATE TEMPORARY TABLE item (id int PRIMARY KEY, name text)")
            async with db.cursor(row_factory=dict_row) as cursor:
                rows = [(i, f"grüße {i}") for i in range(2000)]
                await cursor.executemany("INSERT INTO item VALUES (%s, %s)", rows)
                await cursor.execute("SELECT * FROM item WHERE id = 7")
                assert await cursor.fetchall() == [{"id": 7, "name": "grüße 7"}]
            async with db.transaction(), db.cursor("on the server") as named:
                await named.execute("SELECT id FROM item ORDER BY id")
                assert [row[0] async for row in named] == [*range(2000)]
            async with db.pipeline():
                cursors = [await db.execute("SELECT %s::int", [i]) for i in range(100)]
                got = [await cursor.fetchone() for cursor in cursors]
            assert got == [(i,) for i in range(100)]

    run(main, limit=60)


def test_psycopg_transactions(run: Run, server: databases.Postgres) -> None:
    async def main() -> None:
        async with psy_connected(server) as one, psy_connected(server) as two:
            await one.execute("CREATE TABLE psy_account (id int)")
            count = "SELECT count(*) FROM psy_account"
            try:
                with pytest.raises(ZeroDivisionError):
                    async with one.transaction():
                        await one.execute("INSERT INTO psy_account VALUES (1)")
                        raise ZeroDivisionError
                assert await value(one, count) == 0
                async with one.transaction():
                    await one.execute("INSERT INTO psy_account VALUES (1)")
                    with pytest.raises(psycopg.errors.UndefinedTable):
                        async with one.transaction():  # a savepoint
                            await one.execute("SELECT * FROM missing")
                    assert await value(two, count) == 0
                assert await value(two, count) == 1
            finally:
                await one.execute("DROP TABLE psy_account")

    run(main)


@WAYS
def test_psycopg_listen_and_notify(run: Run, server: databases.Postgres, over: str) -> None:
    async def main() -> None:
        async with psy_connected(server, over) as one, psy_connected(server, over) as two:
            await one.execute("LISTEN psy_news")

            async def listen() -> list[str]:
                return [n.payload async for n in one.notifies(timeout=30, stop_after=200)]

            listening = asyncio.ensure_future(listen())
            for number in range(200):
                await two.execute("SELECT pg_notify('psy_news', %s)", [str(number)])
            # May be more, when several come in one packet.
            assert (await listening)[:200] == [str(number) for number in range(200)]
            waiting = asyncio.ensure_future(anext(one.notifies()))
            await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert await value(one, "SELECT 1") == 1

    run(main)


def test_psycopg_copy(run: Run, server: databases.Postgres) -> None:
    async def main() -> None:
        async with psy_connected(server) as db, db.cursor() as cursor:
            await db.execute("CREATE TEMPORARY TABLE line (id int, text text)")
            records = [(number, f"line {number}" * 20) for number in range(10_000)]
            async with cursor.copy("COPY line FROM STDIN") as copy:
                for record in records:
                    await copy.write_row(record)
            out = bytearray()
            async with cursor.copy("COPY (SELECT * FROM line ORDER BY id) TO STDOUT") as copy:
                async for part in copy:
                    out += part
            assert out == b"".join(b"%d\t%s\n" % (i, t.encode()) for i, t in records)
            with pytest.raises(psycopg.errors.InvalidTextRepresentation):
                async with cursor.copy("COPY line FROM STDIN") as copy:
                    await copy.write("not,a,row\n")
            assert await value(db, "SELECT count(*) FROM line") == 10_000

    run(main, limit=60)


@WAYS
@pytest.mark.usefixtures("no_descriptor_left")
def test_psycopg_cancels_queries(run: Run, server: databases.Postgres, over: str) -> None:
    async def main() -> None:
        async with psy_connected(server, over) as db, psy_connected(server, over) as other:
            pause = f"SELECT pg_sleep(600), 'psy {over}'"
            task = asyncio.ensure_future(db.execute(pause))
            while await active(other, pause) != 1:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await active(other, pause) == 0
            assert await value(db, "SELECT 1") == 1

            task = asyncio.ensure_future(db.execute(pause))
            while await active(other, pause) != 1:
                await asyncio.sleep(0.01)
            await db.cancel_safe(timeout=10)
            with pytest.raises(psycopg.errors.QueryCanceled):
                await task
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await db.execute(pause)
            assert await value(db, "SELECT 2") == 2

    run(main, limit=60)


@pytest.mark.usefixtures("no_descriptor_left")
def test_psycopg_pool(run: Run, server: databases.Postgres) -> None:
    async def main() -> None:
        login = psy_login(server, "tcp") | {"autocommit": True}
        async with AsyncConnectionPool(
            kwargs=login,
            min_size=1,
            max_size=4,
            open=False,
            check=AsyncConnectionPool.check_connection,
        ) as pool:
            await pool.wait(30)

            async def work(number: int) -> tuple[int, int]:
                async with pool.connection() as db:
                    query = "SELECT pg_backend_pid(), %s::int FROM pg_sleep(0.002)"
                    row = await (await db.execute(query, [number])).fetchone()
                    assert row is not None
                    return row[0], row[1]

            done = await asyncio.gather(*map(work, range(60)))
            assert [number for _, number in done] == [*range(60)]
            assert 1 <= len({pid for pid, _ in done}) <= 4

            async with contextlib.AsyncExitStack() as stack:
                held = [await stack.enter_async_context(pool.connection()) for _ in range(4)]
                with pytest.raises(PoolTimeout):
                    await pool.getconn(timeout=0.05)
                pid = held[0].info.backend_pid
                await held[1].execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
                with pytest.raises(psycopg.OperationalError):
                    await held[0].execute("SELECT 1")
            assert len(await asyncio.gather(*map(work, range(20)))) == 20

    run(main, limit=60)
