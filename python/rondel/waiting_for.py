"""What a future waits for: finding out that it can never be done.

A nested run suspends the task that called it. When what it waits for waits in turn for that task,
it would do so for ever.
"""

import asyncio
import gc
import types
from collections import deque
from contextvars import Context
from typing import Any

_Future = asyncio.Future[Any]

#: How many objects are looked at to find a way from one to another.
_LARGEST_SEARCH = 2000
#: Through these one comes to everything.
_WIDE = (types.ModuleType, type, types.CodeType, Context, asyncio.AbstractEventLoop, str, int)


def chain(future: _Future, suspended: list[asyncio.Task[Any] | None]) -> list[_Future]:
    """What waits for what, from the future to a suspended task; empty if there is no such chain."""
    return _chain(future, [task for task in suspended if task is not None], set())


def _chain(future: _Future, suspended: list[asyncio.Task[Any]], seen: set[int]) -> list[_Future]:
    if any(future is task for task in suspended):
        return [future]
    if future.done() or id(future) in seen:
        return []
    seen.add(id(future))
    waiter = getattr(future, "_fut_waiter", None)
    chains: list[list[_Future]] = []
    if waiter is not None:
        chains = [_chain(waiter, suspended, seen)]
    elif not isinstance(future, asyncio.Task):
        chains = [_chain(setter, suspended, seen) for setter in _setters(future)]
    # One that can still be done by somebody else is not lost.
    return [future, *chains[0]] if chains and all(chains) else []


def _setters(future: _Future) -> list[_Future]:
    """Futures whose end may set this one: those that gather(), wait() and task groups wait for."""
    if not any(_sets(task, future) for task in asyncio.all_tasks()):
        return []
    # One that is no task may be able to, as well.
    others = [thing for thing in gc.get_objects() if isinstance(thing, asyncio.Future)]
    return [other for other in others if not other.done() and _sets(other, future)]


def _sets(other: _Future, future: _Future) -> bool:
    callbacks = [callback for callback, _ in getattr(other, "_callbacks", None) or ()]
    return _leads_to(callbacks, [future], through_futures=False)


def is_known_to(timers: list[Any], futures: list[_Future]) -> bool:
    """Whether one of the timers may do something about one of the futures."""
    return _leads_to(timers, futures, through_futures=True)


def _leads_to(starts: list[Any], ends: list[Any], *, through_futures: bool) -> bool:
    wanted = {id(end) for end in ends}
    seen: set[int] = set()
    queue = deque(starts)
    while queue and len(seen) < _LARGEST_SEARCH:
        thing = queue.popleft()
        if id(thing) in wanted:
            return True
        if id(thing) in seen or isinstance(thing, _WIDE):
            continue
        seen.add(id(thing))
        if isinstance(thing, types.FunctionType):
            # Not its module's names.
            queue.extend(thing.__closure__ or ())
            queue.extend(thing.__defaults__ or ())
        elif through_futures or not isinstance(thing, asyncio.Future):
            queue.extend(gc.get_referents(thing))
    return False
