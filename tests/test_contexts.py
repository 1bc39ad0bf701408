"""Contexts: in which contextvars.Context a scheduled callback runs."""

import asyncio
import contextvars
import gc
import logging
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from support import LoopFactory, run_turn

Loop = asyncio.AbstractEventLoop

var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="default")

SCHEDULERS: dict[str, Callable[..., Any]] = {
    "call_soon": lambda loop, *args, **kw: loop.call_soon(*args, **kw),
    "call_soon_threadsafe": lambda loop, *args, **kw: loop.call_soon_threadsafe(*args, **kw),
    "call_later": lambda loop, *args, **kw: loop.call_later(0, *args, **kw),
    "call_at": lambda loop, *args, **kw: loop.call_at(0, *args, **kw),
}
each_scheduler = pytest.mark.parametrize("schedule", SCHEDULERS.values(), ids=SCHEDULERS.keys())


@each_scheduler
def test_callback_runs_in_the_context_of_the_call(loop: Loop, schedule: Callable[..., Any]) -> None:
    seen: list[str] = []
    token = var.set("at the call")
    schedule(loop, lambda: seen.append(var.get()))
    var.set("afterwards")
    loop.stop()
    loop.run_forever()
    var.reset(token)
    assert seen == ["at the call"]


@each_scheduler
def test_callback_cannot_change_the_callers_context(
    loop: Loop, schedule: Callable[..., Any]
) -> None:
    seen: list[str] = []
    schedule(loop, var.set, "changed")
    schedule(loop, lambda: seen.append(var.get()))
    loop.stop()
    loop.run_forever()
    assert seen == ["default"]
    assert var.get() == "default"


@each_scheduler
def test_context_argument_is_used_itself(loop: Loop, schedule: Callable[..., Any]) -> None:
    seen: list[str] = []
    context = contextvars.copy_context()
    context.run(var.set, "given")

    def body() -> None:
        seen.append(var.get())
        var.set("changed")

    schedule(loop, body, context=context)
    loop.stop()
    loop.run_forever()
    assert seen == ["given"]
    assert context[var] == "changed"
    assert var.get() == "default"


@each_scheduler
def test_context_of_none_means_a_copy_of_the_current_one(
    loop: Loop, schedule: Callable[..., Any]
) -> None:
    seen: list[str] = []
    token = var.set("current")
    schedule(loop, lambda: seen.append(var.get()), context=None)
    var.reset(token)
    loop.stop()
    loop.run_forever()
    assert seen == ["current"]


def test_callbacks_that_share_a_context_see_each_others_changes(loop: Loop) -> None:
    seen: list[str] = []
    shared, other = contextvars.copy_context(), contextvars.copy_context()

    def step(new: str) -> None:
        seen.append(var.get())
        var.set(new)

    for context, new in (
        (shared, "s1"),
        (shared, "s2"),
        (other, "o1"),
        (shared, "s3"),
        (other, "o2"),
        (other, "o3"),
        (shared, "s4"),
    ):
        loop.call_soon(step, new, context=context)
    run_turn(loop)
    assert seen == ["default", "s1", "default", "s2", "o1", "o2", "s3"]
    assert (shared[var], other[var]) == ("s4", "o3")
    assert var.get() == "default"


