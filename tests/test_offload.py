"""rondel.offload and rondel.offload_map."""

import asyncio
import collections
import contextlib
import contextvars
import hashlib
import importlib.util
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import rondel
from programs import offloaded
from rondel.pools import choice

LIMIT = 20
needs_processes = pytest.mark.skipif(
    importlib.util.find_spec("rondel.pools.processes") is None, reason="no pool of processes"
)
needs_interpreters = pytest.mark.skipif(
    sys.version_info < (3, 14), reason="concurrent.interpreters is new in 3.14"
)


def test_a_call_in_a_thread(run: Callable[..., Any]) -> None:
    var: contextvars.ContextVar[int] = contextvars.ContextVar("var")

    async def main() -> None:
        var.set(7)
        assert await rondel.offload(divmod, 7, 2) == (3, 1)
        assert await rondel.offload(var.get, to="threads") == 7
        assert await rondel.offload(threading.get_ident) != threading.get_ident()
        with pytest.raises(LookupError, match="mine"):
            await rondel.offload(offloaded.fail, "mine")

    run(main)


def test_a_call_in_a_given_pool(run: Callable[..., Any]) -> None:
    async def main() -> None:
        for kind in (ThreadPoolExecutor, rondel.ThreadPool):
            with kind(1, "mine") as pool:
                name = await rondel.offload(lambda: threading.current_thread().name, to=pool)
                assert name == "mine_0"

    run(main)


@needs_interpreters
def test_a_call_in_an_interpreter(run: Callable[..., Any]) -> None:
    async def main() -> None:
        assert await rondel.offload(offloaded.add, 1, 2, to="interpreters") == 3
        mapped = rondel.offload_map(offloaded.double, range(5), to="interpreters")
        assert [result async for result in mapped] == [0, 2, 4, 6, 8]

    run(main)


@needs_processes
def test_a_call_in_a_process(run: Callable[..., Any]) -> None:
    async def main() -> None:
        own = offloaded.process_number()
        assert await rondel.offload(offloaded.process_number, to="processes") != own
        with pytest.raises(TimeoutError):
            await rondel.offload(offloaded.sleep_and_tell, LIMIT, to="processes", timeout=0.1)

    run(main)


@pytest.mark.parametrize("wrong", ["thread", "", None, 3])
def test_wrong_places(wrong: Any) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match='^to must be "auto", "threads"'):
            await rondel.offload(int, to=wrong)

    rondel.run(main())


def test_wrong_functions() -> None:
    async def coroutine() -> None:
        pass

    async def main() -> None:
        with pytest.raises(TypeError, match="must be callable"):
            await rondel.offload(3)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="coroutine function"):
            await rondel.offload(coroutine)
        with pytest.raises(TypeError, match="coroutine function"):
            rondel.offload_map(coroutine, [])  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="limit"):
            rondel.offload_map(int, [], limit=0)

    rondel.run(main())


def test_timeout(run: Callable[..., Any]) -> None:
    release = threading.Event()

    async def main() -> None:
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            await rondel.offload(release.wait, LIMIT, timeout=0.05)
        assert time.monotonic() - started < LIMIT / 2
        release.set()
        assert await rondel.offload(abs, -3, timeout=LIMIT) == 3

    run(main)


