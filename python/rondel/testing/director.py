"""What a test's loop does next: the order of callbacks, and when time passes.

The rules of order, which docs/testing.md tells users:

* A callback that is a task's next step belongs to the lane of that task.
* Any other callback belongs to the lane of the callback, task or timer that scheduled it; a timer
  that fires has a lane of its own.
* Callbacks of one lane never change places. In a turn, those of different lanes may.
* Timers that are due at exactly the same time may change places; earlier ones come first.
"""

import asyncio
import itertools
import types
import weakref
from collections.abc import Sequence
from typing import Any

from .. import _rondel
from .calls import Calls
from .tape import Tape

#: By these names tasks schedule themselves: CPython's C tasks and the ones written in Python.
_STEPS = frozenset({"task_wakeup", "__step", "__wakeup"})


class Deadlock(RuntimeError):
    """Nothing can happen any more, and the program has not ended.

    No callback is ready, no timer is set and no call is in a pool. The text names the tasks that
    wait and where.
    """


class Director(_rondel.Rehearsal):
    """Asked by the native loop before each turn.

    Args:
        loop: The loop, of which the director does not become an owner.
        tape: Where the choices come from.
        calls: The calls that wait to be made in pools.
        trace: What to append a line to for each callback, in the order in which they are called.

    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        tape: Tape,
        calls: Calls,
        trace: list[str] | None,
    ) -> None:
        self._loop = weakref.ref(loop)
        self._tape = tape
        self._calls = calls
        self._trace = trace
        self._lanes: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._numbers = itertools.count(1)

    def before(self, busy: bool, deadline: float | None) -> bool:
        """Whether the loop is to wait for a thread before its turn.

        ``busy``: something is ready. ``deadline``: when the next timer is due, if there is one.
        """
        if self._calls.make_some(busy):
            return True
        if busy or deadline is not None:
            return False
        if self._calls.are_under_way():
            return True
        raise Deadlock(_describe(self._loop()))

    def order(
        self, callbacks: Sequence[Any], origins: Sequence[int], timers: int
    ) -> list[tuple[int, int]]:
        """The order in which to call, as indices, each with its lane."""
        lanes = [
            self._lane(callback, origin)
            for callback, origin in zip(callbacks, origins, strict=True)
        ]
        for index in range(timers, len(lanes)):
            lanes[index] = next(self._numbers)
        order = list(range(len(lanes)))
        if self._tape.seed is not None and len(order) > 1:
            order = self._interleave(lanes[:timers])
            order += self._shuffle_ties(callbacks, timers)
        if self._trace is not None:
            self._trace += [f"{self.now:.9f} {_name(callbacks[index])}" for index in order]
        return [(index, lanes[index]) for index in order]

    def _lane(self, callback: Any, origin: int) -> int:
        task = stepping_task(callback)
        if task is None:
            return origin
        lane = self._lanes.get(task)
        if lane is None:
            lane = self._lanes[task] = next(self._numbers)
        return lane

    def _interleave(self, lanes: Sequence[int]) -> list[int]:
        """Indices in an order that keeps each lane's own."""
        members: dict[int, list[int]] = {}
        for index, lane in enumerate(lanes):
            members.setdefault(lane, []).append(index)
        if len(members) < 2:
            return list(range(len(lanes)))
        nexts = {lane: iter(indices) for lane, indices in members.items()}
        # Sorted, so that it does not matter in which order the program woke its tasks.
        return [next(nexts[lane]) for lane in self._tape.shuffled(sorted(lanes))]

    def _shuffle_ties(self, callbacks: Sequence[Any], timers: int) -> list[int]:
        order: list[int] = []
        due = range(timers, len(callbacks))
        for _, tied in itertools.groupby(due, lambda index: callbacks[index].when()):
            order += self._tape.shuffled(list(tied))
        return order


def stepping_task(handle: Any) -> "asyncio.Task[Any] | None":
    """The task whose next step a handle is, if it is one."""
    callback = getattr(handle, "_callback", None)
    owner = getattr(callback, "__self__", None)
    if not isinstance(owner, asyncio.Task | asyncio.tasks._PyTask):  # type: ignore[attr-defined]
        return None
    is_step = type(callback).__name__ == "TaskStepMethWrapper"
    return owner if is_step or getattr(callback, "__name__", "") in _STEPS else None


def _name(handle: Any) -> str:
    """What a line of the trace says of a callback: the same words in each run."""
    task = stepping_task(handle)
    if task is not None:
        return f"{task.get_name()} {_coroutine_name(task)}"
    callback = getattr(handle, "_callback", handle)
    while (inner := getattr(callback, "func", None)) is not None:
        callback = inner
    owner = getattr(callback, "__self__", None)
    name = getattr(callback, "__qualname__", None) or type(callback).__qualname__
    if owner is not None and not isinstance(owner, types.ModuleType) and "." not in name:
        name = f"{type(owner).__qualname__}.{name}"
    return str(name)


def _coroutine_name(task: "asyncio.Task[Any]") -> str:
    coro = task.get_coro()
    return str(getattr(coro, "__qualname__", None) or type(coro).__qualname__)


def _describe(loop: asyncio.AbstractEventLoop | None) -> str:
    lines = [
        "nothing can happen any more: no callback is ready, no timer is set, "
        "no call is in a pool; these tasks wait:"
    ]
    tasks = [] if loop is None else [t for t in asyncio.all_tasks(loop) if not t.done()]
    for task in sorted(tasks, key=hash):
        lines.append(f"  {task.get_name()} {_coroutine_name(task)} waits {_where(task)}")
    if not tasks:
        lines[0] = lines[0].replace("these tasks wait:", "there are no tasks")
    return "\n".join(lines)


def _where(task: "asyncio.Task[Any]") -> str:
    """The places through which a task waits, the innermost last."""
    places: list[str] = []
    awaited: Any = task.get_coro()
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is not None:
            code = frame.f_code
            places.append(f"at {code.co_filename}:{frame.f_lineno} in {code.co_name}")
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    return ", ".join(places) or "in native code"
