"""The loop for tests."""

import asyncio
import concurrent.futures
import contextvars
import functools
import itertools
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Self

from .. import loop as real
from .._rondel import TimerHandle, literal_addresses
from ..connecting import Pair, ProtocolFactory
from .calls import Calls
from .director import Director
from .network import Address, Connections, MemoryServer, Network
from .tape import Tape


class RealWorldError(RuntimeError):
    """The program wants something of the real world, of which a test's loop has none."""


class _Numbered:
    """Makes sets and dictionaries of futures and tasks come in the same order in each run.

    The hash of an ordinary object is its address.
    """

    _numbers = itertools.count(1)
    _number: int

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        loop = kwargs["loop"]
        self._number = next(loop._numbers)
        return self

    def __hash__(self) -> int:
        return self._number


class Future(_Numbered, asyncio.Future[Any]):
    """What ``loop.create_future()`` makes on a test's loop: a Future with a hash of its own."""


class Task(_Numbered, asyncio.Task[Any]):
    """What ``loop.create_task()`` makes on a test's loop: a Task with a hash of its own."""


class Loop(real.Loop):
    """A loop with virtual time, whose every choice follows from a seed.

    Time begins at 0 and stands still while anything can be done; then it jumps to the next timer.
    Calls in pools are really made, one after the other, and take no time. When nothing can happen
    any more, :class:`Deadlock` is raised, with what the tasks wait for. Sockets, pipes and child
    processes of the real world are refused with :class:`RealWorldError`; signals are handled.

    Args:
        seed: Decides what asyncio leaves open: which of several ready tasks is first, which of
            several timers at the same time, which call in a pool ends first. None keeps asyncio's
            order.
        network: How connections behave, which are made in memory.
        record: Whether to keep a :attr:`trace`.

    Attributes:
        tape: The :class:`Tape` that all choices come from.
        random: A ``random.Random`` for the program's own use that belongs to the seed.
        trace: A line for each callback that was run, in their order: the time and what it was. Two
            runs with the same seed have the same trace. None unless ``record`` was given.

    """

    def __init__(
        self, seed: int | None = None, *, network: Network | None = None, record: bool = False
    ) -> None:
        self.tape = Tape(seed)
        self.random = self.tape.random()
        self.trace: list[str] | None = [] if record else None
        self._numbers = itertools.count(1)
        self._task_numbers = itertools.count(1)
        self._calls = Calls(self.tape)
        self._connections = Connections(self, network or Network())
        self._director = Director(self, self.tape, self._calls, self.trace)
        self._rehearse(self._director)
        super().__init__()

    def time(self) -> float:
        """The virtual time in seconds; 0 at first."""
        return self._director.now

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> TimerHandle:
        """Call the callback after ``delay`` seconds of virtual time."""
        if delay is None:
            raise TypeError("delay must not be None")
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def create_future(self) -> "asyncio.Future[Any]":
        """A new future of this loop."""
        return Future(loop=self)

    def create_task(self, coro: Any, **kwargs: Any) -> "asyncio.Task[Any]":
        """Schedule a coroutine; return its task. Each loop numbers tasks without a name from 1."""
        if self.get_task_factory() is not None:
            return super().create_task(coro, **kwargs)
        self._check_closed()
        if kwargs.get("name") is None:
            kwargs["name"] = f"Task-{next(self._task_numbers)}"
        return Task(coro, loop=self, **kwargs)

    def run_in_executor(  # type: ignore[override]
        self, executor: concurrent.futures.Executor | None, func: Callable[..., Any], *args: Any
    ) -> "asyncio.Future[Any]":
        """Have ``func(*args)`` called in the executor, in a turn of the tape's choice."""
        self._check_closed()
        if self.get_debug():
            self._check_callback(func, "run_in_executor")
        if executor is None and self._executor_shutdown_called:
            raise RuntimeError("Executor shutdown has been called")

        def pool() -> concurrent.futures.Executor:
            return executor or self._default_executor or self._make_default_executor()

        return self._calls.add(self, pool, functools.partial(func, *args))

    def _call_in_thread(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> "asyncio.Future[Any]":
        run = contextvars.copy_context().run
        return self.run_in_executor(None, functools.partial(run, func, *args, **kwargs))

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Wait until all calls have been made, however long it takes, and end the threads."""
        while self._calls.are_left():
            await asyncio.sleep(0)
        self._executor_shutdown_called = True
        if self._default_executor is not None:
            self._default_executor.shutdown(wait=True)

    def close(self) -> None:
        """Close the loop, as every loop is closed."""
        super().close()
        self._calls.drop()

    async def create_connection(
        self,
        protocol_factory: ProtocolFactory,
        host: str | None = None,
        port: int | str | None = None,
        **options: Any,
    ) -> Pair:
        """Connect in memory. Options that a connection in memory has no use for are ignored.

        Raises ConnectionRefusedError when no server of this loop is there, RealWorldError for TLS
        and for sockets of the program's own.
        """
        _refuse_options("create_connection", options)
        if host is None and port is None:
            raise ValueError("host and port was not specified and no sock specified")
        hosts = self._connections.addresses_of(host or "")
        return await self._connections.connect(
            protocol_factory, [(host, int(port or 0)) for host in hosts]
        )

    async def create_unix_connection(
        self, protocol_factory: ProtocolFactory, path: Any = None, **options: Any
    ) -> Pair:
        """Connect in memory to the server with this path; otherwise as create_connection()."""
        _refuse_options("create_unix_connection", options)
        return await self._connections.connect(protocol_factory, [(os.fspath(path), None)])

    async def create_server(  # type: ignore[override]
        self,
        protocol_factory: ProtocolFactory,
        host: str | Sequence[str] | None = None,
        port: int | str | None = None,
        *,
        start_serving: bool = True,
        **options: Any,
    ) -> MemoryServer:
        """Listen in memory: under one name, several, or any (None).

        Raises OSError (EADDRINUSE) when there is a server already, RealWorldError for TLS and for
        sockets of the program's own.
        """
        _refuse_options("create_server", options)
        hosts = [host or ""] if host is None or isinstance(host, str) else host
        return self._connections.listen(
            protocol_factory, [(host, int(port or 0)) for host in hosts], start_serving
        )

    async def create_unix_server(  # type: ignore[override]
        self,
        protocol_factory: ProtocolFactory,
        path: Any = None,
        *,
        start_serving: bool = True,
        **options: Any,
    ) -> MemoryServer:
        """Listen in memory under a path, without a file; otherwise as create_server()."""
        _refuse_options("create_unix_server", options)
        addresses: list[Address] = [(os.fspath(path), None)]
        return self._connections.listen(protocol_factory, addresses, start_serving)

    def _stop_serving(self, sock: Any) -> None:
        self._connections.stop_listening(sock)

    async def getaddrinfo(
        self, host: bytes | str | None, port: bytes | str | int | None, **options: int
    ) -> list[Any]:
        """Look a name up among the hosts of the network. OSError for one that is not there."""
        name = host.decode() if isinstance(host, bytes) else host or ""
        numbers = [options.get(option, 0) for option in ("family", "type", "proto", "flags")]
        found: list[Any] = []
        for address in self._connections.addresses_of(name):
            known = literal_addresses(address, port, *numbers)
            if known is None:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            found += known
        return found

    def add_reader(  # type: ignore[override]
        self, fd: Any, callback: Callable[..., Any], *args: Any
    ) -> None:
        """Refused, but for what signal handlers need."""
        if self._signal_pair is None or fd is not self._signal_pair[0]:
            _refuse("add_reader(")
        super().add_reader(fd, callback, *args)


def _refuse(name: str) -> NoReturn:
    raise RealWorldError(
        f"{name}) needs the real world, which a loop of rondel.testing has none of; "
        f"see docs/testing.md"
    )


def _refuse_options(name: str, options: dict[str, Any]) -> None:
    for option in ("sock", "ssl"):
        if options.get(option):
            _refuse(f"{name}({option}=…")


def _refusing(name: str) -> Any:
    def refuse(self: Loop, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse(f"{name}(")

    async def refuse_later(self: Loop, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse(f"{name}(")

    refusing = refuse if name == "add_writer" else refuse_later
    refusing.__name__ = name
    refusing.__qualname__ = f"{Loop.__qualname__}.{name}"
    refusing.__doc__ = "Refused: there is no real world to talk to."
    return refusing


for _name in (
    "add_writer",
    "connect_accepted_socket",
    "connect_read_pipe",
    "connect_write_pipe",
    "create_datagram_endpoint",
    "sendfile",
    "sock_accept",
    "sock_connect",
    "sock_recv",
    "sock_recv_into",
    "sock_recvfrom",
    "sock_recvfrom_into",
    "sock_sendall",
    "sock_sendfile",
    "sock_sendto",
    "subprocess_exec",
    "subprocess_shell",
):
    setattr(Loop, _name, _refusing(_name))


def new_event_loop(
    seed: int | None = None, *, network: Network | None = None, record: bool = False
) -> Loop:
    """Make a loop for tests; the caller closes it. The arguments are those of :class:`Loop`."""
    return Loop(seed, network=network, record=record)
