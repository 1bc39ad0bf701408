"""What leaves run_forever and run_until_complete: KeyboardInterrupt, SystemExit, signals, fork."""

import asyncio
import ctypes
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from support import in_thread, run_turn

Loop = asyncio.AbstractEventLoop


class Interrupt(Exception):
    """Raised by a signal handler."""


def raise_(exc: BaseException) -> None:
    raise exc


both_exits = pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])


@both_exits
def test_exit_in_a_callback_leaves_run_forever(loop: Loop, kind: type[BaseException]) -> None:
    error = kind("mine")
    loop.call_soon(raise_, error)
    with pytest.raises(kind) as caught:
        loop.run_forever()
    assert caught.value is error
    assert not loop.is_running()
    assert asyncio._get_running_loop() is None


@both_exits
def test_remaining_callbacks_survive_an_exit(loop: Loop, kind: type[BaseException]) -> None:
    seen: list[str] = []
    loop.call_soon(seen.append, "before")
    loop.call_soon(raise_, kind())
    loop.call_soon(seen.append, "after")
    loop.call_later(0, seen.append, "timer")
    with pytest.raises(kind):
        loop.run_forever()
    assert seen == ["before"]
    loop.call_soon(seen.append, "new")
    loop.stop()
    loop.run_forever()
    assert [entry for entry in seen if entry != "timer"] == ["before", "after", "new"]
    assert seen.count("timer") == 1


@both_exits
def test_several_exits_in_one_turn_leave_one_at_a_time(
    loop: Loop, kind: type[BaseException]
) -> None:
    errors = [kind(i) for i in range(3)]
    for error in errors:
        loop.call_soon(raise_, error)
    for error in errors:
        with pytest.raises(kind) as caught:
            loop.run_forever()
        assert caught.value is error
    run_turn(loop)


@both_exits
def test_exit_in_a_timer(loop: Loop, kind: type[BaseException]) -> None:
    loop.call_later(0.001, raise_, kind())
    with pytest.raises(kind):
        loop.run_forever()
    run_turn(loop)


@both_exits
def test_exit_in_a_task_leaves_run_until_complete(loop: Loop, kind: type[BaseException]) -> None:
    error = kind("mine")

    async def main() -> None:
        await asyncio.sleep(0)
        raise error

    with pytest.raises(kind) as caught:
        loop.run_until_complete(main())
    assert caught.value is error
    # Neither the exit nor the end of that task stops the next run.
    assert loop.run_until_complete(asyncio.sleep(0.01, "fine")) == "fine"


@both_exits
def test_exit_in_another_task(loop: Loop, kind: type[BaseException]) -> None:
    async def other() -> None:
        raise kind()

    async def main() -> str:
        task = loop.create_task(other())
        await asyncio.sleep(0.01)
        assert isinstance(task.exception(), kind)
        return "done"

    task = loop.create_task(main())
    with pytest.raises(kind):
        loop.run_until_complete(task)
    assert not task.done()
    assert loop.run_until_complete(task) == "done"


@both_exits
def test_exit_in_a_reader(loop: Loop, kind: type[BaseException]) -> None:
    read, write = os.pipe()
    try:
        os.write(write, b"x")
        loop.add_reader(read, raise_, kind())
        with pytest.raises(kind):
            loop.run_forever()
        assert loop.remove_reader(read) is True
        run_turn(loop)
    finally:
        os.close(read)
        os.close(write)


def test_other_base_exceptions_are_reported_not_raised(
    loop: Loop, reported: list[dict[str, Any]]
) -> None:
    error, generator_exit = BaseException("mine"), GeneratorExit()
    loop.call_soon(raise_, error)
    loop.call_soon(raise_, generator_exit)
    loop.call_soon(raise_, asyncio.CancelledError())
    run_turn(loop)
    assert [context["exception"] for context in reported[:2]] == [error, generator_exit]
    assert isinstance(reported[2]["exception"], asyncio.CancelledError)


# --- signals without add_signal_handler --------------------------------------------------------


