"""The small promises about coroutines, asynchronous iteration and asynchronous generators."""

import asyncio
import gc
import sys
import types
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any

import pytest
from support import run_turn

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]


# --- coroutine objects -------------------------------------------------------------------------


def test_calling_a_coroutine_function_runs_nothing(loop: Loop) -> None:
    seen: list[str] = []

    async def body() -> str:
        seen.append("ran")
        return "result"

    coro = body()
    assert isinstance(coro, types.CoroutineType)
    run_turn(loop)
    assert seen == []
    assert loop.run_until_complete(coro) == "result"
    assert seen == ["ran"]


def test_coroutine_that_nobody_awaits_warns(loop: Loop, run: Run) -> None:
    async def forgotten() -> None:
        pass

    async def main() -> None:
        forgotten()
        gc.collect()

    with pytest.warns(RuntimeWarning, match=r"coroutine '.*forgotten' was never awaited"):
        run(main)


def test_coroutine_cannot_be_awaited_twice(run: Run) -> None:
    async def body() -> int:
        return 1

    async def main() -> None:
        coro = body()
        assert await coro == 1
        with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
            await coro

    run(main)


def test_await_of_a_coroutine_does_not_take_a_turn(loop: Loop, run: Run) -> None:
    seen: list[str] = []

    async def inner() -> str:
        seen.append("inner")
        return "result"

    async def main() -> None:
        loop.call_soon(seen.append, "callback")
        assert await inner() == "result"
        seen.append("after")
        await asyncio.sleep(0)

    run(main)
    assert seen == ["inner", "after", "callback"]


def test_sleep_zero_gives_everyone_else_one_turn(loop: Loop, run: Run) -> None:
    seen: list[str] = []

    async def main() -> None:
        loop.call_soon(seen.append, "callback")
        await asyncio.sleep(0)
        seen.append("resumed")

    run(main)
    assert seen == ["callback", "resumed"]


def test_bare_yield_in_an_awaitable_takes_one_turn(loop: Loop, run: Run) -> None:
    seen: list[str] = []

    class Yield:
        def __await__(self) -> Generator[None, None, str]:
            yield
            return "resumed"

    async def main() -> None:
        loop.call_soon(seen.append, "callback")
        seen.append(await Yield())

    run(main)
    assert seen == ["callback", "resumed"]


# --- asynchronous iteration --------------------------------------------------------------------


class Countdown:
    """An asynchronous iterator that waits between its items."""

    def __init__(self, start: int) -> None:
        self.left = start

    def __aiter__(self) -> "Countdown":
        return self

    async def __anext__(self) -> int:
        if not self.left:
            raise StopAsyncIteration
        await asyncio.sleep(0)
        self.left -= 1
        return self.left


async def count(stop: int) -> AsyncIterator[int]:
    for i in range(stop):
        await asyncio.sleep(0)
        yield i


def test_async_for_lets_others_take_turns(loop: Loop, run: Run) -> None:
    seen: list[str] = []

    async def walk(name: str) -> None:
        async for i in Countdown(3):
            seen.append(f"{name}{i}")

    async def main() -> None:
        await asyncio.gather(walk("a"), walk("b"))

    run(main)
    assert seen == ["a2", "b2", "a1", "b1", "a0", "b0"]


def test_async_comprehension_lets_others_take_turns(run: Run) -> None:
    seen: list[str] = []

    def note(name: str, item: int) -> int:
        seen.append(f"{name}{item}")
        return item

    async def collect(name: str) -> list[int]:
        return [note(name, i) async for i in count(3) if i != 1]

    async def main() -> list[list[int]]:
        return list(await asyncio.gather(collect("a"), collect("b")))

    assert run(main) == [[0, 2], [0, 2]]
    assert seen == ["a0", "b0", "a2", "b2"]


def test_every_kind_of_async_comprehension(run: Run) -> None:
    async def double(value: int) -> int:
        await asyncio.sleep(0)
        return 2 * value

    async def main() -> None:
        assert {i async for i in count(3)} == {0, 1, 2}
        assert {i: await double(i) async for i in count(3)} == {0: 0, 1: 2, 2: 4}
        assert [await double(i) for i in range(3)] == [0, 2, 4]
        assert [i async for i in (await double(i) async for i in count(3))] == [0, 2, 4]
        assert [[j async for j in count(i)] async for i in count(3)] == [[], [0], [0, 1]]

    run(main)


