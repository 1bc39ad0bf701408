"""call_soon, call_later, call_at and cancelling: what runs, in which order, in which turn."""

import asyncio
import math
import random
import time
from typing import Any

import pytest
from support import in_thread, run_turn, tcp_pair

Loop = asyncio.AbstractEventLoop


def run_idle(loop: Loop, limit: float = 5) -> None:
    """Run the loop until stop() is called, for at most limit seconds."""
    guard = loop.call_later(limit, loop.stop)
    started = loop.time()
    loop.run_forever()
    guard.cancel()
    assert loop.time() - started < limit, "the loop was not stopped by the test"


# --- call_soon ---------------------------------------------------------------------------------


def test_call_soon_runs_in_order_with_its_arguments(loop: Loop) -> None:
    seen: list[tuple[int, ...]] = []

    def note(*args: int) -> None:
        seen.append(args)

    for count in range(7):
        loop.call_soon(note, *range(count))
    assert seen == []
    run_turn(loop)
    assert seen == [tuple(range(count)) for count in range(7)]


def test_call_soon_many_keep_their_order(loop: Loop) -> None:
    seen: list[int] = []
    for i in range(20_000):
        loop.call_soon(seen.append, i)
    run_turn(loop)
    assert seen == list(range(20_000))


def test_callback_scheduled_during_a_turn_waits_for_the_next(loop: Loop) -> None:
    seen: list[str] = []

    def first() -> None:
        seen.append("first")
        loop.call_soon(seen.append, "scheduled by first")

    loop.call_soon(first)
    loop.call_soon(seen.append, "second")
    loop.stop()
    loop.run_forever()
    assert seen == ["first", "second"]
    loop.stop()
    loop.run_forever()
    assert seen == ["first", "second", "scheduled by first"]


def test_each_turn_runs_exactly_what_was_ready_at_its_start(loop: Loop) -> None:
    turns: list[int] = []
    generations = {0: 0}

    def split(generation: int) -> None:
        generations[generation] = generations.get(generation, 0) + 1
        if generation < 5:
            loop.call_soon(split, generation + 1)
            loop.call_soon(split, generation + 1)

    loop.call_soon(split, 0)
    for _ in range(6):
        before = sum(generations.values())
        loop.stop()
        loop.run_forever()
        turns.append(sum(generations.values()) - before)
    assert turns == [1, 2, 4, 8, 16, 32]


def test_stop_in_a_callback_lets_the_rest_of_the_turn_run(loop: Loop) -> None:
    seen: list[str] = []

    def first() -> None:
        seen.append("first")
        loop.stop()
        loop.call_soon(seen.append, "late")

    loop.call_soon(first)
    loop.call_soon(seen.append, "second")
    loop.run_forever()
    assert seen == ["first", "second"]
    run_turn(loop)
    assert seen == ["first", "second", "late"]


def test_stop_before_run_forever_runs_one_turn(loop: Loop) -> None:
    seen: list[str] = []
    loop.call_soon(seen.append, "ready")
    loop.call_soon(lambda: loop.call_soon(seen.append, "next turn"))
    loop.stop()
    loop.run_forever()
    assert seen == ["ready"]
    assert not loop.is_running()


def test_stop_before_run_forever_runs_due_timers(loop: Loop) -> None:
    seen: list[str] = []
    loop.call_later(0, seen.append, "timer")
    loop.call_later(60, seen.append, "never")
    loop.stop()
    loop.run_forever()
    assert seen == ["timer"]


def test_ready_callbacks_run_before_timers_that_are_due(loop: Loop) -> None:
    seen: list[str] = []
    loop.call_later(0, seen.append, "timer")
    loop.call_soon(seen.append, "soon")
    loop.stop()
    loop.run_forever()
    assert seen == ["soon", "timer"]


