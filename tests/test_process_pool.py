"""rondel.ProcessPool: calls, results, errors, futures, options, its end."""

import asyncio
import concurrent.futures
import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import process
from pathlib import Path
from typing import Any

import process_calls as calls
import pytest
import rondel
from pools import LIMIT, PROCESS_MARKS, wait_until
from support import LoopFactory, is_stock, run_on

pytestmark = PROCESS_MARKS


@pytest.fixture(scope="module")
def pool() -> Iterator[rondel.ProcessPool]:
    """A pool of two that all tests of this file share."""
    with rondel.ProcessPool(2) as pool:
        yield pool


def test_it_is_an_executor(pool: rondel.ProcessPool) -> None:
    assert isinstance(pool, concurrent.futures.Executor)
    future = pool.submit(calls.describe, 1, "two", three=[3])
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(LIMIT) == ((1, "two"), {"three": [3]})
    assert future.done() and not future.running() and not future.cancel()
    assert pool.submit(calls.pid).result(LIMIT) != os.getpid()


def test_many_at_once(pool: rondel.ProcessPool) -> None:
    # More than the board has slots.
    futures = [pool.submit(calls.echo, i) for i in range(3000)]
    assert [future.result(LIMIT) for future in futures] == list(range(3000))
    done, left = concurrent.futures.wait(futures, LIMIT)
    assert len(done) == 3000 and not left


def test_calls_from_many_threads(pool: rondel.ProcessPool) -> None:
    results: list[list[int]] = [[] for _ in range(8)]

    def work(number: int) -> None:
        for i in range(100):
            results[number].append(pool.submit(calls.echo, i).result(LIMIT))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [list(range(100))] * 8


def test_exceptions_bring_their_traceback(pool: rondel.ProcessPool) -> None:
    future = pool.submit(calls.fail, KeyError("lost"))
    error = future.exception(LIMIT)
    assert isinstance(error, KeyError) and error.args == ("lost",)
    assert type(error.__cause__) is process._RemoteTraceback
    assert 'process_calls.py", line' in str(error.__cause__)
    # What no worker survives elsewhere is an exception like any other.
    assert isinstance(pool.submit(calls.fail, SystemExit(3)).exception(LIMIT), SystemExit)
    assert isinstance(pool.submit(calls.fail, KeyboardInterrupt()).exception(LIMIT), BaseException)


@pytest.mark.parametrize(
    ("function", "argument", "expected"),
    [
        (lambda: None, (), (pickle.PicklingError, AttributeError)),
        (calls.echo, (calls.Unpicklable(),), TypeError),
        (calls.make, (calls.Unpicklable,), TypeError),
        (calls.make_error, (), TypeError),
        (calls.echo, (calls.Unloadable(),), LookupError),
        (calls.make, (calls.Unloadable,), LookupError),
    ],
    ids=["function", "argument", "result", "exception", "loading there", "loading here"],
)
def test_what_cannot_be_pickled_fails_alone(
    pool: rondel.ProcessPool, function: Any, argument: Any, expected: Any
) -> None:
    before = pool.submit(calls.echo, "before")
    future = pool.submit(function, *argument)
    after = pool.submit(calls.echo, "after")
    with pytest.raises(expected):
        future.result(LIMIT)
    assert (before.result(LIMIT), after.result(LIMIT)) == ("before", "after")


def test_map(pool: rondel.ProcessPool) -> None:
    assert list(pool.map(calls.echo, range(10))) == list(range(10))
    for chunksize in (1, 3, 100):
        mapped = pool.map(calls.describe, range(10), "abcdefgh", chunksize=chunksize)
        assert list(mapped) == [((i, c), {}) for i, c in enumerate("abcdefgh")]
    with pytest.raises(ValueError):
        pool.map(calls.echo, [], chunksize=0)
    results = pool.map(calls.nap, [0, 4], timeout=2)
    next(results)
    with pytest.raises(TimeoutError):
        next(results)


