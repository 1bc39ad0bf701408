"""What the methods of rondel's streams return: coroutines in every respect."""

import asyncio
import collections.abc
import inspect
import sys
from collections.abc import Callable
from typing import Any

import pytest
from streams import READERS, fed
from support import turns

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]


@pytest.fixture
def loop(rondel_loop: Loop) -> Loop:
    """What is said here is said of rondel's loop."""
    return rondel_loop


def test_what_methods_return_is_a_coroutine(loop: Loop) -> None:
    reader = fed(b"data", loop)
    coroutines = [reader.read(1), reader.readline(), reader.readuntil(), reader.readexactly(1)]
    coroutines += [reader.__anext__()]
    names = ["read", "readline", "readuntil", "readexactly", "__anext__"]
    for coroutine, name in zip(coroutines, names, strict=True):
        assert asyncio.iscoroutine(coroutine)
        assert isinstance(coroutine, collections.abc.Coroutine)
        assert inspect.isawaitable(coroutine)
        assert coroutine.__name__ == name
        assert coroutine.__qualname__ == f"StreamReader.{name}"
        assert repr(coroutine).startswith(f"<coroutine object StreamReader.{name} at 0x")
        coroutine.close()
        coroutine.close()
        with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
            coroutine.send(None)
    assert reader._buffer == b"data"


def test_what_is_there_needs_neither_loop_nor_future(loop: Loop) -> None:
    reader = fed(b"a line\nrest", loop)
    for coroutine, expected in [(reader.readline(), b"a line\n"), (reader.read(9), b"rest")]:
        with pytest.raises(StopIteration) as stopped:
            coroutine.send(None)
        assert stopped.value.value == expected
        assert stopped.value.args == (expected,)


def test_nothing_happens_before_it_is_awaited(loop: Loop) -> None:
    reader = fed(b"data", loop)
    coroutine = reader.read(2)
    assert reader._buffer == b"data"
    with pytest.raises(TypeError, match="can't send non-None value to a just-started coroutine"):
        coroutine.send(1)
    with pytest.raises(ZeroDivisionError):
        coroutine.throw(ZeroDivisionError("thrown"))
    with pytest.raises(RuntimeError, match="cannot reuse"):
        coroutine.send(None)
    assert reader._buffer == b"data"


def test_never_awaited(loop: Loop) -> None:
    reader = fed(b"data", loop)
    with pytest.warns(RuntimeWarning, match="coroutine 'StreamReader.readline' was never awaited"):
        reader.readline()


@pytest.mark.parametrize("reader_class", READERS)
def test_sending_into_a_wait_by_hand(loop: Loop, reader_class: Any) -> None:
    reader = reader_class(loop=loop)
    coroutine = reader.read(5)
    future = coroutine.send(None)
    assert reader._waiter is future
    assert future._asyncio_future_blocking
    with pytest.raises(RuntimeError, match="await wasn't used with future"):
        coroutine.send(None)
    assert reader._waiter is None
    coroutine = reader.read(5)
    coroutine.send(None)
    coroutine.close()
    assert reader._waiter is None
    coroutine = reader.read(5)
    coroutine.send(None)
    reader.set_exception(ValueError("set"))
    with pytest.raises(ValueError, match="set"):
        coroutine.send(None)


def test_results_are_not_kept(run: Run) -> None:
    """A large result goes when the program lets it go."""

    async def main() -> None:
        reader = fed(bytes(100_000))
        before = sys.getrefcount(None)
        data = await reader.read(100_000)
        fresh = bytes(100_001)
        assert sys.getrefcount(data) == sys.getrefcount(fresh)
        for _ in range(1000):
            reader.feed_data(b"x")
            await reader.read(1)
        assert abs(sys.getrefcount(None) - before) < 100

    run(main)


def test_cancelled_wait_leaves_the_reader_usable(run: Run) -> None:
    async def main() -> None:
        reader = fed()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(reader.readexactly(3), 0.01)
        task = asyncio.create_task(reader.readline())
        await turns(2)
        assert "StreamReader.readline" in repr(task)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        reader.feed_data(b"line\n")
        assert await asyncio.create_task(reader.readline()) == b"line\n"

    run(main)


def test_gathered_and_shielded(run: Run) -> None:
    async def main() -> None:
        readers = [fed() for _ in range(5)]
        waiting = asyncio.gather(*(reader.readline() for reader in readers))
        await turns(2)
        for number, reader in enumerate(readers):
            reader.feed_data(b"%d\n" % number)
        assert await asyncio.shield(waiting) == [b"0\n", b"1\n", b"2\n", b"3\n", b"4\n"]

    run(main)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are new in Python 3.12")
def test_eager_tasks(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
        reader = fed(b"one\n")
        task = loop.create_task(reader.readline())
        assert task.done()
        assert task.result() == b"one\n"
        task = loop.create_task(reader.readline())
        assert not task.done()
        reader.feed_data(b"two\n")
        assert await task == b"two\n"

    run(main)
