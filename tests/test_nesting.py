"""Loop.nesting: a running loop is run again inside one of its own callbacks or tasks."""

import asyncio
import contextvars
import gc
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
import rondel


@pytest.fixture
def loop() -> Iterator[rondel.Loop]:
    loop = rondel.new_event_loop()
    loop.nesting = True
    problems: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: problems.append(context))
    yield loop
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert problems == []


async def after(value: object, turns: int = 3) -> object:
    for _ in range(turns):
        await asyncio.sleep(0)
    return value


def test_it_is_off_by_default_and_asyncio_speaks() -> None:
    loop = rondel.new_event_loop()
    assert loop.nesting is False
    coro = after(1)

    async def main() -> None:
        for other in loop, rondel.new_event_loop():
            with pytest.raises(RuntimeError) as caught:
                other.run_until_complete(coro)
            texts.append(str(caught.value))
            with pytest.raises(RuntimeError):
                other.run_forever()
            if other is not loop:
                other.close()
        with pytest.raises(RuntimeError, match="cannot be called from a running event loop"):
            rondel.run(coro)

    texts: list[str] = []
    loop.run_until_complete(main())
    assert texts == [
        "This event loop is already running",
        "Cannot run the event loop while another loop is running",
    ]
    coro.close()
    loop.close()


def test_any_depth_with_the_right_task_and_loop(loop: rondel.Loop) -> None:
    async def level(depth: int) -> int:
        task = asyncio.current_task()
        assert type(task) is asyncio.Task
        await asyncio.sleep(0)
        if depth:
            assert loop.run_until_complete(level(depth - 1)) == depth - 1
        assert asyncio.current_task() is task
        assert asyncio.get_running_loop() is loop
        await asyncio.sleep(0)
        assert asyncio.current_task() is task
        return depth

    assert loop.run_until_complete(level(50)) == 50
    assert asyncio._get_running_loop() is None


def test_too_deep_is_a_recursion_error(loop: rondel.Loop) -> None:
    async def level() -> None:
        loop.run_until_complete(level())

    with pytest.warns(RuntimeWarning, match="never awaited"), pytest.raises(RecursionError):
        loop.run_until_complete(level())
    assert loop.run_until_complete(after(1)) == 1


def test_everything_else_goes_on_in_order(loop: rondel.Loop) -> None:
    seen: list[object] = []
    near, far = socket.socketpair()
    near.setblocking(False)

    async def reads() -> None:
        seen.append(await loop.sock_recv(near, 10))

    def nests() -> None:
        assert asyncio.current_task() is None
        loop.call_soon(seen.append, "later")
        loop.call_later(0.001, seen.append, "timer")
        seen.append(loop.run_until_complete(after("nested", 1)))
        far.send(b"data")
        loop.run_until_complete(reading)
        loop.run_until_complete(asyncio.sleep(0.01))
        seen.append("end")

    async def main() -> None:
        nonlocal reading
        reading = asyncio.create_task(reads())
        loop.call_soon(seen.append, "before")
        loop.call_soon(nests)
        # Taken by the same turn as `nests`: neither lost nor kept waiting for it.
        loop.call_soon(seen.append, "after")
        await asyncio.sleep(0.05)

    reading: asyncio.Task[None]
    loop.run_until_complete(main())
    near.close()
    far.close()
    assert seen[:3] == ["before", "after", "later"]
    assert seen.index("nested") < seen.index(b"data") < seen.index("end") == len(seen) - 1
    assert sorted(map(str, seen[3:-1])) == ["b'data'", "nested", "timer"]


def test_what_a_callback_left_over_runs_when_it_returns(loop: rondel.Loop) -> None:
    seen: list[object] = []
    future = loop.create_future()

    def nests() -> None:
        loop.call_soon(future.set_result, None)
        for i in range(3):
            loop.call_soon(seen.append, i)
        loop.run_until_complete(future)
        # It was done at the first of the four.
        assert seen == ["same turn"]

    async def main() -> None:
        loop.call_soon(nests)
        loop.call_soon(seen.append, "same turn")
        await after(None, 5)

    loop.run_until_complete(main())
    assert seen == ["same turn", 0, 1, 2]


