"""Handle and TimerHandle: what the scheduling methods return."""

import asyncio
import contextvars
import functools
import gc
import re
import sys
import weakref
from typing import Any

import pytest
from support import LoopFactory, run_turn, run_until

Loop = asyncio.AbstractEventLoop


def callback(*args: object) -> None:
    pass


class Callable:
    def __call__(self) -> None: ...

    def method(self) -> None: ...

    def __repr__(self) -> str:
        return "Callable!"


def test_handles_are_instances_of_asyncios_classes(loop: Loop) -> None:
    soon, timer = loop.call_soon(callback), loop.call_later(60, callback)
    threadsafe = loop.call_soon_threadsafe(callback)
    assert isinstance(soon, asyncio.Handle)
    assert isinstance(threadsafe, asyncio.Handle)
    assert isinstance(timer, asyncio.Handle)
    assert isinstance(timer, asyncio.TimerHandle)
    assert not isinstance(soon, asyncio.TimerHandle)


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (callback, ()),
        (callback, (1, "two")),
        (callback, (None,)),
        (callback, ("x" * 1000,)),
        (len, ([],)),
        (Callable(), ()),
        (Callable().method, ()),
        (functools.partial(callback, 1), (2,)),
        (functools.partial(functools.partial(callback, 1), 2), ()),
        (lambda: None, ()),
    ],
)
@pytest.mark.parametrize("debug", [False, True])
def test_repr_is_asyncios(loop: Loop, function: Any, args: Any, debug: bool) -> None:
    loop.set_debug(debug)
    created = f"created at {__file__}:\\d+" if debug else ""
    handle = loop.call_soon(function, *args)
    expected = repr(asyncio.Handle(function, args, loop))
    if debug:
        expected = re.sub(r" created at .*>$", ">", expected)
    without = re.sub(f" {created}>$", ">", repr(handle)) if debug else repr(handle)
    assert without == expected
    if debug:
        assert re.search(f" {created}>$", repr(handle))


@pytest.mark.parametrize("debug", [False, True])
def test_repr_of_a_timer_handle(loop: Loop, debug: bool) -> None:
    loop.set_debug(debug)
    timer = loop.call_at(1234.5, callback, 1)
    expected = repr(asyncio.TimerHandle(1234.5, callback, (1,), loop))
    expected = re.sub(r" created at .*$", "", expected.removesuffix(">"))
    assert expected.startswith("<TimerHandle when=1234.5 callback(")
    actual = re.sub(rf" created at {re.escape(__file__)}:\d+$", "", repr(timer).removesuffix(">"))
    assert actual == expected
    assert ("created at" in repr(timer)) is debug


def test_repr_of_cancelled_handles(loop: Loop) -> None:
    soon, timer = loop.call_soon(callback), loop.call_at(1234.5, callback)
    soon.cancel()
    timer.cancel()
    assert repr(soon) == "<Handle cancelled>"
    assert repr(timer) == "<TimerHandle cancelled when=1234.5>"


def test_repr_of_cancelled_handles_in_debug_mode_keeps_the_callback(loop: Loop) -> None:
    loop.set_debug(True)
    soon, timer = loop.call_soon(callback, 1), loop.call_at(1234.5, callback)
    soon.cancel()
    timer.cancel()
    where = re.escape(__file__)
    line = callback.__code__.co_firstlineno
    assert re.fullmatch(
        rf"<Handle cancelled callback\(1\) at {where}:{line} created at {where}:\d+>", repr(soon)
    )
    assert re.fullmatch(
        rf"<TimerHandle cancelled when=1234\.5 callback\(\) at {where}:{line} "
        rf"created at {where}:\d+>",
        repr(timer),
    )


def test_cancel_drops_the_callback_and_its_arguments(loop: Loop) -> None:
    class Thing:
        pass

    thing, function = Thing(), functools.partial(callback)
    things = weakref.ref(thing), weakref.ref(function)
    handle = loop.call_soon(function, thing)
    del thing, function
    assert all(ref() is not None for ref in things)
    handle.cancel()
    assert all(ref() is None for ref in things)


def test_handle_keeps_its_callback_after_it_ran(loop: Loop) -> None:
    # Programs print a handle that already ran.
    handle = loop.call_soon(callback, 1)
    before = repr(handle)
    run_turn(loop)
    assert repr(handle) == before


def test_run_calls_the_callback_in_its_context(loop: Loop) -> None:
    var: contextvars.ContextVar[str] = contextvars.ContextVar("var")
    context = contextvars.copy_context()
    context.run(var.set, "inside")
    seen: list[Any] = []
    handle = loop.call_soon(lambda *args: seen.append((args, var.get())), 1, 2, context=context)
    assert handle._run() is None
    assert seen == [((1, 2), "inside")]


