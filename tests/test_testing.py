"""rondel.testing: virtual time, the order that a seed decides, calls in pools, deadlocks."""

import asyncio
import concurrent.futures
import contextlib
import contextvars
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from rondel import testing
from rondel.testing import Deadlock, RealWorldError

SEEDS = range(100)


def orders(main: Callable[[], Any], seeds: Any = SEEDS) -> set[Any]:
    """What ``main`` returns with each of the seeds."""
    return {tuple(testing.run(main(), seed=seed)) for seed in seeds}


def test_time_is_virtual() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        assert loop.time() == 0
        await asyncio.sleep(3600)
        assert loop.time() == 3600
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(86400 * 365):
                await loop.create_future()
        fired: list[float] = []
        loop.call_at(1e9, lambda: fired.append(loop.time()))
        loop.call_later(0.1, lambda: fired.append(loop.time()))
        handle = loop.call_later(0.05, fired.append, -1.0)
        handle.cancel()
        await asyncio.sleep(1e9)
        assert fired == [3600 + 86400 * 365 + 0.1, 1e9]
        return loop.time()

    before = time.monotonic()
    assert testing.run(main()) == 3600 + 86400 * 365 + 1e9
    assert time.monotonic() - before < 3600


def test_who_waits_until_a_time_finds_it_come() -> None:
    """Times that the nanoseconds of the timers cannot tell apart do not stop the clock."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for step in range(1, 200):
            end = loop.time() + 0.1 * step / 3 + 1e-12
            turns = 0
            while loop.time() < end:
                await asyncio.sleep(end - loop.time())
                turns += 1
                assert turns < 5

    testing.run(main())


def test_without_a_seed_the_order_is_asyncios() -> None:
    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        order: list[Any] = []

        async def worker(name: str) -> None:
            for step in range(3):
                order.append((name, step))
                await asyncio.sleep(step % 2)

        loop.call_soon(order.append, "soon")
        loop.call_later(1, order.append, "later")
        loop.call_later(1, order.append, "later still")
        await asyncio.gather(*(worker(name) for name in "abc"))
        return order

    expected = asyncio.run(main())
    assert testing.run(main()) == expected


def test_a_seed_decides_which_ready_task_is_first() -> None:
    async def main() -> list[int]:
        order: list[int] = []

        async def worker(number: int) -> None:
            order.append(number)

        await asyncio.gather(*(worker(number) for number in range(3)))
        return order

    assert len(orders(main)) == 6


def test_timers_at_the_same_time_may_change_places_others_never() -> None:
    async def main() -> list[str]:
        loop = asyncio.get_running_loop()
        order: list[str] = []
        for name in ("a", "b"):
            loop.call_at(1, order.append, name)
            loop.call_at(1 + 1e-6, order.append, name.upper())
        await asyncio.sleep(2)
        return order

    assert orders(main) == {(*first, *second) for first in ("ab", "ba") for second in ("AB", "BA")}


def test_what_one_callback_schedules_stays_in_order() -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        order: list[int] = []

        def chain(base: int) -> None:
            for number in range(5):
                loop.call_soon(order.append, base + number)

        async def worker(base: int) -> None:
            chain(base)
            await asyncio.sleep(0)
            # A task's own callbacks come before its next step.
            assert base + 4 in order
            future = loop.create_future()
            future.add_done_callback(lambda _: order.append(base + 5))
            future.add_done_callback(lambda _: order.append(base + 6))
            future.set_result(None)
            await asyncio.sleep(0)

        loop.call_later(1, chain, 20)
        loop.call_later(1, chain, 30)
        await asyncio.gather(worker(0), worker(10), asyncio.sleep(2))
        return order

    found = orders(main)
    assert len(found) > 10, "lanes are mixed"
    for order in found:
        for base in (0, 10, 20, 30):
            lane = [number for number in order if base <= number < base + 10]
            assert lane == sorted(lane)


def test_a_task_does_not_overtake_its_own_callback() -> None:
    """Although somebody else wakes it."""

    async def main() -> list[str]:
        loop = asyncio.get_running_loop()
        order: list[str] = []
        future = loop.create_future()
        waits = False

        async def sleeper() -> None:
            nonlocal waits
            loop.call_soon(order.append, "callback")
            waits = True
            await future
            order.append("step")

        async def waker() -> None:
            while not waits:
                await asyncio.sleep(0)
            future.set_result(None)

        await asyncio.gather(sleeper(), waker())
        return order

    assert orders(main) == {("callback", "step")}


def test_calls_in_pools_take_no_time_and_end_in_an_order_of_the_tape() -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        order: list[int] = []
        threads: set[int] = set()

        def call(number: int) -> int:
            threads.add(threading.get_ident())
            time.sleep(0.002 * (3 - number))
            return number

        async def worker(number: int) -> None:
            order.append(await asyncio.to_thread(call, number))

        async with asyncio.timeout(0.001):
            await asyncio.gather(*(worker(number) for number in range(3)))
        assert threading.get_ident() not in threads
        assert loop.time() == 0
        return order

    assert testing.run(main()) == [0, 1, 2]
    assert len(orders(main, range(30))) > 3
    assert testing.run(main(), seed=5) == testing.run(main(), seed=5)


def test_a_call_in_a_pool_can_end_before_what_is_ready() -> None:
    async def main() -> list[int]:
        turns = 0
        call = asyncio.get_running_loop().run_in_executor(None, int)
        while not call.done():
            turns += 1
            await asyncio.sleep(0)
        return [turns]

    assert len(orders(main, range(30))) > 3
    assert testing.run(main())


def test_a_call_in_a_pool_may_ask_the_loop() -> None:
    async def answer() -> str:
        await asyncio.sleep(100)
        return await asyncio.to_thread(lambda: "from another call")

    async def main() -> str:
        loop = asyncio.get_running_loop()
        return await asyncio.to_thread(
            lambda: asyncio.run_coroutine_threadsafe(answer(), loop).result()
        )

    for seed in (None, 1, 2, 3):
        assert testing.run(main(), seed=seed) == "from another call"


def test_pools_and_their_errors() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, lambda: 1 / 0)
        with concurrent.futures.ThreadPoolExecutor(1, "own") as pool:
            name = await loop.run_in_executor(pool, lambda: threading.current_thread().name)
            assert name == "own_0"
        with pytest.raises(RuntimeError, match="after shutdown"):
            await loop.run_in_executor(pool, int)
        variable.set("seen")
        assert await asyncio.to_thread(variable.get) == "seen"
        called: list[int] = []
        call = loop.run_in_executor(None, called.append, 1)
        call.cancel()
        await asyncio.sleep(1)
        assert called == []

    testing.run(main())
    testing.run(main(), seed=1)


def test_a_deadlock_is_an_error_that_names_who_waits() -> None:
    async def waits(event: asyncio.Event) -> None:
        await event.wait()

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for name in ("first", "second"):
                group.create_task(waits(asyncio.Event()), name=name)

    with pytest.raises(Deadlock) as caught:
        testing.run(main(), seed=7)
    text = str(caught.value)
    assert "first" in text and "second" in text and "locks.py" in text and __file__ in text
    assert text.index("first") < text.index("second")
    assert caught.value.__notes__ == ["rondel.testing: seed=7"]
    loop = testing.new_event_loop()
    loop.call_later(float("inf"), print)
    with pytest.raises(Deadlock, match="there are no tasks"):
        loop.run_forever()
    # The loop is as good as before.
    assert loop.run_until_complete(asyncio.sleep(1, "done")) == "done"
    loop.close()


def test_the_real_world_is_refused() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = socket.socketpair()
        left.setblocking(False)
        attempts: list[Callable[[], Awaitable[Any]]] = [
            lambda: loop.sock_recv(left, 1),
            lambda: asyncio.create_subprocess_exec("true"),
            lambda: asyncio.open_connection(sock=left),
            lambda: loop.connect_read_pipe(asyncio.Protocol, open(os.devnull)),  # noqa: SIM115
        ]
        with left, right:
            for attempt in attempts:
                with pytest.raises(RealWorldError, match="needs the real world"):
                    await attempt()
            with pytest.raises(RealWorldError):
                loop.add_reader(left, print)
            with pytest.raises(RealWorldError):
                loop.add_writer(left, print)

    with contextlib.closing(open(os.devnull)):
        testing.run(main())


def test_signals_are_handled() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        arrived = asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR1, arrived.set)
        loop.call_later(60, signal.raise_signal, signal.SIGUSR1)
        loop.call_later(120, lambda: None)
        await arrived.wait()
        loop.remove_signal_handler(signal.SIGUSR1)
        return loop.time()

    assert testing.run(main()) == 60


async def register(names: set[str], name: str, log: list[str]) -> None:
    """Looks whether a name is free, asks somebody, and takes it: a race, if two want it."""
    if name in names:
        return
    await asyncio.sleep(0)  # somebody is asked
    names.add(name)
    log.append(name)


async def planted() -> None:
    """Fails only if the second of two comes between the first's look and its entry.

    On any ordinary loop the first is told of its answer, and has entered, before the second looks:
    a chain of callbacks that always has the same length.
    """
    names: set[str] = set()
    log: list[str] = []
    asked = asyncio.Event()

    async def first() -> None:
        asked.set()
        await register(names, "rondel", log)

    async def second() -> None:
        await asked.wait()
        await asyncio.sleep(0)
        await register(names, "rondel", log)

    await asyncio.gather(first(), second())
    assert log == ["rondel"]


def test_a_planted_race_is_found_and_repeated() -> None:
    for _ in range(1000):
        asyncio.run(planted())
    testing.run(planted())

    failing: list[int] = []
    for seed in SEEDS:
        try:
            testing.run(planted(), seed=seed)
        except AssertionError:
            failing.append(seed)
    assert failing and len(failing) < len(SEEDS)

    with pytest.raises(AssertionError) as caught:
        testing.explore(planted, seeds=SEEDS)
    assert caught.value.__notes__ == [f"rondel.testing: seed={failing[0]}"]
    traces: list[list[str]] = []
    for _ in range(2):
        traces.append([])
        with pytest.raises(AssertionError):
            testing.run(planted(), seed=failing[0], trace=traces[-1])
    assert traces[0] == traces[1] != []


#: A program with something of everything: prints its trace.
PROGRAM = """
import asyncio, random, sys
from rondel import testing