def test_exceptions_and_cancellation_come_through(loop: rondel.Loop) -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise LookupError("mine")

    async def main() -> None:
        with pytest.raises(LookupError, match="mine"):
            loop.run_until_complete(fails())
        sleeping = asyncio.create_task(asyncio.sleep(3600))
        loop.call_soon(sleeping.cancel)
        with pytest.raises(asyncio.CancelledError):
            loop.run_until_complete(sleeping)
        assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]
        await asyncio.sleep(0)

    loop.run_until_complete(main())


def test_timeouts_across_levels(loop: rondel.Loop) -> None:
    async def inner_first() -> None:
        async with asyncio.timeout(3600):
            with pytest.raises(TimeoutError):
                loop.run_until_complete(asyncio.wait_for(asyncio.sleep(3600), 0.01))
            await asyncio.sleep(0)

    async def outer_first() -> str:
        # It expires while its task is suspended, and takes effect when the task goes on.
        try:
            async with asyncio.timeout(0.01):
                loop.run_until_complete(asyncio.sleep(0.05))
                await asyncio.sleep(3600)
        except TimeoutError:
            return "timed out"
        return "not"

    loop.run_until_complete(inner_first())
    assert loop.run_until_complete(outer_first()) == "timed out"


def test_anyio_scopes_and_groups_across_levels(loop: rondel.Loop) -> None:
    seen = []

    async def child(name: str) -> None:
        with anyio.move_on_after(0.01) as scope:
            await anyio.sleep(3600)
        seen.append((name, scope.cancelled_caught))

    async def group(name: str) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child, name)
            tasks.start_soon(anyio.sleep, 0)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child, "outer")
            with anyio.CancelScope() as scope:
                loop.run_until_complete(group("inner"))
                scope.cancel()
                await anyio.sleep(3600)
            assert scope.cancelled_caught
        with pytest.raises(ExceptionGroup):
            loop.run_until_complete(failing())

    async def failing() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep, 3600)
            raise ValueError

    loop.run_until_complete(main())
    assert sorted(seen) == [("inner", True), ("outer", True)]


def test_generators(loop: rondel.Loop) -> None:
    closed = []

    async def numbers() -> Any:
        try:
            for i in range(10):
                yield loop.run_until_complete(after(i))
        finally:
            await asyncio.sleep(0)
            closed.append(True)

    async def main() -> list[object]:
        async def first() -> object:
            async for number in numbers():
                return number

        loop.run_until_complete(first())
        gc.collect()
        while not closed:
            await asyncio.sleep(0)
        return [number async for number in numbers()]

    assert loop.run_until_complete(main()) == list(range(10))
    loop.run_until_complete(loop.shutdown_asyncgens())
    assert closed == [True, True]


@pytest.mark.parametrize("own", [True, False], ids=["coroutine", "task"])
def test_an_interrupt_ends_the_nested_run_only(loop: rondel.Loop, own: bool) -> None:
    handler = signal.getsignal(signal.SIGINT)
    seen = []

    async def forever() -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def main() -> str:
        loop.call_later(0.01, os.kill, os.getpid(), signal.SIGINT)
        awaitable = forever() if own else asyncio.create_task(forever())
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(awaitable)
        assert seen == (["cancelled"] if own else [])
        await asyncio.sleep(0)
        return "goes on"

    assert loop.run_until_complete(main()) == "goes on"
    assert signal.getsignal(signal.SIGINT) is handler