def test_zero_delay_from_a_callback_waits_for_the_next_turn(loop: Loop) -> None:
    seen: list[str] = []

    def again(count: int) -> None:
        seen.append(f"timer {count}")
        loop.call_soon(seen.append, f"soon {count}")
        if count < 3:
            loop.call_later(0, again, count + 1)
        else:
            loop.call_soon(loop.stop)

    loop.call_soon(again, 0)
    loop.run_forever()
    expected = [entry for i in range(4) for entry in (f"timer {i}", f"soon {i}")]
    assert seen == expected


def test_callbacks_that_reschedule_themselves_do_not_starve_sockets(loop: Loop) -> None:
    turns = 0

    def spin() -> None:
        nonlocal turns
        turns += 1
        assert turns < 1_000_000, "the socket was never looked at"
        loop.call_soon(spin)

    with tcp_pair() as (near, far):

        def readable() -> None:
            assert near.recv(10) == b"x"
            loop.remove_reader(near)
            loop.stop()

        loop.add_reader(near, readable)
        loop.call_soon(spin)
        loop.call_soon(far.send, b"x")
        run_idle(loop)
    assert turns >= 1


def test_callbacks_that_reschedule_themselves_do_not_starve_timers(loop: Loop) -> None:
    def spin() -> None:
        loop.call_soon(spin)

    loop.call_soon(spin)
    started = loop.time()
    loop.call_later(0.02, loop.stop)
    loop.run_forever()
    assert 0.02 <= loop.time() - started < 5