@pytest.mark.skipif(sys.version_info < (3, 14), reason="new in Python 3.14")
def test_map_buffersize(pool: rondel.ProcessPool) -> None:
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for i in range(100):
            taken.append(i)
            yield i

    results = pool.map(calls.echo, numbers(), buffersize=3)
    assert len(taken) == 3
    assert list(results) == list(range(100))


def test_arguments_are_checked() -> None:
    for wrong in (0, -1, 257):
        with pytest.raises(ValueError):
            rondel.ProcessPool(wrong)
    with pytest.raises(TypeError):
        rondel.ProcessPool(1, initializer="no")  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        rondel.ProcessPool(1, max_tasks_per_child=0)
    with pytest.raises(ValueError):
        rondel.ProcessPool(1, start_method="fork", max_tasks_per_child=1)
    with pytest.raises(ValueError):
        rondel.ProcessPool(1, start_method="teleport")
    with pytest.raises(ValueError):
        rondel.ProcessPool(1, call_timeout=0)
    with pytest.raises(ValueError):
        rondel.ProcessPool(1, multiprocessing.get_context("spawn"), start_method="fork")


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_start_methods(method: str) -> None:
    with rondel.ProcessPool(
        2, start_method=method, initializer=calls.initialize, initargs=("x",)
    ) as pool:
        assert list(pool.map(calls.echo, range(20))) == list(range(20))
        assert pool.submit(calls.get_initialized).result(LIMIT) == ["x"]
        with pytest.raises(rondel.WorkerDied):
            pool.submit(calls.exit_by, "kill").result(LIMIT)
        assert pool.submit(calls.echo, 1).result(LIMIT) == 1


def test_an_initializer_that_fails_breaks_the_pool(caplog: pytest.LogCaptureFixture) -> None:
    with rondel.ProcessPool(2, initializer=calls.fail_to_initialize) as pool:
        future = pool.submit(calls.echo)
        with pytest.raises(process.BrokenProcessPool):
            future.result(LIMIT)
        with pytest.raises(process.BrokenProcessPool):
            pool.submit(calls.echo)
        assert pool._broken


def test_an_initializer_that_cannot_be_sent_breaks_the_pool() -> None:
    with rondel.ProcessPool(1, initializer=lambda: None) as pool:
        future = pool.submit(calls.echo)
        with pytest.raises(process.BrokenProcessPool) as raised:
            future.result(LIMIT)
        assert isinstance(raised.value.__cause__, pickle.PicklingError | AttributeError)


def test_max_tasks_per_child() -> None:
    with rondel.ProcessPool(1, max_tasks_per_child=3) as pool:
        pids = [pool.submit(calls.pid).result(LIMIT) for _ in range(7)]
    assert len(set(pids)) == 3
    assert pids[0] == pids[1] == pids[2] != pids[3]


def test_cancel_of_a_queued_call(tmp_path: Path) -> None:
    with rondel.ProcessPool(1) as pool:
        started = tmp_path / "started"
        running = pool.submit(calls.touch_and_wait, started, 2)
        wait_until(started.exists)
        queued = [pool.submit(calls.touch, tmp_path / str(i)) for i in range(2000)]
        assert running.running() and not running.cancel()
        assert not queued[0].running() and not queued[-1].running()
        for future in queued[::2]:
            assert future.cancel() and future.cancelled()
        assert queued[0].cancel()
        _, left = concurrent.futures.wait(queued, LIMIT)
        assert not left
        made = {path.name for path in tmp_path.iterdir()} - {"started"}
        assert made == {str(i) for i in range(1, 2000, 2)}
        with pytest.raises(concurrent.futures.CancelledError):
            queued[0].result(0)


def test_shutdown(tmp_path: Path) -> None:
    pool = rondel.ProcessPool(1)
    started = tmp_path / "started"
    running = pool.submit(calls.touch_and_wait, started, 1)
    wait_until(started.exists)
    queued = [pool.submit(calls.echo, i) for i in range(3)]
    pool.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in queued)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.submit(calls.echo)
    pool.shutdown()
    assert running.done() and running.result(0) is None
    assert not pool._processes


def test_shutdown_does_what_was_submitted() -> None:
    with rondel.ProcessPool(1) as pool:
        futures = [pool.submit(calls.echo, i) for i in range(2000)]
    assert [future.result(0) for future in futures] == list(range(2000))


