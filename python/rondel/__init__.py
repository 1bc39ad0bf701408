"""Python's asyncio, implemented in Rust.

The event loop is :class:`Loop`, an ``asyncio.AbstractEventLoop``. Ways to run a program on it:

* ``rondel.run(main())`` instead of ``asyncio.run(main())``;
* ``asyncio.run(main(), loop_factory=rondel.new_event_loop)`` (Python 3.12+);
* ``rondel.install()`` before the program starts, after which asyncio makes rondel's loops;
* ``asyncio.set_event_loop_policy(rondel.EventLoopPolicy())``;
* ``rondel run script.py``, which runs any asyncio program without a change to it.
"""

import sys as _sys
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _sys.platform == "win32":
    raise ImportError("rondel supports Linux and macOS; on Windows use asyncio's own event loops")

# In a worker process the extension may be there before the package, which is told of it here.
from . import _rondel as _rondel
from ._rondel import Handle, SocketTransport, TimerHandle, __version__
from .advice import Recommendation, choose, rule
from .generators import coroutine
from .loop import Loop, new_event_loop
from .policy import EventLoopPolicy, install, uninstall
from .pools import ThreadPool, to_thread
from .running import run
from .server import Server
from .watchdog import Blocked, Watch, watch

if _TYPE_CHECKING:
    from .pools import PoolFuture, ProcessPool, WorkerDied

__all__ = (
    "Blocked",
    "EventLoopPolicy",
    "Handle",
    "Loop",
    "PoolFuture",
    "ProcessPool",
    "Recommendation",
    "Server",
    "SocketTransport",
    "ThreadPool",
    "TimerHandle",
    "Watch",
    "WorkerDied",
    "__version__",
    "choose",
    "coroutine",
    "install",
    "new_event_loop",
    "rule",
    "run",
    "to_thread",
    "uninstall",
    "watch",
)


def __getattr__(name: str) -> _Any:
    # What only programs with process pools pay for.
    if name not in ("PoolFuture", "ProcessPool", "WorkerDied"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import pools

    value = globals()[name] = getattr(pools, name)
    return value
