"""asyncio's synchronisation, native: queues, events, locks and timeouts.

Like the streams, each class has two bases: a native one for what happens often, and asyncio's own
class, whose code does everything else. They work on every event loop.
"""

import asyncio
import asyncio.mixins
import asyncio.queues
import asyncio.timeouts
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from . import _rondel
from ._rondel import Timeout as Timeout
from ._rondel import timeout as timeout
from ._rondel import timeout_at as timeout_at

_StockQueue = asyncio.Queue
_StockPriorityQueue = asyncio.PriorityQueue
_StockLifoQueue = asyncio.LifoQueue
_StockEvent = asyncio.Event
_StockLock = asyncio.Lock
_StockTimeout = asyncio.Timeout

# For the native part.
_get_bound_loop = vars(asyncio.mixins._LoopBoundMixin)["_get_loop"]
_phases = vars(asyncio.timeouts)["_State"]
_CREATED, _ENTERED, _EXITED = _phases.CREATED, _phases.ENTERED, _phases.EXITED

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


class Event(_Copied, _rondel.Event, _StockEvent):
    """A native ``asyncio.Event``: the same methods and exceptions."""

    _attributes = ("_waiters", "_value", "_loop")

    def __init__(self) -> None:
        self._start()

    _restart = __init__


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
    _StockEvent: Event,
    _StockLock: Lock,
}
_OURS: dict[str, Callable[..., Any]] = {"timeout": timeout, "timeout_at": timeout_at}
_stock: dict[str, Callable[..., Any]] = {name: getattr(asyncio.timeouts, name) for name in _OURS}

_installed = False


def install() -> None:
    """Make asyncio's classes give native objects, and put the functions under asyncio's names.

    The classes themselves stay, so that ``isinstance`` and subclasses are what they were. Only
    what is made by calling a class of asyncio's own is native, wherever its name was imported.
    """
    global _installed
    for name, ours in _OURS.items():
        for module in (asyncio, asyncio.timeouts):
            # What somebody else has put there stays.
            if getattr(module, name) is _stock[name]:
                setattr(module, name, ours)
    if not _installed:
        for stock, native in _CLASSES.items():
            if "__new__" not in vars(stock):
                stock.__new__ = _maker(stock, native)  # type: ignore[method-assign]
    _installed = True


def uninstall() -> None:
    """Undo install(). Objects that were made meanwhile stay what they are.

    The classes keep a ``__new__``, which then does what object's does: Python forgets how to call
    a class without one once it has had one.
    """
    global _installed
    _installed = False
    for name, ours in _OURS.items():
        for module in (asyncio, asyncio.timeouts):
            if getattr(module, name) is ours:
                setattr(module, name, _stock[name])


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
