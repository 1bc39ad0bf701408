"""The loop for tests."""

import asyncio
import concurrent.futures
import contextvars
import functools
import itertools
from collections.abc import Callable
from typing import Any, NoReturn, Self

from .. import loop as real
from .._rondel import TimerHandle
from .calls import Calls
from .director import Director
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
        record: Whether to keep a :attr:`trace`.

    Attributes:
        tape: The :class:`Tape` that all choices come from.
        random: A ``random.Random`` for the program's own use that belongs to the seed.
        trace: A line for each callback that was run, in their order: the time and what it was. Two
            runs with the same seed have the same trace. None unless ``record`` was given.

    """

    def __init__(self, seed: int | None = None, *, record: bool = False) -> None:
        self.tape = Tape(seed)
        self.random = self.tape.random()
        self.trace: list[str] | None = [] if record else None
        self._numbers = itertools.count(1)
        self._task_numbers = itertools.count(1)
        self._calls = Calls(self.tape)
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

    def add_reader(  # type: ignore[override]
        self, fd: Any, callback: Callable[..., Any], *args: Any
    ) -> None:
        """Refused, but for what signal handlers need."""
        if self._signal_pair is None or fd is not self._signal_pair[0]:
            _refuse("add_reader")
        super().add_reader(fd, callback, *args)


def _refuse(name: str) -> NoReturn:
    raise RealWorldError(
        f"{name}() needs the real world, which a loop of rondel.testing has none of; "
        f"see docs/testing.md"
    )


def _refusing(name: str) -> Any:
    def refuse(self: Loop, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse(name)

    async def refuse_later(self: Loop, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse(name)

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
    "create_connection",
    "create_datagram_endpoint",
    "create_server",
    "create_unix_connection",
    "create_unix_server",
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


def new_event_loop(seed: int | None = None, *, record: bool = False) -> Loop:
    """Make a loop for tests; the caller closes it. The arguments are those of :class:`Loop`."""
    return Loop(seed, record=record)
