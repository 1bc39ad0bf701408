"""Child processes through loop.subprocess_exec() and loop.subprocess_shell()."""

import asyncio
import gc
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from support import LoopFactory, run_on, skip_if_asyncio_errs, turns, until

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("no_descriptor_left", "no_child_left")


class Child(asyncio.SubprocessProtocol):
    """A protocol that writes down what the transport tells it."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.events: list[Any] = []
        self.data = {1: bytearray(), 2: bytearray()}
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport)
        self.transport = transport
        self.events.append("made")

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        assert type(data) is bytes
        self.data[fd] += data
        if ("data", fd) not in self.events:
            self.events.append(("data", fd))

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self.events.append(("pipe lost", fd, type(exc)))

    def process_exited(self) -> None:
        assert self.transport.get_returncode() is not None
        self.events.append("exited")

    def connection_lost(self, exc: Exception | None) -> None:
        assert exc is None
        self.events.append("lost")
        self.lost = True

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")


async def start(*args: str, **options: Any) -> tuple[Any, Child]:
    return await asyncio.get_running_loop().subprocess_exec(Child, *args, **options)


NO_PIPES: dict[str, Any] = {"stdin": None, "stdout": None, "stderr": None}


def test_life_of_a_child(run: Run) -> None:
    async def main() -> None:
        transport, protocol = await start("sh", "-c", "cat; echo error >&2; exit 3")
        assert isinstance(transport, asyncio.SubprocessTransport)
        assert protocol.transport is transport
        assert protocol.events == ["made"]
        popen = transport.get_extra_info("subprocess")
        assert isinstance(popen, subprocess.Popen)
        assert transport.get_pid() == popen.pid
        assert transport.get_returncode() is None
        assert not transport.is_closing()
        assert transport.get_protocol() is protocol
        stdin = transport.get_pipe_transport(0)
        assert isinstance(stdin, asyncio.WriteTransport)
        for fd in (1, 2):
            assert isinstance(transport.get_pipe_transport(fd), asyncio.ReadTransport)
        assert transport.get_pipe_transport(3) is None
        stdin.write(b"in")
        stdin.write_eof()
        await until(lambda: protocol.lost)
        assert protocol.data == {1: b"in", 2: b"error\n"}
        events = protocol.events
        assert events[0] == "made" and events[-1] == "lost"
        expected: list[Any] = ["made", "exited", "lost", ("data", 1), ("data", 2)]
        none = type(None)
        assert sorted(map(str, events)) == sorted(
            map(str, expected + [("pipe lost", fd, none) for fd in range(3)])
        )
        for fd in (1, 2):
            assert events.index(("data", fd)) < events.index(("pipe lost", fd, none))
        assert transport.get_returncode() == 3
        assert popen.returncode == 3
        assert await transport._wait() == 3
        transport.close()
        assert transport.is_closing()

    run(main)


def test_connection_lost_waits_for_the_pipes(run: Run) -> None:
    async def main() -> None:
        reader, writer = os.pipe()
        script = "exec 3<&0; cat <&3 & exit 0"
        _, protocol = await start("sh", "-c", script, stdin=reader, stderr=None)
        os.close(reader)
        await until(lambda: "exited" in protocol.events)
        await asyncio.sleep(0.02)
        assert protocol.events == ["made", "exited"]
        os.write(writer, b"from the grandchild")
        os.close(writer)
        await until(lambda: protocol.lost)
        assert protocol.events[2:] == [("data", 1), ("pipe lost", 1, type(None)), "lost"]
        assert protocol.data[1] == b"from the grandchild"

    run(main)


def test_connection_lost_waits_for_the_exit(run: Run) -> None:
    async def main() -> None:
        transport, protocol = await start("sh", "-c", "exec >&-; read x", stderr=None)
        await until(lambda: ("pipe lost", 1, type(None)) in protocol.events)
        await asyncio.sleep(0.02)
        assert "exited" not in protocol.events
        transport.get_pipe_transport(0).close()
        await until(lambda: protocol.lost)
        assert protocol.events[-2:] == ["exited", "lost"]

    run(main)


def test_flow_control_of_stdin(run: Run) -> None:
    async def main() -> None:
        transport, protocol = await start(
            "sh", "-c", "read go; cat > /dev/null", stdout=None, stderr=None
        )
        stdin = transport.get_pipe_transport(0)
        stdin.write(b"x" * 300_000)
        assert protocol.events == ["made", "pause"]
        stdin.write(b"\n" + b"y" * 300_000)
        stdin.close()
        await until(lambda: protocol.lost)
        assert protocol.events[:3] == ["made", "pause", "resume"]

    run(main)


def test_child_that_ignores_its_stdin(run: Run) -> None:
    async def main() -> None:
        transport, protocol = await start("sleep", "0.1", stdout=None, stderr=None)
        transport.get_pipe_transport(0).write(b"x" * 1_000_000)
        await until(lambda: protocol.lost)
        assert ("pipe lost", 0, BrokenPipeError) in protocol.events

    run(main)


def test_signals_and_their_end(run: Run) -> None:
    async def main() -> None:
        for method, number in (("terminate", signal.SIGTERM), ("kill", signal.SIGKILL)):
            transport, protocol = await start("sleep", "100", **NO_PIPES)
            getattr(transport, method)()
            await until(lambda protocol=protocol: protocol.lost)
            assert transport.get_returncode() == -number
            for call in (transport.terminate, transport.kill):
                with pytest.raises(ProcessLookupError):
                    call()
            with pytest.raises(ProcessLookupError):
                transport.send_signal(signal.SIGHUP)

    run(main)


def test_close_kills_and_closes_the_pipes(run: Run) -> None:
    async def main() -> None:
        transport, protocol = await start("sleep", "100")
        transport.close()
        transport.close()
        assert transport.is_closing()
        assert transport.get_returncode() is None
        assert await transport._wait() == -signal.SIGKILL
        await until(lambda: protocol.lost)
        pipes = [("pipe lost", fd, type(None)) for fd in range(3)]
        assert protocol.events.count("exited") == protocol.events.count("lost") == 1
        assert all(protocol.events.count(pipe) == 1 for pipe in pipes)

    run(main)


def test_set_protocol(run: Run) -> None:
    async def main() -> None:
        transport, first = await start("cat", stderr=None)
        second = Child()
        second.transport = transport
        transport.set_protocol(second)
        assert transport.get_protocol() is second
        stdin = transport.get_pipe_transport(0)
        stdin.write(b"x")
        stdin.close()
        await until(lambda: second.lost)
        assert first.events == ["made"]
        assert second.data[1] == b"x"

    run(main)


@pytest.mark.parametrize("method", ["poll", "wait"])
def test_status_that_popen_took_is_known(rondel_loop: Loop, method: str) -> None:
    # asyncio's pidfd watcher reports 255 here.
    async def main() -> None:
        transport, protocol = await start("sh", "-c", "exit 6", **NO_PIPES)
        popen = transport.get_extra_info("subprocess")
        while getattr(popen, method)() is None:
            time.sleep(0.001)
        await until(lambda: protocol.lost)
        assert transport.get_returncode() == 6

    rondel_loop.run_until_complete(main())


def test_status_that_somebody_else_took(
    loop: Loop, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    skip_if_asyncio_errs(loop, "its thread waits for the child as well", until=(3, 12))

    async def main() -> None:
        transport, protocol = await start("sh", "-c", "read x; exit 6", stdout=None, stderr=None)
        transport.get_pipe_transport(0).write(b"\n")
        assert os.waitpid(transport.get_pid(), 0)[1] == 6 << 8
        await until(lambda: protocol.lost)
        assert transport.get_returncode() == 255

    with caplog.at_level(logging.WARNING, "asyncio"):
        run(main)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "255" in caplog.records[0].getMessage()


def test_ignored_child_signal_leaves_no_status(
    loop: Loop, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    skip_if_asyncio_errs(loop, "ProcessLookupError of pidfd_open()", since=(3, 12))
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    async def main() -> None:
        for _ in range(5):
            transport, protocol = await start("true", **NO_PIPES)
            await until(lambda protocol=protocol: protocol.lost)
            assert transport.get_returncode() == 255

    try:
        with caplog.at_level(logging.WARNING, "asyncio"):
            run(main)
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"universal_newlines": True}, "universal_newlines must be False"),
        ({"bufsize": 4096}, "bufsize must be 0"),
        ({"text": True}, "text must be False"),
        ({"encoding": "utf-8"}, "encoding must be None"),
        ({"errors": "strict"}, "errors must be None"),
    ],
)
def test_text_mode_is_refused(loop: Loop, run: Run, options: dict[str, Any], text: str) -> None:
    async def main() -> None:
        called: list[object] = []

        def factory() -> Child:
            called.append(1)
            return Child()

        with pytest.raises(ValueError, match=f"^{text}$"):
            await loop.subprocess_exec(factory, "true", **options)
        with pytest.raises(ValueError, match=f"^{text}$"):
            await loop.subprocess_shell(factory, "true", **options)
        assert not called

    run(main)


def test_wrong_arguments(loop: Loop, run: Run) -> None:
    async def main() -> None:
        untyped: Any = loop
        with pytest.raises(ValueError, match=r"^shell must be False$"):
            await untyped.subprocess_exec(Child, "true", shell=True)
        with pytest.raises(ValueError, match=r"^shell must be True$"):
            await untyped.subprocess_shell(Child, "true", shell=False)
        with pytest.raises(ValueError, match=r"^cmd must be a string$"):
            await untyped.subprocess_shell(Child, ["true"])
        with pytest.raises(ValueError, match="creationflags is only supported on Windows"):
            await untyped.subprocess_exec(Child, "true", creationflags=1)
        with pytest.raises(ValueError, match="startupinfo is only supported on Windows"):
            await untyped.subprocess_exec(Child, "true", startupinfo=object())
        with pytest.raises(TypeError):
            await untyped.subprocess_exec(Child, 5)
        with pytest.raises(TypeError, match="no_such_option"):
            await untyped.subprocess_exec(Child, "true", no_such_option=1)

    run(main)


def test_failing_connection_made_is_reported(run: Run, reported: list[dict[str, Any]]) -> None:
    class Failing(Child):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            raise ZeroDivisionError

    async def main() -> None:
        loop = asyncio.get_running_loop()
        _, protocol = await loop.subprocess_exec(Failing, "true")
        await until(lambda: protocol.lost)

    run(main)
    assert [type(context["exception"]) for context in reported] == [ZeroDivisionError]


def test_overridden_connect_read_pipe_is_used(loop: Loop, run: Run) -> None:
    original = loop.connect_read_pipe
    seen: list[Any] = []

    async def connect(factory: Any, pipe: Any) -> Any:
        transport, protocol = await original(factory, pipe)
        seen.append(transport)
        return transport, protocol

    loop.connect_read_pipe = connect  # type: ignore[method-assign]

    async def main() -> None:
        transport, protocol = await start("true")
        assert seen == [transport.get_pipe_transport(1), transport.get_pipe_transport(2)]
        await until(lambda: protocol.lost)

    run(main)


def test_data_before_the_pipes_are_connected_comes_after_connection_made(
    rondel_loop: Loop,
) -> None:
    # asyncio never calls connection_lost() when all pipes end that early.
    original = rondel_loop.connect_read_pipe

    async def slowly(factory: Any, pipe: Any) -> Any:
        result = await original(factory, pipe)
        await asyncio.sleep(0.05)
        return result

    rondel_loop.connect_read_pipe = slowly  # type: ignore[method-assign]

    async def main() -> None:
        _, protocol = await start("sh", "-c", "echo out; exit 2")
        await until(lambda: protocol.lost)
        assert protocol.events[0] == "made"
        assert protocol.events[-1] == "lost"
        assert protocol.data[1] == b"out\n"
        assert "exited" in protocol.events

    run_on(rondel_loop, main)


def test_failing_connect_ends_the_child(loop: Loop, run: Run) -> None:
    # asyncio leaves descriptors open here before 3.14.
    skip_if_asyncio_errs(loop, "pipes stay open when connecting one fails", until=(3, 14, 2))

    async def failing(factory: Any, pipe: Any) -> Any:
        raise ZeroDivisionError

    loop.connect_read_pipe = failing  # type: ignore[method-assign]

    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await start("sleep", "100")
        await turns(3)

    run(main)


def test_debug_mode_logs(loop: Loop, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    loop.set_debug(True)

    async def main() -> None:
        transport, protocol = await start("sh", "-c", "exit 1", stderr=subprocess.STDOUT)
        await until(lambda: protocol.lost)
        transport, protocol = await start("sleep", "100", **NO_PIPES)
        transport.close()
        await until(lambda: protocol.lost)
        _, protocol = await loop.subprocess_shell(Child, "secret=1; true", stdin=subprocess.DEVNULL)
        await until(lambda: protocol.lost)

    with caplog.at_level(logging.DEBUG, "asyncio"):
        run(main)
    texts = "\n".join(record.getMessage() for record in caplog.records)
    for expected in (
        "execute program 'sh' stdin=<pipe> stdout=stderr=<pipe>",
        "process 'sh' created: pid ",
        " exited with return code 1",
        "Close running child process: kill <",
        "run shell command 'secret=1; true' stdin=-3",
    ):
        assert expected in texts


def test_repr(run: Run) -> None:
    async def main() -> None:
        transport, protocol = await start("cat", stderr=None)
        text = repr(transport)
        assert f"pid={transport.get_pid()} running stdin=<" in text and " stdout=<" in text
        assert "stderr" not in text
        transport.close()
        assert "closed" in repr(transport)
        await until(lambda: protocol.lost)
        assert "returncode=-9" in repr(transport)

    run(main)


def test_loop_closed_with_a_child_running(rondel_loop: Loop) -> None:
    # asyncio's default watcher keeps the transport, and with it the child, until the child ends.
    async def main() -> tuple[int, Any]:
        transport, protocol = await start("sleep", "100")
        protocol.transport = None
        return transport.get_pid(), transport.get_extra_info("subprocess")

    pid, popen = rondel_loop.run_until_complete(main())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rondel_loop.close()
        gc.collect()
    messages = [str(warning.message) for warning in caught]
    caught.clear()
    assert any(text.startswith("unclosed transport <SubprocessTransport pid=") for text in messages)
    assert popen.wait(5) == -signal.SIGKILL
    assert popen.pid == pid
    del popen
    gc.collect()


def test_loop_closed_while_a_grandchild_holds_a_pipe(rondel_loop: Loop) -> None:
    # On asyncio before 3.14, wait() takes as long as the grandchild; since then, it warns.
    async def main() -> None:
        script = "exec 3<&0; cat <&3 & exit 0"
        transport, protocol = await start("sh", "-c", script, stdin=reader, stderr=None)
        assert await transport._wait() == 0
        await until(lambda: "exited" in protocol.events)  # it asks the transport
        protocol.transport = None

    reader, writer = os.pipe()
    rondel_loop.run_until_complete(main())
    rondel_loop.close()
    os.close(reader)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gc.collect()
    os.close(writer)


def test_closing_a_transport_of_a_closed_loop(loop_factory: LoopFactory) -> None:
    if loop_factory is asyncio.SelectorEventLoop and sys.version_info >= (3, 12):
        pytest.skip("asyncio of this Python: the child's descriptor stays open")
    loop = loop_factory()

    async def main() -> Any:
        transport, _ = await start("sleep", "100", **NO_PIPES)
        return transport

    transport = loop.run_until_complete(main())
    loop.close()
    transport.close()
    popen = transport.get_extra_info("subprocess")
    # Without a loop to notice it, the child is anybody's to wait for. (asyncio's thread may be
    # first, and Popen then knows no status.)
    assert popen.wait(5) in (-signal.SIGKILL, 0)
    del transport
    gc.collect()


def test_starting_on_a_closed_loop(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    loop.close()
    if sys.version_info < (3, 12):
        asyncio.get_child_watcher()
    coroutine: Any = loop.subprocess_exec(Child, "sleep", "100", **NO_PIPES)
    if type(loop).__module__.startswith("asyncio"):
        coroutine.close()
        pytest.skip("asyncio starts the child all the same")
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        coroutine.send(None)


def test_transports_do_not_leak(run: Run) -> None:
    refs: list[weakref.ref[Any]] = []

    async def main() -> None:
        for _ in range(3):
            transport, protocol = await start("true")
            await until(lambda protocol=protocol: protocol.lost)
            refs.extend(weakref.ref(transport.get_pipe_transport(fd)) for fd in range(3))
            refs.append(weakref.ref(protocol))

    run(main)
    for _ in range(3):
        gc.collect()
    assert [ref() for ref in refs if ref() is not None] == []
