"""The traps that event loops fall into, a test or more for each, by their number in the design.

Number 9 (fork) is in test_interrupts.py, 11 (no panic) in test_trap_panic.py. Numbers 3 and 10
concern TLS and come with it.
"""

import asyncio
import contextlib
import contextvars
import gc
import os
import socket
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from support import (
    HOST,
    LoopFactory,
    Recorder,
    connected,
    in_thread,
    listening_socket,
    open_fds,
    read_exactly,
    read_to_end,
    run_turn,
    skip_if_asyncio_errs,
    tcp_pair,
    turns,
    until,
)

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]


class OnDelete:
    """Calls a function when it is destroyed: Python code in the middle of a DECREF."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.action = action

    def __del__(self) -> None:
        self.action()


# --- 1. descriptors that are used again --------------------------------------------------------


def test_trap_01_new_transport_with_the_descriptor_of_a_closed_one(loop: Loop, run: Run) -> None:
    async def main() -> None:
        numbers = set()
        old: Recorder | None = None
        for i in range(50):
            async with connected() as (transport, protocol, peer):
                numbers.add(transport.get_extra_info("socket").fileno())
                peer.send(b"%d" % i)
                await until(lambda protocol=protocol: protocol.data)
                assert protocol.data == b"%d" % i
                assert old is None or old.events == ["made", "data", "lost"]
                old = protocol
                transport.close()
                await turns(2)
        # The test is worth something only if numbers were used again.
        assert len(numbers) < 50

    run(main)


def test_trap_01_descriptor_closed_under_a_waiting_receive(loop: Loop, run: Run) -> None:
    async def main() -> None:
        near, far = socket.socketpair()
        near.setblocking(False)
        fd = near.fileno()
        task = loop.create_task(loop.sock_recv(near, 10))
        await turns(2)
        # Cancelled, closed and used again before the cancellation is carried out.
        task.cancel()
        near.close()
        new_near, new_far = socket.socketpair()
        if new_near.fileno() != fd:
            new_near, new_far = new_far, new_near
        assert new_near.fileno() == fd
        new_near.setblocking(False)
        with new_near, new_far, far:
            seen: list[bytes] = []
            loop.add_reader(new_near, lambda: seen.append(new_near.recv(10)))
            with pytest.raises(asyncio.CancelledError):
                await task
            await turns(2)
            new_far.send(b"hello")
            await until(lambda: seen)
            assert seen == [b"hello"]
            assert loop.remove_reader(new_near) is True

    skip_if_asyncio_errs(loop, "its selector takes the new descriptor for the old one")
    run(main)


def test_trap_01_cancelled_connection_gives_its_descriptor_back(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with listening_socket(backlog=0) as listener, contextlib.ExitStack() as stack:
            for _ in range(3):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(listener.getsockname())
            await asyncio.sleep(0.01)
            before = open_fds()
            for _ in range(10):
                task = loop.create_task(loop.create_connection(Recorder, *listener.getsockname()))
                await turns(3)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                async with connected() as (_, protocol, peer):
                    peer.send(b"hello")
                    await until(lambda protocol=protocol: protocol.data == b"hello")
            await turns(2)
            assert open_fds() == before

    run(main)


def test_trap_01_adopted_socket_after_a_cancelled_create_connection(loop: Loop, run: Run) -> None:
    """Cancelled between the transport's making and connection_made: the socket is closed once."""

    async def main() -> None:
        for steps in range(4):
            with tcp_pair() as (near, far):
                before = open_fds()
                task = loop.create_task(loop.create_connection(Recorder, sock=near))
                await turns(steps)
                task.cancel()
                try:
                    transport, _ = await task
                except asyncio.CancelledError:
                    pass
                else:
                    transport.close()
                await turns(3)
                if steps:
                    assert near.fileno() == -1
                    assert await read_to_end(far) == b""
                    assert open_fds() == before - 1
                # Cancelled before it began, it never touched the socket.
                else:
                    assert near.fileno() != -1

    run(main)