def test_run_reports_an_exception(loop: Loop, reported: list[dict[str, Any]]) -> None:
    handle = loop.call_soon(int, "x")
    handle._run()
    (context,) = reported
    assert context["handle"] is handle
    assert context["message"].startswith("Exception in callback int(")
    assert isinstance(context["exception"], ValueError)
    handle.cancel()


def test_private_names_that_programs_read(loop: Loop) -> None:
    soon, timer = loop.call_soon(callback, 1, 2), loop.call_at(1234.5, callback)
    assert soon._callback is callback
    assert soon._args == (1, 2)
    assert soon._cancelled is False
    assert timer._when == 1234.5
    assert timer._scheduled is True
    timer.cancel()
    soon.cancel()
    assert soon._cancelled is True
    assert timer._cancelled is True
    assert soon._callback is None
    assert soon._args is None


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Handle.get_context is new in 3.12")
def test_get_context(loop: Loop) -> None:
    context = contextvars.copy_context()
    assert loop.call_soon(callback, context=context).get_context() is context
    assert loop.call_later(60, callback, context=context).get_context() is context
    assert isinstance(loop.call_soon(callback).get_context(), contextvars.Context)


def test_handles_can_be_weakly_referenced_and_hashed(loop: Loop) -> None:
    handle, other = loop.call_soon(callback), loop.call_soon(callback)
    ref = weakref.ref(handle)
    assert ref() is handle
    assert len({handle, other, handle}) == 2
    assert handle != other
    assert handle == handle
    run_turn(loop)
    del handle
    assert ref() is None


def test_when(loop: Loop) -> None:
    before = loop.time()
    later = loop.call_later(100, callback)
    after = loop.time()
    assert before + 100 <= later.when() <= after + 100
    assert loop.call_at(1234.5, callback).when() == 1234.5
    assert loop.call_at(-7, callback).when() == -7
    later.cancel()
    assert later.when() >= before + 100


def test_timer_handles_compare_by_their_deadline(loop: Loop) -> None:
    early, late = loop.call_at(1e9, callback), loop.call_at(2e9, callback)
    same = loop.call_at(1e9, callback)
    other = loop.call_at(1e9, callback, 1)
    assert (early < late, early <= late, early > late, early >= late) == (True, True, False, False)
    assert (late < early, late <= early, late > early, late >= early) == (False, False, True, True)
    assert early == same
    assert not early != same
    assert early <= same
    assert early >= same
    assert not early < same
    assert not early > same
    # The same deadline with another callback or other arguments is not equal, and neither less.
    assert early != other
    assert not early <= other
    assert not early >= other
    same.cancel()
    assert early != same


def test_timer_handles_compare_with_nothing_else(loop: Loop) -> None:
    timer = loop.call_at(1e9, callback)
    assert timer != 1e9
    assert timer != loop.call_soon(callback)
    for compare in ("__lt__", "__le__", "__gt__", "__ge__", "__eq__"):
        assert getattr(timer, compare)(1e9) is NotImplemented
    with pytest.raises(TypeError, match="not supported between instances of"):
        _ = timer < 1e9  # type: ignore[operator]


def test_timer_handle_hashes_as_its_deadline(loop: Loop) -> None:
    assert hash(loop.call_at(1234.5, callback)) == hash(1234.5)
    assert hash(loop.call_at(7, callback)) == hash(7)


def test_sorting_timer_handles(loop: Loop) -> None:
    handles = [loop.call_at(when, callback) for when in (3e9, 1e9, 2e9)]
    assert [handle.when() for handle in sorted(handles)] == [1e9, 2e9, 3e9]


class Keeper:
    """Refers to itself through a handle, as programs do that may cancel their timers."""

    def __init__(self, loop: Loop, delay: float | None) -> None:
        self.called = 0
        if delay is None:
            self.handle: asyncio.Handle = loop.call_soon(self.call, self)
        else:
            self.handle = loop.call_later(delay, self.call, self)

    def call(self, _self: object) -> None:
        self.called += 1


@pytest.mark.parametrize("delay", [None, 0, 0.001])
def test_a_handle_that_is_kept_after_its_call_is_no_leak(loop: Loop, delay: float | None) -> None:
    keepers = [Keeper(loop, delay) for _ in range(1000)]
    weak = [weakref.ref(keeper) for keeper in keepers]
    gc.collect()
    run_until(loop, lambda: keepers[-1].called == 1)
    assert [keeper.called for keeper in keepers] == [1] * 1000
    keepers.clear()
    gc.collect()
    assert not any(ref() for ref in weak)


@pytest.mark.parametrize("delay", [None, 1000])
def test_a_handle_that_waits_is_no_leak_when_its_loop_goes(
    loop_factory: LoopFactory, delay: float | None
) -> None:
    loop = loop_factory()
    weak = weakref.ref(Keeper(loop, delay))
    gc.collect()
    assert weak()
    loop.close()
    del loop
    gc.collect()
    assert weak() is None