def test_call_soon_refuses_keywords_other_than_context(loop: Loop) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'key'"):
        loop.call_soon(print, key=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'key'"):
        loop.call_later(0, print, key=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'key'"):
        loop.call_at(0, print, key=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'key'"):
        loop.call_soon_threadsafe(print, key=1)  # type: ignore[call-arg]


def test_scheduling_without_a_callback_is_a_type_error(loop: Loop) -> None:
    for call, args in (
        (loop.call_soon, ()),
        (loop.call_soon_threadsafe, ()),
        (loop.call_later, ()),
        (loop.call_later, (1,)),
        (loop.call_at, ()),
        (loop.call_at, (1,)),
    ):
        with pytest.raises(TypeError, match="missing .* required positional argument"):
            call(*args)  # type: ignore[operator]


def test_callback_that_is_not_callable_fails_when_it_runs(
    loop: Loop, reported: list[dict[str, Any]]
) -> None:
    loop.call_soon(1234)  # type: ignore[arg-type]
    run_turn(loop)
    (context,) = reported
    assert isinstance(context["exception"], TypeError)
    assert str(context["exception"]) == "'int' object is not callable"


# --- call_later and call_at --------------------------------------------------------------------


def test_timers_run_in_the_order_of_their_deadlines(loop: Loop) -> None:
    seen: list[int] = []
    order = list(range(200))
    random.Random(7).shuffle(order)
    now = loop.time()
    for i in order:
        loop.call_at(now + i * 1e-5, seen.append, i)
    loop.call_at(now + 0.02, loop.stop)
    loop.run_forever()
    assert seen == list(range(200))


def test_equal_deadlines_run_first_in_first_out(rondel_loop: Loop) -> None:
    # asyncio's heap leaves the order open; rondel promises it.
    seen: list[int] = []
    when = rondel_loop.time() + 0.001
    for i in range(1000):
        rondel_loop.call_at(when, seen.append, i)
    rondel_loop.call_at(when + 0.001, rondel_loop.stop)
    rondel_loop.run_forever()
    assert seen == list(range(1000))


def test_equal_deadlines_stay_in_order_when_some_are_cancelled(rondel_loop: Loop) -> None:
    seen: list[int] = []
    when = rondel_loop.time() + 0.001
    handles = [rondel_loop.call_at(when, seen.append, i) for i in range(1000)]
    for i, handle in enumerate(handles):
        if i % 10:
            handle.cancel()
    rondel_loop.call_at(when + 0.001, rondel_loop.stop)
    rondel_loop.run_forever()
    assert seen == list(range(0, 1000, 10))


def test_timer_does_not_run_early(loop: Loop) -> None:
    ran_at: list[tuple[float, float]] = []

    def note(when: float) -> None:
        ran_at.append((loop.time(), when))

    now = loop.time()
    resolution = time.get_clock_info("monotonic").resolution
    for delay in (0.001, 0.0025, 0.005, 0.0101, 0.02):
        loop.call_at(now + delay, note, now + delay)
    loop.call_at(now + 0.03, loop.stop)
    loop.run_forever()
    assert len(ran_at) == 5
    for ran, when in ran_at:
        assert ran + resolution >= when


@pytest.mark.parametrize("delay", [0, 0.0, -0.0, -1, -1e9, -1e300, -math.inf])
def test_delay_that_is_over_runs_in_the_next_turn(loop: Loop, delay: float) -> None:
    seen: list[str] = []
    loop.call_later(delay, seen.append, "ran")
    loop.stop()
    loop.run_forever()
    assert seen == ["ran"]


@pytest.mark.parametrize("delay", [1e6, 1e10, 2**63, 1e18, 1e19, 1e300, math.inf])
def test_huge_delay_never_runs_and_does_not_disturb(loop: Loop, delay: float) -> None:
    seen: list[str] = []
    handle = loop.call_later(delay, seen.append, "ran")
    loop.call_later(0.01, loop.stop)
    run_idle(loop)
    assert seen == []
    assert handle.when() >= delay
    handle.cancel()


def test_only_a_timer_at_infinity_leaves_the_loop_waiting(loop: Loop) -> None:
    loop.call_later(math.inf, print)
    with in_thread(lambda: (time.sleep(0.05), loop.call_soon_threadsafe(loop.stop))):
        loop.run_forever()


def test_delay_of_none_is_refused_with_asyncios_words(loop: Loop) -> None:
    with pytest.raises(TypeError, match=r"^delay must not be None$"):
        loop.call_later(None, print)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^when cannot be None$"):
        loop.call_at(None, print)  # type: ignore[arg-type]


def test_delay_that_is_not_a_number_is_a_type_error(loop: Loop) -> None:
    with pytest.raises(TypeError):
        loop.call_later("soon", print)  # type: ignore[arg-type]


def test_delay_may_be_any_number(loop: Loop) -> None:
    from fractions import Fraction

    class Delay(float):
        pass

    seen: list[str] = []
    loop.call_later(Fraction(1, 1000), seen.append, "fraction")
    loop.call_later(Delay(0.002), seen.append, "subclass")
    loop.call_later(True, seen.append, "never in this time")
    loop.call_later(0.02, loop.stop)
    loop.run_forever()
    assert seen == ["fraction", "subclass"]


def test_call_at_in_the_past_runs_at_once(loop: Loop) -> None:
    seen: list[float] = []
    now = loop.time()
    loop.call_at(now - 5, seen.append, 2)
    loop.call_at(now - 10, seen.append, 1)
    loop.call_at(0, seen.append, 0)
    loop.stop()
    loop.run_forever()
    assert seen == [0, 1, 2]


def test_timer_set_by_a_timer_with_an_earlier_deadline(loop: Loop) -> None:
    seen: list[str] = []
    now = loop.time()

    def first() -> None:
        seen.append("first")
        loop.call_at(now, seen.append, "of the past")

    loop.call_at(now + 0.001, first)
    loop.call_at(now + 0.05, seen.append, "later")
    loop.call_at(now + 0.051, loop.stop)
    loop.run_forever()
    assert seen == ["first", "of the past", "later"]


def test_nearer_timer_set_while_waiting_for_a_farther_one(loop: Loop) -> None:
    loop.call_later(20, loop.stop)
    loop.call_soon(lambda: loop.call_later(0.01, loop.stop))
    started = time.monotonic()
    loop.run_forever()
    assert 0.01 <= time.monotonic() - started < 10


def test_time_is_the_monotonic_clock(loop: Loop) -> None:
    before = time.monotonic()
    now = loop.time()
    after = time.monotonic()
    assert type(now) is float
    assert before <= now <= after


def test_time_advances_within_a_callback(loop: Loop) -> None:
    seen: list[float] = []

    def slow() -> None:
        seen.append(loop.time())
        time.sleep(0.01)
        seen.append(loop.time())

    loop.call_soon(slow)
    run_turn(loop)
    assert seen[1] - seen[0] >= 0.01


def test_idle_loop_uses_no_cpu(loop: Loop) -> None:
    loop.call_later(0.5, loop.stop)
    before = time.thread_time()
    loop.run_forever()
    assert time.thread_time() - before < 0.1


# --- cancelling --------------------------------------------------------------------------------


def test_cancelled_callbacks_do_not_run(loop: Loop) -> None:
    seen: list[str] = []
    handles = [
        loop.call_soon(seen.append, "soon"),
        loop.call_soon_threadsafe(seen.append, "threadsafe"),
        loop.call_later(0, seen.append, "later"),
        loop.call_at(0, seen.append, "at"),
    ]
    for handle in handles:
        assert handle.cancelled() is False
        assert handle.cancel() is None  # type: ignore[func-returns-value]
        assert handle.cancelled() is True
        handle.cancel()
        assert handle.cancelled() is True
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    assert seen == []


def test_callback_cancels_a_later_one_of_the_same_turn(loop: Loop) -> None:
    seen: list[str] = []
    loop.call_soon(lambda: doomed.cancel())
    doomed = loop.call_soon(seen.append, "doomed")
    loop.call_soon(seen.append, "after")
    run_turn(loop)
    assert seen == ["after"]


def test_timer_cancels_another_that_is_due_in_the_same_turn(loop: Loop) -> None:
    seen: list[str] = []
    loop.call_at(1, lambda: doomed.cancel())
    doomed = loop.call_at(2, seen.append, "doomed")
    loop.call_at(3, seen.append, "after")
    loop.stop()
    loop.run_forever()
    assert seen == ["after"]


def test_cancel_after_the_callback_ran_is_harmless(loop: Loop) -> None:
    soon = loop.call_soon(lambda: None)
    timer = loop.call_later(0, lambda: None)
    loop.stop()
    loop.run_forever()
    assert not soon.cancelled()
    assert not timer.cancelled()
    soon.cancel()
    timer.cancel()
    assert soon.cancelled()
    assert timer.cancelled()
    run_turn(loop)


def test_callback_that_cancels_its_own_handle(loop: Loop) -> None:
    seen: list[str] = []

    def body(*args: object) -> None:
        handle.cancel()
        seen.append("ran to its end")

    handle = loop.call_soon(body, object())
    run_turn(loop)
    assert seen == ["ran to its end"]
    handle = loop.call_later(0, body, object())
    loop.stop()
    loop.run_forever()
    assert seen == ["ran to its end"] * 2


def test_most_of_many_timers_cancelled(loop: Loop) -> None:
    seen: list[int] = []
    now = loop.time()
    handles = [loop.call_at(now + 0.01 + i * 1e-6, seen.append, i) for i in range(5000)]
    kept = set(random.Random(3).sample(range(5000), 50))
    for i, handle in enumerate(handles):
        if i not in kept:
            handle.cancel()
    loop.call_at(now + 0.05, loop.stop)
    loop.run_forever()
    assert seen == sorted(kept)


def test_cancelled_timers_in_the_far_future_do_not_keep_their_arguments(loop: Loop) -> None:
    import weakref

    class Thing:
        pass

    thing = Thing()
    alive = weakref.ref(thing)
    handle = loop.call_later(3600, print, thing)
    del thing
    assert alive() is not None
    handle.cancel()
    assert alive() is None


def test_many_cancelled_far_timers_are_dropped_from_the_queue(loop: Loop) -> None:
    import weakref

    refs = []
    for _ in range(500):
        handle = loop.call_later(3600, print)
        refs.append(weakref.ref(handle))
        handle.cancel()
    del handle
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    # Fewer than a hundred may wait for their time.
    assert sum(ref() is not None for ref in refs) <= 100
