"""anyio on a loop that its run() is told to make: structured concurrency, threads, processes."""

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.from_thread
import anyio.to_thread
import pytest
from support import LoopFactory

AnyioRun = Callable[[Callable[[], Awaitable[Any]]], Any]
pytestmark = pytest.mark.timeout(20)


def test_task_groups(anyio_run: AnyioRun) -> None:
    async def main() -> None:
        done: list[int] = []

        async def work(number: int) -> None:
            await anyio.sleep(0.001 * (number % 3))
            done.append(number)

        async with anyio.create_task_group() as group:
            for number in range(50):
                group.start_soon(work, number)
        assert sorted(done) == list(range(50))

        async def serve(*, task_status: anyio.abc.TaskStatus[str]) -> None:
            task_status.started("ready")
            await anyio.sleep_forever()

        async with anyio.create_task_group() as group:
            assert await group.start(serve) == "ready"
            group.cancel_scope.cancel()

    anyio_run(main)


def test_a_failing_task_cancels_its_group(anyio_run: AnyioRun) -> None:
    async def main() -> None:
        ended: list[str] = []

        async def wait() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                # Even in a cancelled scope a shielded part goes to its end.
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.001)
                    ended.append("shielded")

        async def fail() -> None:
            await anyio.sleep(0.001)
            raise ValueError("as told")

        with pytest.raises(ExceptionGroup) as caught:
            async with anyio.create_task_group() as group:
                group.start_soon(wait)
                group.start_soon(fail)
        assert caught.group_contains(ValueError, match="as told")
        assert ended == ["shielded"]

    anyio_run(main)


def test_cancel_scopes(anyio_run: AnyioRun) -> None:
    async def main() -> None:
        with anyio.move_on_after(0.01) as scope:
            await anyio.sleep_forever()
        assert scope.cancelled_caught
        with pytest.raises(TimeoutError):
            with anyio.fail_after(0.01):
                await anyio.sleep_forever()
        with anyio.CancelScope() as outer:
            with anyio.CancelScope() as inner:
                outer.cancel()
                await anyio.sleep_forever()
        assert (outer.cancelled_caught, inner.cancelled_caught) == (True, False)
        # Cancellation is of a level, not an event: it meets each await anew.
        attempts = 0
        with anyio.move_on_after(0.01):
            for _ in range(3):
                try:
                    await anyio.sleep_forever()
                except anyio.get_cancelled_exc_class():
                    attempts += 1
            await anyio.sleep(0)
        assert attempts == 3

    anyio_run(main)


def test_memory_streams_and_synchronisation(anyio_run: AnyioRun) -> None:
    async def main() -> None:
        send, receive = anyio.create_memory_object_stream[int](1)
        limiter = anyio.CapacityLimiter(2)
        most = 0

        async def produce(start: int) -> None:
            nonlocal most
            async with sender.clone() as mine:
                for number in range(start, start + 20):
                    async with limiter:
                        most = max(most, int(limiter.borrowed_tokens))
                        await mine.send(number)

        async with anyio.create_task_group() as group, send as sender, receive:
            for start in (0, 100, 200, 300):
                group.start_soon(produce, start)
            got = [await receive.receive() for _ in range(80)]
        assert sorted(got) == [start + n for start in (0, 100, 200, 300) for n in range(20)]
        assert most == 2

    anyio_run(main)


def test_to_thread_and_back(anyio_run: AnyioRun) -> None:
    async def double(number: int) -> int:
        await anyio.sleep(0)
        assert threading.current_thread() is threading.main_thread()
        return 2 * number

    def in_a_thread(number: int) -> int:
        assert threading.current_thread() is not threading.main_thread()
        anyio.from_thread.check_cancelled()
        return anyio.from_thread.run(double, number) + anyio.from_thread.run_sync(len, "four")

    async def main() -> None:
        results: list[int] = []

        async def one(number: int) -> None:
            results.append(await anyio.to_thread.run_sync(in_a_thread, number))

        async with anyio.create_task_group() as group:
            for number in range(60):
                group.start_soon(one, number)
        assert sorted(results) == [2 * number + 4 for number in range(60)]

        with pytest.raises(ZeroDivisionError):
            await anyio.to_thread.run_sync(divmod, 1, 0)

        leave = threading.Event()
        with anyio.move_on_after(0.02) as scope:
            await anyio.to_thread.run_sync(leave.wait, 5, abandon_on_cancel=True)
        assert scope.cancelled_caught
        leave.set()

    anyio_run(main)


def test_a_portal_from_a_foreign_thread(loop_factory: LoopFactory) -> None:
    async def which() -> type[asyncio.AbstractEventLoop]:
        await anyio.sleep(0)
        return type(asyncio.get_running_loop())

    with contextlib.closing(loop_factory()) as loop:
        kind = type(loop)
    with anyio.from_thread.start_blocking_portal(
        backend_options={"loop_factory": loop_factory}
    ) as portal:
        assert portal.call(which) is kind
        futures = [portal.start_task_soon(anyio.sleep, 0.001) for _ in range(20)]
        for future in futures:
            future.result(5)


@pytest.mark.usefixtures("no_child_left")
def test_processes(anyio_run: AnyioRun) -> None:
    upper = "import sys; [print(l.upper(), end='', flush=True) for l in sys.stdin]"

    async def main() -> None:
        done = await anyio.run_process([sys.executable, "-c", upper], input=b"one\ntwo\n")
        assert (done.returncode, done.stdout) == (0, b"ONE\nTWO\n")
        done = await anyio.run_process("echo out; echo err >&2; exit 3", check=False)
        assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")
        async with await anyio.open_process([sys.executable, "-c", upper]) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for number in range(5):
                await process.stdin.send(b"line %d\n" % number)
                assert await process.stdout.receive() == b"LINE %d\n" % number
            process.terminate()
            assert await process.wait() == -signal.SIGTERM
        # A cancelled scope kills what it started.
        with anyio.move_on_after(0.05) as scope:
            await anyio.run_process(["sleep", "60"])
        assert scope.cancelled_caught

    anyio_run(main)


def test_signals(anyio_run: AnyioRun) -> None:
    async def main() -> None:
        before = signal.getsignal(signal.SIGUSR1)
        with anyio.open_signal_receiver(signal.SIGUSR1, signal.SIGUSR2) as signals:
            for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR1):
                os.kill(os.getpid(), number)
                assert await anext(signals) is number
        assert signal.getsignal(signal.SIGUSR1) is before

    anyio_run(main)


def test_files(anyio_run: AnyioRun, tmp_path: Path) -> None:
    async def main() -> None:
        path = anyio.Path(tmp_path / "file")
        await path.write_text("one\ntwo\n")
        async with await anyio.open_file(path) as file:
            assert [line async for line in file] == ["one\n", "two\n"]
        assert [entry.name async for entry in anyio.Path(tmp_path).iterdir()] == ["file"]

    anyio_run(main)
