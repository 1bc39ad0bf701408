"""Exception handlers: who hears of an exception that nobody caught, and what is logged."""

import asyncio
import contextvars
import logging
import re
import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest
from support import Recorder, connected, read_exactly, run_turn, until

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]


def fails(*args: object) -> None:
    raise ValueError("mine")


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    for record in caplog.records:
        assert (record.name, record.levelno) == ("asyncio", logging.ERROR)
    return [record.getMessage() for record in caplog.records]


# --- the handler -------------------------------------------------------------------------------


def test_handler_is_none_at_first(loop_factory: Callable[[], Loop]) -> None:
    loop = loop_factory()
    try:
        assert loop.get_exception_handler() is None
        loop.set_exception_handler(fails)
        assert loop.get_exception_handler() is fails
        loop.set_exception_handler(None)
        assert loop.get_exception_handler() is None
    finally:
        loop.close()


def test_handler_must_be_callable(loop: Loop) -> None:
    with pytest.raises(TypeError, match=r"^A callable object or None is expected, got 42$"):
        loop.set_exception_handler(42)  # type: ignore[arg-type]


def test_handler_gets_the_loop_and_the_context(loop: Loop) -> None:
    seen: list[tuple[Any, ...]] = []
    loop.set_exception_handler(lambda *args: seen.append(args))
    given = {"message": "mine"}
    loop.call_exception_handler(given)
    ((first, second),) = seen
    assert first is loop
    assert second is given


def test_exception_in_a_callback(loop: Loop, reported: list[dict[str, Any]]) -> None:
    seen: list[str] = []
    handle = loop.call_soon(fails, 1)
    expected = repr(handle)
    loop.call_soon(seen.append, "the next callback")
    run_turn(loop)
    assert seen == ["the next callback"]
    (context,) = reported
    assert set(context) == {"message", "exception", "handle"}
    source = expected.removeprefix("<Handle ").removesuffix(">")
    assert context["message"] == f"Exception in callback {source}"
    assert isinstance(context["exception"], ValueError)
    assert context["handle"] is handle


@pytest.mark.parametrize("schedule", ["call_later", "call_at", "call_soon_threadsafe"])
def test_exception_in_any_callback(
    loop: Loop, reported: list[dict[str, Any]], schedule: str
) -> None:
    args = () if schedule == "call_soon_threadsafe" else (0,)
    handle = getattr(loop, schedule)(*args, fails)
    loop.stop()
    loop.run_forever()
    (context,) = reported
    assert context["handle"] is handle
    assert context["message"].startswith("Exception in callback fails() at ")


def test_exception_has_the_frames_of_the_callback(
    loop: Loop, reported: list[dict[str, Any]]
) -> None:
    loop.call_soon(fails)
    run_turn(loop)
    traceback = reported[0]["exception"].__traceback__
    names = []
    while traceback is not None:
        names.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    assert names[-1] == "fails"


def test_exception_in_debug_mode_tells_where_it_was_scheduled(
    loop: Loop, reported: list[dict[str, Any]]
) -> None:
    loop.set_debug(True)
    handle = loop.call_soon(fails)
    run_turn(loop)
    (context,) = reported
    assert set(context) == {"message", "exception", "handle", "source_traceback"}
    last = context["source_traceback"][-1]
    assert last.filename == __file__
    assert last.line == "handle = loop.call_soon(fails)"
    assert handle._source_traceback is context["source_traceback"]


def test_every_exception_of_a_turn_is_reported(loop: Loop, reported: list[dict[str, Any]]) -> None:
    for _ in range(3):
        loop.call_soon(fails)
    run_turn(loop)
    assert len(reported) == 3


def test_handler_runs_in_the_context_of_the_callback(loop: Loop) -> None:
    var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="outside")
    seen: list[str] = []
    loop.set_exception_handler(lambda *_: seen.append(var.get()))
    context = contextvars.copy_context()
    context.run(var.set, "the callback's")
    loop.call_soon(fails, context=context)
    loop.call_soon(fails)
    run_turn(loop)
    # Before 3.12 the handler ran in the context of run_forever.
    first = "outside" if sys.version_info < (3, 12) else "the callback's"
    assert seen == [first, "outside"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Task.get_context is new in 3.12")
def test_handler_runs_in_the_context_of_the_task_or_future(loop: Loop, run: Run) -> None:
    var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="outside")
    seen: list[str] = []
    loop.set_exception_handler(lambda *_: seen.append(var.get()))

    async def body() -> None:
        var.set("the task's")

    async def main() -> None:
        task = loop.create_task(body())
        await task
        loop.call_exception_handler({"message": "m", "task": task})
        loop.call_exception_handler({"message": "m", "future": task})
        loop.call_exception_handler({"message": "m"})
        loop.call_exception_handler({"message": "m", "future": loop.create_future()})

    run(main)
    assert seen == ["the task's", "the task's", "outside", "outside"]


