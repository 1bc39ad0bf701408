"""rondel.ThreadPool on an event loop: run_in_executor(), to_thread(), delivery, what is left."""

import asyncio
import concurrent.futures
import contextvars
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import rondel
from pools import LIMIT, block
from support import collected


@pytest.fixture
def pool() -> Iterator[rondel.ThreadPool]:
    with rondel.ThreadPool(2) as pool:
        yield pool


def test_it_is_the_default_executor() -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        await loop.run_in_executor(None, int)
        assert type(loop._default_executor) is rondel.ThreadPool

    rondel.run(main())


def test_asyncio_s_loop_takes_it(pool: rondel.ThreadPool) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(pool, abs, -3) == 3
        loop.set_default_executor(pool)
        assert await asyncio.to_thread(abs, -4) == 4
        assert await rondel.to_thread(abs, -5) == 5

    asyncio.run(main())


def test_debug_mode(pool: rondel.ThreadPool) -> None:
    async def coroutine() -> None:
        pass

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(pool, abs, -3) == 3
        assert await rondel.to_thread(abs, -4) == 4
        with pytest.raises(TypeError):
            loop.run_in_executor(None, coroutine)

    rondel.run(main(), debug=True)


def test_to_thread(run: Callable[..., Any]) -> None:
    var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="unset")

    def body(*args: int, **kwargs: int) -> tuple[Any, ...]:
        seen = var.get()
        var.set("the thread's")
        return seen, args, kwargs

    async def main() -> None:
        var.set("the task's")
        expected = ("the task's", (1,), {"two": 2})
        assert await rondel.to_thread(body, 1, two=2) == expected
        assert var.get() == "the task's"
        # No context is carried by run_in_executor(), and none is left over from before.
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, var.get) == "unset"
        with pytest.raises(ZeroDivisionError):
            await rondel.to_thread(divmod, 1, 0)

    run(main)


def test_to_thread_uses_the_executor_that_was_set() -> None:
    async def main() -> None:
        with ThreadPoolExecutor(1, "stock") as stock:
            asyncio.get_running_loop().set_default_executor(stock)
            name = await rondel.to_thread(lambda: threading.current_thread().name)
            assert name == "stock_0"

    rondel.run(main())


def test_to_thread_without_a_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        rondel.to_thread(int).send(None)


def test_a_replaced_submit_is_called() -> None:
    calls: list[Any] = []

    class Mine(rondel.ThreadPool):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            calls.append("class")
            return super().submit(fn, *args, **kwargs)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with Mine(1) as mine, rondel.ThreadPool(1) as plain:
            assert await loop.run_in_executor(mine, abs, -1) == 1
            submit = plain.submit
            mine_too: Any = plain
            mine_too.submit = lambda *args: calls.append("object") or submit(*args)
            assert await loop.run_in_executor(plain, abs, -1) == 1
            loop.set_default_executor(mine)
            assert await loop.run_in_executor(None, abs, -1) == 1
            assert await rondel.to_thread(abs, -1) == 1

    rondel.run(main())
    assert calls == ["class", "object", "class", "class"]


def test_create_future_of_a_subclass_is_used(pool: rondel.ThreadPool) -> None:
    made: list[Any] = []

    class Mine(rondel.Loop):
        def create_future(self) -> asyncio.Future[Any]:
            made.append(super().create_future())
            return made[-1]  # type: ignore[no-any-return]

    loop = Mine()
    future = loop.run_in_executor(pool, abs, -1)
    assert made == [future]
    assert loop.run_until_complete(future) == 1
    loop.close()


def test_many_calls_wake_the_loop_for_batches(pool: rondel.ThreadPool) -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*[loop.run_in_executor(pool, abs, -n) for n in range(5000)])

    assert rondel.run(main()) == list(range(5000))


def test_a_short_call_s_result_does_not_wait_for_a_long_one_behind_it() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        release = threading.Event()
        with rondel.ThreadPool(1) as pool:
            for _ in range(20):
                short = loop.run_in_executor(pool, int)
                long = loop.run_in_executor(pool, release.wait, LIMIT)
                assert await asyncio.wait_for(short, LIMIT / 2) == 0
                release.set()
                assert await long
                release.clear()

    rondel.run(main())


