"""rondel.ProcessPool: workers that die, calls that are killed, parents that go, what is left."""

import asyncio
import errno
import gc
import multiprocessing.spawn
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import process_calls as calls
import pytest
import rondel
from pools import LIMIT, PROCESS_MARKS, wait_until
from support import children, open_fds, run_on

pytestmark = PROCESS_MARKS


@pytest.fixture(scope="module")
def pool() -> Iterator[rondel.ProcessPool]:
    """A pool of two that all tests of this file share."""
    with rondel.ProcessPool(2) as pool:
        yield pool


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


@pytest.mark.parametrize(
    ("how", "text", "code"),
    [
        ("kill", "was killed by SIGKILL", -signal.SIGKILL),
        ("fault", "was killed by SIGSEGV", -signal.SIGSEGV),
        ("exit", "exited with status 3", 3),
        ("thread", "exited with status 4", 4),
    ],
)
def test_a_death_fails_one_call_and_says_how(
    pool: rondel.ProcessPool, how: str, text: str, code: int
) -> None:
    before = [pool.submit(calls.nap, 0.01) for _ in range(10)]
    deadly = pool.submit(calls.exit_by, how)
    after = [pool.submit(calls.echo, i) for i in range(100)]
    with pytest.raises(rondel.WorkerDied, match=text) as raised:
        deadly.result(LIMIT)
    assert raised.value.exitcode == code
    assert isinstance(raised.value, BrokenProcessPool)
    assert [future.result(LIMIT) for future in after] == list(range(100))
    assert all(future.result(LIMIT) for future in before)
    assert not pool._broken


def test_a_death_while_nothing_runs(pool: rondel.ProcessPool) -> None:
    assert pool.submit(calls.echo, 1).result(LIMIT) == 1
    before = len(pool._processes)
    for _ in range(3):
        pid = pool.submit(calls.pid).result(LIMIT)
        os.kill(pid, signal.SIGKILL)
        # Until the signal has arrived it can take a call.
        wait_until(lambda pid=pid: not is_alive(pid))  # type: ignore[misc]
        assert pool.submit(calls.echo, 1).result(LIMIT) == 1
    wait_until(lambda: len(pool._processes) >= before)


def test_a_death_on_a_loop(pool: rondel.ProcessPool) -> None:
    loop = rondel.new_event_loop()

    async def main() -> None:
        deadly = loop.run_in_executor(pool, calls.exit_by, "kill")
        others = [loop.run_in_executor(pool, calls.echo, i) for i in range(50)]
        with pytest.raises(rondel.WorkerDied):
            await deadly
        assert await asyncio.gather(*others) == list(range(50))

    run_on(loop, main, limit=LIMIT)
    loop.close()


@pytest.mark.timeout(400)
def test_ten_thousand_calls_and_fifty_deaths() -> None:
    count, deadly = 10_000, 200
    with rondel.ProcessPool(4) as warm:  # what is made once per process is there afterwards
        warm.submit(calls.echo).result(LIMIT)
    before = open_fds(), set(children())
    loop = rondel.new_event_loop()
    with rondel.ProcessPool(4) as pool:

        async def main() -> None:
            gate = asyncio.Semaphore(500)

            async def one(number: int) -> int | None:
                async with gate:
                    try:
                        result: int = await loop.run_in_executor(pool, calls.die_at, number, deadly)
                    except rondel.WorkerDied:
                        return None
                    return result

            results = await asyncio.gather(*map(one, range(count)))
            expected = [None if i % deadly == deadly - 1 else i * 2 for i in range(count)]
            assert results == expected

        run_on(loop, main, limit=350)
        assert len(pool._processes) <= 4
        assert pool._native.blocks == 0
    loop.close()
    del pool, main
    gc.collect()
    assert (open_fds(), set(children())) == before


def test_a_time_limit_kills_the_worker(pool: rondel.ProcessPool) -> None:
    quick = pool.with_options(timeout=0.5)
    start = time.monotonic()
    slow = quick.submit(calls.nap, 100)
    in_time = [quick.submit(calls.nap, 0) for _ in range(20)]
    without = pool.submit(calls.nap, 1.5)
    with pytest.raises(TimeoutError, match="time limit"):
        slow.result(LIMIT)
    assert time.monotonic() - start >= 0.5
    assert all(future.result(LIMIT) for future in in_time)
    assert without.result(LIMIT)
    with pytest.raises(ValueError):
        pool.with_options(timeout=-1)
    assert list(quick.map(calls.echo, range(5), chunksize=2)) == list(range(5))


