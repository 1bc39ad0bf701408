"""add_signal_handler and remove_signal_handler, and how they get along with Python's own."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import LoopFactory, in_thread, run_turn, run_until

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Put every disposition that these tests change back, and the wake-up fd."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    assert signal.set_wakeup_fd(-1) == -1, "a wake-up fd was left behind"


def kill(number: int = signal.SIGUSR1) -> None:
    os.kill(os.getpid(), number)


def test_handler_is_called_on_the_loop_with_its_arguments(loop: Loop) -> None:
    seen: list[Any] = []

    def handler(*args: object) -> None:
        seen.append((args, asyncio.get_running_loop(), threading.get_ident()))

    assert loop.add_signal_handler(signal.SIGUSR1, handler, 1, "two") is None
    kill()
    run_until(loop, lambda: seen)
    assert seen == [((1, "two"), loop, threading.get_ident())]


def test_signal_wakes_a_waiting_loop(loop: Loop) -> None:
    loop.add_signal_handler(signal.SIGUSR1, loop.stop)
    started = time.monotonic()
    with in_thread(lambda: (time.sleep(0.05), kill())):
        loop.run_forever()
    assert time.monotonic() - started < 5


def test_handler_is_called_for_every_signal(loop: Loop) -> None:
    seen: list[int] = []
    loop.add_signal_handler(signal.SIGUSR1, seen.append, 1)
    loop.add_signal_handler(signal.SIGUSR2, seen.append, 2)
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR1):
        kill(number)
        before = len(seen)
        run_until(loop, lambda before=before: len(seen) > before)
    assert seen == [1, 2, 1]


def test_handler_is_a_callback_not_an_interruption(loop: Loop) -> None:
    seen: list[str] = []

    def body() -> None:
        kill()
        seen.append("body goes on")

    loop.add_signal_handler(signal.SIGUSR1, seen.append, "handler")
    loop.call_soon(body)
    run_until(loop, lambda: len(seen) == 2)
    assert seen == ["body goes on", "handler"]


def test_handler_runs_in_a_busy_loop(loop: Loop) -> None:
    def spin() -> None:
        nonlocal turns
        turns += 1
        if turns == 100:
            kill()
        loop.call_soon(spin)

    turns = 0
    loop.add_signal_handler(signal.SIGUSR1, loop.stop)
    loop.call_soon(spin)
    loop.call_later(10, loop.stop)
    started = loop.time()
    loop.run_forever()
    assert loop.time() - started < 5


def test_signal_before_the_loop_runs_is_not_lost(loop: Loop) -> None:
    seen: list[str] = []
    loop.add_signal_handler(signal.SIGUSR1, seen.append, "called")
    kill()
    assert seen == []
    run_until(loop, lambda: seen)
    assert seen == ["called"]


def test_exception_in_a_handler_is_reported(loop: Loop, reported: list[dict[str, Any]]) -> None:
    def handler() -> None:
        raise ValueError("mine")

    loop.add_signal_handler(signal.SIGUSR1, handler)
    kill()
    run_until(loop, lambda: reported)
    assert reported[0]["message"].startswith("Exception in callback ")
    assert isinstance(reported[0]["exception"], ValueError)
    kill()
    run_until(loop, lambda: len(reported) == 2)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_exit_in_a_handler_leaves_the_loop(loop: Loop, kind: type[BaseException]) -> None:
    def handler() -> None:
        raise kind

    loop.add_signal_handler(signal.SIGUSR1, handler)
    kill()
    loop.call_later(5, loop.stop)
    with pytest.raises(kind):
        loop.run_forever()


def test_second_handler_replaces_the_first(loop: Loop) -> None:
    seen: list[str] = []
    loop.add_signal_handler(signal.SIGUSR1, seen.append, "first")
    loop.add_signal_handler(signal.SIGUSR1, seen.append, "second")
    kill()
    run_until(loop, lambda: seen)
    run_turn(loop)
    assert seen == ["second"]
    assert loop.remove_signal_handler(signal.SIGUSR1) is True
    assert loop.remove_signal_handler(signal.SIGUSR1) is False


def test_remove_restores_the_default_disposition(loop: Loop) -> None:
    loop.add_signal_handler(signal.SIGUSR1, print)
    loop.add_signal_handler(signal.SIGINT, print)
    assert signal.getsignal(signal.SIGUSR1) not in (signal.SIG_DFL, signal.SIG_IGN, None)
    assert loop.remove_signal_handler(signal.SIGUSR1) is True
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    assert loop.remove_signal_handler(signal.SIGINT) is True
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_remove_without_a_handler(loop: Loop) -> None:
    previous = signal.getsignal(signal.SIGUSR1)
    assert loop.remove_signal_handler(signal.SIGUSR1) is False
    assert signal.getsignal(signal.SIGUSR1) is previous


def test_removed_handler_is_not_called(loop: Loop) -> None:
    seen: list[str] = []
    loop.add_signal_handler(signal.SIGUSR1, seen.append, "called")
    loop.add_signal_handler(signal.SIGUSR2, loop.stop)
    kill(signal.SIGUSR1)
    loop.remove_signal_handler(signal.SIGUSR1)
    kill(signal.SIGUSR2)
    loop.run_forever()
    assert seen == []


def test_close_removes_the_handlers(loop: Loop) -> None:
    loop.add_signal_handler(signal.SIGUSR1, print)
    loop.add_signal_handler(signal.SIGINT, print)
    loop.close()
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handler_does_not_interrupt_system_calls(loop: Loop) -> None:
    # SA_RESTART is set: a blocking call of another thread or library does not get EINTR.
    import ctypes

    loop.add_signal_handler(signal.SIGUSR1, print)
    libc = ctypes.CDLL(None, use_errno=True)
    read, write = os.pipe()
    try:
        main = threading.main_thread().ident
        assert main is not None

        def disturb() -> None:
            time.sleep(0.05)
            signal.pthread_kill(main, signal.SIGUSR1)
            time.sleep(0.05)
            os.write(write, b"x")

        buffer = ctypes.create_string_buffer(1)
        with in_thread(disturb):
            assert libc.read(read, buffer, 1) == 1
    finally:
        os.close(read)
        os.close(write)
        loop.remove_signal_handler(signal.SIGUSR1)


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, -1, 1000])
def test_invalid_signal_numbers(loop: Loop, number: int) -> None:
    with pytest.raises(ValueError, match=rf"^invalid signal number {number}$"):
        loop.add_signal_handler(number, print)
    with pytest.raises(ValueError, match=rf"^invalid signal number {number}$"):
        loop.remove_signal_handler(number)


@pytest.mark.parametrize("number", ["SIGUSR1", None, 1.5])
def test_signal_must_be_an_int(loop: Loop, number: Any) -> None:
    with pytest.raises(TypeError, match=rf"^sig must be an int, not {number!r}$"):
        loop.add_signal_handler(number, print)
    with pytest.raises(TypeError, match=rf"^sig must be an int, not {number!r}$"):
        loop.remove_signal_handler(number)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_uncatchable_signals(loop: Loop, number: int) -> None:
    with pytest.raises(RuntimeError) as caught:
        loop.add_signal_handler(number, print)
    assert str(caught.value) == f"sig {number} cannot be caught"
    assert loop.remove_signal_handler(number) is False


def test_coroutines_are_refused_as_handlers(loop: Loop) -> None:
    async def function() -> None: ...

    coroutine = function()
    for wrong in (function, coroutine):
        with pytest.raises(
            TypeError, match=r"^coroutines cannot be used with add_signal_handler\(\)$"
        ):
            loop.add_signal_handler(signal.SIGUSR1, wrong)  # type: ignore[arg-type]
    coroutine.close()
    assert loop.remove_signal_handler(signal.SIGUSR1) is False


def test_only_the_main_thread_may_add_a_handler(loop_factory: LoopFactory) -> None:
    def body() -> None:
        loop = loop_factory()
        try:
            with pytest.raises(RuntimeError, match="main thread"):
                loop.add_signal_handler(signal.SIGUSR1, print)
            assert loop.remove_signal_handler(signal.SIGUSR1) is False
        finally:
            loop.close()

    with in_thread(body):
        pass


def test_sigchld_is_allowed(loop: Loop) -> None:
    seen: list[str] = []
    loop.add_signal_handler(signal.SIGCHLD, seen.append, "child ended")
    pid = os.posix_spawn("/bin/true", ["true"], {})
    run_until(loop, lambda: seen)
    os.waitpid(pid, 0)
    assert seen == ["child ended"]
    assert loop.remove_signal_handler(signal.SIGCHLD) is True


# --- SIGINT ------------------------------------------------------------------------------------


def interrupt_later() -> None:
    time.sleep(0.05)
    kill(signal.SIGINT)


def test_sigint_with_a_handler_is_no_keyboard_interrupt(loop: Loop) -> None:
    loop.add_signal_handler(signal.SIGINT, loop.stop)
    with in_thread(interrupt_later):
        loop.run_forever()


def test_sigint_cancels_the_main_task_of_a_runner(loop_factory: LoopFactory) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    seen: list[str] = []

    async def main() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            seen.append("cancelled")
            await asyncio.sleep(0)
            seen.append("cleaned up")
            raise

    with (
        in_thread(interrupt_later),
        asyncio.Runner(loop_factory=loop_factory) as runner,
        pytest.raises(KeyboardInterrupt),
    ):
        runner.run(main())
    assert seen == ["cancelled", "cleaned up"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_sigint_in_a_busy_main_task_of_a_runner(loop_factory: LoopFactory) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)

    async def main() -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            await asyncio.sleep(0)

    started = time.monotonic()
    with (
        in_thread(interrupt_later),
        asyncio.Runner(loop_factory=loop_factory) as runner,
        pytest.raises(KeyboardInterrupt),
    ):
        runner.run(main())
    assert time.monotonic() - started < 5


def test_second_sigint_interrupts_a_runner_that_does_not_stop(loop_factory: LoopFactory) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cancelled = threading.Event()

    async def main() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            await asyncio.sleep(30)

    def interrupt_twice() -> None:
        interrupt_later()
        assert cancelled.wait(10)
        interrupt_later()

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), in_thread(interrupt_twice):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main())
    assert time.monotonic() - started < 15


def test_wakeup_fd_of_the_program_is_left_alone_without_handlers(
    loop_factory: LoopFactory,
) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write)
    try:
        loop = loop_factory()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        assert signal.set_wakeup_fd(write) == write
    finally:
        signal.set_wakeup_fd(before)
        os.close(read)
        os.close(write)
