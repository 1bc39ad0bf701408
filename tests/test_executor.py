"""run_in_executor, the default executor and its shutdown."""

import asyncio
import concurrent.futures
import contextvars
import re
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from support import LoopFactory, collected, skip_if_asyncio_errs

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]


def thread_name() -> str:
    return threading.current_thread().name


def test_result_and_arguments(loop: Loop, run: Run) -> None:
    async def main() -> None:
        assert await loop.run_in_executor(None, max, 3, 9, 4) == 9
        assert await loop.run_in_executor(None, lambda: threading.get_ident()) != (
            threading.get_ident()
        )

    run(main)


def test_it_returns_a_future_of_the_loop_at_once(loop: Loop, run: Run) -> None:
    release = threading.Event()

    async def main() -> None:
        future = loop.run_in_executor(None, release.wait, 10)
        assert isinstance(future, asyncio.Future)
        assert future.get_loop() is loop
        assert not future.done()
        release.set()
        assert await future is True

    run(main)


def test_exception_is_raised_where_it_is_awaited(loop: Loop, run: Run) -> None:
    error = ValueError("mine")

    def fails() -> None:
        raise error

    async def main() -> None:
        with pytest.raises(ValueError) as caught:
            await loop.run_in_executor(None, fails)
        assert caught.value is error

    run(main)


def test_default_threads_are_named_asyncio(loop: Loop, run: Run) -> None:
    async def main() -> None:
        name = await loop.run_in_executor(None, thread_name)
        assert re.fullmatch(r"asyncio_\d+", name)

    run(main)


def test_default_executor_is_a_thread_pool_made_on_first_use(loop: Loop, run: Run) -> None:
    async def main() -> None:
        assert loop._default_executor is None  # type: ignore[attr-defined]
        await loop.run_in_executor(None, int)
        executor = loop._default_executor  # type: ignore[attr-defined]
        assert isinstance(executor, concurrent.futures.ThreadPoolExecutor)
        await loop.run_in_executor(None, int)
        assert loop._default_executor is executor  # type: ignore[attr-defined]

    run(main)


def test_calls_run_side_by_side(loop: Loop, run: Run) -> None:
    barrier = threading.Barrier(4)

    async def main() -> None:
        waits = [loop.run_in_executor(None, barrier.wait, 10) for _ in range(4)]
        assert sorted(await asyncio.gather(*waits)) == [0, 1, 2, 3]

    run(main)


def test_many_calls(loop: Loop, run: Run) -> None:
    async def main() -> list[int]:
        return list(
            await asyncio.gather(*(loop.run_in_executor(None, abs, -i) for i in range(500)))
        )

    assert run(main) == list(range(500))


