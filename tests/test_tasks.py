"""Tasks and futures on the loop: creation, factories, eager tasks, cancellation, groups."""

import asyncio
import contextvars
import gc
import inspect
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from support import run_turn

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]

eager = pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are new in 3.12")
#: Whether create_task hands name= and every other keyword to the task factory (3.13.3, 3.14).
PASSES_KEYWORDS = "name" not in inspect.signature(asyncio.BaseEventLoop.create_task).parameters


async def returns(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


async def raises(exc: BaseException) -> None:
    await asyncio.sleep(0)
    raise exc


# --- create_task -------------------------------------------------------------------------------


def test_create_task_returns_a_task_that_is_a_future(loop: Loop, run: Run) -> None:
    async def main() -> None:
        task = loop.create_task(returns(1))
        assert type(task) is asyncio.Task
        assert isinstance(task, asyncio.Future)
        assert asyncio.isfuture(task)
        assert task.get_loop() is loop
        assert not task.done()
        assert await task == 1
        assert task.done()
        assert task.result() == 1

    run(main)


def test_create_future_returns_asyncios_future(loop: Loop) -> None:
    future = loop.create_future()
    assert type(future) is asyncio.Future
    assert future.get_loop() is loop
    assert not future.done()
    with pytest.raises(asyncio.InvalidStateError, match=r"^Result is not set\.$"):
        future.result()


def test_create_task_name(loop: Loop, run: Run) -> None:
    async def main() -> None:
        named = loop.create_task(returns(1), name="mine")
        assert named.get_name() == "mine"
        assert "name='mine'" in repr(named)
        number = loop.create_task(returns(1), name=7)  # type: ignore[arg-type]
        assert number.get_name() == "7"
        first, second = loop.create_task(returns(1)), loop.create_task(returns(1), name=None)
        prefix, _, count = first.get_name().partition("-")
        assert prefix == "Task"
        assert second.get_name() == f"Task-{int(count) + 1}"
        await asyncio.gather(named, number, first, second)

    run(main)


def test_create_task_context(loop: Loop, run: Run) -> None:
    var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="outside")
    context = contextvars.copy_context()
    context.run(var.set, "given")

    async def body() -> tuple[str, str]:
        before = var.get()
        await asyncio.sleep(0)
        var.set("changed")
        return before, var.get()

    async def main() -> None:
        assert await loop.create_task(body(), context=context) == ("given", "changed")
        assert context[var] == "changed"
        assert await loop.create_task(body()) == ("outside", "changed")
        assert await loop.create_task(body(), context=None) == ("outside", "changed")
        assert var.get() == "outside"

    run(main)


@pytest.mark.skipif(sys.version_info < (3, 14), reason="eager_start is new in 3.14")
def test_create_task_eager_start(loop: Loop, run: Run) -> None:
    seen: list[str] = []

    async def body(name: str) -> str:
        seen.append(name)
        await asyncio.sleep(0)
        return name

    async def main() -> None:
        later = loop.create_task(body("later"), eager_start=False)  # type: ignore[call-arg]
        now = loop.create_task(body("now"), eager_start=True)  # type: ignore[call-arg]
        unset = loop.create_task(body("unset"), eager_start=None)  # type: ignore[call-arg]
        assert seen == ["now"]
        assert await asyncio.gather(later, now, unset) == ["later", "now", "unset"]
        assert seen == ["now", "later", "unset"]

    run(main)


