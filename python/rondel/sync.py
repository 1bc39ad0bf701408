"""asyncio's queues and locks, and ``sleep(0)``, native.

Like the streams, each class has two bases: a native one for what happens often, and asyncio's own
class, whose code does everything else. They work on every event loop.
"""

import asyncio
import asyncio.mixins
import asyncio.queues
import asyncio.tasks
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from . import _rondel

_StockQueue = asyncio.Queue
_StockPriorityQueue = asyncio.PriorityQueue
_StockLifoQueue = asyncio.LifoQueue
_StockLock = asyncio.Lock

# For the native part.
_get_bound_loop = vars(asyncio.mixins._LoopBoundMixin)["_get_loop"]

if TYPE_CHECKING:
    from _typeshed import SupportsRichComparison

_T = TypeVar("_T")
_Ordered = TypeVar("_Ordered", bound="SupportsRichComparison")


class _Copied:
    """Copying and pickling, by the attributes that asyncio's objects have."""

    _attributes: tuple[str, ...]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        unset = object()
        found = ((name, getattr(self, name, unset)) for name in self._attributes)
        state = {name: value for name, value in found if value is not unset}
        return _made, (type(self),), {**state, **self.__dict__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._restart()
        for name, value in state.items():
            setattr(self, name, value)

    def _restart(self) -> None:
        raise NotImplementedError


def _made(kind: type[_T]) -> _T:
    """An object whose state comes later."""
    return kind.__new__(kind)


class Queue(_Copied, _rondel.Queue, _StockQueue[_T]):
    """A native ``asyncio.Queue``: the same methods and exceptions.

    ``maxsize`` is the number of items that it holds at most; no limit if it is not positive.
    """

    _attributes = (
        "_maxsize",
        "_getters",
        "_putters",
        "_unfinished_tasks",
        "_finished",
        "_queue",
        "_is_shutdown",
        "_loop",
    )

    def __init__(self, maxsize: int = 0) -> None:
        self._start(maxsize, _ORDERS.get(type(self), 0))
        self._init(maxsize)

    def _restart(self) -> None:
        self._start(0, _ORDERS.get(type(self), 0))


class PriorityQueue(Queue[_Ordered], _StockPriorityQueue[_Ordered]):
    """A native ``asyncio.PriorityQueue``: the least item leaves first."""


class LifoQueue(Queue[_T], _StockLifoQueue[_T]):
    """A native ``asyncio.LifoQueue``: the item that came last leaves first."""


_ORDERS: dict[type, int] = {Queue: 1, PriorityQueue: 2, LifoQueue: 3}


class Lock(_Copied, _rondel.Lock, _StockLock):
    """A native ``asyncio.Lock``: the same methods and exceptions."""

    _attributes = ("_waiters", "_locked", "_loop")

    def __init__(self) -> None:
        self._start(type(self) is Lock)

    _restart = __init__


_CLASSES: dict[type, type] = {
    _StockQueue: Queue,
    _StockPriorityQueue: PriorityQueue,
    _StockLifoQueue: LifoQueue,
    _StockLock: Lock,
}

_stock_sleep: Any = asyncio.tasks.sleep
_sleep: Any = _rondel.native_sleep(_stock_sleep)

_installed = False


def install() -> None:
    """Make asyncio's classes give native objects, and ``asyncio.sleep(0)`` a native coroutine.

    The classes themselves stay, so that ``isinstance`` and subclasses are what they were. Only
    what is made by calling a class of asyncio's own is native, wherever its name was imported.
    """
    global _installed
    if not _installed:
        for stock, native in _CLASSES.items():
            if "__new__" not in vars(stock):
                stock.__new__ = _maker(stock, native)  # type: ignore[method-assign]
    _replace_sleep(_stock_sleep, _sleep)
    _installed = True


def uninstall() -> None:
    """Undo install(). Objects that were made meanwhile stay what they are.

    The classes keep a ``__new__``, which then does what object's does: Python forgets how to call
    a class without one once it has had one.
    """
    global _installed
    _replace_sleep(_sleep, _stock_sleep)
    _installed = False


def _replace_sleep(old: Any, new: Any) -> None:
    """What somebody else has put there stays."""
    for module in (asyncio, asyncio.tasks):
        if module.sleep is old:
            module.sleep = new  # type: ignore[attr-defined]


def _maker(stock: Any, native: Any) -> Callable[..., Any]:
    """The class's ``__new__``."""

    def __new__(cls: type, *args: Any, **kwargs: Any) -> Any:
        if cls is stock and _installed:
            return native.__new__(native)
        # A program's class, which may have other bases after this one.
        following = super(stock, cls).__new__
        if following is object.__new__:
            return following(cls)
        return following(cls, *args, **kwargs)

    # What inspect shows for the class.
    __new__.__signature__ = inspect.signature(stock.__init__)  # type: ignore[attr-defined]
    return __new__
