"""Generator-based coroutines, which asyncio dropped in Python 3.11."""

import functools
import inspect
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, ParamSpec, TypeVar, cast

_P = ParamSpec("_P")
_T = TypeVar("_T")


def coroutine(
    func: Callable[_P, Generator[Any, Any, _T] | Awaitable[_T] | _T],
) -> Callable[_P, Coroutine[Any, Any, _T]]:
    """Make a coroutine function of a generator function that uses ``yield from``.

    What it returns is accepted wherever a coroutine is: by ``await``, ``asyncio.ensure_future()``,
    ``loop.create_task()`` and :func:`rondel.run`. As with ``asyncio.coroutine`` up to Python 3.10,
    a plain function may be decorated too: what it returns is awaited if it can be.

    >>> @rondel.coroutine
    ... def greet():
    ...     yield from asyncio.sleep(1)
    ...     return "hello"
    """
    if inspect.iscoroutinefunction(func):
        return func
    if inspect.isgeneratorfunction(func):
        generator = cast("Callable[_P, Awaitable[_T]]", types.coroutine(func))
    else:
        generator = cast("Callable[_P, Awaitable[_T]]", types.coroutine(_as_generator(func)))

    # A real coroutine around it: tasks accept it on every Python, and one that is never awaited
    # is warned about.
    @functools.wraps(func)
    async def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await generator(*args, **kwargs)

    return wrapper


def _as_generator(func: Callable[_P, Any]) -> Callable[_P, Generator[Any, Any, Any]]:
    def generator(*args: _P.args, **kwargs: _P.kwargs) -> Generator[Any, Any, Any]:
        result = func(*args, **kwargs)
        if inspect.isawaitable(result):
            result = yield from result.__await__()
        elif inspect.isgenerator(result):
            result = yield from result
        return result

    return generator
