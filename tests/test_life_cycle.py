"""run_forever, run_until_complete, stop, close: the life of a loop, its errors and their words."""

import asyncio
import gc
import re
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from support import LoopFactory, collected, in_thread, run_turn, skip_if_asyncio_errs

Loop = asyncio.AbstractEventLoop


async def returns(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


async def raises(exc: BaseException) -> None:
    await asyncio.sleep(0)
    raise exc


# --- running -----------------------------------------------------------------------------------


def test_loop_is_an_abstract_event_loop(loop: Loop) -> None:
    assert isinstance(loop, asyncio.AbstractEventLoop)


def test_new_loop_is_neither_running_nor_closed(loop: Loop) -> None:
    assert loop.is_running() is False
    assert loop.is_closed() is False


def test_run_forever_returns_none_and_runs_until_stop(loop: Loop) -> None:
    states: list[bool] = []
    loop.call_later(0.01, lambda: states.append(loop.is_running()))
    loop.call_later(0.02, loop.stop)
    assert loop.run_forever() is None  # type: ignore[func-returns-value]
    assert states == [True]
    assert loop.is_running() is False


def test_loop_runs_again_after_stop(loop: Loop) -> None:
    seen: list[int] = []
    for i in range(3):
        loop.call_soon(seen.append, i)
        run_turn(loop)
    assert seen == [0, 1, 2]


def test_stop_before_the_run_is_used_up_by_one_run(loop: Loop) -> None:
    loop.stop()
    loop.stop()
    loop.run_forever()
    started = loop.time()
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    assert loop.time() - started >= 0.01


def test_stop_from_another_thread(loop: Loop) -> None:
    with in_thread(lambda: loop.call_soon_threadsafe(loop.stop)):
        loop.run_forever()
    assert not loop.is_running()


def test_running_loop_is_known_inside_only(loop: Loop) -> None:
    seen: list[Any] = []

    def look() -> None:
        seen.append(asyncio.get_running_loop())
        seen.append(asyncio.get_event_loop())
        seen.append(asyncio._get_running_loop())

    loop.call_soon(look)
    run_turn(loop)
    assert len(seen) == 3
    assert all(found is loop for found in seen)
    assert asyncio._get_running_loop() is None
    with pytest.raises(RuntimeError, match=r"^no running event loop$"):
        asyncio.get_running_loop()


def test_loop_runs_in_a_thread_of_its_own(loop_factory: LoopFactory) -> None:
    results: list[Any] = []

    def body() -> None:
        loop = loop_factory()
        try:
            results.append(loop.run_until_complete(returns(threading.get_ident())))
        finally:
            loop.close()

    with in_thread(body) as thread:
        pass
    assert results == [thread.ident]


def test_two_loops_in_two_threads_talk_to_each_other(loop: Loop, loop_factory: LoopFactory) -> None:
    other = loop_factory()
    count = 0

    def ping() -> None:
        nonlocal count
        count += 1
        if count == 200:
            loop.call_soon_threadsafe(loop.stop)
            other.call_soon_threadsafe(other.stop)
        else:
            loop.call_soon_threadsafe(pong)

    def pong() -> None:
        other.call_soon_threadsafe(ping)

    try:
        with in_thread(other.run_forever):
            loop.call_soon(pong)
            loop.run_forever()
    finally:
        other.close()
    assert count == 200


def test_loop_made_here_may_run_in_another_thread(loop: Loop) -> None:
    seen: list[Any] = []
    with in_thread(lambda: seen.append(loop.run_until_complete(returns(1)))):
        pass
    assert seen == [1]
    assert loop.run_until_complete(returns(2)) == 2


def test_subclass_of_the_loop_class_works(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    base: Any = type(loop)
    loop.close()

    class Named(base):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def call_soon(self, *args: Any, **kwargs: Any) -> asyncio.Handle:
            counted.append(self.name)
            return super().call_soon(*args, **kwargs)

    counted: list[str] = []
    named = Named("mine")
    try:
        assert named.run_until_complete(returns(5)) == 5
        assert named.name == "mine"
        # Tasks schedule their steps through the method, not round it.
        assert counted
        assert set(counted) == {"mine"}
    finally:
        named.close()


def test_repr_tells_the_state(loop: Loop) -> None:
    name = type(loop).__name__
    assert repr(loop) == f"<{name} running=False closed=False debug=False>"
    loop.set_debug(True)
    seen: list[str] = []
    loop.call_soon(lambda: seen.append(repr(loop)))
    run_turn(loop)
    assert seen == [f"<{name} running=True closed=False debug=True>"]
    loop.set_debug(False)
    loop.close()
    assert repr(loop) == f"<{name} running=False closed=True debug=False>"


def test_attributes_can_be_set_on_a_loop(loop: Loop) -> None:
    loop.mine = 1  # type: ignore[attr-defined]
    assert loop.mine == 1  # type: ignore[attr-defined]
    assert loop.__dict__["mine"] == 1
    del loop.mine  # type: ignore[attr-defined]
    assert not hasattr(loop, "mine")


# --- run_until_complete ------------------------------------------------------------------------


def test_run_until_complete_returns_the_result(loop: Loop) -> None:
    marker = object()
    assert loop.run_until_complete(returns(marker)) is marker


def test_run_until_complete_raises_the_exception(loop: Loop) -> None:
    error = ValueError("mine")
    with pytest.raises(ValueError) as caught:
        loop.run_until_complete(raises(error))
    assert caught.value is error


def test_run_until_complete_takes_a_future(loop: Loop) -> None:
    future = loop.create_future()
    loop.call_later(0.01, future.set_result, "done")
    assert loop.run_until_complete(future) == "done"
    # A future that is done already takes one turn.
    assert loop.run_until_complete(future) == "done"


def test_run_until_complete_takes_a_task(loop: Loop) -> None:
    task = loop.create_task(returns(3))
    assert loop.run_until_complete(task) == 3
    assert task.done()


def test_run_until_complete_takes_any_awaitable(loop: Loop) -> None:
    class Awaitable:
        def __await__(self) -> Any:
            yield from returns(4).__await__()
            return 5

    assert loop.run_until_complete(Awaitable()) == 5


def test_run_until_complete_of_a_cancelled_future(loop: Loop) -> None:
    future = loop.create_future()
    loop.call_soon(future.cancel)
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(future)


def test_run_until_complete_refuses_what_cannot_be_awaited(loop: Loop) -> None:
    with pytest.raises(
        TypeError, match=r"^An asyncio\.Future, a coroutine or an awaitable is required$"
    ):
        loop.run_until_complete(42)  # type: ignore[arg-type]


def test_run_until_complete_refuses_a_future_of_another_loop(
    loop: Loop, loop_factory: LoopFactory
) -> None:
    other = loop_factory()
    try:
        with pytest.raises(
            ValueError,
            match=r"^The future belongs to a different loop than the one specified as "
            r"the loop argument$",
        ):
            loop.run_until_complete(other.create_future())
    finally:
        other.close()


def test_run_until_complete_stopped_before_the_end(loop: Loop) -> None:
    future = loop.create_future()
    loop.call_soon(loop.stop)
    with pytest.raises(RuntimeError, match=r"^Event loop stopped before Future completed\.$"):
        loop.run_until_complete(future)
    # It does not stop a later run either.
    loop.call_soon(future.set_result, None)
    started = loop.time()
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    assert loop.time() - started >= 0.01


def test_run_until_complete_leaves_other_tasks_for_the_next_run(loop: Loop) -> None:
    seen: list[int] = []

    async def slow() -> None:
        for i in range(5):
            seen.append(i)
            await asyncio.sleep(0)

    task = loop.create_task(slow())
    loop.run_until_complete(asyncio.sleep(0))
    assert 0 < len(seen) < 5
    loop.run_until_complete(task)
    assert seen == [0, 1, 2, 3, 4]


# --- errors ------------------------------------------------------------------------------------


def skip_where_a_refused_run_ends_the_first(loop: Loop) -> None:
    skip_if_asyncio_errs(
        loop, "a refused run_forever cleans up after the run that goes on", (3, 13), (3, 14)
    )


def test_running_a_running_loop_is_refused(loop: Loop) -> None:
    skip_where_a_refused_run_ends_the_first(loop)

    async def nested() -> None:
        coro = returns(1)
        with pytest.raises(RuntimeError, match=r"^This event loop is already running$"):
            loop.run_until_complete(coro)
        coro.close()
        with pytest.raises(RuntimeError, match=r"^This event loop is already running$"):
            loop.run_forever()
        assert loop.is_running()

    loop.run_until_complete(nested())
    assert loop.run_until_complete(returns(1)) == 1


def test_running_a_second_loop_inside_the_first_is_refused(
    loop: Loop, loop_factory: LoopFactory
) -> None:
    skip_where_a_refused_run_ends_the_first(loop)
    other = loop_factory()
    text = r"^Cannot run the event loop while another loop is running$"

    async def nested() -> None:
        coro = returns(1)
        with pytest.raises(RuntimeError, match=text):
            other.run_until_complete(coro)
        coro.close()
        with pytest.raises(RuntimeError, match=text):
            other.run_forever()
        assert not other.is_running()
        assert asyncio.get_running_loop() is loop

    try:
        loop.run_until_complete(nested())
    finally:
        other.close()


def test_running_a_loop_that_runs_in_another_thread_is_refused(loop: Loop) -> None:
    skip_where_a_refused_run_ends_the_first(loop)
    started = threading.Event()
    loop.call_soon(started.set)
    with in_thread(loop.run_forever):
        assert started.wait(5)
        try:
            with pytest.raises(RuntimeError, match=r"^This event loop is already running$"):
                loop.run_forever()
            assert loop.is_running()
        finally:
            loop.call_soon_threadsafe(loop.stop)


def test_closing_a_running_loop_is_refused(loop: Loop) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match=r"^Cannot close a running event loop$"):
            loop.close()
        assert not loop.is_closed()

    loop.run_until_complete(main())


def on_closed(loop: Any) -> dict[str, Callable[[], Any]]:
    return {
        "call_soon": lambda: loop.call_soon(print),
        "call_soon_threadsafe": lambda: loop.call_soon_threadsafe(print),
        "call_later": lambda: loop.call_later(1, print),
        "call_at": lambda: loop.call_at(1, print),
        "run_forever": lambda: loop.run_forever(),
        "run_until_complete": lambda: loop.run_until_complete(loop.create_future()),
        "run_in_executor": lambda: loop.run_in_executor(None, print),
        "add_reader": lambda: loop.add_reader(0, print),
        "add_writer": lambda: loop.add_writer(0, print),
        "add_signal_handler": lambda: loop.add_signal_handler(10, print),
    }


@pytest.mark.parametrize("name", on_closed(None))
def test_closed_loop_refuses(loop: Loop, name: str) -> None:
    loop.close()
    with pytest.raises(RuntimeError, match=r"^Event loop is closed$"):
        on_closed(loop)[name]()


def test_closed_loop_refuses_a_task(loop: Loop) -> None:
    loop.close()
    coro = returns(1)
    with pytest.raises(RuntimeError, match=r"^Event loop is closed$"):
        loop.create_task(coro)
    with pytest.raises(RuntimeError, match=r"^Event loop is closed$"):
        loop.run_until_complete(coro)
    coro.close()


def test_closed_loop_answers_what_does_not_need_it_open(loop: Loop) -> None:
    loop.close()
    assert loop.is_closed() is True
    assert loop.is_running() is False
    assert loop.get_debug() is False
    assert isinstance(loop.time(), float)
    assert loop.remove_reader(0) is False
    assert loop.remove_writer(0) is False
    assert isinstance(loop.create_future(), asyncio.Future)
    loop.stop()


# --- close -------------------------------------------------------------------------------------


def test_close_twice_is_harmless(loop: Loop) -> None:
    loop.close()
    loop.close()
    assert loop.is_closed()


def test_close_drops_what_was_scheduled(loop: Loop) -> None:
    class Thing:
        def method(self) -> None:
            raise AssertionError("ran")

    things = [Thing() for _ in range(4)]
    refs = [weakref.ref(thing) for thing in things]
    loop.call_soon(things[0].method)
    loop.call_soon_threadsafe(things[1].method)
    loop.call_later(0, things[2].method)
    loop.call_later(60, things[3].method)
    things.clear()
    loop.close()
    assert all(collected(ref) for ref in refs)


def test_handle_cancelled_after_close_is_harmless(loop: Loop) -> None:
    handles = [loop.call_soon(print), loop.call_later(60, print), loop.call_soon_threadsafe(print)]
    loop.close()
    for handle in handles:
        handle.cancel()
        assert handle.cancelled()


def test_dropped_open_loop_warns_and_names_itself(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    text = repr(loop)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del loop
        gc.collect()
    messages = [str(w.message) for w in caught if w.category is ResourceWarning]
    assert messages.count(f"unclosed event loop {text}") == 1


def test_dropped_closed_loop_does_not_warn(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    loop.run_until_complete(returns(1))
    loop.close()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del loop
        gc.collect()
    assert [str(w.message) for w in caught] == []


def test_closed_loop_in_a_reference_cycle_is_collected(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    loop.call_later(60, lambda: loop)
    loop.set_exception_handler(lambda *_: loop)  # type: ignore[arg-type]
    loop.me = loop  # type: ignore[attr-defined]
    loop.run_until_complete(returns(1))
    loop.close()
    ref = weakref.ref(loop)
    del loop
    assert collected(ref)


def test_loop_with_pending_callbacks_about_itself_is_collected(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    loop.call_soon(loop.stop)
    loop.call_soon_threadsafe(loop.stop)
    loop.call_later(60, loop.stop)
    ref = weakref.ref(loop)
    with pytest.warns(ResourceWarning, match=re.escape(f"unclosed event loop {loop!r}")):
        del loop
        assert collected(ref)
