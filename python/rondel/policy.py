"""Making asyncio use rondel: the event loop policy, install() and uninstall()."""

import asyncio
import sys
import threading
import warnings
from typing import Any

from . import streams, sync
from .loop import Loop, new_event_loop

# From 3.14 on the public name warns that policies will go in 3.16; until then this is the class.
if sys.version_info >= (3, 14):
    from asyncio.unix_events import _DefaultEventLoopPolicy as _Base
else:
    from asyncio import DefaultEventLoopPolicy as _Base


class EventLoopPolicy(_Base):  # type: ignore[misc, valid-type, unused-ignore]
    """asyncio's default policy, with loops of rondel."""

    def new_event_loop(self) -> Loop:
        """Make a new rondel loop."""
        return new_event_loop()


_replaced: Any = None


def install() -> None:
    """Make asyncio create rondel's loops and streams from now on.

    ``asyncio.run()``, ``asyncio.Runner()``, ``asyncio.new_event_loop()`` and
    ``asyncio.get_event_loop()`` in the main thread all do. Since ``asyncio.get_event_loop()``
    creates no loop any more from Python 3.14 on, install() makes it do so there as well, which is
    what "works wherever asyncio's own does" needs. ``asyncio.open_connection()``,
    ``asyncio.start_server()`` and their Unix counterparts make native streams on rondel's loops.
    ``asyncio.Queue()``, the other queues and ``asyncio.Lock()`` make native objects, on every loop,
    and ``asyncio.sleep(0)`` is a native coroutine.
    Calling it twice has no further effect.
    """
    global _replaced
    streams.install()
    sync.install()
    current = _get_policy()
    if isinstance(current, EventLoopPolicy):
        return
    _replaced = current
    _set_policy(_InstalledPolicy())


def uninstall() -> None:
    """Undo install(): asyncio uses the policy, streams, queues, locks and sleep it had before."""
    global _replaced
    streams.uninstall()
    sync.uninstall()
    if isinstance(_get_policy(), _InstalledPolicy):
        _set_policy(_replaced)
    _replaced = None


class _InstalledPolicy(EventLoopPolicy):
    """The policy of install()."""

    def get_event_loop(self) -> asyncio.AbstractEventLoop:
        """The thread's loop; in the main thread one is made when there was never one."""
        if sys.version_info >= (3, 14) and _state(self)._loop is None and self._may_create():
            self.set_event_loop(self.new_event_loop())
        loop: asyncio.AbstractEventLoop = super().get_event_loop()
        return loop

    def _may_create(self) -> bool:
        return (
            not getattr(_state(self), "_set_called", False)
            and threading.current_thread() is threading.main_thread()
        )

    def set_event_loop(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Set the thread's loop."""
        _state(self)._set_called = True
        super().set_event_loop(loop)


def _state(policy: Any) -> Any:
    """What asyncio's policy knows of the calling thread."""
    return policy._local


def _get_policy() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return asyncio.get_event_loop_policy()


def _set_policy(policy: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        asyncio.set_event_loop_policy(policy)
