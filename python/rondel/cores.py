"""Cores: how many this process may use, and how long a thread has waited for one."""

import os
from collections.abc import Callable


def usable() -> int:
    """Return how many processors this process may use, 1 at least.

    As ``os.process_cpu_count()`` of Python 3.13: those that the process is bound to, not all that
    the machine has. The standard library's pools count all of them up to Python 3.12.
    """
    count: Callable[[], int | None] | None = getattr(os, "process_cpu_count", None)
    if count is not None:
        return count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def queued() -> float:
    """Return the seconds for which this thread has been ready to run and had no core.

    That is what a busy machine adds to a call, and no waiting of the call's own.
    From Linux's ``/proc/thread-self/schedstat``; 0 where that is not to be read.
    """
    try:
        with open("/proc/thread-self/schedstat", "rb") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
