"""Waiting for several things: sleep, gather, wait, timeouts, groups, locks and queues."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]


async def returns(value: Any, delay: float = 0) -> Any:
    await asyncio.sleep(delay)
    return value


async def raises(exc: BaseException, delay: float = 0) -> None:
    await asyncio.sleep(delay)
    raise exc


def test_sleep_returns_its_result_after_its_delay(run: Run) -> None:
    async def main() -> None:
        started = time.monotonic()
        assert await asyncio.sleep(0.02, "result") == "result"
        assert time.monotonic() - started >= 0.02
        assert await asyncio.sleep(0, "at once") == "at once"
        assert await asyncio.sleep(-1, "negative") == "negative"

    run(main)


def test_sleepers_wake_in_the_order_of_their_deadlines(run: Run) -> None:
    seen: list[int] = []

    async def sleeper(number: int) -> None:
        await asyncio.sleep(number * 0.002)
        seen.append(number)

    async def main() -> None:
        await asyncio.gather(*(sleeper(i) for i in (5, 3, 9, 1, 7)))

    run(main)
    assert seen == [1, 3, 5, 7, 9]


def test_many_sleepers_at_once(run: Run) -> None:
    async def main() -> float:
        started = time.monotonic()
        await asyncio.gather(*(asyncio.sleep(0.05) for _ in range(2000)))
        return time.monotonic() - started

    assert 0.05 <= run(main) < 5


def test_gather_keeps_the_order_of_its_arguments(run: Run) -> None:
    async def main() -> None:
        assert await asyncio.gather(
            returns("slow", 0.02), returns("quick"), returns("m", 0.01)
        ) == [
            "slow",
            "quick",
            "m",
        ]
        assert await asyncio.gather() == []

    run(main)


def test_gather_raises_the_first_exception_and_leaves_the_others(loop: Loop, run: Run) -> None:
    async def main() -> None:
        other = loop.create_task(returns("fine", 0.01))
        with pytest.raises(ValueError, match="mine"):
            await asyncio.gather(other, raises(ValueError("mine")))
        assert await other == "fine"

    run(main)


def test_gather_returns_exceptions(run: Run) -> None:
    error = ValueError("mine")

    async def main() -> Any:
        return await asyncio.gather(returns(1), raises(error), returns(2), return_exceptions=True)

    assert run(main) == [1, error, 2]


def test_gather_cancels_its_children(loop: Loop, run: Run) -> None:
    async def main() -> None:
        children = [loop.create_task(asyncio.sleep(60)) for _ in range(3)]
        gathered = asyncio.gather(*children)
        await asyncio.sleep(0)
        gathered.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gathered
        assert all(child.cancelled() for child in children)

    run(main)


def test_wait_first_completed(loop: Loop, run: Run) -> None:
    async def main() -> None:
        quick = loop.create_task(returns("quick"))
        slow = loop.create_task(returns("slow", 60))
        done, pending = await asyncio.wait({quick, slow}, return_when=asyncio.FIRST_COMPLETED)
        assert done == {quick}
        assert pending == {slow}
        done, pending = await asyncio.wait({slow}, timeout=0.01)
        assert done == set()
        assert pending == {slow}
        slow.cancel()

    run(main)


def test_as_completed_gives_the_quickest_first(run: Run) -> None:
    async def main() -> list[str]:
        waiting = [returns("slow", 0.03), returns("quick"), returns("middle", 0.01)]
        return [await each for each in asyncio.as_completed(waiting)]

    assert run(main) == ["quick", "middle", "slow"]


def test_wait_for_ends_what_takes_too_long(loop: Loop, run: Run) -> None:
    async def main() -> None:
        assert await asyncio.wait_for(returns("in time"), 10) == "in time"
        slow = loop.create_task(asyncio.sleep(60))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(slow, 0.01)
        assert slow.cancelled()

    run(main)


def test_timeout_block(run: Run) -> None:
    async def main() -> None:
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02) as scope:
                await asyncio.sleep(60)
        assert 0.02 <= time.monotonic() - started < 10
        assert scope.expired()
        async with asyncio.timeout(0.02) as scope:
            scope.reschedule(None)
            await asyncio.sleep(0.03)
        assert not scope.expired()

    run(main)


def test_nested_timeouts_blame_the_right_one(run: Run) -> None:
    async def main() -> str:
        try:
            async with asyncio.timeout(0.01):
                try:
                    async with asyncio.timeout(60):
                        await asyncio.sleep(60)
                except TimeoutError:
                    return "inner"
        except TimeoutError:
            return "outer"
        return "neither"

    assert run(main) == "outer"


def test_shield_protects_from_cancellation(loop: Loop, run: Run) -> None:
    async def main() -> None:
        inner = loop.create_task(returns("kept", 0.01))
        outer = asyncio.shield(inner)
        await asyncio.sleep(0)
        outer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await outer
        assert await inner == "kept"

    run(main)


def test_task_group_waits_for_all(run: Run) -> None:
    async def main() -> list[int]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(returns(i, 0.001 * i)) for i in range(5)]
        return [task.result() for task in tasks]

    assert run(main) == [0, 1, 2, 3, 4]


def test_task_group_cancels_the_rest_when_one_fails(run: Run) -> None:
    cancelled: list[int] = []

    async def waits(number: int) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(number)
            raise

    async def main() -> None:
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                for i in range(3):
                    group.create_task(waits(i))
                group.create_task(raises(ValueError("mine"), 0.01))
        (error,) = caught.value.exceptions
        assert isinstance(error, ValueError)
        assert str(error) == "mine"

    run(main)
    assert sorted(cancelled) == [0, 1, 2]


def test_lock_is_fair(run: Run) -> None:
    seen: list[int] = []

    async def main() -> None:
        lock = asyncio.Lock()

        async def take(number: int) -> None:
            async with lock:
                seen.append(number)
                await asyncio.sleep(0)

        await asyncio.gather(*(take(i) for i in range(10)))

    run(main)
    assert seen == list(range(10))


def test_event_condition_semaphore_barrier(run: Run) -> None:
    async def main() -> None:
        event = asyncio.Event()
        waiters = [asyncio.ensure_future(event.wait()) for _ in range(3)]
        await asyncio.sleep(0)
        event.set()
        assert await asyncio.gather(*waiters) == [True, True, True]

        condition, items = asyncio.Condition(), []

        async def consume() -> int:
            async with condition:
                await condition.wait_for(lambda: items)
                return int(items.pop())

        consumer = asyncio.ensure_future(consume())
        await asyncio.sleep(0)
        async with condition:
            items.append(7)
            condition.notify_all()
        assert await consumer == 7

        semaphore, most, now = asyncio.Semaphore(2), 0, 0

        async def limited() -> None:
            nonlocal most, now
            async with semaphore:
                now += 1
                most = max(most, now)
                await asyncio.sleep(0)
                now -= 1

        await asyncio.gather(*(limited() for _ in range(8)))
        assert most == 2

        barrier = asyncio.Barrier(3)
        assert sorted(await asyncio.gather(*(barrier.wait() for _ in range(3)))) == [0, 1, 2]

    run(main)


def test_queue_between_tasks(run: Run) -> None:
    async def main() -> list[int]:
        queue: asyncio.Queue[int] = asyncio.Queue(maxsize=2)
        got: list[int] = []

        async def produce() -> None:
            for i in range(100):
                await queue.put(i)

        async def consume() -> None:
            while True:
                got.append(await queue.get())
                queue.task_done()

        consumer = asyncio.ensure_future(consume())
        await produce()
        await queue.join()
        consumer.cancel()
        return got

    assert run(main) == list(range(100))


def test_run_coroutine_threadsafe(loop: Loop, run: Run) -> None:
    results: list[Any] = []

    def from_a_thread() -> None:
        results.append(asyncio.run_coroutine_threadsafe(returns("result", 0.01), loop).result(10))
        failing = asyncio.run_coroutine_threadsafe(raises(ValueError("mine")), loop)
        results.append(str(failing.exception(10)))
        endless = asyncio.run_coroutine_threadsafe(asyncio.sleep(60), loop)
        results.append(endless.cancel())

    async def main() -> None:
        await loop.run_in_executor(None, from_a_thread)

    run(main)
    assert results == ["result", "mine", True]