def test_a_pool_that_was_never_used() -> None:
    with rondel.ProcessPool(1) as pool:
        assert not pool._processes
    pool.shutdown()
    del pool


@pytest.mark.parametrize("way", ["kill_workers", "terminate_workers"])
def test_end_of_the_workers(way: str, tmp_path: Path) -> None:
    pool = rondel.ProcessPool(1)
    started = tmp_path / "started"
    running = pool.submit(calls.touch_and_wait, started)
    queued = pool.submit(calls.echo)
    wait_until(started.exists)
    getattr(pool, way)()
    for future in (running, queued):
        with pytest.raises(process.BrokenProcessPool):
            future.result(LIMIT)
    with pytest.raises(RuntimeError):
        pool.submit(calls.echo)
    pool.shutdown()


# ---- with event loops


def test_awaited_calls(pool: rondel.ProcessPool, loop_factory: LoopFactory) -> None:
    loop = loop_factory()

    async def main() -> None:
        assert await loop.run_in_executor(pool, calls.echo, 5) == 5
        numbers = await asyncio.gather(
            *(loop.run_in_executor(pool, calls.echo, i) for i in range(2000))
        )
        assert numbers == list(range(2000))
        with pytest.raises(KeyError) as raised:
            await loop.run_in_executor(pool, calls.fail, KeyError("lost"))
        assert type(raised.value.__cause__) is process._RemoteTraceback
        if not is_stock(loop):  # asyncio's own waits for ever, up to 3.11
            with pytest.raises((TypeError, RuntimeError)):
                await loop.run_in_executor(pool, calls.fail, StopIteration())
        with pytest.raises(TypeError):
            await loop.run_in_executor(pool, calls.echo, calls.Unpicklable())

    run_on(loop, main, limit=LIMIT)
    loop.close()


def test_both_kinds_of_calls_at_once(pool: rondel.ProcessPool) -> None:
    loop = rondel.new_event_loop()

    async def main() -> None:
        for i in range(200):
            awaited = loop.run_in_executor(pool, calls.echo, i)
            submitted = pool.submit(calls.echo, -i)
            assert await awaited == i
            # Blocks the loop, so the pool's own thread must collect this one.
            assert submitted.result(LIMIT) == -i

    run_on(loop, main, limit=LIMIT)
    loop.close()


def test_a_loop_that_ends_before_its_calls(pool: rondel.ProcessPool) -> None:
    for _ in range(3):
        loop = rondel.new_event_loop()

        async def main(loop: asyncio.AbstractEventLoop = loop) -> None:
            assert await loop.run_in_executor(pool, calls.echo, 1) == 1
            for _ in range(10):
                loop.run_in_executor(pool, calls.nap, 0.01)

        run_on(loop, main, limit=LIMIT)
        loop.close()
    assert pool.submit(calls.echo, 2).result(LIMIT) == 2
    wait_until(lambda: pool._native.outstanding == 0)


def test_calls_of_a_loop_that_has_stopped_are_done(pool: rondel.ProcessPool) -> None:
    async def submit() -> None:
        loop = asyncio.get_running_loop()
        for count in (1, 100):
            for _ in range(count):
                loop.run_in_executor(pool, calls.echo)
            # The workers have gone to sleep when the next ones come.
            await asyncio.sleep(0.05)
        for _ in range(100):
            loop.run_in_executor(pool, calls.echo)

    loop = rondel.new_event_loop()
    try:
        loop.run_until_complete(submit())
        # Nobody collects the answers; the workers do all calls the same.
        other = pool.submit(calls.echo, 1)
        assert other.result(LIMIT) == 1
        wait_until(lambda: pool._native.outstanding == 0)
    finally:
        loop.close()


