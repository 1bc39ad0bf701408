"""Running a program: rondel.run()."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from .loop import new_event_loop

_T = TypeVar("_T")


def run(main: Coroutine[Any, Any, _T], *, debug: bool | None = None) -> _T:
    """Run a coroutine on a new rondel loop and return its result, as ``asyncio.run()`` does.

    The loop is closed afterwards, with its asynchronous generators and its executor. In a notebook
    the cell's own loop stands still meanwhile. Raises RuntimeError when called from a running loop
    elsewhere, ValueError (TypeError from Python 3.14 on) when ``main`` is no coroutine.
    """
    if asyncio._get_running_loop() is not None:
        return _run_in_callback(main, debug)
    return _run(main, debug)


def _run(main: Coroutine[Any, Any, _T], debug: bool | None) -> _T:
    with asyncio.Runner(debug=debug, loop_factory=new_event_loop) as runner:
        return runner.run(main)


def _run_in_callback(main: Coroutine[Any, Any, _T], debug: bool | None) -> _T:
    from .nesting import Aside, in_notebook

    if not in_notebook():
        # Same words as asyncio's: programs look for them.
        raise RuntimeError("asyncio.run() cannot be called from a running event loop")
    aside = Aside()
    try:
        return _run(main, debug)
    finally:
        aside.restore()
