"""rondel's queues and locks do what asyncio's do."""

import asyncio
import asyncio.mixins
import asyncio.queues
import copy
import gc
import pickle
import random
import sys
import warnings
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from rondel import sync

Run = Callable[..., Any]

PAIRS = [
    (sync._StockQueue, sync.Queue),
    (sync._StockPriorityQueue, sync.PriorityQueue),
    (sync._StockLifoQueue, sync.LifoQueue),
    (sync._StockLock, sync.Lock),
]
NATIVE = [native for _, native in PAIRS]


@pytest.fixture
def loop(rondel_loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
    """What is said here is said of rondel's loop."""
    return rondel_loop


def described(exc: BaseException) -> tuple[Any, ...]:
    cause = exc.__cause__
    return type(exc), str(exc), cause and (type(cause), str(cause))


# --- the differential fuzz: the same calls on asyncio's object and on ours ------------------------


class Script:
    """Random calls of an object's methods, some in tasks that are cancelled now and then."""

    def __init__(self, made: Any, seed: int) -> None:
        self.made, self.random = made, random.Random(seed)
        self.log: list[Any] = []
        self.tasks: list[tuple[int, asyncio.Task[Any]]] = []
        self.started = 0

    def start(self, what: str, call: Callable[[], Awaitable[Any]]) -> None:
        number = self.started = self.started + 1

        async def work() -> None:
            try:
                self.log.append((number, what, await call()))
            except BaseException as error:
                self.log.append((number, what, described(error)))
                if isinstance(error, asyncio.CancelledError):
                    raise

        self.tasks.append((number, asyncio.ensure_future(work())))

    def call(self, what: str, *args: Any) -> None:
        try:
            result = getattr(self.made, what)(*args)
        except Exception as error:
            result = described(error)
        self.log.append((what, result))

    async def play(self, step: Callable[["Script"], None]) -> list[Any]:
        for _ in range(60):
            choice = self.random.random()
            if choice < 0.15 and self.tasks:
                number, task = self.random.choice(self.tasks)
                self.log.append(("cancel", number, task.cancel()))
            elif choice < 0.4:
                for _ in range(self.random.randrange(1, 3)):
                    await asyncio.sleep(0)
                self.log.append(shown(self.made))
            else:
                step(self)
        for _, task in self.tasks:
            task.cancel()
        await asyncio.gather(*[task for _, task in self.tasks], return_exceptions=True)
        self.log.append(shown(self.made))
        return self.log


def shown(made: Any) -> str:
    """The repr, but for what is between its name and its state."""
    return type(made).__name__ + repr(made).partition(" at ")[2].partition(" ")[2]


def queue_step(script: Script) -> None:
    queue, pick = script.made, script.random
    item = pick.randrange(100)
    match pick.randrange(40):
        case 0 if sys.version_info >= (3, 13):
            script.call("shutdown", pick.random() < 0.3)
        case 1 | 2 | 3 | 4:
            script.call("put_nowait", item)
        case 5 | 6 | 7 | 8:
            script.call("get_nowait")
        case 9 | 10 | 11 | 12:
            script.call("task_done")
        case 13:
            script.start("join", queue.join)
        case 14:
            for name in ("qsize", "empty", "full"):
                script.call(name)
        case number if number % 2:
            script.start("put", lambda: queue.put(item))
        case _:
            script.start("get", queue.get)


def lock_step(script: Script) -> None:
    lock = script.made

    async def hold(turns: int) -> None:
        async with lock:
            for _ in range(turns):
                await asyncio.sleep(0)

    match script.random.randrange(5):
        case 0 | 1:
            script.call("release")
        case 2:
            turns = script.random.randrange(3)
            script.start("hold", lambda: hold(turns))
        case _:
            script.start("acquire", lock.acquire)


STEPS = {"Queue": queue_step, "Lock": lock_step}


@pytest.mark.parametrize(("stock", "native"), PAIRS, ids=lambda kind: kind.__module__)
def test_random_calls(run: Run, stock: Any, native: Any) -> None:
    step = STEPS.get(native.__name__, queue_step)

    async def main() -> None:
        for seed in range(120):
            logs = []
            for kind in (stock, native):
                made = kind(seed % 4) if step is queue_step else kind()
                logs.append(await Script(made, seed).play(step))
            assert logs[0] == logs[1], seed

    run(main, limit=60)


# --- classes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("native", NATIVE)
def test_one_loop_each(native: Any) -> None:
    async def wait(made: Any) -> None:
        wait = getattr(made, "get", None) or made.acquire
        if native is sync.Lock:
            await made.acquire()
        waiting = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        waiting.cancel()
        if native is sync.Lock:
            made.release()
        await waiting

    made = native()
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(wait(made))
    with pytest.raises(RuntimeError, match="is bound to a different event loop"):
        asyncio.run(wait(made))


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))]
)
@pytest.mark.parametrize("native", NATIVE)
def test_copies(native: Any, duplicate: Any) -> None:
    made = native()
    made.note = ["mine"]
    if isinstance(made, asyncio.Queue):
        made.put_nowait(3)
        made.put_nowait(1)
    else:
        made._locked = True
    again = duplicate(made)
    assert type(again) is native
    assert again.note == ["mine"]
    assert shown(again) == shown(made)
    if isinstance(again, asyncio.Queue):
        assert {again.get_nowait(), again.get_nowait()} == {1, 3}