# --- 2. close and abort ------------------------------------------------------------------------


def test_trap_02_close_stops_reading_flushes_then_tells(run: Run) -> None:
    async def main() -> None:
        async with connected(small=True) as (transport, protocol, peer):
            data = bytes(range(256)) * 4096
            transport.write(data)
            transport.close()
            assert not transport.is_reading()
            await turns(5)
            assert protocol.events == ["made", "pause"]
            assert await read_exactly(peer, len(data)) == data
            await until(lambda: protocol.lost)
            await turns(3)
            # asyncio tells the protocol to write again while it closes.
            assert protocol.events in (
                ["made", "pause", "resume", "lost"],
                ["made", "pause", "lost"],
            )
            assert protocol.lost == [None]

    run(main)


# --- 4. contexts -------------------------------------------------------------------------------


def test_trap_04_exceptions_are_reported_outside_the_callbacks_context(
    loop: Loop, reported: list[dict[str, Any]]
) -> None:
    """The context is free again when the handler runs, and for the callbacks after it."""
    var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="unset")
    context = contextvars.copy_context()
    seen: list[str] = []

    def fails() -> None:
        var.set("by the first")
        raise ValueError("mine")

    def handler(loop: Loop, report: dict[str, Any]) -> None:
        reported.append(report)
        var.set("by the handler")

    loop.set_exception_handler(handler)
    loop.call_soon(fails, context=context)
    loop.call_soon(lambda: seen.append(var.get()), context=context)
    run_turn(loop)
    assert len(reported) == 1
    # From 3.12 on the handler runs in that context too, but as a call of its own.
    assert seen in (["by the first"], ["by the handler"])
    assert context.run(var.get) == seen[0]


# --- 5. exceptions, exits, interrupted calls ---------------------------------------------------


def test_trap_05_signal_storm_loses_neither_data_nor_callbacks(loop: Loop, run: Run) -> None:
    """EINTR runs Python's signal handlers and goes on with what it was doing."""
    import signal

    handled = 0

    def handler(signum: int, frame: object) -> None:
        nonlocal handled
        handled += 1

    stop = threading.Event()
    main_thread = threading.main_thread().ident
    assert main_thread is not None

    def storm() -> None:
        while not stop.is_set():
            signal.pthread_kill(main_thread, signal.SIGUSR1)
            time.sleep(0.0002)

    async def main() -> None:
        data = os.urandom(2 << 20)
        async with connected(small=True) as (transport, protocol, peer):
            transport.write(data)
            assert await read_exactly(peer, len(data)) == data
            sender = asyncio.ensure_future(loop.sock_sendall(peer, data))
            await until(lambda: len(protocol.data) == len(data))
            await sender
            assert protocol.data == data
            await asyncio.sleep(0.05)
            assert await loop.run_in_executor(None, sum, [1, 2]) == 3

    previous = signal.signal(signal.SIGUSR1, handler)
    try:
        with in_thread(storm):
            try:
                run(main)
            finally:
                stop.set()
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert handled > 10


# --- 6. Python code in awkward places ----------------------------------------------------------


def test_trap_06_schedules_while_a_callback_is_dropped(loop: Loop) -> None:
    seen: list[str] = []
    things = {
        "soon": loop.call_soon(print, OnDelete(lambda: loop.call_soon(seen.append, "soon"))),
        "later": loop.call_later(
            60, print, OnDelete(lambda: loop.call_later(0, seen.append, "later"))
        ),
        "threadsafe": loop.call_soon_threadsafe(
            print, OnDelete(lambda: loop.call_soon_threadsafe(seen.append, "threadsafe"))
        ),
    }
    for handle in things.values():
        handle.cancel()
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    assert sorted(seen) == ["later", "soon", "threadsafe"]