class Handled:
    """Sets a plain Python handler for SIGUSR1 during a block."""

    def __init__(self, handler: Callable[[], object]) -> None:
        self.times: list[float] = []
        self._handler = handler

    def __enter__(self) -> "Handled":
        def handle(signum: int, frame: object) -> None:
            self.times.append(time.monotonic())
            self._handler()

        self._previous = signal.signal(signal.SIGUSR1, handle)
        return self

    def __exit__(self, *exc_info: object) -> None:
        signal.signal(signal.SIGUSR1, self._previous)


def kill_after(delay: float, times: int = 1) -> None:
    for _ in range(times):
        time.sleep(delay)
        os.kill(os.getpid(), signal.SIGUSR1)


def test_signal_handler_runs_while_the_loop_waits(loop: Loop) -> None:
    with Handled(lambda: None) as handled:
        started = time.monotonic()
        loop.call_later(0.6, loop.stop)
        with in_thread(kill_after, 0.1, 2):
            loop.run_forever()
        assert time.monotonic() - started >= 0.6
    assert len(handled.times) == 2
    # Handled when it came, not at the end of the wait.
    assert handled.times[1] - started < 0.5


def test_exception_of_a_signal_handler_leaves_run_forever(loop: Loop) -> None:
    with Handled(lambda: raise_(Interrupt("from the handler"))):
        guard = loop.call_later(10, loop.stop)
        started = time.monotonic()
        with in_thread(kill_after, 0.05), pytest.raises(Interrupt, match="from the handler"):
            loop.run_forever()
        assert time.monotonic() - started < 5
        guard.cancel()
    assert not loop.is_running()
    run_turn(loop)


def test_exception_of_a_signal_handler_leaves_a_loop_with_nothing_to_do(loop: Loop) -> None:
    with (
        Handled(lambda: raise_(Interrupt())),
        in_thread(kill_after, 0.05),
        pytest.raises(Interrupt),
    ):
        loop.run_forever()
    assert loop.run_until_complete(asyncio.sleep(0, "fine")) == "fine"


def test_signal_handler_runs_in_a_busy_loop(loop: Loop) -> None:
    def spin() -> None:
        if not handled.times:
            loop.call_soon(spin)
        else:
            loop.stop()

    with Handled(lambda: None) as handled:
        loop.call_soon(spin)
        with in_thread(kill_after, 0.05):
            loop.run_forever()
    assert len(handled.times) == 1


def test_signal_that_no_bytecode_follows(loop: Loop) -> None:
    # It comes while a callback that is not Python runs; nothing interrupts the wait after it.
    original = signal.signal(signal.SIGUSR1, lambda *_: loop.stop())
    try:
        started = loop.time()
        loop.call_soon(ctypes.CDLL(None)["raise"], int(signal.SIGUSR1))
        loop.call_later(20, loop.stop)
        loop.run_forever()
        assert loop.time() - started < 10
    finally:
        signal.signal(signal.SIGUSR1, original)


def test_sigint_leaves_run_forever_as_keyboard_interrupt(loop: Loop) -> None:
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    seen: list[str] = []
    try:
        loop.call_later(0.3, seen.append, "survived")

        def interrupt() -> None:
            time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)

        with in_thread(interrupt), pytest.raises(KeyboardInterrupt):
            loop.run_forever()
    finally:
        signal.signal(signal.SIGINT, previous)
    assert not loop.is_running()
    assert seen == []
    loop.call_later(0.4, loop.stop)
    loop.run_forever()
    assert seen == ["survived"]


def test_sigint_raised_in_a_callback(loop: Loop) -> None:
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    seen: list[str] = []
    try:
        loop.call_soon(signal.raise_signal, signal.SIGINT)
        loop.call_soon(seen.append, "after")
        with pytest.raises(KeyboardInterrupt):
            loop.run_forever()
    finally:
        signal.signal(signal.SIGINT, previous)
    run_turn(loop)
    assert seen == ["after"]