def test_calls_from_several_loops_share_a_pool(pool: rondel.ThreadPool) -> None:
    totals: list[int] = []

    async def main(base: int) -> None:
        loop = asyncio.get_running_loop()
        total = 0
        for number in range(200):
            total += await loop.run_in_executor(pool, abs, -number - base)
        totals.append(total - 200 * base)

    threads = [threading.Thread(target=rondel.run, args=(main(base),)) for base in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert totals == [sum(range(200))] * 3


def test_a_callback_that_blocks_for_its_own_call(pool: rondel.ThreadPool) -> None:
    # The call is on its way at once: it does not wait for the loop's turn to end.
    async def main() -> None:
        done = threading.Event()
        asyncio.get_running_loop().run_in_executor(pool, done.set)
        assert done.wait(LIMIT)

    rondel.run(main())


def test_exceptions_are_asyncio_s(run: Callable[..., Any]) -> None:
    async def main() -> list[str]:
        loop = asyncio.get_running_loop()
        seen: list[str] = []
        for error in (
            concurrent.futures.InvalidStateError("state"),
            concurrent.futures.CancelledError("cancelled"),
            SystemExit(3),
        ):

            def fails(error: BaseException = error) -> None:
                raise error

            try:
                await loop.run_in_executor(None, fails)
            except BaseException as caught:
                seen.append(f"{type(caught).__module__}.{type(caught).__name__}: {caught}")
        return seen

    assert run(main) == [
        "asyncio.exceptions.InvalidStateError: state",
        "asyncio.exceptions.CancelledError: cancelled",
        "builtins.SystemExit: 3",
    ]


def test_stop_iteration_ends_the_wait() -> None:
    async def main() -> None:
        # asyncio's own future stays pending for ever on 3.11.
        with pytest.raises((RuntimeError, TypeError), match="StopIteration"):
            await asyncio.get_running_loop().run_in_executor(None, next, iter(()))

    rondel.run(main())


def test_a_result_that_nobody_waits_for_goes(pool: rondel.ThreadPool) -> None:
    class Result:
        pass

    started, release = threading.Event(), threading.Event()
    refs: list[weakref.ref[Result]] = []

    def body() -> Result:
        started.set()
        release.wait(LIMIT)
        result = Result()
        refs.append(weakref.ref(result))
        return result

    async def main() -> None:
        future = asyncio.get_running_loop().run_in_executor(pool, body)
        while not started.is_set():
            await asyncio.sleep(0.001)
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await future
        release.set()
        await asyncio.get_running_loop().run_in_executor(pool, int)

    rondel.run(main())
    pool.shutdown()
    assert collected(refs[0])


def test_arguments_go_with_the_call(pool: rondel.ThreadPool) -> None:
    class Argument:
        pass

    argument: Argument | None = Argument()
    ref = weakref.ref(argument)

    async def main() -> None:
        nonlocal argument
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(pool, id, argument)
        argument = None
        await future
        assert collected(ref)

    rondel.run(main())


def test_pool_and_loop_are_collected() -> None:
    pool = rondel.ThreadPool(1)

    async def main() -> None:
        await asyncio.get_running_loop().run_in_executor(pool, int)

    loop = rondel.new_event_loop()
    loop.run_until_complete(main())
    loop.close()
    refs: list[Any] = [weakref.ref(pool), weakref.ref(loop)]
    pool.own = pool  # type: ignore[attr-defined]
    del pool, loop, main
    assert all(collected(ref) for ref in refs)


def test_calls_that_end_after_the_loop_was_closed() -> None:
    release = threading.Event()
    ref: list[Any] = []

    class Result:
        pass

    def body() -> Result:
        release.wait(LIMIT)
        result = Result()
        ref.append(weakref.ref(result))
        return result

    async def main() -> None:
        asyncio.get_running_loop().run_in_executor(pool, body)

    with rondel.ThreadPool(1) as pool, warnings.catch_warnings():
        warnings.simplefilter("error")
        loop = rondel.new_event_loop()
        loop.run_until_complete(main())
        loop.close()
        release.set()
    assert collected(ref[0])


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="counts threads in /proc")
def test_nothing_spins(pool: rondel.ThreadPool) -> None:
    block(pool, 2).set()
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.2
