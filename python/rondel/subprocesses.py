"""Pipes and child processes: connect_read_pipe(), subprocess_exec() and relatives.

This runs once per pipe or child. What is read and written is native, and so is noticing that a
child has ended: by a descriptor in the loop (Linux's pidfd), without a thread or a signal.
"""

import asyncio
import contextlib
import logging
import os
import signal as signals
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

from . import _rondel
from .signals import Signals

logger = logging.getLogger("asyncio")

ProtocolFactory = Callable[[], asyncio.BaseProtocol]

#: What is told of a child whose status somebody else has taken (asyncio's figure).
UNKNOWN_STATUS = 255


class SubprocessTransport(asyncio.SubprocessTransport):
    """A child process and its pipes; made by the loop."""

    def __init__(
        self,
        loop: "Subprocesses",
        protocol: Any,
        args: Any,
        extra: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self._extra: dict[str, Any] = {} if extra is None else extra
        super().__init__(self._extra)
        self._closed = False
        self._protocol: Any = protocol
        self._loop: Subprocesses | None = loop
        self._proc: subprocess.Popen[bytes] | None = None
        self._pid: int = None  # type: ignore[assignment]
        self._returncode: int | None = None
        self._exit_waiters: set[asyncio.Future[int]] = set()
        self._pipes: dict[int, tuple[_rondel.SubprocessPipe, Any]] = {}
        # Calls that wait until the protocol's connection_made() is scheduled; None after that.
        self._pending: list[tuple[Callable[..., object], tuple[Any, ...]]] | None = []
        self._finished = False
        try:
            proc = self._proc = subprocess.Popen(args, **options)
            self._pid = proc.pid
            self._extra["subprocess"] = proc
            self._watch()
        except BaseException:
            self.close()
            raise
        if loop.get_debug():
            program = args if isinstance(args, bytes | str) else args[0]
            logger.debug("process %r created: pid %s", program, proc.pid)

    async def _connect_pipes(self) -> None:
        """Make transports of the pipes; the protocol's connection_made() is scheduled then."""
        loop, proc, pending = self._loop, self._proc, self._pending
        assert loop is not None and proc is not None and pending is not None
        for fd, pipe in enumerate((proc.stdin, proc.stdout, proc.stderr)):
            if pipe is not None:
                await self._connect_pipe(loop, fd, pipe)
        loop.call_soon(self._protocol.connection_made, self)
        self._pending = None
        for callback, args in pending:
            loop.call_soon(callback, *args)
        self._finish_if_done()

    async def _connect_pipe(self, loop: "Subprocesses", fd: int, pipe: Any) -> None:
        protocol: Any = _rondel.SubprocessPipe(loop, self, fd)
        # Through the attributes, since programs override these methods.
        connect: Any = loop.connect_read_pipe if fd else loop.connect_write_pipe
        transport, _ = await connect(lambda: protocol, pipe)
        self._pipes[fd] = protocol, transport

    def _call(self, callback: Callable[..., object], *args: Any) -> None:
        assert self._loop is not None
        if self._pending is not None:
            self._pending.append((callback, args))
        else:
            self._loop.call_soon(callback, *args)

    def __repr__(self) -> str:
        info = [type(self).__name__]
        if self._closed:
            info.append("closed")
        if self._pid is not None:
            info.append(f"pid={self._pid}")
        if self._returncode is not None:
            info.append(f"returncode={self._returncode}")
        else:
            info.append("not started" if self._pid is None else "running")
        for fd, name in enumerate(("stdin", "stdout", "stderr")):
            if fd in self._pipes:
                info.append(f"{name}={self._pipes[fd][1]!r}")
        return f"<{' '.join(info)}>"

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Set the protocol that is called from now on."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The protocol; None once the connection is lost."""
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def is_closing(self) -> bool:
        """Whether close() was called."""
        return self._closed

    def get_pid(self) -> int:
        """The child's process identifier."""
        return self._pid

    def get_returncode(self) -> int | None:
        """The exit code; a signal's number, negated; or None while the child runs."""
        return self._returncode

    def get_pipe_transport(self, fd: int) -> asyncio.BaseTransport | None:
        """The transport of the child's pipe 0, 1 or 2; None where there is no pipe."""
        return self._pipes[fd][1] if fd in self._pipes else None

    def send_signal(self, signal: int) -> None:
        """Send a signal to the child, unless it has ended already.

        Raises ProcessLookupError once the connection is lost.
        """
        proc = self._proc
        if proc is None:
            raise ProcessLookupError
        # Once its status is taken, its number can be another process's.
        if proc.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(proc.pid, signal)

    def terminate(self) -> None:
        """Send SIGTERM; see send_signal()."""
        self.send_signal(signals.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL; see send_signal()."""
        self.send_signal(signals.SIGKILL)

    def close(self) -> None:
        """Close the pipes and kill the child if it still runs."""
        if self._closed:
            return
        self._closed = True
        # A closed loop cannot close transports; they close their pipes when they go.
        if self._loop is not None and not self._loop.is_closed():
            for _, transport in self._pipes.values():
                transport.close()
        proc = self._proc
        if proc is None:
            return
        for fd, pipe in enumerate((proc.stdin, proc.stdout, proc.stderr)):
            if pipe is not None and fd not in self._pipes:
                pipe.close()  # no transport was made of it
        if self._returncode is not None or proc.returncode is not None:
            return
        if self._loop is not None and self._loop.get_debug():
            logger.warning("Close running child process: kill %r", self)
        # It may have ended just now, or run as another user.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            proc.kill()

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if self._closed:
            return
        loop = self._loop
        if self._returncode is not None and loop is not None and loop.is_closed():
            # The program waited for the child and has no part in what still holds a pipe, a
            # grandchild: nothing to warn of.
            self._closed = True
            for _, transport in self._pipes.values():
                if isinstance(transport, _rondel.PipeTransport):
                    pipe, transport._pipe = transport._pipe, None
                    if pipe is not None:
                        pipe.close()
            return
        _warn(f"unclosed transport {self!r}", ResourceWarning, source=self)
        self.close()

    def _watch(self) -> None:
        """Let the loop notice the child's end."""
        assert self._loop is not None and self._pid is not None
        try:
            _rondel.ChildWatch(self._loop, self._child_ended).start(self._pid)
        except OSError:
            # No such descriptors here (or none left), or the child's status is taken already.
            _wait_in_thread(self._loop, self._pid, self._child_ended)

    def _child_ended(self, status: int | None) -> None:
        proc, loop = self._proc, self._loop
        assert proc is not None and loop is not None
        if proc.returncode is not None:
            # A method of the Popen object was first.
            status = proc.returncode
        elif status is None:
            logger.warning(
                "child process pid %d exit status already read: will report returncode %d",
                proc.pid,
                UNKNOWN_STATUS,
            )
            status = UNKNOWN_STATUS
        proc.returncode = status
        # What the child wrote before it ended is there already: it comes first.
        loop.call_soon(self._process_exited, status)

    def _process_exited(self, returncode: int) -> None:
        assert self._loop is not None
        if self._loop.get_debug():
            logger.info("%r exited with return code %r", self, returncode)
        self._returncode = returncode
        self._call(self._protocol.process_exited)
        if sys.version_info < (3, 14):
            # Programs expect ProcessLookupError of kill() after wait(), as it was then.
            self._finish_if_done()
        for waiter in self._exit_waiters:
            if not waiter.done():
                waiter.set_result(returncode)
        self._exit_waiters.clear()
        if sys.version_info >= (3, 14):
            self._finish_if_done()

    def _pipe_connection_lost(self, fd: int, exc: BaseException | None) -> None:
        self._call(self._protocol.pipe_connection_lost, fd, exc)
        self._finish_if_done()

    def _finish_if_done(self) -> None:
        assert self._loop is not None
        if (
            self._returncode is not None
            and self._pending is None
            and not self._finished
            and all(pipe.disconnected for pipe, _ in self._pipes.values())
        ):
            self._finished = True
            self._loop.call_soon(self._connection_lost)

    def _connection_lost(self) -> None:
        try:
            self._protocol.connection_lost(None)
        finally:
            self._loop = self._proc = self._protocol = None

    async def _wait(self) -> int:
        """Wait until the process has ended; return its exit code."""
        if self._returncode is not None:
            return self._returncode
        assert self._loop is not None
        waiter: asyncio.Future[int] = self._loop.create_future()
        self._exit_waiters.add(waiter)
        try:
            return await waiter
        finally:
            self._exit_waiters.discard(waiter)


class Subprocesses(Signals):
    """Pipes and child processes."""

    async def connect_read_pipe(
        self, protocol_factory: ProtocolFactory, pipe: Any
    ) -> tuple[_rondel.ReadPipeTransport, Any]:
        """Read from a pipe; return the transport and the protocol.

        ``pipe`` is a file object of a pipe, FIFO, socket or character device, which becomes
        non-blocking and belongs to the transport. Raises ValueError for anything else.
        """
        waiter = self.create_future()
        protocol: Any = protocol_factory()
        transport = self._make_read_pipe_transport(pipe, protocol, waiter)
        await self._connect_pipe("Read", pipe, transport, waiter)
        return transport, protocol

    async def connect_write_pipe(
        self, protocol_factory: ProtocolFactory, pipe: Any
    ) -> tuple[_rondel.WritePipeTransport, Any]:
        """Write to a pipe; return the transport and the protocol. See connect_read_pipe()."""
        waiter = self.create_future()
        protocol: Any = protocol_factory()
        transport = self._make_write_pipe_transport(pipe, protocol, waiter)
        await self._connect_pipe("Write", pipe, transport, waiter)
        return transport, protocol

    async def _connect_pipe(
        self, what: str, pipe: Any, transport: Any, waiter: asyncio.Future[None]
    ) -> None:
        try:
            await waiter
        except BaseException:
            transport.close()
            raise
        if self.get_debug():
            protocol = transport.get_protocol()
            logger.debug("%s pipe %r connected: (%r, %r)", what, pipe.fileno(), transport, protocol)

    async def subprocess_exec(
        self,
        protocol_factory: ProtocolFactory,
        program: Any,
        *args: Any,
        stdin: Any = subprocess.PIPE,
        stdout: Any = subprocess.PIPE,
        stderr: Any = subprocess.PIPE,
        universal_newlines: bool = False,
        shell: bool = False,
        bufsize: int = 0,
        encoding: str | None = None,
        errors: str | None = None,
        text: bool | None = None,
        **kwargs: Any,
    ) -> tuple[SubprocessTransport, Any]:
        """Run a program with arguments; return the transport and the protocol.

        ``kwargs`` are those of subprocess.Popen, whose errors are raised (FileNotFoundError for an
        unknown program). Text mode, buffering and shell=True are refused with ValueError.
        """
        _check_no_text(universal_newlines, bufsize, encoding, errors, text)
        if shell:
            raise ValueError("shell must be False")
        return await self._run_child(
            protocol_factory,
            (program, *args),
            f"execute program {program!r}",
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            shell=False,
            **kwargs,
        )

    async def subprocess_shell(
        self,
        protocol_factory: ProtocolFactory,
        cmd: bytes | str,
        *,
        stdin: Any = subprocess.PIPE,
        stdout: Any = subprocess.PIPE,
        stderr: Any = subprocess.PIPE,
        universal_newlines: bool = False,
        shell: bool = True,
        bufsize: int = 0,
        encoding: str | None = None,
        errors: str | None = None,
        text: bool | None = None,
        **kwargs: Any,
    ) -> tuple[SubprocessTransport, Any]:
        """Run a shell command; return the transport and the protocol. See subprocess_exec()."""
        if not isinstance(cmd, bytes | str):
            raise ValueError("cmd must be a string")
        _check_no_text(universal_newlines, bufsize, encoding, errors, text)
        if not shell:
            raise ValueError("shell must be True")
        return await self._run_child(
            protocol_factory,
            cmd,
            f"run shell command {cmd!r}",
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            shell=True,
            **kwargs,
        )

    async def _run_child(
        self, protocol_factory: ProtocolFactory, args: Any, what: str, **options: Any
    ) -> tuple[SubprocessTransport, Any]:
        protocol: Any = protocol_factory()
        if self.get_debug():
            _log_child(what, **options)
        transport = await self._make_subprocess_transport(protocol, args, **options)
        if self.get_debug():
            logger.info("%s: %r", what, transport)
        return transport, protocol

    async def _make_subprocess_transport(
        self, protocol: Any, args: Any, **options: Any
    ) -> SubprocessTransport:
        self._check_closed()
        transport = SubprocessTransport(
            self, protocol, args, universal_newlines=False, bufsize=0, **options
        )
        try:
            await transport._connect_pipes()
            await asyncio.sleep(0)  # connection_made() runs
        except BaseException as exc:
            transport.close()
            if not isinstance(exc, SystemExit | KeyboardInterrupt):
                await transport._wait()
            raise
        return transport


def _check_no_text(
    universal_newlines: bool,
    bufsize: int,
    encoding: str | None,
    errors: str | None,
    text: bool | None,
) -> None:
    if universal_newlines:
        raise ValueError("universal_newlines must be False")
    if bufsize != 0:
        raise ValueError("bufsize must be 0")
    if text:
        raise ValueError("text must be False")
    if encoding is not None:
        raise ValueError("encoding must be None")
    if errors is not None:
        raise ValueError("errors must be None")


def _log_child(what: str, *, stdin: Any, stdout: Any, stderr: Any, **_: Any) -> None:
    """Log what is run; the arguments are not shown, since they may be secret."""
    info = [what]
    if stdin is not None:
        info.append(f"stdin={_describe(stdin)}")
    if stdout is not None and stderr == subprocess.STDOUT:
        info.append(f"stdout=stderr={_describe(stdout)}")
    else:
        if stdout is not None:
            info.append(f"stdout={_describe(stdout)}")
        if stderr is not None:
            info.append(f"stderr={_describe(stderr)}")
    logger.debug(" ".join(info))


def _describe(stream: Any) -> str:
    names = {subprocess.PIPE: "<pipe>", subprocess.STDOUT: "<stdout>"}
    return names[stream] if isinstance(stream, int) and stream in names else repr(stream)


def _wait_in_thread(
    loop: asyncio.AbstractEventLoop, pid: int, callback: Callable[[int | None], None]
) -> None:
    """Wait for a child where the loop cannot; ``callback`` gets its status in the loop."""

    def reap() -> int | None:
        try:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        except ChildProcessError:
            return None

    def wait() -> None:
        # The status is taken in the loop's thread, where signals are sent: the number is the
        # child's until then. macOS before Python 3.13 has no waitid().
        if hasattr(os, "waitid"):
            with contextlib.suppress(ChildProcessError):
                while (
                    (ended := os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)) is not None
                    and ended.si_code == os.CLD_STOPPED
                ):  # macOS tells of stopped children too, until that is taken note of
                    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG)
            in_loop: Callable[[], None] = lambda: callback(reap())  # noqa: E731
        else:
            status = reap()
            in_loop = lambda: callback(status)  # noqa: E731
        try:
            loop.call_soon_threadsafe(in_loop)
        except RuntimeError:
            reap()
            if not sys.is_finalizing():
                logger.warning("Loop %r that handles pid %r is closed", loop, pid)

    threading.Thread(target=wait, name=f"asyncio-waitpid-{pid}", daemon=True).start()