def test_context_that_is_already_entered_is_reported_not_run(
    loop: Loop, reported: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []
    context = contextvars.copy_context()
    loop.call_soon(seen.append, "ran", context=context)
    loop.call_soon(seen.append, "the next callback")
    loop.call_soon(loop.stop)
    context.run(loop.run_forever)
    assert seen == ["the next callback"]
    message = f"cannot enter context: {context} is already entered"
    if sys.version_info < (3, 12):
        (report,) = reported
        assert isinstance(report["exception"], RuntimeError)
        assert str(report["exception"]) == message
        assert report["message"].startswith("Exception in callback list.append")
        return
    # The handler is to run in that context too, which fails in the same way: both are logged.
    assert reported == []
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("asyncio", logging.ERROR)
    assert record.getMessage().startswith("Unhandled error in exception handler\ncontext: {")
    assert message in record.getMessage()
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == message


def test_shared_context_is_free_while_the_loop_does_not_run_it(loop: Loop) -> None:
    context = contextvars.copy_context()
    seen: list[str] = []
    for i in range(3):
        loop.call_soon(seen.append, f"callback {i}", context=context)
    run_turn(loop)
    context.run(seen.append, "between")
    loop.call_soon(seen.append, "again", context=context)
    run_turn(loop)
    assert seen == ["callback 0", "callback 1", "callback 2", "between", "again"]


def test_context_that_is_not_a_context_is_refused(
    loop: Loop, reported: list[dict[str, Any]]
) -> None:
    # asyncio finds out when the callback runs, a native loop may say so at the call.
    seen: list[str] = []
    try:
        loop.call_soon(seen.append, "ran", context=42)  # type: ignore[arg-type]
    except TypeError:
        pass
    else:
        run_turn(loop)
        (report,) = reported
        assert isinstance(report["exception"], (AttributeError, TypeError))
    assert seen == []


@pytest.mark.parametrize("name", ["call_soon", "call_soon_threadsafe"])
def test_callbacks_of_the_same_context_keep_what_they_change_to_themselves(
    loop: Loop, name: str
) -> None:
    schedule = SCHEDULERS[name]
    seen: list[str] = []

    def look() -> None:
        seen.append(var.get())

    def change() -> None:
        look()
        var.set("changed")
        loop.call_soon(look)

    def change_and_reset() -> None:
        token = var.set("for a moment")
        look()
        var.reset(token)
        look()

    handles = [
        schedule(loop, step) for step in (look, change, look, change_and_reset, look, change, look)
    ]
    for _ in range(2):
        loop.stop()
        loop.run_forever()
    assert seen == [
        *["default"] * 3,
        *["for a moment", "default"],
        *["default"] * 3,
        *["changed"] * 2,
    ]
    # What a callback changed is in its handle's context, and in no other.
    contexts = [handle._context for handle in handles]
    found = [context.get(var, "default") for context in contexts]
    assert found == ["default", "changed", *["default"] * 3, "changed", "default"]
    assert len({id(context) for context in contexts}) == len(contexts)


def test_each_handle_has_a_context_of_its_own(loop: Loop) -> None:
    handles: list[Any] = [loop.call_soon(lambda: None) for _ in range(3)]
    first, second, third = (handle._context for handle in handles)
    assert handles[0]._context is first
    first.run(var.set, "changed")
    seen: list[str] = []
    handles[1].cancel()
    loop.call_soon(lambda: seen.append(var.get()))
    run_turn(loop)
    assert (first[var], second.get(var), third.get(var)) == ("changed", None, None)
    assert seen == ["default"]


class Value(str):
    """Something that can be referred to weakly."""

    __slots__ = ("__weakref__",)


@pytest.mark.parametrize("way", ["run", "cancel", "close"])
def test_the_values_of_a_context_go_with_the_last_callback(
    loop_factory: LoopFactory, way: str
) -> None:
    loop = loop_factory()
    value = Value("value")
    gone = weakref.ref(value)
    token = var.set(value)
    handles = [loop.call_soon(lambda: None) for _ in range(3)]
    timers = [loop.call_later(0, lambda: None) for _ in range(3)]
    var.reset(token)
    del value, token
    if way == "run":
        run_turn(loop)
        run_turn(loop)
    elif way == "cancel":
        for handle in (*handles, *timers):
            handle.cancel()
        run_turn(loop)
    else:
        loop.close()
    assert gone() is not None
    del handles, timers
    handle = None
    gc.collect()
    assert gone() is None
    loop.close()


def test_collector_sees_through_queued_callbacks_without_handles(
    loop_factory: LoopFactory,
) -> None:
    loop = loop_factory()
    gone = weakref.ref(loop)
    token = var.set(Value("value"))
    held: list[Any] = [loop, var.get()]
    for _ in range(2000):
        loop.call_soon(held.append, held)
    var.reset(token)
    loop.close()  # drops the callbacks; without it asyncio's loop would warn
    del loop, held, token
    gc.collect()
    assert gone() is None
