"""rondel.ThreadPool: as the standard library's pool, and what it adds."""

import asyncio
import concurrent.futures
import contextvars
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.thread import BrokenThreadPool
from typing import Any

import pytest
import rondel
from support import collected

Pool = ThreadPoolExecutor
PoolFactory = Callable[..., Pool]
POOLS = {"stdlib": ThreadPoolExecutor, "rondel": rondel.ThreadPool}
LIMIT = 20


@pytest.fixture(params=list(POOLS))
def make(request: pytest.FixtureRequest) -> Iterator[PoolFactory]:
    """Makes pools, which are shut down at the test's end."""
    pools: list[Pool] = []

    def make(*args: Any, **kwargs: Any) -> Pool:
        pools.append(POOLS[request.param](*args, **kwargs))
        return pools[-1]

    yield make
    for pool in pools:
        pool.shutdown()


@pytest.fixture
def pool() -> Iterator[rondel.ThreadPool]:
    with rondel.ThreadPool(2) as pool:
        yield pool


def wait_until(true: Callable[[], object]) -> None:
    end = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.001)


def block(pool: Pool, threads: int = 1) -> threading.Event:
    """Keeps so many threads of the pool busy until the event is set."""
    release = threading.Event()
    ready = threading.Barrier(threads + 1)

    def body() -> None:
        ready.wait(LIMIT)
        release.wait(LIMIT)

    for _ in range(threads):
        pool.submit(body)
    ready.wait(LIMIT)
    return release