def test_executor_given_by_the_caller(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with concurrent.futures.ThreadPoolExecutor(thread_name_prefix="mine") as pool:
            assert (await loop.run_in_executor(pool, thread_name)).startswith("mine_")
        assert loop._default_executor is None  # type: ignore[attr-defined]

    run(main)


def test_executor_needs_only_submit(loop: Loop, run: Run) -> None:
    class Inline:
        def submit(self, fn: Any, *args: Any) -> concurrent.futures.Future[Any]:
            future: concurrent.futures.Future[Any] = concurrent.futures.Future()
            future.set_result(("inline", fn(*args)))
            return future

    async def main() -> None:
        assert await loop.run_in_executor(Inline(), abs, -3) == ("inline", 3)  # type: ignore[arg-type]

    run(main)


def test_set_default_executor(loop: Loop, run: Run) -> None:
    pool = concurrent.futures.ThreadPoolExecutor(thread_name_prefix="mine")

    async def main() -> None:
        loop.set_default_executor(pool)
        assert loop._default_executor is pool  # type: ignore[attr-defined]
        assert (await loop.run_in_executor(None, thread_name)).startswith("mine_")
        assert (await asyncio.to_thread(thread_name)).startswith("mine_")

    run(main)
    loop.close()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.submit(int)


def test_default_executor_must_be_a_thread_pool(loop: Loop) -> None:
    with concurrent.futures.ProcessPoolExecutor(1) as processes:
        for wrong in (processes, None, object()):
            with pytest.raises(TypeError, match=r"^executor must be ThreadPoolExecutor instance$"):
                loop.set_default_executor(wrong)  # type: ignore[arg-type]


def test_to_thread_takes_the_context_and_keywords_along(run: Run) -> None:
    var: contextvars.ContextVar[str] = contextvars.ContextVar("var")

    def body(*args: int, **kwargs: int) -> tuple[Any, ...]:
        return var.get(), args, kwargs

    async def main() -> None:
        var.set("the task's")
        assert await asyncio.to_thread(body, 1, two=2) == ("the task's", (1,), {"two": 2})

    run(main)


def test_cancelled_before_it_started(loop: Loop, run: Run) -> None:
    seen: list[str] = []

    async def main() -> None:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            release = threading.Event()
            first = loop.run_in_executor(pool, release.wait, 10)
            second = loop.run_in_executor(pool, seen.append, "ran")
            await asyncio.sleep(0)
            assert second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            # A turn, in which the executor hears of it.
            await asyncio.sleep(0)
            release.set()
            assert await first is True

    run(main)
    assert seen == []


def test_cancelled_while_it_runs_lets_the_thread_finish(loop: Loop, run: Run) -> None:
    started, release, ended = threading.Event(), threading.Event(), threading.Event()

    def body() -> None:
        started.set()
        release.wait(10)
        ended.set()

    async def main() -> None:
        future = loop.run_in_executor(None, body)
        while not started.is_set():
            await asyncio.sleep(0.001)
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await future
        release.set()

    run(main)
    assert ended.wait(10)


def test_function_that_calls_back_into_the_loop(loop: Loop, run: Run) -> None:
    seen: list[str] = []

    def body() -> str:
        loop.call_soon_threadsafe(seen.append, "called back")
        return "result"

    async def main() -> None:
        assert await loop.run_in_executor(None, body) == "result"

    run(main)
    # Sent before the result was.
    assert seen == ["called back"]


# --- shutdown ----------------------------------------------------------------------------------


def test_shutdown_waits_for_running_calls(loop: Loop, run: Run) -> None:
    ended: list[str] = []

    def body() -> None:
        time.sleep(0.05)
        ended.append("ended")

    async def main() -> None:
        loop.run_in_executor(None, body)
        assert await loop.shutdown_default_executor() is None  # type: ignore[func-returns-value]
        assert ended == ["ended"]

    run(main)


def test_shutdown_without_an_executor(loop: Loop, run: Run) -> None:
    async def main() -> None:
        assert await loop.shutdown_default_executor() is None  # type: ignore[func-returns-value]

    run(main)


def test_call_after_the_shutdown_is_refused(loop: Loop, run: Run) -> None:
    async def main() -> None:
        await loop.run_in_executor(None, int)
        await loop.shutdown_default_executor()
        with pytest.raises(RuntimeError, match=r"^Executor shutdown has been called$"):
            loop.run_in_executor(None, int)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            assert await loop.run_in_executor(pool, int) == 0

    run(main)


def test_loop_runs_on_while_the_executor_shuts_down(loop: Loop, run: Run) -> None:
    release = threading.Event()

    async def main() -> None:
        call = loop.run_in_executor(None, release.wait, 10)
        shutdown = loop.create_task(loop.shutdown_default_executor())
        await asyncio.sleep(0.02)
        assert not shutdown.done()
        release.set()
        await shutdown
        assert await call is True

    run(main)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the timeout is new in 3.12")
def test_shutdown_with_a_timeout(loop: Loop, run: Run) -> None:
    skip_if_asyncio_errs(
        loop, "the wait for the threads itself blocks for their end", (3, 12), (3, 13)
    )
    release = threading.Event()

    async def main() -> None:
        call = loop.run_in_executor(None, release.wait, 10)
        started = time.monotonic()
        with pytest.warns(RuntimeWarning) as caught:
            await loop.shutdown_default_executor(timeout=0.05)
        assert 0.05 <= time.monotonic() - started < 5
        assert [str(w.message) for w in caught] == [
            "The executor did not finishing joining its threads within 0.05 seconds."
        ]
        release.set()
        assert await call is True

    run(main)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the timeout is new in 3.12")
def test_shutdown_within_its_timeout_does_not_warn(
    loop: Loop, run: Run, recwarn: pytest.WarningsRecorder
) -> None:
    async def main() -> None:
        await loop.run_in_executor(None, int)
        await loop.shutdown_default_executor(10)
        await loop.shutdown_default_executor(timeout=None)

    run(main)
    assert [str(w.message) for w in recwarn] == []


def test_close_does_not_wait_for_running_calls(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    started, release, ended = threading.Event(), threading.Event(), threading.Event()

    def body() -> None:
        started.set()
        release.wait(10)
        ended.set()

    async def main() -> None:
        loop.run_in_executor(None, body)
        while not started.is_set():
            await asyncio.sleep(0.001)

    loop.run_until_complete(main())
    before = time.monotonic()
    loop.close()
    assert time.monotonic() - before < 5
    assert not ended.is_set()
    release.set()
    assert ended.wait(10)
    with pytest.raises(RuntimeError, match=r"^Event loop is closed$"):
        loop.call_soon_threadsafe(print)


def test_call_that_ends_after_the_loop_was_closed_is_dropped(
    loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture
) -> None:
    loop = loop_factory()
    release = threading.Event()
    pool = concurrent.futures.ThreadPoolExecutor(1)

    async def main() -> asyncio.Future[Any]:
        return loop.run_in_executor(pool, release.wait, 10)

    future = loop.run_until_complete(main())
    loop.close()
    release.set()
    pool.shutdown(wait=True)
    assert not future.done()
    assert [record.getMessage() for record in caplog.records] == []


def test_loop_with_an_executor_is_collected(loop_factory: LoopFactory) -> None:
    loop = loop_factory()

    async def main() -> None:
        await loop.run_in_executor(None, int)
        await loop.shutdown_default_executor()

    loop.run_until_complete(main())
    loop.close()
    ref = weakref.ref(loop)
    del loop
    assert collected(ref)