def test_async_with_waits_on_both_ends(loop: Loop, run: Run) -> None:
    seen: list[str] = []

    class Manager:
        async def __aenter__(self) -> str:
            await asyncio.sleep(0)
            seen.append("enter")
            return "value"

        async def __aexit__(self, kind: Any, exc: Any, traceback: Any) -> bool:
            await asyncio.sleep(0)
            seen.append(f"exit {exc}")
            return True

    async def main() -> None:
        async with Manager() as value:
            seen.append(value)
            raise ValueError("mine")

    run(main)
    assert seen == ["enter", "value", "exit mine"]


# --- generator-based coroutines ----------------------------------------------------------------


def generator_based() -> Any:
    import rondel

    @rondel.coroutine
    def old_style(value: int) -> Generator[Any, Any, int]:
        """An old-style coroutine."""
        first = yield from asyncio.sleep(0, value).__await__()
        second = yield from inner(first)
        return first + second

    @rondel.coroutine
    def inner(value: int) -> Generator[Any, Any, int]:
        yield
        return 10 * value

    return old_style


def test_rondel_coroutine_is_awaitable(rondel_loop: Loop) -> None:
    old_style = generator_based()

    async def main() -> int:
        return int(await old_style(2))

    assert rondel_loop.run_until_complete(main()) == 22


def test_rondel_coroutine_runs_under_run_until_complete(rondel_loop: Loop) -> None:
    assert rondel_loop.run_until_complete(generator_based()(3)) == 33


def test_rondel_coroutine_runs_under_rondel_run() -> None:
    import rondel

    assert rondel.run(generator_based()(4)) == 44


def test_rondel_coroutine_is_taken_by_ensure_future_and_gather(rondel_loop: Loop) -> None:
    old_style = generator_based()

    async def main() -> list[int]:
        task = asyncio.ensure_future(old_style(1))
        assert isinstance(task, asyncio.Task)
        return list(await asyncio.gather(task, old_style(2), asyncio.wait_for(old_style(3), 5)))

    assert rondel_loop.run_until_complete(main()) == [11, 22, 33]


def test_rondel_coroutine_runs_nothing_until_awaited(rondel_loop: Loop) -> None:
    import rondel

    seen: list[str] = []

    @rondel.coroutine
    def body() -> Generator[Any, Any, None]:
        seen.append("ran")
        yield

    coro = body()
    run_turn(rondel_loop)
    assert seen == []
    rondel_loop.run_until_complete(coro)
    assert seen == ["ran"]


def test_rondel_coroutine_without_a_yield(rondel_loop: Loop) -> None:
    import rondel

    @rondel.coroutine
    def plain(value: int) -> int:
        return 2 * value

    @rondel.coroutine
    def returns_a_coroutine(value: int) -> Any:
        return asyncio.sleep(0, 3 * value)

    async def main() -> tuple[Any, Any]:
        return await plain(4), await returns_a_coroutine(4)

    assert rondel_loop.run_until_complete(main()) == (8, 12)


def test_rondel_coroutine_keeps_name_and_docstring() -> None:
    old_style = generator_based()
    assert old_style.__name__ == "old_style"
    assert old_style.__doc__ == "An old-style coroutine."


def test_rondel_coroutine_passes_exceptions_and_cancellation(rondel_loop: Loop) -> None:
    import rondel

    seen: list[str] = []

    @rondel.coroutine
    def waits() -> Generator[Any, Any, None]:
        try:
            yield from asyncio.sleep(60).__await__()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    @rondel.coroutine
    def fails() -> Generator[Any, Any, None]:
        yield
        raise ValueError("mine")

    async def main() -> None:
        task = asyncio.ensure_future(waits())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(ValueError, match="mine"):
            await fails()

    rondel_loop.run_until_complete(main())
    assert seen == ["cancelled"]


def test_types_coroutine_is_awaited_on_the_loop(loop: Loop, run: Run) -> None:
    @types.coroutine
    def old_style() -> Generator[Any, Any, str]:
        yield
        return "result"

    async def main() -> str:
        return await old_style()

    assert run(main) == "result"


# --- asynchronous generators -------------------------------------------------------------------