@pytest.mark.parametrize("count", [2, 3, 63, 70, 3000])
def test_calls_before_a_callback_that_blocks(pool: rondel.ProcessPool, count: int) -> None:
    async def main() -> int:
        loop = asyncio.get_running_loop()
        awaited = [loop.run_in_executor(pool, calls.echo, n) for n in range(count)]
        # As many as there are workers run while the loop is blocked.
        assert pool.submit(calls.echo, "beside").result(LIMIT) == "beside"
        return sum(await asyncio.gather(*awaited))

    loop = rondel.new_event_loop()
    try:
        assert run_on(loop, main, limit=LIMIT) == sum(range(count))
    finally:
        loop.close()


def test_two_loops_in_two_threads(pool: rondel.ProcessPool) -> None:
    totals: list[int] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        numbers = [await loop.run_in_executor(pool, calls.echo, i) for i in range(200)]
        totals.append(sum(numbers))

    def work() -> None:
        loop = rondel.new_event_loop()
        run_on(loop, main, limit=LIMIT)
        loop.close()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert totals == [19900, 19900]


def test_cancelled_awaits_leave_the_queue(tmp_path: Path) -> None:
    loop = rondel.new_event_loop()
    with rondel.ProcessPool(1) as pool:

        async def main() -> None:
            started = tmp_path / "started"
            running = loop.run_in_executor(pool, calls.touch_and_wait, started, 1)
            queued = [loop.run_in_executor(pool, calls.touch, tmp_path / str(i)) for i in range(10)]
            while not started.exists():
                await asyncio.sleep(0.01)
            for future in queued[:5]:
                future.cancel()
            running.cancel()  # goes on, and nobody hears of its end
            await asyncio.gather(*queued[5:])

        run_on(loop, main, limit=LIMIT)
        assert {path.name for path in tmp_path.iterdir()} == {"started", *"56789"}
    loop.close()


# ---- programs


def run_program(tmp_path: Path, text: str, *, status: int = 0) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(text))
    result = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, timeout=90, check=False
    )
    assert result.returncode == status, result
    return result


def test_functions_of_the_main_module(tmp_path: Path) -> None:
    result = run_program(
        tmp_path,
        """
        import rondel

        class Number:
            def __init__(self, value):
                self.value = value

        def double(number):
            return Number(2 * number.value)

        if __name__ == "__main__":
            with rondel.ProcessPool(1) as pool:
                print(pool.submit(double, Number(21)).result().value)
        """,
    )
    assert (result.stdout, result.stderr) == ("42\n", "")


def test_a_main_module_without_its_guard_is_told(tmp_path: Path) -> None:
    result = run_program(
        tmp_path,
        """
        import rondel
        pool = rondel.ProcessPool(1)
        print(pool.submit(abs, -1).result())
        """,
        status=1,
    )
    assert "BrokenProcessPool" in result.stderr
    assert "__main__" in result.stderr


def test_the_program_ends_when_all_calls_are_done(tmp_path: Path) -> None:
    result = run_program(
        tmp_path,
        """
        import sys, time
        import rondel

        def work(number):
            time.sleep(0.1)
            sys.stdout.write(f"{number} ")
            sys.stdout.flush()

        if __name__ == "__main__":
            pool = rondel.ProcessPool(2)
            for number in range(4):
                pool.submit(work, number)
        """,
    )
    assert sorted(result.stdout.split()) == ["0", "1", "2", "3"]
    assert result.stderr == ""


def test_a_forgotten_pool_ends(tmp_path: Path) -> None:
    result = run_program(
        tmp_path,
        """
        import gc, threading, time
        import rondel

        if __name__ == "__main__":
            pool = rondel.ProcessPool(1)
            future = pool.submit(abs, -5)
            del pool
            gc.collect()
            print(future.result())
            while threading.active_count() > 1:
                time.sleep(0.01)
        """,
    )
    assert (result.stdout, result.stderr) == ("5\n", "")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_cannot_use_the_pool(pool: rondel.ProcessPool) -> None:
    assert pool.submit(calls.echo, 1).result(LIMIT) == 1
    child = os.fork()
    if child == 0:
        status = 1
        try:
            try:
                pool.submit(calls.echo)
            except RuntimeError as error:
                status = 0 if "fork" in str(error) else 2
            pool.shutdown(wait=False)
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert pool.submit(calls.echo, 1).result(LIMIT) == 1