def test_what_a_program_overrides_is_called(run: Run) -> None:
    class Doubling(sync.Queue[int]):
        def _put(self, item: int) -> None:
            self._queue += [item, item]

        def full(self) -> bool:
            return self.qsize() >= 4

    class Counting(sync.Lock):
        calls = 0

        async def acquire(self) -> Any:
            self.calls += 1
            return await super().acquire()

        def release(self) -> None:
            self.calls += 1
            super().release()

    async def main() -> None:
        queue = Doubling()
        await queue.put(1)
        queue.put_nowait(2)
        with pytest.raises(asyncio.QueueFull):
            queue.put_nowait(3)
        assert [await queue.get(), queue.get_nowait(), queue.qsize()] == [1, 1, 2]

        lock = Counting()
        async with lock:
            assert lock.locked()
        assert lock.calls == 2

        plain: sync.Queue[int] = sync.Queue()
        plain.put_nowait = lambda item: plain._put(-item)  # type: ignore[method-assign]
        await plain.put(5)
        assert await plain.get() == -5

    run(main)


def test_coroutines(run: Run) -> None:
    async def main() -> None:
        queue: sync.Queue[Any] = sync.Queue()
        # Whatever an item is, it arrives as that.
        for item in ((1, 2), (), ValueError("item"), StopIteration(3), None, 2**70, [queue]):
            await queue.put(item)
            assert await queue.get() is item
        task = asyncio.create_task(queue.get())
        await asyncio.sleep(0)
        queue.put_nowait("late")
        assert await task == "late"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.get(), 0.01)
        with pytest.warns(RuntimeWarning, match=r"coroutine 'Queue\.get' was never awaited"):
            queue.get()
            gc.collect()

    run(main)


def test_items_and_objects_go(run: Run) -> None:
    class Item:
        pass

    async def main() -> None:
        queue: sync.Queue[Item] = sync.Queue(1)
        queue.put_nowait(Item())
        gone = weakref.ref(await queue.get())
        assert gone() is None
        made: list[Any] = [native() for native in NATIVE]
        for one in made:
            one.me = one
        made.append(queue)
        references = [weakref.ref(one) for one in made]
        queue.put_nowait(queue)  # type: ignore[arg-type]
        del made, one, queue
        gc.collect()
        assert [reference() for reference in references] == [None] * len(references)

    run(main)


# --- install() -----------------------------------------------------------------------------------


def test_install_makes_asyncios_classes_native(rondel: Any) -> None:
    class Mine(asyncio.Queue[int]):
        def __init__(self, name: str) -> None:
            super().__init__(2)
            self.name = name

    class Noted:
        def __new__(cls, note: str) -> Any:
            made = super().__new__(cls)
            made.note = note  # type: ignore[attr-defined]
            return made

    class Both(asyncio.Lock, Noted):
        note: str

        def __init__(self, note: str) -> None:
            super().__init__()

    class Named(asyncio.PriorityQueue[int], dict[str, int]):
        pass

    classes = [asyncio.Queue, asyncio.PriorityQueue, asyncio.LifoQueue, asyncio.Lock]
    early = asyncio.Queue[int]()
    rondel.install()
    try:
        rondel.install()
        assert [type(kind()) for kind in classes] == NATIVE
        assert type(asyncio.queues.Queue(maxsize=3)) is rondel.Queue
        assert asyncio.Queue(3).maxsize == 3
        with pytest.raises(TypeError):
            asyncio.Queue(1, 2)  # type: ignore[call-arg]
        for kind in classes:
            assert isinstance(kind(), kind)
        assert isinstance(early, asyncio.Queue)
        assert type(asyncio.Condition()._lock) is rondel.Lock  # type: ignore[attr-defined]
        mine = Mine("mine")
        assert (type(mine), mine.name, mine.maxsize) == (Mine, "mine", 2)

        assert Both("kept").note == "kept"
        assert (Named(3).maxsize, Named() | {"a": 1}) == (3, {"a": 1})

        async def main() -> None:
            mine.put_nowait(1)
            assert await mine.get() == 1
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.Queue().get(), 0.01)

        asyncio.run(main())
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(main())
    finally:
        rondel.uninstall()
    for kind in classes:
        assert type(kind()) is kind
    assert asyncio.Queue(3).maxsize == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Mine("again").name == "again"
        assert Both("kept").note == "kept"
