"""rondel.DaskPool, with a scheduler and two workers in processes of their own."""

import asyncio
import concurrent.futures
import os
import pathlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import rondel
from dask_cluster import LIMIT, Cluster, distributed, running
from programs import offloaded

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("dask")) as cluster:
        yield cluster


@pytest.fixture
def pool(cluster: Cluster) -> Iterator[rondel.DaskPool]:
    with rondel.DaskPool(cluster.address) as pool:
        yield pool


def test_calls_and_their_results(pool: rondel.DaskPool) -> None:
    assert isinstance(pool, concurrent.futures.Executor)
    assert pool.submit(offloaded.add, 1, y=2).result(LIMIT) == 3
    assert pool.submit(offloaded.process_number).result(LIMIT) != os.getpid()
    assert list(pool.map(offloaded.add, range(5), [10] * 5)) == [10, 11, 12, 13, 14]
    # Equal calls are calls all the same.
    assert [f.result(LIMIT) for f in [pool.submit(offloaded.double, 1) for _ in range(5)]] == [
        2
    ] * 5


def test_exceptions(pool: rondel.DaskPool) -> None:
    calls = [pool.submit(offloaded.double, 4), pool.submit(offloaded.fail, "mine")]
    calls += [pool.submit(offloaded.double, 5)]
    assert [calls[0].result(LIMIT), calls[2].result(LIMIT)] == [8, 10]
    with pytest.raises(LookupError, match="mine"):
        calls[1].result(LIMIT)


def test_what_cannot_be_sent_fails(pool: rondel.DaskPool) -> None:
    bad = pool.submit(offloaded.double, threading.Lock())  # type: ignore[arg-type]
    assert isinstance(bad.exception(LIMIT), TypeError)
    assert pool.submit(offloaded.double, 2).result(LIMIT) == 4


def test_on_the_loop(pool: rondel.DaskPool) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(pool, offloaded.add, 1, 2) == 3
        assert await rondel.offload(offloaded.add, 1, 2, to=pool) == 3
        calls = [loop.run_in_executor(pool, offloaded.double, n) for n in range(300)]
        assert await asyncio.gather(*calls) == list(range(0, 600, 2))
        mapped = rondel.offload_map(offloaded.double, range(20), to=pool)
        assert [result async for result in mapped] == list(range(0, 40, 2))

    rondel.run(main())