# --- many calls -------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 1, 2, 7, 100])
@pytest.mark.parametrize("ordered", [True, False])
def test_map(run: Callable[..., Any], ordered: bool, limit: int | None) -> None:
    def slow(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return 2 * number

    async def main() -> None:
        mapped = rondel.offload_map(slow, range(20), ordered=ordered, limit=limit)
        results = [result async for result in mapped]
        assert (results if ordered else sorted(results)) == list(range(0, 40, 2))
        assert [result async for result in rondel.offload_map(slow, [], ordered=ordered)] == []

    run(main)


def test_map_as_they_come() -> None:
    first, second = threading.Event(), threading.Event()

    def wait(event: threading.Event) -> threading.Event:
        assert event.wait(LIMIT)
        return event

    async def main() -> None:
        seen = []
        async for event in rondel.offload_map(wait, [first, second], ordered=False):
            seen.append(event)
            first.set()
        assert seen == [second, first]

    second.set()
    rondel.run(main())


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("limit", [1, 3])
def test_items_are_taken_as_results_are(ordered: bool, limit: int) -> None:
    taken = 0

    def numbers() -> Iterator[int]:
        nonlocal taken
        for number in range(30):
            taken += 1
            yield number

    async def main() -> None:
        given = 0
        async for _ in rondel.offload_map(abs, numbers(), limit=limit, ordered=ordered):
            await asyncio.sleep(0.001)
            # This one has been given, and there may be `limit` more behind it.
            given += 1
            assert taken <= given + limit
        assert given == 30

    rondel.run(main())


def test_items_that_come_asynchronously() -> None:
    async def numbers() -> AsyncIterator[int]:
        for number in range(5):
            await asyncio.sleep(0.001)
            yield number

    async def main() -> None:
        assert [x async for x in rondel.offload_map(offloaded.double, numbers())] == [0, 2, 4, 6, 8]

    rondel.run(main())


@pytest.mark.parametrize("ordered", [True, False])
def test_progress(ordered: bool) -> None:
    seen: list[tuple[int, int | None]] = []

    def note(done: int, total: int | None) -> None:
        assert threading.current_thread() is threading.main_thread()
        seen.append((done, total))

    async def main() -> None:
        async for _ in rondel.offload_map(abs, [1, 2, 3], ordered=ordered, progress=note):
            pass
        async for _ in rondel.offload_map(abs, iter([4]), ordered=ordered, progress=note):
            pass

    rondel.run(main())
    assert seen == [(1, 3), (2, 3), (3, 3), (1, None)]


@pytest.mark.parametrize("ordered", [True, False])
def test_an_exception_ends_the_iteration(ordered: bool) -> None:
    called = collections.Counter[int]()

    def body(number: int) -> int:
        called[number] += 1
        if number == 3:
            raise LookupError("three")
        return number

    async def main() -> None:
        before = asyncio.all_tasks()
        with pytest.raises(LookupError, match="three"):
            async for _ in rondel.offload_map(body, range(1000), limit=2, ordered=ordered):
                pass
        assert sum(called.values()) < 20
        assert asyncio.all_tasks() == before

    rondel.run(main())


@pytest.mark.parametrize("ordered", [True, False])
def test_leaving_early_cancels_the_rest(ordered: bool) -> None:
    release = threading.Event()

    def body(number: int) -> int:
        if number:
            release.wait(LIMIT)
        return number

    async def main() -> None:
        before = asyncio.all_tasks()
        with rondel.ThreadPool(2) as pool:
            results = rondel.offload_map(body, range(100), to=pool, limit=10, ordered=ordered)
            async with contextlib.aclosing(results):  # type: ignore[type-var]
                async for result in results:
                    assert result == 0
                    break
            assert asyncio.all_tasks() == before
            await asyncio.sleep(0)
            assert pool._work_queue.qsize() == 0
            release.set()

    rondel.run(main())


def test_timeout_of_single_calls() -> None:
    release = threading.Event()

    def body(number: int) -> None:
        if number:
            release.wait(LIMIT)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async for _ in rondel.offload_map(body, [0, 1], timeout=0.1):
                pass
        release.set()

    rondel.run(main())


# --- auto -------------------------------------------------------------------------------------


def place_of(function: Any) -> str | None:
    record = choice._records.get(function)
    return None if record is None else record.place


def test_auto_finds_what_keeps_the_gil() -> None:
    async def main() -> None:
        choice._records.clear()
        rounds = 100_000
        while True:
            before = time.thread_time()
            offloaded.compute(rounds)
            if time.thread_time() - before > 3 * choice.LONG:
                break
            rounds *= 2
        for _ in range(choice.MEASURED_CALLS):
            expected = rounds * (rounds - 1) // 2
            assert await rondel.offload(offloaded.compute, rounds) == expected
        assert place_of(offloaded.compute) == "processes"

    rondel.run(main())


def test_auto_leaves_what_waits_in_threads() -> None:
    async def main() -> None:
        choice._records.clear()
        for _ in range(choice.MEASURED_CALLS + 1):
            here = await rondel.offload(offloaded.sleep_and_tell, 0.06)
            assert here == offloaded.process_number()
        assert place_of(offloaded.sleep_and_tell) == "threads"

    rondel.run(main())


BIG = bytes(2**20)


def hash_big(rounds: int) -> int:
    for _ in range(rounds):
        hashlib.sha256(BIG).digest()
    return offloaded.process_number()


def test_auto_leaves_what_computes_without_the_gil_in_threads() -> None:
    async def main() -> None:
        choice._records.clear()
        for _ in range(choice.MEASURED_CALLS + 1):
            assert await rondel.offload(hash_big, 100) == offloaded.process_number()
        assert place_of(hash_big) == "threads"

    rondel.run(main())


@needs_processes
def test_auto_sends_what_keeps_the_gil_to_a_process() -> None:
    async def main() -> None:
        choice._records.clear()
        record = choice._records.setdefault(offloaded.process_number, choice.Record())
        record.place = "processes"
        own = offloaded.process_number()
        assert await rondel.offload(offloaded.process_number) != own
        # What cannot be sent stays here.
        assert await rondel.offload(offloaded.process_number, threading.Lock()) == own

    rondel.run(main())


def test_auto_keeps_functions_here_that_no_other_process_finds() -> None:
    def local() -> int:
        return offloaded.process_number()

    assert choice.is_importable(offloaded.add)
    assert not choice.is_importable(local)
    assert not choice.is_importable(lambda: None)  # type: ignore[arg-type]

    async def main() -> None:
        for _ in range(choice.MEASURED_CALLS + 1):
            assert await rondel.offload(local) == offloaded.process_number()
        assert place_of(local) is None

    rondel.run(main())


def test_auto_without_a_gil_is_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)

    async def main() -> None:
        choice._records.clear()
        record = choice._records.setdefault(offloaded.process_number, choice.Record())
        record.place = "processes"
        assert await rondel.offload(offloaded.process_number) == offloaded.process_number()

    rondel.run(main())
