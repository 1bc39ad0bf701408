"""call_soon_threadsafe: order, wake-up, threads and signal handlers."""

import asyncio
import os
import signal
import sys
import threading
import time

from support import LoopFactory, in_thread, run_turn, run_until

Loop = asyncio.AbstractEventLoop


def test_threadsafe_and_plain_calls_keep_one_order(loop: Loop) -> None:
    seen: list[int] = []
    for i in range(0, 3000, 3):
        loop.call_soon(seen.append, i)
        loop.call_soon_threadsafe(seen.append, i + 1)
        loop.call_soon(seen.append, i + 2)
    run_turn(loop)
    assert seen == list(range(3000))


def test_threadsafe_call_from_a_callback_runs_in_the_next_turn(loop: Loop) -> None:
    seen: list[str] = []
    loop.call_soon(lambda: loop.call_soon_threadsafe(seen.append, "threadsafe"))
    loop.call_soon(lambda: loop.call_soon(seen.append, "plain"))
    loop.stop()
    loop.run_forever()
    assert seen == []
    loop.stop()
    loop.run_forever()
    assert seen == ["threadsafe", "plain"]


def test_threadsafe_call_wakes_a_loop_that_waits(loop: Loop) -> None:
    delays: list[float] = []

    def note(sent: float) -> None:
        delays.append(time.monotonic() - sent)
        if len(delays) == 5:
            loop.stop()

    def caller() -> None:
        for _ in range(5):
            time.sleep(0.02)
            loop.call_soon_threadsafe(note, time.monotonic())

    with in_thread(caller):
        loop.run_forever()
    assert len(delays) == 5
    assert max(delays) < 2


def test_threadsafe_calls_of_one_thread_keep_their_order(loop: Loop) -> None:
    threads, calls = 4, 2000
    seen: list[tuple[int, int]] = []

    def caller(number: int) -> None:
        for i in range(calls):
            loop.call_soon_threadsafe(seen.append, (number, i))

    workers = [threading.Thread(target=caller, args=(n,)) for n in range(threads)]
    for worker in workers:
        worker.start()
    run_until(loop, lambda: len(seen) == threads * calls)
    for worker in workers:
        worker.join(10)
    for number in range(threads):
        assert [i for n, i in seen if n == number] == list(range(calls))


def test_threadsafe_calls_made_before_the_loop_runs(loop: Loop) -> None:
    seen: list[str] = []
    with in_thread(lambda: loop.call_soon_threadsafe(seen.append, "first")):
        pass
    with in_thread(lambda: loop.call_soon_threadsafe(seen.append, "second")):
        pass
    run_turn(loop)
    assert seen == ["first", "second"]


def test_threadsafe_callbacks_run_on_the_loops_thread(loop: Loop) -> None:
    seen: list[int] = []

    def note() -> None:
        seen.append(threading.get_ident())
        loop.stop()

    with in_thread(lambda: loop.call_soon_threadsafe(note)):
        loop.run_forever()
    assert seen == [threading.get_ident()]


def test_threadsafe_handle_cancelled_from_the_other_thread(loop: Loop) -> None:
    seen: list[str] = []

    def caller() -> None:
        handle = loop.call_soon_threadsafe(seen.append, "cancelled")
        handle.cancel()
        assert handle.cancelled()
        loop.call_soon_threadsafe(seen.append, "kept")

    with in_thread(caller):
        pass
    run_turn(loop)
    assert seen == ["kept"]


def test_threadsafe_call_from_a_signal_handler(loop: Loop) -> None:
    seen: list[str] = []

    def handler(signum: int, frame: object) -> None:
        loop.call_soon_threadsafe(seen.append, "called")
        loop.call_soon_threadsafe(loop.stop)

    previous = signal.signal(signal.SIGUSR2, handler)
    try:
        with in_thread(lambda: (time.sleep(0.05), os.kill(os.getpid(), signal.SIGUSR2))):
            loop.run_forever()
    finally:
        signal.signal(signal.SIGUSR2, previous)
    assert seen == ["called"]


# --- calls that should have been threadsafe ----------------------------------------------------
#
# Programs make them, and asyncio forgives them outside debug mode: nothing is lost, it only does
# not wake the loop.


def test_plain_calls_from_another_thread_are_not_lost(loop: Loop) -> None:
    seen: list[str] = []

    def caller() -> None:
        time.sleep(0.02)
        loop.call_soon(seen.append, "soon")
        loop.call_later(0, seen.append, "later")
        loop.call_later(0, seen.append, "cancelled").cancel()
        loop.call_soon_threadsafe(seen.append, "threadsafe")

    with in_thread(caller):
        run_until(loop, lambda: len(seen) == 3)
    assert seen[:2] == ["soon", "threadsafe"]
    assert seen[2] == "later"


def test_timers_cancelled_from_another_thread(loop: Loop) -> None:
    seen: list[int] = []
    handles = [loop.call_later(0.1, seen.append, i) for i in range(500)]

    def caller() -> None:
        time.sleep(0.02)
        for handle in handles[1:]:
            handle.cancel()

    loop.call_later(0.12, loop.stop)
    with in_thread(caller):
        loop.run_forever()
    assert seen == [0]


def test_plain_calls_from_many_threads_of_a_busy_loop(loop: Loop) -> None:
    threads, calls = 4, 5000
    seen: list[tuple[int, int]] = []

    def caller(number: int) -> None:
        for i in range(calls):
            loop.call_soon(seen.append, (number, i))

    workers = [threading.Thread(target=caller, args=(n,)) for n in range(threads)]
    for worker in workers:
        worker.start()
    run_until(loop, lambda: len(seen) == threads * calls)
    for worker in workers:
        worker.join(10)
    for number in range(threads):
        assert [i for n, i in seen if n == number] == list(range(calls))


def test_future_resolved_from_another_thread(loop: Loop) -> None:
    future = loop.create_future()

    def caller() -> None:
        time.sleep(0.02)
        future.set_result("resolved")
        loop.call_soon_threadsafe(int)

    with in_thread(caller):
        assert loop.run_until_complete(future) == "resolved"


def test_many_callbacks_that_nobody_has_the_handles_of(loop: Loop) -> None:
    """More than a loop keeps handles for: what each needs is kept in another way."""
    seen: list[int] = []
    reported: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _loop, context: reported.append(context))
    count = 5000
    kept = {}

    def submit() -> None:
        for i in range(count):
            if i % 1000 == 999:
                loop.call_soon_threadsafe(int, "no number")
            handle = loop.call_soon_threadsafe(seen.append, i)
            if i % 100 == 0:
                kept[i] = handle
        loop.call_soon_threadsafe(loop.stop)

    with in_thread(submit):
        pass
    for handle in kept.values():
        handle.cancel()
    loop.run_forever()
    assert seen == [i for i in range(count) if i not in kept]
    assert len(reported) == count // 1000
    for context in reported:
        assert isinstance(context["exception"], ValueError)
        assert isinstance(context["handle"], asyncio.Handle)


def test_a_loop_drops_queued_callbacks_when_it_is_closed(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    value = bytearray()
    references = sys.getrefcount(value)
    for _ in range(2000):
        loop.call_soon(value.append, 1)
    assert sys.getrefcount(value) > references
    loop.close()
    assert sys.getrefcount(value) == references
