"""rondel.ThreadPool: shutdown, threads that end, the interpreter's exit, forks."""

import asyncio
import gc
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import rondel
from pools import LIMIT, ThreadPoolFactory, block, run_program, wait_until


def test_shutdown_waits_for_what_is_queued(make_pool: ThreadPoolFactory) -> None:
    pool = make_pool(2)
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


def test_shutdown_that_cancels(make_pool: ThreadPoolFactory) -> None:
    pool = make_pool(1)
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


def test_shutdown_by_another_thread_while_calls_are_made(make_pool: ThreadPoolFactory) -> None:
    pool = make_pool(2)
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


def test_threads_of_a_forgotten_pool_end(make_pool: ThreadPoolFactory) -> None:
    pool: ThreadPoolExecutor | None = rondel.ThreadPool(2)
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
    output = run_program("""
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
    output = run_program("""
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
    output = run_program("""
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