def test_tasks_that_share_a_context(loop: rondel.Loop) -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    shared = contextvars.copy_context()

    async def second() -> None:
        for value in "second", "at last":
            variable.set(value)
            await asyncio.sleep(0)

    async def first() -> str:
        token = variable.set("first")
        loop.run_until_complete(loop.create_task(second(), context=shared))
        value = variable.get()
        variable.reset(token)
        assert variable.get() == "unset"
        await asyncio.sleep(0)
        return value

    assert loop.run_until_complete(loop.create_task(first(), context=shared)) == "at last"


def test_a_context_that_cannot_be_left_is_copied(loop: rondel.Loop) -> None:
    context = contextvars.copy_context()

    async def main() -> object:
        def inside() -> object:
            # Context.run() is between the loop and here.
            return loop.run_until_complete(loop.create_task(after(1), context=context))

        return context.run(inside)

    assert loop.run_until_complete(main()) == 1


def test_a_protocol_that_waits_for_its_own_next_data(loop: rondel.Loop) -> None:
    received: list[bytes] = []
    more = loop.create_future()

    class Waits(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            received.append(data)
            if len(received) == 1:
                transport.write(b"go on")
                loop.run_until_complete(more)
                received.append(b"end")
            else:
                more.set_result(None)

    near, far = socket.socketpair()

    def peer() -> None:
        far.sendall(b"one")
        far.recv(10)
        far.sendall(b"two")

    async def main() -> None:
        nonlocal transport
        transport, _ = await loop.create_connection(Waits, sock=near)
        await asyncio.to_thread(peer)
        while len(received) < 3:
            await asyncio.sleep(0.001)
        transport.close()

    transport: Any = None
    loop.run_until_complete(main())
    loop.run_until_complete(loop.shutdown_default_executor())
    far.close()
    assert received == [b"one", b"two", b"end"]


def test_a_reader_is_not_called_while_it_is_suspended(loop: rondel.Loop) -> None:
    near, far = socket.socketpair()
    calls = []

    def readable() -> None:
        calls.append(loop.run_until_complete(after("nested", 10)))
        near.recv(10)

    async def main() -> None:
        loop.add_reader(near, readable)
        far.send(b"x")
        while not calls:
            await asyncio.sleep(0)
        await after(None, 10)
        loop.remove_reader(near)

    loop.run_until_complete(main())
    near.close()
    far.close()
    assert calls == ["nested"]


def test_side_by_side(loop: rondel.Loop) -> None:
    order = []
    events = {name: asyncio.Event() for name in "abc"}

    async def waits(name: str) -> None:
        await asyncio.sleep(0)
        loop.run_until_complete(events[name].wait())
        order.append(name)

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for name in "abc":
                group.create_task(waits(name))
            await after(None, 5)
            # The stack has c on top; a is done, and has to wait for those above it.
            events["a"].set()
            await after(None, 5)
            assert order == []
            events["c"].set()
            await after(None, 5)
            assert order == ["c"]
            events["b"].set()

    # The main task ends above nested runs, too: they are not taken for it.
    loop.run_until_complete(main())
    assert order == ["c", "b", "a"]


def test_the_outermost_future_is_done_first(loop: rondel.Loop) -> None:
    seen = []

    async def main() -> str:
        loop.call_soon(nests)
        await after(None, 2)
        return "main"

    def nests() -> None:
        seen.append(loop.run_until_complete(asyncio.sleep(0.05, "nested")))

    assert loop.run_until_complete(main()) == "main"
    assert seen == ["nested"]


def test_stop_ends_the_innermost_run(loop: rondel.Loop) -> None:
    async def main() -> str:
        loop.call_later(0.01, loop.stop)
        with pytest.raises(RuntimeError, match="Event loop stopped before Future completed"):
            loop.run_until_complete(asyncio.sleep(3600))
        loop.call_later(0.01, loop.stop)
        loop.run_forever()
        assert loop.is_running()
        await asyncio.sleep(0)
        return "goes on"

    assert loop.run_until_complete(main()) == "goes on"


async def _task(task: asyncio.Future[Any]) -> None:
    await task


async def _group(task: asyncio.Future[Any]) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(_task(task))


async def _gather(task: asyncio.Future[Any]) -> None:
    await asyncio.gather(_task(task), asyncio.sleep(0.01))


async def _wait(task: asyncio.Future[Any]) -> None:
    await asyncio.wait([task])


@pytest.mark.parametrize("waits", [_task, _group, _gather, _wait])
def test_waiting_for_what_is_suspended_is_an_error(loop: rondel.Loop, waits: Any) -> None:
    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        # Neither a timer nor a descriptor that has nothing to do with it keeps hope alive.
        loop.call_later(3600, print)
        near, far = socket.socketpair()
        loop.add_reader(near, print)
        hopeless = asyncio.create_task(waits(task))
        with pytest.raises(RuntimeError, match="waited for forever.*suspended"):
            loop.run_until_complete(hopeless)
        with pytest.raises(RuntimeError, match="waited for forever"):
            loop.run_until_complete(task)
        loop.remove_reader(near)
        near.close()
        far.close()

    loop.run_until_complete(main())


def test_a_lock_that_is_held_by_what_is_suspended(loop: rondel.Loop) -> None:
    async def locked(lock: asyncio.Lock) -> None:
        async with lock:
            pass

    async def main() -> None:
        lock = asyncio.Lock()
        async with lock:
            if threading.active_count() == 1:
                with pytest.raises(RuntimeError, match="waited for forever"):
                    loop.run_until_complete(locked(lock))

    loop.run_until_complete(main())


def test_a_timeout_may_end_the_waiting(loop: rondel.Loop) -> None:
    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None

        async def impatient() -> None:
            async with asyncio.timeout(0.05):
                await asyncio.shield(task)

        async def watched() -> None:
            await asyncio.shield(task)

        async def cancels(other: asyncio.Task[None]) -> None:
            await asyncio.sleep(0.05)
            other.cancel()

        with pytest.raises(TimeoutError):
            loop.run_until_complete(impatient())
        other = asyncio.create_task(watched())
        canceller = asyncio.create_task(cancels(other))
        with pytest.raises(asyncio.CancelledError):
            loop.run_until_complete(other)
        await canceller

    loop.run_until_complete(main())


def test_a_guest_on_a_loop_and_back(loop: rondel.Loop) -> None:
    guest = rondel.new_event_loop()
    guest.nesting = True

    async def on_guest() -> object:
        task = asyncio.current_task()
        # Through another loop's callback into the one below it.
        value = loop.run_until_complete(after("back"))
        assert asyncio.current_task() is task and asyncio.get_running_loop() is guest
        await asyncio.sleep(0)
        return value

    async def main() -> object:
        task = asyncio.current_task()
        value = guest.run_until_complete(on_guest())
        assert asyncio.current_task() is task and asyncio.get_running_loop() is loop
        await asyncio.sleep(0)
        return value

    assert loop.run_until_complete(main()) == "back"
    guest.close()


def test_a_loop_of_another_thread_is_refused(loop: rondel.Loop) -> None:
    coro = after(1)

    def other_thread() -> None:
        with pytest.raises(RuntimeError, match="This event loop is already running"):
            loop.run_until_complete(coro)

    loop.run_until_complete(asyncio.to_thread(other_thread))
    loop.run_until_complete(loop.shutdown_default_executor())
    coro.close()


def test_suspended_callbacks_are_not_slow(loop: rondel.Loop, caplog: Any) -> None:
    loop.set_debug(True)
    loop.slow_callback_duration = 0.2
    blocked: list[Any] = []
    watch = rondel.watch(loop, threshold=0.2, on_block=blocked.append)

    async def main() -> None:
        loop.run_until_complete(asyncio.sleep(0.4))
        await asyncio.sleep(0)

    loop.run_until_complete(main())
    watch.stop()
    assert blocked == [] and "Executing" not in caplog.text