# --- fork --------------------------------------------------------------------------------------


def in_child(body: Callable[[], object]) -> int:
    """Fork, run body in the child, and return the child's exit code (0 when body returned)."""
    with warnings.catch_warnings():
        # The watchdog of this suite is a thread, which Python 3.12+ warns about.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            body()
            code = 0
        except BaseException as exc:
            os.write(2, f"child: {exc!r}\n".encode())
        finally:
            os._exit(code)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("the child did not end")


def test_child_may_make_and_run_a_loop_of_its_own(loop_factory: Callable[[], Loop]) -> None:
    parent = loop_factory()

    def body() -> None:
        child = loop_factory()
        assert child.run_until_complete(asyncio.sleep(0.01, "child")) == "child"
        child.close()

    try:
        parent.run_until_complete(asyncio.sleep(0))
        assert in_child(body) == 0
        assert parent.run_until_complete(asyncio.sleep(0.01, "parent")) == "parent"
    finally:
        parent.close()


def test_fork_inside_a_coroutine(loop: Loop, loop_factory: Callable[[], Loop]) -> None:
    def body() -> None:
        assert asyncio._get_running_loop() is None
        child = loop_factory()
        assert child.run_until_complete(asyncio.sleep(0.01, "child")) == "child"
        child.close()

    async def main() -> str:
        assert in_child(body) == 0
        await asyncio.sleep(0.01)
        return "parent"

    assert loop.run_until_complete(main()) == "parent"


def test_loop_of_the_parent_raises_in_the_child(rondel_loop: Loop) -> None:
    loop = rondel_loop
    seen: list[str] = []
    loop.run_until_complete(asyncio.sleep(0))
    read, write = os.pipe()

    def body() -> None:
        for call in (
            lambda: loop.run_until_complete(loop.create_future()),
            loop.run_forever,
            lambda: loop.call_soon(print),
            lambda: loop.call_later(0, print),
            lambda: loop.call_soon_threadsafe(print),
            lambda: loop.add_reader(read, print),
        ):
            with pytest.raises(RuntimeError, match="fork"):
                call()

    try:
        loop.add_reader(read, lambda: seen.append(os.read(read, 10).decode()))
        assert in_child(body) == 0
        # The parent's poll, timers and wake-up are as they were.
        os.write(write, b"data")
        with in_thread(lambda: loop.call_soon_threadsafe(seen.append, "woken")):
            loop.run_until_complete(asyncio.sleep(0.02))
        assert sorted(seen) == ["data", "woken"]
        assert loop.remove_reader(read) is True
    finally:
        os.close(read)
        os.close(write)


def test_child_that_closes_the_parents_loop_does_not_disturb_it(rondel_loop: Loop) -> None:
    read, write = os.pipe()
    seen: list[bytes] = []
    try:
        rondel_loop.add_reader(read, lambda: seen.append(os.read(read, 10)))
        rondel_loop.run_until_complete(asyncio.sleep(0))
        assert in_child(rondel_loop.close) == 0
        os.write(write, b"data")
        rondel_loop.run_until_complete(asyncio.sleep(0.02))
        assert seen == [b"data"]
        rondel_loop.remove_reader(read)
    finally:
        os.close(read)
        os.close(write)


def test_multiprocessing_fork_from_a_running_loop(loop: Loop) -> None:
    import multiprocessing

    context = multiprocessing.get_context("fork")

    def child(queue: Any) -> None:
        queue.put(asyncio.run(asyncio.sleep(0.01, "from the child")))

    async def main() -> str:
        queue = context.SimpleQueue()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            process = context.Process(target=child, args=(queue,))
            process.start()
        result = await loop.run_in_executor(None, queue.get)
        await loop.run_in_executor(None, process.join, 10)
        assert process.exitcode == 0
        return str(result)

    if threading.active_count() > 1 and sys.version_info < (3, 12):
        pytest.skip("threads of other tests are alive")
    assert loop.run_until_complete(main()) == "from the child"