def test_calls_are_sent_together(pool: rondel.DaskPool, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    send = rondel.pools.dask._Engine._send_batch
    go = threading.Event()

    def counted(engine: Any, batch: list[Any]) -> None:
        go.wait(LIMIT)
        batches.append(len(batch))
        send(engine, batch)

    monkeypatch.setattr(rondel.pools.dask._Engine, "_send_batch", counted)
    calls = [pool.submit(offloaded.double, n) for n in range(500)]
    go.set()
    assert [call.result(LIMIT) for call in calls] == list(range(0, 1000, 2))
    # The first may have gone before the second came.
    assert len(batches) <= 3


def test_workers_that_may_run_it(pool: rondel.DaskPool, cluster: Cluster) -> None:
    for name in ("one", "two"):
        only = pool.with_options(workers=name, allow_other_workers=False)
        found = {
            call.result(LIMIT) for call in [only.submit(offloaded.process_number) for _ in "123"]
        }
        assert found == {cluster.workers[name].pid}
    with pytest.raises(TypeError, match="unexpected keyword argument 'nodes'"):
        pool.with_options(nodes="one")


def test_data_that_is_there_already(pool: rondel.DaskPool, cluster: Cluster) -> None:
    (address,) = (
        address
        for address, worker in pool.client.scheduler_info()["workers"].items()
        if worker["name"] == "two"
    )
    data = pool.client.scatter(b"x" * 100_000, workers=[address], hash=False)
    found = pool.submit(offloaded.size_and_process, data).result(LIMIT)
    assert found == (100_000, cluster.workers["two"].pid)


FAILURES_LEFT = """
import os
def attempt(path):
    # Each try leaves a line; the third succeeds.
    with open(path, "a") as file:
        file.write("x")
    tries = os.path.getsize(path)
    if tries < 3:
        raise ConnectionError(tries)
    return tries
"""


def test_retries(pool: rondel.DaskPool, tmp_path: pathlib.Path) -> None:
    names: dict[str, Any] = {}
    exec(FAILURES_LEFT, names)  # a function that goes to the workers by value
    names["attempt"].__module__ = "__main__"
    with pytest.raises(ConnectionError):
        pool.submit(names["attempt"], str(tmp_path / "once")).result(LIMIT)
    again = pool.with_options(retries=2)
    assert again.submit(names["attempt"], str(tmp_path / "again")).result(LIMIT) == 3


def test_priority(pool: rondel.DaskPool) -> None:
    # One worker thread after the other is kept busy; then the urgent call overtakes the others.
    only = pool.with_options(workers="one")
    busy = [only.submit(offloaded.sleep_and_tell, 0.5) for _ in range(2)]
    order: list[str] = []
    later = [only.submit(offloaded.sleep_and_tell, 0.2) for _ in range(6)]
    for call in later:
        call.add_done_callback(lambda _: order.append("later"))
    urgent = only.with_options(priority=10).submit(offloaded.sleep_and_tell, 0.001)
    urgent.add_done_callback(lambda _: order.append("urgent"))
    concurrent.futures.wait([*busy, *later, urgent], timeout=LIMIT)
    assert order.index("urgent") < 4


def test_cancellation(pool: rondel.DaskPool) -> None:
    only = pool.with_options(workers="one")
    busy = [only.submit(offloaded.sleep_and_tell, 0.5) for _ in range(2)]
    queued = [only.submit(offloaded.sleep_and_tell, 30) for _ in range(4)]
    time.sleep(0.1)
    assert all(call.cancel() for call in queued)
    concurrent.futures.wait(queued, timeout=LIMIT)
    started = time.monotonic()
    assert only.submit(offloaded.double, 1).result(LIMIT) == 2
    assert time.monotonic() - started < 20
    assert all(call.result(LIMIT) for call in busy)


def test_shutdown(cluster: Cluster) -> None:
    pool = rondel.DaskPool(cluster.address)
    calls = [pool.submit(offloaded.double, n) for n in range(20)]
    pool.shutdown()
    assert [call.result(0) for call in calls] == list(range(0, 40, 2))
    assert pool.client.status == "closed"
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.submit(int)
    pool.shutdown()


def test_shutdown_that_cancels(cluster: Cluster) -> None:
    pool = rondel.DaskPool(cluster.address)
    calls = [pool.submit(offloaded.sleep_and_tell, 20) for _ in range(10)]
    pool.shutdown(cancel_futures=True)
    assert all(call.cancelled() for call in calls)


def test_a_client_of_the_program_s_stays_open(cluster: Cluster) -> None:
    with distributed.Client(cluster.address, set_as_default=False) as client:
        with rondel.DaskPool(client) as pool:
            assert pool.client is client
            assert pool.submit(offloaded.double, 1).result(LIMIT) == 2
        assert client.status == "running"
    for wrong in (None, 3, object()):
        with pytest.raises(TypeError, match="client must be"):
            rondel.DaskPool(wrong)


def test_a_worker_killed_in_the_midst(tmp_path: pathlib.Path) -> None:
    with running(tmp_path) as cluster, rondel.DaskPool(cluster.address) as pool:
        victim, survivor = cluster.workers["one"], cluster.workers["two"]

        async def main() -> list[int]:
            calls = [rondel.offload(offloaded.sleep_and_tell, 0.02, to=pool) for _ in range(200)]
            gathered = asyncio.gather(*calls)
            await asyncio.sleep(0.5)
            victim.send_signal(signal.SIGKILL)
            return await asyncio.wait_for(gathered, LIMIT)

        found = rondel.run(main())
        assert victim.wait(10) == -signal.SIGKILL
        assert len(found) == 200
        assert set(found) <= {victim.pid, survivor.pid}
        assert survivor.pid in found
        assert pool.submit(offloaded.process_number).result(LIMIT) == survivor.pid
