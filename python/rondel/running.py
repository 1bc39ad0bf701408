"""Running a program: rondel.run()."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from .loop import new_event_loop

_T = TypeVar("_T")


def run(main: Coroutine[Any, Any, _T], *, debug: bool | None = None) -> _T:
    """Run a coroutine on a new rondel loop and return its result, as ``asyncio.run()`` does.

    The loop is closed afterwards, with its asynchronous generators and its executor. Raises
    RuntimeError when called from a running loop, ValueError (TypeError from Python 3.14 on) when
    ``main`` is no coroutine.
    """
    if asyncio._get_running_loop() is not None:
        # Same words as asyncio's: programs look for them.
        raise RuntimeError("asyncio.run() cannot be called from a running event loop")
    with asyncio.Runner(debug=debug, loop_factory=new_event_loop) as runner:
        return runner.run(main)