class Closing:
    """An asynchronous generator that notes how it ended."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def numbers(self) -> AsyncIterator[int]:
        try:
            for i in range(100):
                yield i
                await asyncio.sleep(0)
        finally:
            await asyncio.sleep(0)
            self.seen.append("closed")


def test_generator_hooks_are_the_loops_while_it_runs(loop: Loop, run: Run) -> None:
    before = sys.get_asyncgen_hooks()

    async def main() -> None:
        hooks = sys.get_asyncgen_hooks()
        assert hooks.firstiter is not None
        assert hooks.finalizer is not None
        assert hooks != before

    run(main)
    assert sys.get_asyncgen_hooks() == before


def test_generator_hooks_of_the_program_are_restored(loop: Loop, run: Run) -> None:
    def firstiter(agen: object) -> None: ...

    def finalizer(agen: object) -> None: ...

    before = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(firstiter=firstiter, finalizer=finalizer)
    try:
        run(asyncio.sleep, 0)
        hooks = sys.get_asyncgen_hooks()
        assert hooks.firstiter is firstiter
        assert hooks.finalizer is finalizer
        loop.call_soon(sys.exit)
        with pytest.raises(SystemExit):
            loop.run_forever()
        assert sys.get_asyncgen_hooks().firstiter is firstiter
    finally:
        sys.set_asyncgen_hooks(*before)


def test_dropped_generator_is_closed_by_the_loop(loop: Loop, run: Run) -> None:
    closing = Closing()

    async def main() -> None:
        generator = closing.numbers()
        assert await anext(generator) == 0
        del generator
        gc.collect()
        assert closing.seen == []
        for _ in range(5):
            await asyncio.sleep(0)

    run(main)
    assert closing.seen == ["closed"]


def test_generator_dropped_in_another_thread_is_closed_on_the_loop(loop: Loop, run: Run) -> None:
    closing = Closing()
    holder: list[Any] = []

    async def main() -> None:
        holder.append(closing.numbers())
        assert await anext(holder[0]) == 0
        await loop.run_in_executor(None, holder.clear)
        for _ in range(20):
            await asyncio.sleep(0.001)

    run(main)
    assert closing.seen == ["closed"]


def test_shutdown_asyncgens_closes_what_is_left(loop: Loop, run: Run) -> None:
    closing = [Closing() for _ in range(3)]
    generators = [each.numbers() for each in closing]

    async def main() -> None:
        for generator in generators:
            assert await anext(generator) == 0

    run(main)
    assert [each.seen for each in closing] == [[], [], []]
    assert loop.run_until_complete(loop.shutdown_asyncgens()) is None
    assert [each.seen for each in closing] == [["closed"]] * 3


def test_shutdown_asyncgens_leaves_finished_generators_alone(loop: Loop, run: Run) -> None:
    closing = Closing()

    async def main() -> list[int]:
        return [i async for i in closing.numbers()]

    assert run(main) == list(range(100))
    assert closing.seen == ["closed"]
    loop.run_until_complete(loop.shutdown_asyncgens())
    assert closing.seen == ["closed"]


def test_shutdown_asyncgens_reports_errors(
    loop: Loop, run: Run, reported: list[dict[str, Any]]
) -> None:
    error = ValueError("mine")

    async def failing() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            raise error

    generator = failing()

    async def main() -> None:
        await anext(generator)

    run(main)
    loop.run_until_complete(loop.shutdown_asyncgens())
    (context,) = reported
    assert context == {
        "message": f"an error occurred during closing of asynchronous generator {generator!r}",
        "exception": error,
        "asyncgen": generator,
    }


def test_generator_started_after_the_shutdown_warns(loop: Loop, run: Run) -> None:
    loop.run_until_complete(loop.shutdown_asyncgens())
    generator = Closing().numbers()

    async def main() -> None:
        assert await anext(generator) == 0
        await generator.aclose()

    with pytest.warns(ResourceWarning) as caught:
        run(main)
    assert [str(w.message) for w in caught] == [
        f"asynchronous generator {generator!r} was scheduled after loop.shutdown_asyncgens() call"
    ]


def test_loop_does_not_keep_generators_alive(loop: Loop, run: Run) -> None:
    refs: list[weakref.ref[Any]] = []

    async def numbers() -> AsyncIterator[int]:
        yield 1
        yield 2

    async def main() -> None:
        generator = numbers()
        refs.append(weakref.ref(generator))
        await anext(generator)
        del generator
        for _ in range(5):
            await asyncio.sleep(0)
        gc.collect()

    run(main)
    assert refs[0]() is None


def test_generator_dropped_after_the_loop_was_closed(loop: Loop) -> None:
    closing = Closing()
    generator = closing.numbers()

    async def main() -> None:
        await anext(generator)

    loop.run_until_complete(main())
    loop.close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        del generator
        gc.collect()
    assert closing.seen == []