async def worker(tasks, number):
    loop = asyncio.get_running_loop()
    for _ in range(3):
        await asyncio.sleep(random.choice([0, 1]))
        await asyncio.to_thread(int)
        await loop.run_in_executor(None, int)
    if number == loop.random.randrange(8):
        raise ValueError

async def main():
    tasks = set()
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(8):
                tasks.add(group.create_task(worker(tasks, number)))
            futures = {asyncio.ensure_future(asyncio.sleep(1)) for _ in range(8)}
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
            for future in futures:
                future.cancel()
    except* ValueError:
        pass

for seed in range(20):
    trace = []
    testing.run(main(), seed=seed, trace=trace)
    print(*trace, sep="\\n")
"""


def test_a_run_is_the_same_in_every_process() -> None:
    """Although sets of tasks and futures are involved, whose order addresses usually decide."""

    def output(junk: int) -> str:
        program = f"junk = [object() for _ in range({junk})]\n{PROGRAM}"
        return subprocess.run(
            [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60
        ).stdout

    with concurrent.futures.ThreadPoolExecutor() as pool:
        outputs = list(pool.map(output, (0, 1001, 30011)))
    assert len(outputs[0].splitlines()) > 1000
    assert outputs[0] == outputs[1] == outputs[2]


def test_random_numbers_follow_from_the_seed_during_a_run() -> None:
    import random

    async def main() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, testing.Loop)
        return random.random(), loop.random.random()

    random.seed(1)
    expected = random.random()
    random.seed(1)
    numbers = [testing.run(main(), seed=seed) for seed in (1, 2, 1)]
    assert numbers[0] == numbers[2] != numbers[1]
    assert random.random() == expected, "the program's own generator goes on where it was"


def test_exceptions_that_leave_the_loop_lose_no_callback() -> None:
    loop = testing.new_event_loop(seed=3)
    called: list[int] = []

    def leave() -> None:
        raise KeyboardInterrupt

    for number in range(4):
        loop.call_later(1, called.append, number)
    loop.call_later(1, leave)
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    loop.call_later(1, loop.stop)
    loop.run_forever()
    assert sorted(called) == [0, 1, 2, 3]
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop.call_later(1, print)


def test_run_needs_a_thread_without_a_loop() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="cannot be called from a running event loop"):
            testing.run(asyncio.sleep(0))

    testing.run(main())
