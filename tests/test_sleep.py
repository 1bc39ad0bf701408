"""asyncio.sleep where rondel.install() has put its own: what asyncio's does, to whoever looks."""

import asyncio
import gc
import inspect
import pickle
import types
import warnings
import weakref
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from rondel import sync

Run = Callable[..., Any]
STOCK = sync._stock_sleep
OURS = sync._sleep
BOTH = pytest.mark.parametrize("sleep", [STOCK, OURS], ids=["asyncio's", "ours"])


def outcome(call: Callable[[], Any]) -> tuple[Any, ...]:
    try:
        return "returned", call()
    except BaseException as exc:
        return type(exc), str(exc), getattr(exc, "value", None)


def test_which_sleeps_are_native() -> None:
    for args, native in [
        ((0,), True),
        ((-1,), True),
        ((0.0, "result"), True),
        ((-float("inf"),), True),
        ((-(10**30),), True),
        ((1e-6,), False),
        ((1,), False),
        ((10**30,), False),
        ((float("nan"),), False),
        ((False,), False),
    ]:
        made = OURS(*args)
        assert inspect.iscoroutine(made) is not native, args
        assert asyncio.iscoroutine(made)
        assert made.__name__ == made.__qualname__ == "sleep"
        made.close()
    made = OURS(delay=0)
    assert inspect.iscoroutine(made)
    made.close()


@BOTH
def test_what_it_returns_and_raises(run: Run, sleep: Any) -> None:
    async def main() -> None:
        assert await sleep(0) is None
        assert await sleep(0, "result") == "result"
        assert await sleep(0, result=("a", "tuple")) == ("a", "tuple")
        assert await sleep(-1.5, ("a", "tuple")) == ("a", "tuple")
        assert await sleep(0, StopIteration(1)) == mock.ANY
        assert await sleep(0.001, "later") == "later"
        assert await asyncio.gather(sleep(0, 1), sleep(-2, 2), sleep(0.001, 3)) == [1, 2, 3]
        assert await asyncio.wait_for(sleep(0, 4), 10) == 4
        assert await asyncio.create_task(sleep(0, 5)) == 5
        with pytest.raises(TypeError, match="not supported between instances"):
            await sleep("1")
        with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'delay'"):
            sleep()
        with pytest.raises(TypeError, match=r"takes from 1 to 2 positional arguments but 3"):
            sleep(0, 1, 2)

    run(main)


@BOTH
def test_takes_one_turn(run: Run, loop: asyncio.AbstractEventLoop, sleep: Any) -> None:
    async def main() -> str:
        seen = ""

        def note(what: str) -> None:
            nonlocal seen
            seen += what

        async def work(name: str) -> None:
            for _ in range(3):
                note(name)
                loop.call_soon(note, name.upper())
                await sleep(0)

        await asyncio.gather(work("a"), work("b"))
        return seen

    assert run(main) == "abAaBbAaBbAB"


@BOTH
def test_cancel(run: Run, sleep: Any) -> None:
    async def main() -> None:
        async def work() -> str:
            try:
                await sleep(0)
            except asyncio.CancelledError as exc:
                return f"cancelled: {exc}"
            raise AssertionError("it was not cancelled")

        for wait in (work(), sleep(0)):
            task = asyncio.create_task(wait)
            await asyncio.sleep(0)
            assert task.cancel("why")
            await asyncio.wait([task])
            if task.cancelled():
                with pytest.raises(asyncio.CancelledError, match="why"):
                    await task
            else:
                assert task.result() == "cancelled: why"

    run(main)


def protocol(sleep: Any) -> list[Any]:
    """What drives it by hand sees."""
    steps = []
    one = sleep(0, "result")
    steps.append(outcome(lambda: one.send(1)))
    steps += [outcome(lambda: one.send(None)) for _ in range(3)]
    thrown = sleep(0)
    steps.append(outcome(lambda: thrown.throw(KeyError("early"))))
    steps.append(outcome(lambda: thrown.send(None)))
    waits = sleep(0)
    waits.send(None)
    steps.append(outcome(lambda: waits.throw(KeyError("late"))))
    steps.append(outcome(lambda: waits.send(None)))
    closed = sleep(0)
    closed.send(None)
    steps += [outcome(closed.close), outcome(lambda: closed.send(None)), outcome(closed.close)]
    steps.append(outcome(lambda: list(sleep(0, "by iteration").__await__())))

    async def twice() -> None:
        again = sleep(0)
        await again
        await again

    driven = twice()
    driven.send(None)
    steps.append(outcome(lambda: driven.send(None)))
    return steps


def test_protocol() -> None:
    assert protocol(OURS) == protocol(STOCK)


@BOTH
def test_never_awaited(sleep: Any) -> None:
    with pytest.warns(RuntimeWarning, match="coroutine 'sleep' was never awaited"):
        sleep(0)
        gc.collect()


def test_its_result_is_let_go_of() -> None:
    class Result:
        pass

    result = Result()
    reference = weakref.ref(result)
    unused = [OURS(0, result), OURS(0, result), OURS(0, result)]
    unused[0].send(None)
    unused[1].send(None)
    with pytest.raises(StopIteration):
        unused[1].send(None)
    unused[2].close()
    del result, unused
    gc.collect()
    assert reference() is None


def test_looks_like_asyncios_function() -> None:
    assert inspect.iscoroutinefunction(OURS)
    assert inspect.isfunction(OURS)
    assert isinstance(OURS, types.FunctionType)
    assert inspect.signature(OURS) == inspect.signature(STOCK)
    assert repr(OURS) == repr(STOCK)
    assert OURS.__code__ is STOCK.__code__
    assert (OURS.__module__, OURS.__doc__) == (STOCK.__module__, STOCK.__doc__)
    assert weakref.ref(OURS)() is OURS
    assert OURS != STOCK
    with pytest.raises(AttributeError, match="'function' object has no attribute 'no_such'"):
        _ = OURS.no_such
    OURS.noted = 1
    assert STOCK.noted == 1
    del OURS.noted
    assert not hasattr(STOCK, "noted")


def test_install(rondel: Any) -> None:
    async def main() -> str:
        return await asyncio.sleep(0, "done")

    rondel.install()
    try:
        assert asyncio.sleep is asyncio.tasks.sleep is OURS
        assert pickle.loads(pickle.dumps(asyncio.sleep)) is OURS
        assert asyncio.run(main()) == "done"
        assert asyncio.run(asyncio.sleep(0, "alone")) == "alone"
        with mock.patch("asyncio.sleep") as mocked:
            assert isinstance(mocked, mock.AsyncMock)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                asyncio.run(asyncio.wait_for(asyncio.sleep(0), 10))
            mocked.assert_called_once_with(0)
        assert asyncio.sleep is OURS
    finally:
        rondel.uninstall()
    assert asyncio.sleep is asyncio.tasks.sleep is STOCK


def test_install_leaves_what_others_put_there(rondel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def other(delay: float) -> None:
        pass

    monkeypatch.setattr(asyncio, "sleep", other)
    rondel.install()
    assert asyncio.sleep is other
    rondel.uninstall()
    assert asyncio.sleep is other
