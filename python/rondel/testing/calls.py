"""Calls in pools, made one after the other, when the tape says so.

Each call is really made in its pool, but while it is, the loop stands still: how long it takes
does not matter, and which of several calls ends first is the tape's choice. A call that asks the
loop for something (``asyncio.run_coroutine_threadsafe()``) is answered: the loop goes on with what
it is given.
"""

import asyncio
import concurrent.futures
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from .tape import Tape

#: How probable it is in each turn that a call is made although callbacks are ready.
_EARLY = 0.25


class _Call(NamedTuple):
    """A call that waits."""

    future: "asyncio.Future[Any]"
    #: What the future takes its result from; the thread sets it.
    outcome: "concurrent.futures.Future[Any]"
    executor: Callable[[], concurrent.futures.Executor]
    function: Callable[[], Any]


class Calls:
    """The calls of one loop that wait for their turn."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self._waiting: list[_Call] = []
        self._under_way: set[concurrent.futures.Future[Any]] = set()

    def add(
        self,
        loop: asyncio.AbstractEventLoop,
        executor: Callable[[], concurrent.futures.Executor],
        call: Callable[[], Any],
    ) -> "asyncio.Future[Any]":
        """Have a call made in the executor that the function ``executor`` returns then."""
        outcome: concurrent.futures.Future[Any] = concurrent.futures.Future()
        future = asyncio.wrap_future(outcome, loop=loop)
        self._waiting.append(_Call(future, outcome, executor, call))
        return future

    def are_under_way(self) -> bool:
        """Whether a call has begun and not ended."""
        return bool(self._under_way)

    def are_left(self) -> bool:
        """Whether there are calls that have not ended."""
        return bool(self._waiting or self._under_way)

    def make_some(self, busy: bool) -> bool:
        """Make a call, if it is time for one; whether there is one to wait for now.

        ``busy``: other things are ready, so that there need not be a call in this turn.
        """
        self._waiting = [call for call in self._waiting if not call.future.done()]
        if not self._waiting or (busy and self._under_way):
            return False
        if busy and self._tape.seed is not None and not self._tape.chance(_EARLY):
            return False
        call = self._waiting.pop(self._tape.below(len(self._waiting)))
        outcome = call.outcome
        outcome.set_running_or_notify_cancel()
        self._under_way.add(outcome)
        try:
            made = call.executor().submit(call.function)
        except BaseException as exc:
            self._ended(outcome, exc)
        else:
            made.add_done_callback(functools.partial(self._take, outcome))
        return True

    def _take(
        self,
        outcome: "concurrent.futures.Future[Any]",
        made: "concurrent.futures.Future[Any]",
    ) -> None:
        """A call has ended; called on its thread."""
        error: BaseException | None
        try:
            error = made.exception()
        except concurrent.futures.CancelledError as exc:
            error = exc
        self._ended(outcome, error, None if error else made.result())

    def _ended(
        self,
        outcome: "concurrent.futures.Future[Any]",
        error: BaseException | None,
        result: Any = None,
    ) -> None:
        self._under_way.discard(outcome)
        # This schedules something on the loop, which wakes it.
        if error is None:
            outcome.set_result(result)
        else:
            outcome.set_exception(error)

    def drop(self) -> None:
        """Forget the calls that wait: the loop is closed."""
        self._waiting.clear()