def test_create_task_refuses_unknown_keywords(loop: Loop) -> None:
    coro = returns(1)
    with pytest.raises(TypeError, match="key"):
        loop.create_task(coro, key=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional argument"):
        loop.create_task(coro, "name")  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional argument"):
        loop.create_task()  # type: ignore[call-arg]
    coro.close()


def test_create_task_refuses_what_is_no_coroutine(loop: Loop) -> None:
    with pytest.raises(TypeError, match=r"^a coroutine was expected, got 42$"):
        loop.create_task(42)  # type: ignore[arg-type]


def test_task_steps_alternate(loop: Loop, run: Run) -> None:
    seen: list[str] = []

    async def count(name: str) -> None:
        for i in range(3):
            seen.append(f"{name}{i}")
            await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(count("a"), count("b"), count("c"))

    run(main)
    assert seen == [f"{name}{i}" for i in range(3) for name in "abc"]


def test_task_takes_a_turn_to_start_and_one_for_its_callbacks(loop: Loop) -> None:
    seen: list[str] = []

    async def body() -> None:
        seen.append("ran")

    task = loop.create_task(body())
    task.add_done_callback(lambda _: seen.append("callback"))
    run_turn(loop)
    assert seen == ["ran"]
    assert task.done()
    run_turn(loop)
    assert seen == ["ran", "callback"]


def test_future_callbacks_run_in_order_and_in_their_contexts(loop: Loop) -> None:
    var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="none")
    seen: list[tuple[int, str]] = []
    future = loop.create_future()
    for i in range(3):
        var.set(f"context {i}")
        future.add_done_callback(lambda _, i=i: seen.append((i, var.get())))
    special = contextvars.copy_context()
    special.run(var.set, "special")
    future.add_done_callback(lambda _: seen.append((3, var.get())), context=special)
    var.set("at the result")
    future.set_result(None)
    assert seen == []
    run_turn(loop)
    assert seen == [(0, "context 0"), (1, "context 1"), (2, "context 2"), (3, "special")]


def test_ten_thousand_tasks(loop: Loop, run: Run) -> None:
    async def main() -> list[int]:
        results = await asyncio.gather(*(returns(i) for i in range(10_000)))
        return list(results)

    assert run(main) == list(range(10_000))


# --- task factory ------------------------------------------------------------------------------


def test_task_factory_is_none_at_first_and_can_be_reset(loop: Loop) -> None:
    assert loop.get_task_factory() is None

    def factory(loop: Loop, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=loop, **kwargs)

    loop.set_task_factory(factory)
    assert loop.get_task_factory() is factory
    loop.set_task_factory(None)
    assert loop.get_task_factory() is None


def test_task_factory_must_be_callable(loop: Loop) -> None:
    with pytest.raises(TypeError, match=r"^task factory must be a callable or None$"):
        loop.set_task_factory(42)  # type: ignore[arg-type]
    assert loop.get_task_factory() is None


def test_task_factory_gets_the_keywords_that_were_given(loop: Loop, run: Run) -> None:
    calls: list[tuple[Any, ...]] = []

    def factory(*args: Any, **kwargs: Any) -> asyncio.Task[Any]:
        calls.append((args[0], args[1].__name__, len(args), dict(kwargs)))
        kwargs.pop("name", None)
        return asyncio.Task(args[1], loop=args[0], **kwargs)

    context = contextvars.copy_context()

    async def main() -> None:
        loop.set_task_factory(factory)
        tasks = [
            loop.create_task(returns(0)),
            loop.create_task(returns(1), name="mine"),
            loop.create_task(returns(2), context=context),
        ]
        if not PASSES_KEYWORDS:
            # The loop names the task when the factory did not.
            assert tasks[1].get_name() == "mine"
        assert await asyncio.gather(*tasks) == [0, 1, 2]

    run(main)
    name = {"name": "mine"} if PASSES_KEYWORDS else {}
    expected: list[dict[str, Any]] = [{}, name, {"context": context}]
    assert calls == [(loop, "returns", 2, kwargs) for kwargs in expected]


def test_asyncio_create_task_goes_through_the_factory(loop: Loop, run: Run) -> None:
    made: list[asyncio.Task[Any]] = []

    def factory(loop: Loop, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=loop, **kwargs)
        made.append(task)
        return task

    async def main() -> None:
        loop.set_task_factory(factory)
        task = asyncio.create_task(returns(1), name="mine")
        ensured = asyncio.ensure_future(returns(2))
        assert made == [task, ensured]
        assert task.get_name() == "mine"
        assert await asyncio.gather(task, ensured) == [1, 2]

    run(main)


