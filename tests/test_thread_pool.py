"""rondel.ThreadPool beside the standard library's: calls, threads, initializers, cancellation."""

import asyncio
import concurrent.futures
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.thread import BrokenThreadPool
from typing import Any

import pytest
import rondel
from pools import LIMIT, ThreadPoolFactory, block, wait_until
from support import collected


@pytest.fixture
def pool() -> Iterator[rondel.ThreadPool]:
    with rondel.ThreadPool(2) as pool:
        yield pool


def test_it_passes_for_the_standard_pool() -> None:
    with rondel.ThreadPool() as pool:
        assert isinstance(pool, ThreadPoolExecutor)
        assert isinstance(pool, concurrent.futures.Executor)
        with ThreadPoolExecutor() as standard:
            if sys.version_info >= (3, 13):  # it counted all of the machine's cores before
                assert pool._max_workers == standard._max_workers
            assert pool._max_workers <= standard._max_workers


def test_submit(make_pool: ThreadPoolFactory) -> None:
    def body(*args: int, **kwargs: int) -> tuple[Any, ...]:
        return args, kwargs

    pool = make_pool(2)
    future = pool.submit(body, 1, 2, fn=3, self=4)
    assert type(future) is Future
    assert future.result(LIMIT) == ((1, 2), {"fn": 3, "self": 4})
    with pytest.raises(TypeError):
        pool.submit()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        pool.submit(fn=body)  # type: ignore[call-arg]


@pytest.mark.parametrize("error", [ValueError("mine"), SystemExit(3), KeyboardInterrupt()])
def test_an_exception_keeps_its_traceback(
    make_pool: ThreadPoolFactory, error: BaseException
) -> None:
    def inner() -> None:
        raise error

    def outer() -> None:
        inner()

    pool = make_pool(1)
    raised = pool.submit(outer).exception(LIMIT)
    assert raised is error
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert names[-2:] == ["outer", "inner"]
    # The thread has survived it.
    assert pool.submit(abs, -1).result(LIMIT) == 1


def test_map(make_pool: ThreadPoolFactory) -> None:
    pool = make_pool(3)
    assert list(pool.map(pow, range(5), [2] * 5)) == [0, 1, 4, 9, 16]
    with pytest.raises(ZeroDivisionError):
        list(pool.map(divmod, [1], [0]))


def test_map_with_a_timeout(make_pool: ThreadPoolFactory) -> None:
    pool = make_pool(2)
    release = threading.Event()
    results = pool.map(release.wait, [LIMIT], timeout=0.05)
    with pytest.raises(TimeoutError):
        next(results)
    release.set()


@pytest.mark.skipif(sys.version_info < (3, 14), reason="buffersize is new in 3.14")
def test_map_with_a_buffer(make_pool: ThreadPoolFactory) -> None:
    pool = make_pool(2)
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    results = pool.map(abs, numbers(), buffersize=3)  # type: ignore[call-arg]
    assert next(results) == 0
    assert len(taken) <= 4
    assert list(results) == list(range(1, 100))


def test_names_and_numbers_of_threads(make_pool: ThreadPoolFactory) -> None:
    pool = make_pool(3, "mine")
    release = block(pool, 3)
    assert sorted(thread.name for thread in pool._threads) == ["mine_0", "mine_1", "mine_2"]
    release.set()
    default = make_pool(1)
    assert (
        default.submit(lambda: threading.current_thread().name)
        .result(LIMIT)
        .startswith("ThreadPoolExecutor-")
    )


def test_a_thread_is_used_again(make_pool: ThreadPoolFactory) -> None:
    pool = make_pool(4)
    for _ in range(10):
        pool.submit(int).result(LIMIT)
        time.sleep(0.01)  # the thread has gone back to wait, but for a very slow machine
    assert len(pool._threads) <= 2


def test_blocking_calls_get_all_threads(make_pool: ThreadPoolFactory) -> None:
    pool = make_pool(4)
    for _ in range(20):
        barrier = threading.Barrier(4)
        calls = [pool.submit(barrier.wait, LIMIT) for _ in range(4)]
        assert sorted(call.result(LIMIT) for call in calls) == [0, 1, 2, 3]
    assert len(pool._threads) == 4