def test_handler_may_stop_the_loop(loop: Loop) -> None:
    loop.set_exception_handler(lambda loop, _: loop.stop())
    loop.call_soon(fails)
    loop.call_later(10, loop.stop)
    started = loop.time()
    loop.run_forever()
    assert loop.time() - started < 5


def test_handler_may_change_the_handler(loop: Loop) -> None:
    seen: list[str] = []

    def first(loop: Loop, context: dict[str, Any]) -> None:
        seen.append("first")
        loop.set_exception_handler(lambda *_: seen.append("second"))

    loop.set_exception_handler(first)
    loop.call_soon(fails)
    loop.call_soon(fails)
    run_turn(loop)
    assert seen == ["first", "second"]


def test_handler_that_fails_is_logged_with_what_it_was_given(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(loop: Loop, context: dict[str, Any]) -> None:
        raise LookupError("the handler failed")

    loop.set_exception_handler(handler)
    loop.call_exception_handler({"message": "first", "key": 1})
    assert logged(caplog) == [
        "Unhandled error in exception handler\ncontext: {'message': 'first', 'key': 1}"
    ]
    exc_info = caplog.records[0].exc_info
    assert exc_info is not None
    assert isinstance(exc_info[1], LookupError)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_handler_that_exits_leaves_the_loop(loop: Loop, kind: type[BaseException]) -> None:
    def handler(loop: Loop, context: dict[str, Any]) -> None:
        raise kind

    loop.set_exception_handler(handler)
    seen: list[str] = []
    loop.call_soon(fails)
    loop.call_soon(seen.append, "survived")
    with pytest.raises(kind):
        loop.run_forever()
    assert seen == []
    with pytest.raises(kind):
        loop.call_exception_handler({"message": "mine"})
    run_turn(loop)
    assert seen == ["survived"]
    loop.set_exception_handler(None)


def test_overridden_default_handler_is_called(loop_factory: Callable[[], Loop]) -> None:
    probe = loop_factory()
    base: Any = type(probe)
    probe.close()
    seen: list[Any] = []

    class Mine(base):
        def default_exception_handler(self, context: dict[str, Any]) -> None:
            seen.append(context["message"])

    loop = Mine()
    try:
        loop.call_soon(fails)
        run_turn(loop)
    finally:
        loop.close()
    assert len(seen) == 1
    assert seen[0].startswith("Exception in callback fails() at ")


def test_overridden_default_handler_that_fails_is_logged(
    loop_factory: Callable[[], Loop], caplog: pytest.LogCaptureFixture
) -> None:
    probe = loop_factory()
    base: Any = type(probe)
    probe.close()

    class Mine(base):
        def default_exception_handler(self, context: dict[str, Any]) -> None:
            raise LookupError("so did this one")

    loop = Mine()
    try:
        loop.call_exception_handler({"message": "mine"})
        assert logged(caplog) == ["Exception in default exception handler"]
        caplog.clear()
        loop.set_exception_handler(fails)
        loop.call_exception_handler({"message": "mine"})
        assert logged(caplog) == [
            "Exception in default exception handler while handling an unexpected error "
            "in custom exception handler"
        ]
        assert caplog.records[0].exc_info is not None
        assert isinstance(caplog.records[0].exc_info[1], LookupError)
    finally:
        loop.close()


# --- the default handler -----------------------------------------------------------------------


def test_default_handler_logs_the_message_and_the_exception(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    loop.set_exception_handler(None)
    error = ValueError("mine")
    loop.call_exception_handler({"message": "Something happened", "exception": error})
    assert logged(caplog) == ["Something happened"]
    assert caplog.records[0].exc_info == (ValueError, error, None)


def test_default_handler_without_a_message(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    loop.set_exception_handler(None)
    loop.call_exception_handler({})
    loop.call_exception_handler({"message": ""})
    assert logged(caplog) == ["Unhandled exception in event loop"] * 2
    assert not caplog.records[0].exc_info


def test_default_handler_logs_every_other_key_in_order(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    loop.set_exception_handler(None)
    loop.call_exception_handler(
        {"zebra": "z", "message": "mine", "apple": [1, 2], "handle": None, "future": 3}
    )
    assert logged(caplog) == ["mine\napple: [1, 2]\nfuture: 3\nhandle: None\nzebra: 'z'"]


def test_default_handler_on_a_failing_callback(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    loop.set_exception_handler(None)
    handle = loop.call_soon(fails, 1)
    source = repr(handle).removeprefix("<Handle ").removesuffix(">")
    run_turn(loop)
    assert logged(caplog) == [f"Exception in callback {source}\nhandle: {handle!r}"]
    assert caplog.records[0].exc_info is not None
    assert isinstance(caplog.records[0].exc_info[1], ValueError)


def test_default_handler_in_debug_mode_shows_where_it_was_made(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    loop.set_exception_handler(None)
    loop.set_debug(True)
    handle = loop.call_soon(fails)
    run_turn(loop)
    (message,) = logged(caplog)
    lines = message.splitlines()
    assert (
        lines[0] == f"Exception in callback fails() at {__file__}:{fails.__code__.co_firstlineno}"
    )
    assert lines[1] == f"handle: {handle!r}"
    assert lines[2] == "source_traceback: Object created at (most recent call last):"
    assert re.fullmatch(rf'  File "{re.escape(__file__)}", line \d+, in test_default_.*', lines[-2])
    assert lines[-1] == "    handle = loop.call_soon(fails)"


def test_default_handler_in_debug_mode_shows_the_running_handle(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    loop.set_exception_handler(None)
    loop.set_debug(True)

    def body() -> None:
        loop.call_exception_handler({"message": "from a callback"})

    loop.call_soon(body)
    run_turn(loop)
    (message,) = logged(caplog)
    lines = message.splitlines()
    assert lines[:2] == [
        "from a callback",
        "handle_traceback: Handle created at (most recent call last):",
    ]
    assert lines[-1] == "    loop.call_soon(body)"


def test_default_handler_is_called_by_a_handler_of_ones_own(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    loop.set_exception_handler(lambda loop, context: loop.default_exception_handler(context))
    loop.call_exception_handler({"message": "passed on"})
    assert logged(caplog) == ["passed on"]


def test_context_whose_repr_fails(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    class Unprintable:
        def __repr__(self) -> str:
            raise LookupError("no repr")

    loop.set_exception_handler(None)
    loop.call_exception_handler({"message": "mine", "thing": Unprintable()})
    assert logged(caplog) == ["Exception in default exception handler"]


# --- protocols ---------------------------------------------------------------------------------


class Failing(Recorder):
    """Fails in the method it is told, the first time."""

    def __init__(self, method: str, error: BaseException) -> None:
        super().__init__()
        self.method, self.error = method, error

    def _maybe_fail(self, method: str) -> None:
        if method == self.method:
            self.method = ""
            raise self.error

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._maybe_fail("connection_made")

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._maybe_fail("data_received")

    def eof_received(self) -> bool:
        keep_open = super().eof_received()
        self._maybe_fail("eof_received")
        return keep_open

    def pause_writing(self) -> None:
        super().pause_writing()
        self._maybe_fail("pause_writing")

    def resume_writing(self) -> None:
        super().resume_writing()
        self._maybe_fail("resume_writing")

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._maybe_fail("connection_lost")


def test_exception_in_data_received_is_fatal(run: Run, reported: list[dict[str, Any]]) -> None:
    error = ValueError("mine")

    async def main() -> None:
        async with connected(Failing("data_received", error)) as (transport, protocol, peer):
            peer.send(b"one")
            await until(lambda: protocol.lost)
            assert protocol.events == ["made", "data", "lost"]
            assert protocol.lost == [error]
            assert transport.is_closing()
            (context,) = reported
            assert context == {
                "message": "Fatal error: protocol.data_received() call failed.",
                "exception": error,
                "transport": transport,
                "protocol": protocol,
            }

    run(main)


def test_exception_in_eof_received_is_fatal(run: Run, reported: list[dict[str, Any]]) -> None:
    error = ValueError("mine")

    async def main() -> None:
        async with connected(Failing("eof_received", error)) as (transport, protocol, peer):
            peer.close()
            await until(lambda: protocol.lost)
            assert protocol.events == ["made", "eof", "lost"]
            assert protocol.lost == [error]
            (context,) = reported
            assert context["message"] == "Fatal error: protocol.eof_received() call failed."
            assert context["exception"] is error
            assert context["transport"] is transport

    run(main)


def test_exception_in_connection_made_does_not_close(
    run: Run, reported: list[dict[str, Any]]
) -> None:
    error = ValueError("mine")

    async def main() -> None:
        async with connected(Failing("connection_made", error)) as (transport, protocol, peer):
            peer.send(b"data")
            await until(lambda: protocol.data)
            assert not transport.is_closing()
            (context,) = reported
            assert context["exception"] is error
            assert re.match(r"Exception in callback Failing\.connection_made\(", context["message"])

    run(main)


def test_exception_in_connection_lost_still_closes_the_socket(
    run: Run, reported: list[dict[str, Any]]
) -> None:
    error = ValueError("mine")

    async def main() -> None:
        async with connected(Failing("connection_lost", error)) as (transport, protocol, peer):
            transport.close()
            await until(lambda: protocol.lost)
            await asyncio.sleep(0)
            assert protocol.lost == [None]
            assert peer.recv(10) == b""
            (context,) = reported
            assert context["exception"] is error
            assert context["message"].startswith("Exception in callback ")

    run(main)


@pytest.mark.parametrize("method", ["pause_writing", "resume_writing"])
def test_exception_in_flow_control_is_reported_only(
    run: Run, reported: list[dict[str, Any]], method: str
) -> None:
    error = ValueError("mine")

    async def main() -> None:
        protocol = Failing(method, error)
        async with connected(protocol, small=True) as (transport, _, peer):
            transport.write(bytes(1 << 20))
            assert protocol.events == ["made", "pause"]
            received = 0
            while received < 1 << 20:
                try:
                    received += len(peer.recv(1 << 20))
                except BlockingIOError:
                    await asyncio.sleep(0)
            await until(lambda: "resume" in protocol.events)
            assert protocol.events == ["made", "pause", "resume"]
            assert not transport.is_closing()
            assert reported == [
                {
                    "message": f"protocol.{method}() failed",
                    "exception": error,
                    "transport": transport,
                    "protocol": protocol,
                }
            ]

    run(main)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("method", ["data_received", "eof_received"])
def test_exit_in_a_protocol_leaves_the_loop(
    loop: Loop, kind: type[BaseException], method: str
) -> None:
    error = kind("mine")
    seen: list[str] = []

    async def main() -> Recorder:
        async with connected(Failing(method, error)) as (transport, protocol, peer):
            protocol.keep_open = True
            if method == "data_received":
                peer.send(b"data")
            else:
                peer.shutdown(socket.SHUT_WR)
            await until(lambda: len(protocol.events) > 1)
            seen.append("survived")
            # The exit is not the end of the transport: it was the program that was interrupted.
            assert protocol.lost == []
            transport.write(b"still here")
            assert await read_exactly(peer, 10) == b"still here"
            return protocol

    task = loop.create_task(main())
    with pytest.raises(kind) as caught:
        loop.run_until_complete(task)
    assert caught.value is error
    assert seen == []
    protocol = loop.run_until_complete(task)
    assert seen == ["survived"]
    assert protocol.lost == [None]


def test_error_in_accepting_is_silent_unless_debugging(
    loop: Loop, run: Run, reported: list[dict[str, Any]]
) -> None:
    error = ValueError("no protocol today")

    def factory() -> asyncio.Protocol:
        raise error

    async def visit(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.read() == b""
        writer.close()

    async def main() -> None:
        server = await loop.create_server(factory, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        first = asyncio.ensure_future(visit(port))
        await asyncio.sleep(0.02)
        assert reported == []
        loop.set_debug(True)
        second = asyncio.ensure_future(visit(port))
        await until(lambda: reported)
        loop.set_debug(False)
        assert reported == [
            {
                "message": "Error on transport creation for incoming connection",
                "exception": error,
            }
        ]
        server.close()
        for visitor in (first, second):
            visitor.cancel()
        await asyncio.gather(first, second, return_exceptions=True)

    run(main)
