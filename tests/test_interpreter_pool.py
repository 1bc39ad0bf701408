"""rondel.InterpreterPool."""

import asyncio
import concurrent.futures
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import rondel
from programs import offloaded

LIMIT = 20
NEW = sys.version_info >= (3, 14)
needs_interpreters = pytest.mark.skipif(not NEW, reason="concurrent.interpreters is new in 3.14")


@pytest.fixture
def pool() -> Iterator[rondel.InterpreterPool]:
    with rondel.InterpreterPool(2) as pool:
        yield pool


@pytest.mark.skipif(NEW, reason="this Python has interpreters")
def test_older_pythons_are_told_so() -> None:
    with pytest.raises(RuntimeError, match=r"InterpreterPool needs Python 3\.14 or newer"):
        rondel.InterpreterPool()


@needs_interpreters
def test_calls_and_their_results(pool: rondel.InterpreterPool) -> None:
    assert isinstance(pool, concurrent.futures.Executor)
    assert pool.submit(offloaded.add, 1, y=2).result(LIMIT) == 3
    assert list(pool.map(offloaded.double, range(5))) == [0, 2, 4, 6, 8]
    assert pool.submit(max, [1, 5, 2]).result(LIMIT) == 5


@needs_interpreters
def test_exceptions(pool: rondel.InterpreterPool) -> None:
    from concurrent.interpreters import ExecutionFailed  # type: ignore[import-not-found]

    with pytest.raises(LookupError, match="mine") as caught:
        pool.submit(offloaded.fail, "mine").result(LIMIT)
    assert isinstance(caught.value.__cause__, ExecutionFailed)
    assert "in fail" in str(caught.value.__cause__)
    with pytest.raises(ExecutionFailed, match="odd"):
        pool.submit(offloaded.fail_unpicklable).result(LIMIT)
    # The interpreter has survived both.
    assert pool.submit(offloaded.add, 1, 1).result(LIMIT) == 2


@needs_interpreters
def test_what_cannot_be_sent_fails_alone(pool: rondel.InterpreterPool) -> None:
    good = pool.submit(offloaded.add, 1, 1)
    bad = pool.submit(print, threading.Lock())
    assert bad.exception(LIMIT) is not None
    assert good.result(LIMIT) == 2


@needs_interpreters
def test_interpreters_share_nothing() -> None:
    with rondel.InterpreterPool(1) as pool:
        first = pool.submit(offloaded.change_globals).result(LIMIT)
        second = pool.submit(offloaded.change_globals).result(LIMIT)
        assert (first, second) == ([1, 2, 3, 4], [1, 2, 3, 4, 5])
        assert offloaded.NUMBERS == [1, 2, 3]
        # In the same process, all the same.
        assert pool.submit(offloaded.process_number).result(LIMIT) == offloaded.process_number()


@needs_interpreters
def test_modules_that_import_rondel_may_not_use_it(pool: rondel.InterpreterPool) -> None:
    with pytest.raises(RuntimeError, match="outside the main interpreter"):
        pool.submit(offloaded.use_rondel).result(LIMIT)


@needs_interpreters
def test_initializer(caplog: pytest.LogCaptureFixture) -> None:
    with rondel.InterpreterPool(1, "mine", offloaded.change_globals) as pool:
        assert pool.submit(offloaded.change_globals).result(LIMIT) == [1, 2, 3, 4, 5]
        assert [thread.name for thread in pool._threads] == ["mine_0"]
    with rondel.InterpreterPool(1, initializer=offloaded.fail, initargs=("no",)) as pool:
        with pytest.raises(concurrent.futures.BrokenExecutor):
            pool.submit(offloaded.add, 1, 2).result(LIMIT)
    assert "LookupError: no" in caplog.text


@needs_interpreters
def test_they_are_closed() -> None:
    from concurrent import interpreters  # type: ignore[attr-defined]

    before = len(interpreters.list_all())
    with rondel.InterpreterPool(2) as pool:
        list(pool.map(offloaded.double, range(10)))
        assert len(interpreters.list_all()) > before
    assert len(interpreters.list_all()) == before


@needs_interpreters
@pytest.mark.parametrize("debug", [False, True])
def test_on_the_loop(pool: rondel.InterpreterPool, debug: bool) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(pool, offloaded.add, 1, 2) == 3
        with pytest.raises(LookupError):
            await loop.run_in_executor(pool, offloaded.fail, "mine")
        loop.set_default_executor(pool)
        assert await rondel.to_thread(offloaded.add, 1, y=2) == 3

    rondel.run(main(), debug=debug)


@needs_interpreters
def test_a_replaced_submit_is_called() -> None:
    calls: list[Any] = []

    class Mine(rondel.InterpreterPool):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            calls.append(fn)
            return super().submit(fn, *args, **kwargs)

    async def main() -> None:
        with Mine(1) as pool:
            loop = asyncio.get_running_loop()
            assert await loop.run_in_executor(pool, offloaded.add, 1, 2) == 3

    rondel.run(main())
    assert calls == [offloaded.add]
