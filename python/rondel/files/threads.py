"""Calls in threads, for what is not native."""

import functools
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import Executor
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from .._rondel import Coroutine, call_in_thread

_T = TypeVar("_T")


class Closable(Protocol):
    """What can be closed with an awaited call."""

    def close(self) -> Awaitable[None]:
        """Close it."""


_Closable = TypeVar("_Closable", bound=Closable)


def run(function: Callable[..., _T], *args: Any, **kwargs: Any) -> Coroutine[_T]:
    """Call a function in the loop's default executor."""
    return call_in_thread(None, False, function, *args, **kwargs)


def wrap(function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """A function that calls the given one in a thread, to be awaited.

    It takes ``loop`` and ``executor`` besides the function's own arguments.
    """

    @functools.wraps(function)
    def call(*args: Any, loop: Any = None, executor: Executor | None = None, **kwargs: Any) -> Any:
        return call_in_thread(executor, False, function, *args, **kwargs)

    return call


class Opening(Generic[_Closable]):
    """Something that is being opened: to be awaited, or for ``async with``, which closes it."""

    __slots__ = ("_coroutine", "_object")

    def __init__(self, coroutine: Any) -> None:
        self._coroutine = coroutine
        self._object: _Closable | None = None

    def __await__(self) -> Generator[Any, Any, _Closable]:
        if self._object is None:
            self._object = yield from self._coroutine.__await__()
        return self._object

    async def __aenter__(self) -> _Closable:
        return await self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        opened, self._object = self._object, None
        if opened is not None:
            await opened.close()

    # As much of a coroutine as asyncio.create_task() and gather() want.

    def send(self, value: Any) -> Any:
        """Go on."""
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        """Raise an exception where it waits."""
        return self._coroutine.throw(*error)

    def close(self) -> None:
        """Give up."""
        self._coroutine.close()