def test_task_factory_error_reaches_the_caller(loop: Loop, run: Run) -> None:
    def factory(loop: Loop, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
        coro.close()
        raise LookupError("no tasks today")

    async def main() -> None:
        loop.set_task_factory(factory)
        with pytest.raises(LookupError, match="no tasks today"):
            loop.create_task(returns(1))
        loop.set_task_factory(None)

    run(main)


# --- eager tasks -------------------------------------------------------------------------------


@eager
def test_eager_task_runs_to_its_first_wait_at_once(loop: Loop, run: Run) -> None:
    seen: list[str] = []

    async def body() -> str:
        seen.append("start")
        assert asyncio.current_task() in asyncio.all_tasks()
        await asyncio.sleep(0)
        seen.append("end")
        return "result"

    async def main() -> None:
        loop.set_task_factory(asyncio.eager_task_factory)
        me = asyncio.current_task()
        task = asyncio.create_task(body(), name="mine")
        assert seen == ["start"]
        assert not task.done()
        assert asyncio.current_task() is me
        assert task.get_name() == "mine"
        assert await task == "result"

    run(main)
    assert seen == ["start", "end"]


@eager
def test_eager_task_that_never_waits_is_done_at_once(loop: Loop, run: Run) -> None:
    async def body() -> int:
        return 42

    async def main() -> None:
        loop.set_task_factory(asyncio.eager_task_factory)
        task = asyncio.create_task(body())
        assert task.done()
        assert task.result() == 42
        assert await asyncio.gather(body(), body()) == [42, 42]
        async with asyncio.TaskGroup() as group:
            assert group.create_task(body()).done()

    run(main)


@eager
def test_eager_task_context(loop: Loop, run: Run) -> None:
    var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="outside")
    context = contextvars.copy_context()
    context.run(var.set, "given")

    async def body() -> str:
        return var.get()

    async def main() -> None:
        loop.set_task_factory(asyncio.eager_task_factory)
        assert loop.create_task(body(), context=context).result() == "given"
        assert loop.create_task(body()).result() == "outside"

    run(main)


# --- what asyncio knows of tasks ---------------------------------------------------------------


def test_current_task_and_all_tasks(loop: Loop, run: Run) -> None:
    async def child() -> asyncio.Task[Any] | None:
        await asyncio.sleep(0)
        return asyncio.current_task()

    async def main() -> None:
        me = asyncio.current_task()
        assert me is not None
        assert asyncio.current_task(loop) is me
        task = loop.create_task(child())
        assert asyncio.all_tasks() >= {me, task}
        assert await task is task
        assert task not in asyncio.all_tasks()
        assert asyncio.current_task() is me

    assert asyncio.all_tasks(loop) == set()
    run(main)
    assert asyncio.all_tasks(loop) == set()


def test_no_current_task_in_a_plain_callback(loop: Loop) -> None:
    seen: list[Any] = []
    loop.call_soon(lambda: seen.append(asyncio.current_task()))
    run_turn(loop)
    assert seen == [None]


def test_ensure_future(loop: Loop, run: Run) -> None:
    class Awaitable:
        def __await__(self) -> Any:
            return returns("awaited").__await__()

    async def main() -> None:
        future = loop.create_future()
        assert asyncio.ensure_future(future) is future
        task = asyncio.ensure_future(returns("ran"))
        assert isinstance(task, asyncio.Task)
        assert task.get_loop() is loop
        wrapped = asyncio.ensure_future(Awaitable())
        assert isinstance(wrapped, asyncio.Task)
        assert await asyncio.gather(task, wrapped) == ["ran", "awaited"]
        with pytest.raises(
            TypeError, match=r"^An asyncio\.Future, a coroutine or an awaitable is required$"
        ):
            await asyncio.ensure_future(42)  # type: ignore[type-var]

    run(main)


