"""Debug mode: slow callbacks, calls from the wrong thread, what was never closed, origins."""

import asyncio
import functools
import gc
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from support import LoopFactory, Recorder, connected, in_thread, run_turn, tcp_pair

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]


def callback(*args: object) -> None:
    pass


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "asyncio" and record.levelno == logging.WARNING
    ]


# --- switching it on ---------------------------------------------------------------------------


def test_debug_is_off_by_default(loop: Loop) -> None:
    assert loop.get_debug() is False


def test_set_debug(loop: Loop) -> None:
    loop.set_debug(True)
    assert loop.get_debug() is True
    loop.set_debug(False)
    assert loop.get_debug() is False


def test_get_debug_takes_no_arguments(loop: Loop) -> None:
    with pytest.raises(TypeError):
        loop.get_debug(1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("args", "variable", "expected"),
    [
        ([], None, "False"),
        ([], "1", "True"),
        ([], "", "False"),
        (["-X", "dev"], None, "True"),
        (["-E"], "1", "False"),
    ],
)
def test_environment_switches_debug_on(
    loop_factory: LoopFactory, args: list[str], variable: str | None, expected: str
) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    if variable is not None:
        environment["PYTHONASYNCIODEBUG"] = variable
    module = getattr(loop_factory, "__module__", "rondel")
    make = "asyncio.new_event_loop" if module.startswith("asyncio") else "rondel.new_event_loop"
    code = (
        f"import asyncio, {make.partition('.')[0]}; l = {make}(); print(l.get_debug()); l.close()"
    )
    done = subprocess.run(
        [sys.executable, *args, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert done.stdout.strip() == expected


def test_runner_switches_debug_on(loop_factory: LoopFactory) -> None:
    async def main() -> bool:
        return asyncio.get_running_loop().get_debug()

    for debug in (True, False):
        with asyncio.Runner(debug=debug, loop_factory=loop_factory) as runner:
            assert runner.run(main()) is debug


# --- slow callbacks ----------------------------------------------------------------------------


def test_slow_callback_duration_is_an_attribute(loop: Loop) -> None:
    assert loop.slow_callback_duration == 0.1
    loop.slow_callback_duration = 2
    assert loop.slow_callback_duration == 2


def test_slow_callback_is_logged(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    loop.set_debug(True)
    loop.slow_callback_duration = 0.02

    def slow(*args: object) -> None:
        time.sleep(0.03)

    loop.call_soon(callback)
    loop.call_soon(slow, 1)
    run_turn(loop)
    (message,) = warned(caplog)
    where = f"{re.escape(__file__)}:{slow.__code__.co_firstlineno}"
    assert re.fullmatch(
        rf"Executing <Handle .*slow\(1\) at {where} created at {re.escape(__file__)}:\d+> "
        r"took 0\.0\d\d seconds",
        message,
    )


def test_slow_timer_is_logged(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    loop.set_debug(True)
    loop.slow_callback_duration = 0.02
    loop.call_later(0, time.sleep, 0.03)
    loop.stop()
    loop.run_forever()
    (message,) = warned(caplog)
    assert re.fullmatch(
        rf"Executing <TimerHandle when=[\d.]+ sleep\(0\.03\) created at {re.escape(__file__)}:\d+> "
        r"took 0\.0\d\d seconds",
        message,
    )


def test_slow_task_step_is_logged_as_the_task(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    loop.set_debug(True)
    loop.slow_callback_duration = 0.02

    async def body() -> None:
        await asyncio.sleep(0)
        time.sleep(0.03)

    task = loop.create_task(body(), name="sluggish")
    loop.run_until_complete(task)
    (message,) = warned(caplog)
    assert message.startswith("Executing <Task finished name='sluggish' coro=<test_slow_task")
    assert re.search(r"> took 0\.0\d\d seconds$", message)


def test_slow_callback_that_fails_is_logged_too(
    loop: Loop, caplog: pytest.LogCaptureFixture, reported: list[dict[str, Any]]
) -> None:
    loop.set_debug(True)
    loop.slow_callback_duration = 0.02

    def slow() -> None:
        time.sleep(0.03)
        raise ValueError("mine")

    loop.call_soon(slow)
    run_turn(loop)
    assert len(warned(caplog)) == 1
    assert len(reported) == 1


def test_slow_callback_is_not_logged_without_debug(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    loop.slow_callback_duration = 0.001
    loop.call_soon(time.sleep, 0.01)
    run_turn(loop)
    assert warned(caplog) == []


def test_zero_duration_logs_every_callback(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    loop.set_debug(True)
    loop.slow_callback_duration = 0
    loop.call_soon(callback)
    loop.call_soon(callback)
    loop.stop()
    loop.run_forever()
    assert len(warned(caplog)) == 2


# --- the wrong thread --------------------------------------------------------------------------

OTHER_THREAD = r"^Non-thread-safe operation invoked on an event loop other than the current one$"
CALLS: dict[str, Callable[[Any], Any]] = {
    "call_soon": lambda loop: loop.call_soon(callback),
    "call_later": lambda loop: loop.call_later(0, callback),
    "call_at": lambda loop: loop.call_at(0, callback),
}


@pytest.mark.parametrize("name", CALLS)
def test_call_from_another_thread_is_refused_while_the_loop_runs(loop: Loop, name: str) -> None:
    loop.set_debug(True)

    def caller() -> None:
        try:
            with pytest.raises(RuntimeError, match=OTHER_THREAD):
                CALLS[name](loop)
        finally:
            loop.call_soon_threadsafe(loop.stop)

    # Not before the loop runs: until then any thread may prepare it.
    loop.call_soon(lambda: None)
    with in_thread(lambda: (time.sleep(0.05), caller())):
        loop.run_forever()


def test_call_from_another_thread_is_allowed_before_the_loop_runs(loop: Loop) -> None:
    loop.set_debug(True)
    seen: list[str] = []
    with in_thread(lambda: loop.call_soon(seen.append, "called")):
        pass
    run_turn(loop)
    assert seen == ["called"]


def test_threadsafe_call_from_another_thread_is_allowed(loop: Loop) -> None:
    loop.set_debug(True)
    with in_thread(lambda: (time.sleep(0.02), loop.call_soon_threadsafe(loop.stop))):
        loop.run_forever()


# --- callbacks that make no sense --------------------------------------------------------------

SCHEDULERS: dict[str, Callable[[Any, Any], Any]] = {
    "call_soon": lambda loop, f: loop.call_soon(f),
    "call_soon_threadsafe": lambda loop, f: loop.call_soon_threadsafe(f),
    # asyncio's call_later speaks of call_at.
    "call_later": lambda loop, f: loop.call_later(0, f),
    "call_at": lambda loop, f: loop.call_at(0, f),
    "run_in_executor": lambda loop, f: loop.run_in_executor(None, f),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_coroutines_are_refused_as_callbacks(loop: Loop, name: str) -> None:
    async def function() -> None: ...

    loop.set_debug(True)
    shown = "call_at" if name == "call_later" else name
    coroutine = function()
    for wrong in (function, coroutine):
        with pytest.raises(TypeError, match=rf"^coroutines cannot be used with {shown}\(\)$"):
            SCHEDULERS[name](loop, wrong)
    coroutine.close()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_callbacks_that_cannot_be_called_are_refused(loop: Loop, name: str) -> None:
    loop.set_debug(True)
    shown = "call_at" if name == "call_later" else name
    text = rf"^a callable object was expected by {shown}\(\), got 42$"
    with pytest.raises(TypeError, match=text):
        SCHEDULERS[name](loop, 42)


def test_callable_objects_are_taken(loop: Loop) -> None:
    seen: list[str] = []

    class Thing:
        def __call__(self) -> None:
            seen.append("thing")

        def method(self) -> None:
            seen.append("method")

    loop.set_debug(True)
    for function in (Thing(), Thing().method, functools.partial(seen.append, "partial")):
        loop.call_soon(function)
    run_turn(loop)
    assert seen == ["thing", "method", "partial"]


# --- where things were made --------------------------------------------------------------------


def test_handles_know_where_they_were_made(loop: Loop) -> None:
    assert loop.call_soon(callback)._source_traceback is None
    loop.set_debug(True)
    here = "test_handles_know_where_they_were_made"
    for handle in (
        loop.call_soon(callback),
        loop.call_soon_threadsafe(callback),
        loop.call_later(60, callback),
        loop.call_at(1e9, callback),
    ):
        last = handle._source_traceback[-1]
        assert (last.filename, last.name) == (__file__, here)
        assert last.line in {
            "loop.call_soon(callback),",
            "loop.call_soon_threadsafe(callback),",
            "loop.call_later(60, callback),",
            "loop.call_at(1e9, callback),",
        }


def test_tasks_and_futures_know_where_they_were_made(loop: Loop) -> None:
    loop.set_debug(True)
    future = loop.create_future()
    task = loop.create_task(asyncio.sleep(0))
    for made, line in (
        (future, "future = loop.create_future()"),
        (task, "task = loop.create_task(asyncio.sleep(0))"),
    ):
        # A native create_future has no frame of its own; asyncio's is the last entry.
        frames = [frame for frame in made._source_traceback if frame.filename == __file__]
        assert frames[-1].line == line
    assert made._source_traceback[-1].filename == __file__
    loop.run_until_complete(task)


def test_coroutine_origin_is_tracked_while_a_debugging_loop_runs(loop: Loop) -> None:
    async def look() -> int:
        return sys.get_coroutine_origin_tracking_depth()

    before = sys.get_coroutine_origin_tracking_depth()
    assert loop.run_until_complete(look()) == before
    loop.set_debug(True)
    assert loop.run_until_complete(look()) > 0
    assert sys.get_coroutine_origin_tracking_depth() == before


def test_coroutine_origin_tracking_follows_set_debug_while_running(loop: Loop) -> None:
    depths: list[int] = []

    async def main() -> None:
        for debug in (True, False):
            loop.set_debug(debug)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            depths.append(sys.get_coroutine_origin_tracking_depth())

    before = sys.get_coroutine_origin_tracking_depth()
    loop.run_until_complete(main())
    assert depths[0] > 0
    assert depths[1] == before
    assert sys.get_coroutine_origin_tracking_depth() == before


def test_origin_is_part_of_the_never_awaited_warning(loop: Loop) -> None:
    async def forgotten() -> None: ...

    async def main() -> None:
        forgotten()
        gc.collect()

    loop.set_debug(True)
    with pytest.warns(RuntimeWarning, match="was never awaited") as caught:
        loop.run_until_complete(main())
    assert "Coroutine created at (most recent call last)" in str(caught[0].message)
    assert __file__ in str(caught[0].message)


# --- what was never closed ---------------------------------------------------------------------


def test_transport_that_was_never_closed_warns(loop: Loop) -> None:
    async def main() -> None:
        with tcp_pair() as (near, far):
            transport, protocol = await loop.create_connection(Recorder, sock=near)
            text = repr(transport)
            transport.pause_reading()
            assert isinstance(protocol, Recorder)
            del protocol.transport
            protocol.transport = None  # type: ignore[assignment]
            texts.append(f"unclosed transport {transport!r}")
            assert text.startswith("<")
            del transport, protocol
            for _ in range(3):
                gc.collect()
            # Nobody can close it any more, so the socket is closed with it.
            await asyncio.sleep(0)
            assert far.recv(10) == b""

    texts: list[str] = []
    with pytest.warns(ResourceWarning) as caught:
        loop.run_until_complete(main())
    assert [str(w.message) for w in caught] == texts


def test_transport_that_was_closed_does_not_warn(
    loop: Loop, recwarn: pytest.WarningsRecorder
) -> None:
    async def main() -> None:
        async with connected() as (transport, protocol, _):
            transport.close()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert protocol.lost == [None]

    loop.run_until_complete(main())
    gc.collect()
    assert [str(w.message) for w in recwarn] == []


def test_reading_transport_is_kept_alive_by_the_loop(
    loop: Loop, recwarn: pytest.WarningsRecorder
) -> None:
    async def main() -> None:
        with tcp_pair() as (near, far):
            _, protocol = await loop.create_connection(Recorder, sock=near)
            del near
            gc.collect()
            far.send(b"data")
            for _ in range(100):
                if protocol.data:
                    break
                await asyncio.sleep(0.001)
            assert protocol.data == b"data"
            protocol.transport.close()
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    loop.run_until_complete(main())
    assert [str(w.message) for w in recwarn] == []


@pytest.mark.skipif(
    not hasattr(asyncio.StreamWriter, "__del__"), reason="StreamWriter warns since 3.11.5"
)
def test_stream_writer_that_was_never_closed_warns(loop: Loop) -> None:
    async def main() -> None:
        server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        with pytest.warns(ResourceWarning) as caught:
            del writer
            gc.collect()
        assert [str(w.message).partition(" transport=")[0] for w in caught] == [
            "unclosed <StreamWriter"
        ]
        server.close()
        await asyncio.sleep(0.01)

    loop.run_until_complete(main())


def test_debug_log_of_a_connection(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="asyncio")
    loop.set_debug(True)

    async def main() -> None:
        server = await loop.create_server(Recorder, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        transport, protocol = await loop.create_connection(Recorder, host, port)
        text = f"connected to {host}:{port}: ({transport!r}, {protocol!r})"
        assert any(text in record.getMessage() for record in caplog.records)
        assert f"{server!r} is serving" in [record.getMessage() for record in caplog.records]
        await asyncio.sleep(0.01)
        assert any("got a new connection from" in r.getMessage() for r in caplog.records)
        caplog.clear()
        transport.pause_reading()
        paused = f"{transport!r} pauses reading"
        transport.resume_reading()
        resumed = f"{transport!r} resumes reading"
        assert [record.message for record in caplog.records] == [paused, resumed]
        transport.close()
        server.close()
        await asyncio.sleep(0.01)

    loop.run_until_complete(main())
    caplog.clear()
    loop.close()
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    assert messages[0].startswith("Close <")