def test_a_time_limit_of_the_pool_and_of_a_queued_call() -> None:
    with rondel.ProcessPool(1, call_timeout=1) as pool:
        pool.submit(calls.echo).result(LIMIT)
        # The limit of a call begins when the call does.
        naps = [pool.submit(calls.nap, 0.4) for _ in range(5)]
        assert all(future.result(LIMIT) for future in naps)
        with pytest.raises(TimeoutError):
            pool.submit(calls.nap, 100).result(LIMIT)


def test_a_time_limit_on_a_loop(pool: rondel.ProcessPool) -> None:
    loop = rondel.new_event_loop()
    quick = pool.with_options(timeout=0.3)

    async def main() -> None:
        with pytest.raises(TimeoutError, match="time limit"):
            await loop.run_in_executor(quick, calls.nap, 100)
        assert await loop.run_in_executor(quick, calls.echo, 1) == 1

    run_on(loop, main, limit=LIMIT)
    loop.close()


def test_kill_of_a_running_call(pool: rondel.ProcessPool, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    future = pool.submit(calls.spin, path)
    wait_until(lambda: path.exists() and path.read_text())
    pid = int(path.read_text())
    told: list[object] = []
    future.add_done_callback(told.append)
    assert not future.cancel()
    assert future.kill() and future.cancelled() and told == [future]
    wait_until(lambda: not is_alive(pid))
    assert pool.submit(calls.echo, 1).result(LIMIT) == 1
    done = pool.submit(calls.echo, 2)
    assert done.result(LIMIT) == 2 and not done.kill()


def test_cancel_running(pool: rondel.ProcessPool, tmp_path: Path) -> None:
    killing = pool.with_options(cancel_running=True)
    path = tmp_path / "one"
    future = killing.submit(calls.spin, path)
    wait_until(lambda: path.exists() and path.read_text())
    assert future.cancel() and future.cancelled()
    pid = int(path.read_text())
    wait_until(lambda: not is_alive(pid))

    loop = rondel.new_event_loop()
    other = tmp_path / "two"

    async def main() -> None:
        task = asyncio.ensure_future(loop.run_in_executor(killing, calls.spin, other))
        while not (other.exists() and other.read_text()):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_on(loop, main, limit=LIMIT)
    loop.close()
    pid = int(other.read_text())
    wait_until(lambda: not is_alive(pid))
    assert pool.submit(calls.echo, 1).result(LIMIT) == 1


PARENT = """
    import os, signal, sys, time
    from pathlib import Path
    import process_calls as calls
    import rondel

    if __name__ == "__main__":
        method, directory = sys.argv[1], Path(sys.argv[2])
        pool = rondel.ProcessPool(3, start_method=method)
        # One computes for ever, one sleeps in a call, and one has nothing to do.
        pool.submit(calls.spin, directory / "spins")
        pool.submit(calls.touch_and_wait, directory / "waits")
        print(pool.submit(calls.pid).result(), flush=True)
        time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_no_worker_outlives_its_parent(method: str, number: int, tmp_path: Path) -> None:
    program = tmp_path / "parent.py"
    program.write_text(textwrap.dedent(PARENT))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    before = set(descendants(os.getpid()))
    with subprocess.Popen(
        [sys.executable, str(program), method, str(tmp_path)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        idle = int(parent.stdout.readline())
        wait_until(lambda: (tmp_path / "spins").exists() and (tmp_path / "waits").exists())
        wait_until(lambda: (tmp_path / "spins").read_text())
        spinning = int((tmp_path / "spins").read_text())
        started = set(descendants(os.getpid())) - before
        assert {idle, spinning, parent.pid} <= started
        assert len(started) >= 4
        parent.send_signal(number)
        parent.wait(LIMIT)
        wait_until(lambda: not any(is_alive(pid) for pid in started))


def descendants(pid: int) -> list[int]:
    """The children of a process, theirs, and so on."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                numbers = [int(number) for number in task.read_text().split()]
            except OSError:
                continue
            found += numbers
            waiting += numbers
    return found


def test_nothing_is_left_behind() -> None:
    with rondel.ProcessPool(1) as pool:
        pool.submit(calls.echo).result(LIMIT)
    del pool
    gc.collect()
    before = open_fds(), set(children()), mappings()
    for turn in range(4):
        pool = rondel.ProcessPool(2)
        futures = [pool.submit(calls.echo, b"x" * 100_000) for _ in range(50)]
        with pytest.raises(rondel.WorkerDied):
            pool.submit(calls.exit_by, "kill").result(LIMIT)
        assert all(len(future.result(LIMIT)) == 100_000 for future in futures)
        if turn % 2:
            pool.shutdown()
        else:
            thread = pool._thread
            pool.shutdown(wait=False)
            assert thread is not None
            thread.join(LIMIT)
        del pool, futures
        gc.collect()
        wait_until(lambda: (open_fds(), set(children())) == before[:2])
    assert mappings() == before[2]


def mappings() -> int:
    """How many parts of pools' memory files this process has mapped."""
    return Path("/proc/self/maps").read_text().count("memfd:rondel-pool")


def test_a_process_that_the_system_did_not_start_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    flag = tmp_path / "flag"
    # What a child exits with whose exec() failed.
    python.write_text(
        f'#!/bin/sh\n[ -e {flag} ] || {{ : >{flag}; exit 255; }}\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", os.fsencode(python))
    with rondel.ProcessPool(1) as pool:
        assert pool.submit(divmod, 7, 2).result(LIMIT) == (3, 1)
    assert flag.exists()


@pytest.fixture
def tracker() -> None:
    """Multiprocessing's helper process runs, which nothing prevents from starting later."""
    resource_tracker.ensure_running()


@pytest.mark.usefixtures("tracker")
def test_workers_get_the_environment_that_the_program_sees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The C library's environment, which another thread may be changing, is not looked at: this is
    # too long for exec().
    os.putenv("RONDEL_TOO_LONG", "x" * 2**18)
    try:
        monkeypatch.setenv("RONDEL_SEEN", "yes")
        with rondel.ProcessPool(1) as pool:
            assert pool.submit(os.getenv, "RONDEL_SEEN").result(LIMIT) == "yes"
            assert pool.submit(os.getenv, "RONDEL_TOO_LONG").result(LIMIT) is None
    finally:
        os.unsetenv("RONDEL_TOO_LONG")


@pytest.mark.usefixtures("tracker")
def test_what_prevents_a_start_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = open_fds()
    monkeypatch.setenv("RONDEL_TOO_LONG", "x" * 2**18)
    with rondel.ProcessPool(1) as pool:
        with pytest.raises(
            BrokenProcessPool, match="could not be started: .*list too long"
        ) as told:
            pool.submit(calls.echo).result(LIMIT)
        cause = told.value.__cause__
        assert isinstance(cause, OSError)
        assert cause.errno == errno.E2BIG
        assert os.fsdecode(cause.filename) == sys.executable
    monkeypatch.delenv("RONDEL_TOO_LONG")

    python = tmp_path / "python"
    python.touch(0o644)
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", os.fsencode(python))
    with rondel.ProcessPool(1) as pool, pytest.raises(BrokenProcessPool, match=f"{python}"):
        pool.submit(calls.echo).result(LIMIT)
    del pool, told, cause
    gc.collect()
    wait_until(lambda: open_fds() == before)


@pytest.mark.usefixtures("tracker")
def test_the_shared_pool_is_replaced_when_it_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    # The package's attribute of this name is the function.
    offload: Any = sys.modules[rondel.offload.__module__]
    monkeypatch.setattr(offload, "_shared", {})

    async def main() -> None:
        with monkeypatch.context() as patch:
            patch.setenv("RONDEL_TOO_LONG", "x" * 2**18)
            with pytest.raises(BrokenProcessPool):
                await rondel.offload(calls.echo, 1, to="processes")
        assert await rondel.offload(calls.echo, 1, to="processes") == 1

    rondel.run(main(), debug=False)
    offload.executor("processes").shutdown()