def test_ensure_future_outside_with_the_loop_named(loop: Loop) -> None:
    task = asyncio.ensure_future(returns(1), loop=loop)
    assert isinstance(task, asyncio.Task)
    assert loop.run_until_complete(task) == 1


def test_task_of_another_loop_cannot_be_awaited(loop: Loop, run: Run) -> None:
    other = asyncio.SelectorEventLoop()
    future = other.create_future()

    async def main() -> None:
        await future

    try:
        with pytest.raises(RuntimeError, match="attached to a different loop"):
            run(main)
    finally:
        other.close()


def test_task_destroyed_while_pending_is_reported(
    loop: Loop, run: Run, reported: list[dict[str, Any]]
) -> None:
    async def forever() -> None:
        await loop.create_future()

    async def main() -> None:
        task = loop.create_task(forever(), name="lonely")
        await asyncio.sleep(0)
        del task
        gc.collect()

    run(main)
    (context,) = reported
    assert context["message"] == "Task was destroyed but it is pending!"
    assert context["task"].get_name() == "lonely"


def test_exception_that_nobody_takes_is_reported(
    loop: Loop, run: Run, reported: list[dict[str, Any]]
) -> None:
    async def main() -> None:
        task = loop.create_task(raises(ValueError("unseen")))
        await asyncio.wait([task])
        del task
        future = loop.create_future()
        future.set_exception(LookupError("unseen too"))
        del future
        gc.collect()

    run(main)
    gc.collect()
    messages = {context["message"]: context["exception"] for context in reported}
    assert set(messages) == {
        "Task exception was never retrieved",
        "Future exception was never retrieved",
    }
    assert isinstance(messages["Task exception was never retrieved"], ValueError)
    assert isinstance(messages["Future exception was never retrieved"], LookupError)


# --- cancellation ------------------------------------------------------------------------------


def test_cancel_before_the_start_never_runs_the_coroutine(loop: Loop, run: Run) -> None:
    seen: list[str] = []

    async def body() -> None:
        seen.append("ran")

    async def main() -> None:
        task = loop.create_task(body())
        assert task.cancel() is True
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert task.cancel() is False

    run(main)
    assert seen == []


def test_cancel_reaches_the_innermost_wait_with_its_message(loop: Loop, run: Run) -> None:
    inner: list[Any] = []

    async def body() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError as exc:
            inner.append(exc.args)
            raise

    async def main() -> None:
        task = loop.create_task(body())
        await asyncio.sleep(0)
        task.cancel("the reason")
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert caught.value.args == ("the reason",)

    run(main)
    assert inner == [("the reason",)]


def test_task_may_ignore_cancellation(loop: Loop, run: Run) -> None:
    async def stubborn() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass
        return "survived"

    async def main() -> None:
        task = loop.create_task(stubborn())
        await asyncio.sleep(0)
        task.cancel()
        assert task.cancelling() == 1
        assert await task == "survived"
        assert task.uncancel() == 0

    run(main)


def test_cancelled_sleep_leaves_no_timer(loop: Loop, run: Run) -> None:
    import weakref

    class Result:
        pass

    result = Result()
    ref = weakref.ref(result)

    async def main(results: list[Result]) -> None:
        task = loop.create_task(asyncio.sleep(3600, results.pop()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    results = [result]
    del result
    run(main, results)
    gc.collect()
    assert ref() is None


def test_cancelling_the_waiter_cancels_what_it_waits_for(loop: Loop, run: Run) -> None:
    async def main() -> None:
        future: asyncio.Future[None] = loop.create_future()

        async def wait() -> None:
            await future

        task = loop.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert future.cancelled()

    run(main)


def test_coroutine_that_outlives_its_cancellation_by_the_loops_end(loop: Loop) -> None:
    seen: list[str] = []

    async def body() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            seen.append("cleaned up")

    task: Coroutine[Any, Any, None] | Any = loop.create_task(body())
    run_turn(loop)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)
    assert seen == ["cleaned up"]