def run_python(program: str) -> str:
    """Runs a program of its own; its output, errors included."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


# --- as the standard library's ----------------------------------------------------------------


def test_it_passes_for_the_standard_pool() -> None:
    with rondel.ThreadPool() as pool:
        assert isinstance(pool, ThreadPoolExecutor)
        assert isinstance(pool, concurrent.futures.Executor)
        with ThreadPoolExecutor() as standard:
            assert pool._max_workers == standard._max_workers


def test_submit(make: PoolFactory) -> None:
    def body(*args: int, **kwargs: int) -> tuple[Any, ...]:
        return args, kwargs

    pool = make(2)
    future = pool.submit(body, 1, 2, fn=3, self=4)
    assert type(future) is Future
    assert future.result(LIMIT) == ((1, 2), {"fn": 3, "self": 4})
    with pytest.raises(TypeError):
        pool.submit()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        pool.submit(fn=body)  # type: ignore[call-arg]


@pytest.mark.parametrize("error", [ValueError("mine"), SystemExit(3), KeyboardInterrupt()])
def test_an_exception_keeps_its_traceback(make: PoolFactory, error: BaseException) -> None:
    def inner() -> None:
        raise error

    def outer() -> None:
        inner()

    pool = make(1)
    raised = pool.submit(outer).exception(LIMIT)
    assert raised is error
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert names[-2:] == ["outer", "inner"]
    # The thread has survived it.
    assert pool.submit(abs, -1).result(LIMIT) == 1


def test_map(make: PoolFactory) -> None:
    pool = make(3)
    assert list(pool.map(pow, range(5), [2] * 5)) == [0, 1, 4, 9, 16]
    with pytest.raises(ZeroDivisionError):
        list(pool.map(divmod, [1], [0]))


def test_map_with_a_timeout(make: PoolFactory) -> None:
    pool = make(2)
    release = threading.Event()
    results = pool.map(release.wait, [LIMIT], timeout=0.05)
    with pytest.raises(TimeoutError):
        next(results)
    release.set()


@pytest.mark.skipif(sys.version_info < (3, 14), reason="buffersize is new in 3.14")
def test_map_with_a_buffer(make: PoolFactory) -> None:
    pool = make(2)
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    results = pool.map(abs, numbers(), buffersize=3)  # type: ignore[call-arg]
    assert next(results) == 0
    assert len(taken) <= 4
    assert list(results) == list(range(1, 100))


def test_names_and_numbers_of_threads(make: PoolFactory) -> None:
    pool = make(3, "mine")
    release = block(pool, 3)
    assert sorted(thread.name for thread in pool._threads) == ["mine_0", "mine_1", "mine_2"]
    release.set()
    default = make(1)
    assert (
        default.submit(lambda: threading.current_thread().name)
        .result(LIMIT)
        .startswith("ThreadPoolExecutor-")
    )


def test_a_thread_is_used_again(make: PoolFactory) -> None:
    pool = make(4)
    for _ in range(10):
        pool.submit(int).result(LIMIT)
        time.sleep(0.01)  # the thread has gone back to wait, but for a very slow machine
    assert len(pool._threads) <= 2


def test_blocking_calls_get_all_threads(make: PoolFactory) -> None:
    pool = make(4)
    for _ in range(20):
        barrier = threading.Barrier(4)
        calls = [pool.submit(barrier.wait, LIMIT) for _ in range(4)]
        assert sorted(call.result(LIMIT) for call in calls) == [0, 1, 2, 3]
    assert len(pool._threads) == 4


def test_thread_locals_and_hooks(make: PoolFactory) -> None:
    local = threading.local()
    events: list[str] = []
    threading.setprofile(lambda frame, event, arg: events.append(frame.f_code.co_name))
    try:
        pool = make(1)

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


def test_wrong_arguments(make: PoolFactory) -> None:
    for number in (0, -1):
        with pytest.raises(ValueError, match=r"^max_workers must be greater than 0$"):
            make(number)
    with pytest.raises(TypeError, match=r"^initializer must be a callable$"):
        make(initializer=3)


def test_initializer(make: PoolFactory) -> None:
    seen: list[Any] = []
    pool = make(2, initializer=lambda *args: seen.append(args), initargs=(1, "two"))
    release = block(pool, 2)
    release.set()
    assert seen == [(1, "two")] * 2


def test_failing_initializer(make: PoolFactory, caplog: pytest.LogCaptureFixture) -> None:
    go = threading.Event()

    def fails() -> None:
        go.wait(LIMIT)
        raise ValueError("not today")

    pool = make(2, initializer=fails)
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


def test_a_cancelled_call_does_not_run(make: PoolFactory) -> None:
    pool = make(1)
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


def test_a_running_call_is_not_cancelled(make: PoolFactory) -> None:
    pool = make(1)
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


# --- shutdown ---------------------------------------------------------------------------------


def test_shutdown_waits_for_what_is_queued(make: PoolFactory) -> None:
    pool = make(2)
    seen: list[int] = []
    for number in range(10):
        pool.submit(lambda number: (time.sleep(0.002), seen.append(number)), number)
    threads = set(pool._threads)
    pool.shutdown()
    assert sorted(seen) == list(range(10))
    assert not any(thread.is_alive() for thread in threads)
    with pytest.raises(RuntimeError, match=r"^cannot schedule new futures after shutdown$"):
        pool.submit(int)
    pool.shutdown()


def test_shutdown_that_cancels(make: PoolFactory) -> None:
    pool = make(1)
    release = block(pool)
    queued = [pool.submit(int) for _ in range(3)]
    pool.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in queued)
    release.set()


def test_shutdown_that_cancels_calls_of_the_loop() -> None:
    pool = rondel.ThreadPool(1)
    release = block(pool)

    async def main() -> None:
        queued = asyncio.get_running_loop().run_in_executor(pool, int)
        pool.shutdown(wait=False, cancel_futures=True)
        with pytest.raises(asyncio.CancelledError):
            await queued

    rondel.run(main())
    release.set()


def test_shutdown_by_another_thread_while_calls_are_made(make: PoolFactory) -> None:
    pool = make(2)
    made: list[Future[int]] = []

    def submit() -> None:
        try:
            while True:
                made.append(pool.submit(abs, -1))
        except RuntimeError:
            pass

    threads = [threading.Thread(target=submit) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.02)
    pool.shutdown()
    for thread in threads:
        thread.join(LIMIT)
    # What was accepted was done.
    assert {future.result(0) for future in made} == {1}


def test_threads_of_a_forgotten_pool_end(make: PoolFactory) -> None:
    pool: Pool | None = rondel.ThreadPool(2)
    assert pool is not None
    done = [pool.submit(time.sleep, 0.01) for _ in range(4)]
    threads = set(pool._threads)
    pool = None
    gc.collect()
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive()
    assert all(future.done() for future in done)


def test_threads_without_calls_end_and_others_follow() -> None:
    with rondel.ThreadPool(3, idle_timeout=0.02) as pool:
        block(pool, 3).set()
        wait_until(lambda: not pool._threads)
        for _ in range(3):
            assert pool.submit(abs, -1).result(LIMIT) == 1
            time.sleep(0.03)
    with pytest.raises(ValueError, match="idle_timeout"):
        rondel.ThreadPool(idle_timeout=-1)


def test_calls_at_the_moment_when_threads_end() -> None:
    # Threads that leave at once meet calls that count on them.
    with rondel.ThreadPool(2, idle_timeout=0) as pool:
        for number in range(300):
            assert pool.submit(abs, -number).result(LIMIT) == number


def test_no_thread_is_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with rondel.ThreadPool(3) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                pool.submit(int)
            assert pool._work_queue.qsize() == 0
        release = block(pool)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            future = pool.submit(int)  # left to the thread that there is
        release.set()
        assert future.result(LIMIT) == 0


def test_exit_waits_for_the_calls() -> None:
    output = run_python("""
        import atexit, time, rondel

        @atexit.register
        def last():
            for pool in (kept, rondel.ThreadPool()):
                try:
                    pool.submit(print, "never")
                except RuntimeError as error:
                    print(error)

        def work(number):
            time.sleep(0.05)
            print(f"{number}\\n", end="", flush=True)

        kept = rondel.ThreadPool(1)
        for number in range(3):
            kept.submit(work, number)
        rondel.ThreadPool(1).submit(work, 3)
        print("end", flush=True)
    """)
    first, *rest = output.split("\n")
    assert first == "end"
    assert sorted(rest[:4]) == ["0", "1", "2", "3"]
    assert rest[4:] == [
        "cannot schedule new futures after shutdown",
        "cannot schedule new futures after interpreter shutdown",
        "",
    ]


# --- fork -------------------------------------------------------------------------------------


def test_a_forked_child_has_a_pool_of_its_own() -> None:
    output = run_python("""
        import os, threading, time, rondel

        pool = rondel.ThreadPool(2, "mine")
        release = threading.Event()
        seen = []
        busy = [pool.submit(release.wait, 20) for _ in range(2)]
        queued = pool.submit(seen.append, "the parent's")
        for child in range(3):
            pid = os.fork()
            if pid == 0:
                assert pool._work_queue.qsize() == 0
                assert pool.submit(abs, -7).result(20) == 7
                assert [t.name for t in pool._threads] == ["mine_0"]
                pool.shutdown()
                os._exit(0 if not seen else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        release.set()
        pool.shutdown()
        print(seen)
    """)
    assert output == '["the parent\'s"]\n'


def test_a_call_that_forks() -> None:
    output = run_python("""
        import os, rondel

        def fork():
            pid = os.fork()
            if pid:
                return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            # The child's only thread is this one, and what it was to do is the parent's: it ends.
            return None

        with rondel.ThreadPool(1) as pool:
            futures = [pool.submit(fork), pool.submit(os.write, 1, b"once\\n")]
            os.write(1, b"%d\\n" % futures[0].result(20))
    """)
    assert sorted(output.split("\n")) == ["", "0", "once"]


# --- on the loop ------------------------------------------------------------------------------


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
