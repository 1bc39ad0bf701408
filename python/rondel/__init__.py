"""Python's asyncio, implemented in Rust.

The event loop is :class:`Loop`, an ``asyncio.AbstractEventLoop``. Ways to run a program on it:

* ``rondel.run(main())`` instead of ``asyncio.run(main())``;
* ``asyncio.run(main(), loop_factory=rondel.new_event_loop)`` (Python 3.12+);
* ``rondel.install()`` before the program starts, after which asyncio makes rondel's loops;
* ``asyncio.set_event_loop_policy(rondel.EventLoopPolicy())``;
* ``rondel run script.py``, which runs any asyncio program without a change to it.
"""

import sys as _sys

if _sys.platform == "win32":
    raise ImportError("rondel supports Linux and macOS; on Windows use asyncio's own event loops")

from ._rondel import Handle, SocketTransport, TimerHandle, __version__
from .advice import Recommendation, choose, rule
from .generators import coroutine
from .loop import Loop, new_event_loop
from .policy import EventLoopPolicy, install, uninstall
from .pools import DaskPool, InterpreterPool, ThreadPool, offload, offload_map, to_thread
from .running import run
from .server import Server

__all__ = (
    "DaskPool",
    "EventLoopPolicy",
    "Handle",
    "InterpreterPool",
    "Loop",
    "Recommendation",
    "Server",
    "SocketTransport",
    "ThreadPool",
    "TimerHandle",
    "__version__",
    "choose",
    "coroutine",
    "install",
    "new_event_loop",
    "offload",
    "offload_map",
    "rule",
    "run",
    "to_thread",
    "uninstall",
)
