"""What ``to="auto"`` means: threads, unless a function turns out to need a process.

Threads cost least and change nothing about a function, so that is where calls begin. What they are
bad at is a function that computes in Python: it keeps the GIL, and the loop gets it back only every
few milliseconds. Whether a function does so is measured while its first calls run, from both
sides: how much processor time the thread used, and by how much the loop was late meanwhile. A
function that computes without the GIL (hashing, compressing, NumPy) uses the one but does not cause
the other.
"""

import asyncio
import pickle
import statistics
import sys
import time
import types
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar

from ..cores import queued
from .threads import to_thread

_T = TypeVar("_T")

#: Calls of a function that are measured before its place is settled.
MEASURED_CALLS = 3
#: Seconds of processor time below which a call is no burden to the loop.
LONG = 0.05
#: The share of its time that a call must compute.
BUSY = 0.4
#: Seconds between two looks at the clock while a measured call runs.
PERIOD = 0.01

_Place = Literal["threads", "processes"]


class Record:
    """What is known of a function."""

    def __init__(self) -> None:
        self.measured = 0
        self.heavy = 0  # measured calls that computed and kept the GIL
        self.place: _Place | None = None

    def add(self, heavy: bool) -> None:
        """Note a measured call, and settle the function's place when there were enough."""
        self.measured += 1
        self.heavy += heavy
        if self.measured >= MEASURED_CALLS:
            self.place = "processes" if 2 * self.heavy > self.measured else "threads"


_records: "weakref.WeakKeyDictionary[types.FunctionType, Record]" = weakref.WeakKeyDictionary()


def has_gil() -> bool:
    """Whether threads take turns at computing in Python."""
    is_enabled: Callable[[], bool] = getattr(sys, "_is_gil_enabled", lambda: True)
    return is_enabled()


async def call(
    fn: Callable[..., _T],
    args: tuple[Any, ...],
    start: Callable[[Callable[..., _T], tuple[Any, ...], Any], Awaitable[_T]],
) -> _T:
    """Call the function where it is best called, as far as is known yet."""
    if not isinstance(fn, types.FunctionType) or not has_gil() or not is_importable(fn):
        # Functions written in C mostly let go of the GIL if they compute for long.
        return await to_thread(fn, *args)
    record = _records.setdefault(fn, Record())
    if record.place is None:
        return await _measured(fn, args, record)
    if record.place == "processes" and can_be_pickled(args):
        return await start(fn, args, "processes")
    return await to_thread(fn, *args)


def is_importable(fn: types.FunctionType) -> bool:
    """Whether another process finds the function by its name."""
    module = sys.modules.get(fn.__module__)
    if module is None or (fn.__module__ == "__main__" and not hasattr(module, "__file__")):
        return False
    found: Any = module
    for name in fn.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is fn


def can_be_pickled(value: object) -> bool:
    """Whether a value can go to another process. Large buffers are not copied for this."""
    try:
        pickle.dumps(value, protocol=5, buffer_callback=lambda buffer: None)
    except Exception:  # whatever its __reduce__ raises
        return False
    return True


def _timed(fn: Callable[..., _T], args: tuple[Any, ...]) -> tuple[_T, float, float]:
    """Call, and say how long the thread computed, and how long it wanted a core to."""
    before, queued_before = time.thread_time(), queued()
    result = fn(*args)
    computing = time.thread_time() - before
    return result, computing, computing + queued() - queued_before


async def _measured(fn: Callable[..., _T], args: tuple[Any, ...], record: Record) -> _T:
    """Call in a thread, and look at the clock meanwhile: who is late has waited for the GIL."""
    loop = asyncio.get_running_loop()
    lateness: list[float] = []
    due = loop.time() + PERIOD

    def look() -> None:
        nonlocal due
        now = loop.time()
        lateness.append(now - due)
        due = now + PERIOD
        timers[0] = loop.call_at(due, look)

    timers = [loop.call_at(due, look)]
    begun = loop.time()
    try:
        result, computing, wanting = await to_thread(_timed, fn, args)
    finally:
        timers[0].cancel()
    took = loop.time() - begun
    keeps_gil = len(lateness) > 2 and statistics.median(lateness) > 0.5 * sys.getswitchinterval()
    heavy = computing >= LONG and wanting >= BUSY * took and keeps_gil
    record.add(heavy and can_be_pickled((args, result)))
    return result
