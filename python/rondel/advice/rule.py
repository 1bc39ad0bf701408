"""The rule of thumb for the choice between asyncio, threads and processes."""

from typing import Literal

#: "direct" is to call the function as it is: nothing else pays off.
Option = Literal["asyncio", "threads", "processes", "direct"]


def rule(*, io_bound: bool, io_very_slow: bool = False) -> Option:
    """Return the option that the rule of thumb names.

    I/O-bound and very slow: asyncio; I/O-bound: threads; CPU-bound: processes. `io_very_slow` says
    nothing about work that is not I/O-bound. :func:`rondel.choose` measures instead.
    """
    if not io_bound:
        return "processes"
    return "asyncio" if io_very_slow else "threads"