def test_trap_06_schedules_while_the_timers_are_compacted(loop: Loop) -> None:
    seen: list[int] = []
    handles: list[asyncio.TimerHandle] = []
    for i in range(1000):
        # Each cancelled timer's argument schedules another timer when it goes.
        thing = OnDelete(lambda i=i: handles.append(loop.call_later(0.001, seen.append, i)))
        loop.call_later(3600 + i, print, thing).cancel()
        del thing
    run_turn(loop)
    loop.call_later(0.05, loop.stop)
    loop.run_forever()
    assert sorted(seen) == list(range(1000))


def test_trap_06_cancels_others_while_a_callback_is_dropped(loop: Loop) -> None:
    seen: list[str] = []
    others = [loop.call_later(0.005, seen.append, "ran") for _ in range(200)]

    def cancel_all() -> None:
        for handle in others:
            handle.cancel()

    loop.call_later(60, print, OnDelete(cancel_all)).cancel()
    loop.call_later(0.02, loop.stop)
    loop.run_forever()
    assert seen == []


def test_trap_06_schedules_while_the_loop_closes(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    errors: list[str] = []

    def schedule() -> None:
        for call in (
            lambda: loop.call_soon(print),
            lambda: loop.call_later(1, print),
            lambda: loop.call_soon_threadsafe(print),
            loop.close,
        ):
            try:
                call()
            except RuntimeError as exc:
                errors.append(str(exc))

    loop.call_soon(print, OnDelete(schedule))
    loop.call_later(60, print, OnDelete(schedule))
    loop.call_soon_threadsafe(print, OnDelete(schedule))
    loop.close()
    assert loop.is_closed()
    assert errors == ["Event loop is closed"] * 9


def test_trap_06_closes_the_transport_while_its_protocol_is_dropped(run: Run) -> None:
    async def main() -> None:
        async with connected() as (transport, protocol, peer):
            protocol.thing = OnDelete(transport.close)
            protocol.transport = None
            transport.set_protocol(replacement := Recorder())
            del protocol
            gc.collect()
            assert not transport.is_closing() or replacement.lost == []
            transport.write(b"x")
            transport.close()
            await turns(3)
            assert replacement.lost == [None]
            del peer

    run(main)


def test_trap_06_transport_used_inside_its_own_notifications(run: Run) -> None:
    """pause_writing and resume_writing may write, close, abort and change the limits."""

    class Busy(Recorder):
        def pause_writing(self) -> None:
            super().pause_writing()
            self.transport.set_write_buffer_limits(high=10, low=5)
            self.transport.write(b"p")
            self.transport.get_write_buffer_size()
            self.transport.pause_reading()

        def resume_writing(self) -> None:
            super().resume_writing()
            self.transport.resume_reading()
            self.transport.set_write_buffer_limits()
            self.transport.write(b"r")
            self.transport.write_eof()

    async def main() -> None:
        size = 1 << 20
        async with connected(Busy(), small=True) as (transport, protocol, peer):
            transport.write(bytes(size))
            received = await read_to_end(peer)
            assert received == bytes(size) + b"pr"
            assert protocol.events[:3] == ["made", "pause", "resume"]

    run(main)


def test_trap_06_abort_inside_pause_writing(run: Run) -> None:
    class Aborting(Recorder):
        def pause_writing(self) -> None:
            super().pause_writing()
            self.transport.abort()

    async def main() -> None:
        async with connected(Aborting(), small=True) as (transport, protocol, _):
            transport.write(bytes(1 << 20))
            assert transport.is_closing()
            await turns(3)
            assert protocol.events == ["made", "pause", "lost"]
            assert transport.get_write_buffer_size() == 0

    run(main)


def test_trap_06_a_number_that_runs_python(loop: Loop) -> None:
    """The delay's conversion may itself schedule."""
    seen: list[str] = []

    class Delay(float):
        def __float__(self) -> float:
            loop.call_soon(seen.append, "converted")
            return super().__float__()

        def __radd__(self, other: float) -> float:
            loop.call_soon(seen.append, "converted")
            return other

    loop.call_later(Delay(0), seen.append, "timer")
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    assert "timer" in seen


# --- 7. collection -----------------------------------------------------------------------------


def test_trap_07_dropped_loops_leak_no_descriptors(loop_factory: LoopFactory) -> None:
    def use_and_drop(count: int) -> None:
        for _ in range(count):
            loop = loop_factory()
            near, far = socket.socketpair()
            loop.add_reader(near, loop.stop)
            loop.call_later(60, loop.stop)
            loop.run_until_complete(asyncio.sleep(0))
            near.close()
            far.close()
            del loop, near, far
        gc.collect()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        use_and_drop(5)
        before = open_fds()
        use_and_drop(50)
    assert open_fds() == before


def test_trap_07_cycles_through_transports_are_collected(loop: Loop, run: Run) -> None:
    refs: list[weakref.ref[Any]] = []

    class Cyclic(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            transport.protocol = self  # type: ignore[attr-defined]
            transport.me = transport  # type: ignore[attr-defined]
            self.loop = loop
            self.handle = loop.call_later(3600, self.data_received, b"")

    async def main() -> None:
        with tcp_pair() as (near, _):
            transport, protocol = await loop.create_connection(Cyclic, sock=near)
            refs.extend([weakref.ref(transport), weakref.ref(protocol)])
            protocol.handle.cancel()
            transport.close()
            await turns(3)

    run(main)
    gc.collect()
    assert [ref() for ref in refs] == [None, None]


def test_trap_07_closed_loop_lets_its_transports_go(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    refs: list[weakref.ref[Any]] = []

    async def main() -> None:
        transport, protocol = await loop.create_connection(Recorder, sock=near)
        refs.extend([weakref.ref(transport), weakref.ref(protocol), weakref.ref(loop)])

    with tcp_pair() as (near, _):
        loop.run_until_complete(main())
        loop.close()
        del loop
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
            gc.collect()
        assert [ref() for ref in refs] == [None, None, None]
        assert near.fileno() == -1


# --- 8. closing with work in flight ------------------------------------------------------------


def test_trap_08_close_with_work_in_flight(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    release = threading.Event()

    async def main() -> None:
        loop.run_in_executor(None, release.wait, 10)
        loop.create_task(asyncio.sleep(60))
        loop.call_later(60, print)
        server = await loop.create_server(Recorder, HOST, 0)
        await loop.create_connection(Recorder, *server.sockets[0].getsockname())
        loop.create_task(loop.sock_accept(stack.enter_context(listening_socket())))
        await asyncio.sleep(0)

    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")
        loop.set_exception_handler(lambda *_: None)
        loop.run_until_complete(main())
        started = time.monotonic()
        loop.close()
        assert time.monotonic() - started < 5
        with pytest.raises(RuntimeError, match=r"^Event loop is closed$"):
            loop.call_soon_threadsafe(print)
        release.set()
        del loop
        gc.collect()


def test_trap_08_threads_that_call_while_the_loop_closes(loop_factory: LoopFactory) -> None:
    for _ in range(5):
        loop = loop_factory()
        refusals: list[str] = []
        started = threading.Barrier(4)

        def hammer(
            loop: Loop = loop,
            started: threading.Barrier = started,
            refusals: list[str] = refusals,
        ) -> None:
            started.wait(10)
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                try:
                    loop.call_soon_threadsafe(int)
                except RuntimeError as exc:
                    refusals.append(str(exc))
                    return

        with in_thread(hammer), in_thread(hammer), in_thread(hammer):
            started.wait(10)
            loop.run_until_complete(asyncio.sleep(0.002))
            loop.close()
        assert refusals == ["Event loop is closed"] * 3


# --- what programs look for --------------------------------------------------------------------


def test_programs_recognise_the_main_task(loop: Loop) -> None:
    """It is how anyio finds the program's main task: by that callback on it."""
    callback = asyncio.base_events._run_until_complete_cb  # type: ignore[attr-defined]

    async def main() -> list[Any]:
        task: Any = asyncio.current_task()
        return [entry[0] if isinstance(entry, tuple) else entry for entry in task._callbacks]

    assert loop.run_until_complete(main()) == [callback]