def test_thread_locals_and_hooks(make_pool: ThreadPoolFactory) -> None:
    local = threading.local()
    events: list[str] = []
    threading.setprofile(lambda frame, event, arg: events.append(frame.f_code.co_name))
    try:
        pool = make_pool(1)

        def mine() -> list[int]:
            local.calls = [*getattr(local, "calls", []), 1]
            result: list[int] = local.calls
            return result

        assert pool.submit(mine).result(LIMIT) == [1]
        assert pool.submit(mine).result(LIMIT) == [1, 1]
    finally:
        threading.setprofile(None)  # type: ignore[arg-type]
    assert "mine" in events
    assert not hasattr(local, "calls")


def test_wrong_arguments(make_pool: ThreadPoolFactory) -> None:
    for number in (0, -1):
        with pytest.raises(ValueError, match=r"^max_workers must be greater than 0$"):
            make_pool(number)
    with pytest.raises(TypeError, match=r"^initializer must be a callable$"):
        make_pool(initializer=3)


def test_initializer(make_pool: ThreadPoolFactory) -> None:
    seen: list[Any] = []
    pool = make_pool(2, initializer=lambda *args: seen.append(args), initargs=(1, "two"))
    release = block(pool, 2)
    release.set()
    assert seen == [(1, "two")] * 2


def test_failing_initializer(
    make_pool: ThreadPoolFactory, caplog: pytest.LogCaptureFixture
) -> None:
    go = threading.Event()

    def fails() -> None:
        go.wait(LIMIT)
        raise ValueError("not today")

    pool = make_pool(2, initializer=fails)
    futures = [pool.submit(int) for _ in range(5)]
    go.set()
    for future in futures:
        with pytest.raises(BrokenThreadPool):
            future.result(LIMIT)
    wait_until(lambda: pool._broken)
    text = r"^A thread initializer failed, the thread pool is not usable anymore$"
    with pytest.raises(BrokenThreadPool, match=text):
        pool.submit(int)
    assert caplog.records[0].getMessage() == "Exception in initializer:"
    assert "not today" in caplog.text


def test_failing_initializer_reaches_the_loop() -> None:
    def fails() -> None:
        raise ValueError("not today")

    async def main() -> None:
        pool = rondel.ThreadPool(1, initializer=fails)
        with pytest.raises(BrokenThreadPool):
            await asyncio.get_running_loop().run_in_executor(pool, int)

    rondel.run(main())


# --- cancellation -----------------------------------------------------------------------------


def test_a_cancelled_call_does_not_run(make_pool: ThreadPoolFactory) -> None:
    pool = make_pool(1)
    release = block(pool)
    seen: list[int] = []
    futures = [pool.submit(seen.append, number) for number in range(3)]
    assert futures[1].cancel()
    assert futures[1].cancelled()
    release.set()
    pool.shutdown()
    assert seen == [0, 2]


def test_a_cancelled_call_leaves_the_queue_at_once(pool: rondel.ThreadPool) -> None:
    release = block(pool, 2)

    class Big:
        def method(self) -> None:
            raise AssertionError("ran")

    big = Big()
    ref = weakref.ref(big)
    future = pool.submit(big.method)
    del big
    assert pool._work_queue.qsize() == 1
    assert future.cancel()
    assert pool._work_queue.qsize() == 0
    assert collected(ref)
    # Who waits for it hears of it, though no thread is free.
    done, _ = concurrent.futures.wait([future], timeout=LIMIT)
    assert done == {future}
    release.set()


def test_a_cancelled_call_of_the_loop_leaves_the_queue(pool: rondel.ThreadPool) -> None:
    release = block(pool, 2)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(pool, print)
        other = loop.run_in_executor(pool, abs, -2)
        assert pool._work_queue.qsize() == 2
        future.cancel()
        await asyncio.sleep(0)
        assert pool._work_queue.qsize() == 1
        release.set()
        assert await other == 2

    rondel.run(main())


def test_a_running_call_is_not_cancelled(make_pool: ThreadPoolFactory) -> None:
    pool = make_pool(1)
    started, release = threading.Event(), threading.Event()

    def body() -> int:
        started.set()
        release.wait(LIMIT)
        return 5

    future = pool.submit(body)
    started.wait(LIMIT)
    assert not future.cancel()
    release.set()
    assert future.result(LIMIT) == 5
