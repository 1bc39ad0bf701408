"""Python's asyncio, implemented in Rust.

The event loop is :class:`Loop`, an ``asyncio.AbstractEventLoop``. Ways to run a program on it:

* ``rondel.run(main())`` instead of ``asyncio.run(main())``;
* ``asyncio.run(main(), loop_factory=rondel.new_event_loop)`` (Python 3.12+);
* ``rondel.install()`` before the program starts, after which asyncio makes rondel's loops;
* ``asyncio.set_event_loop_policy(rondel.EventLoopPolicy())``;
* ``rondel run script.py``, which runs any asyncio program without a change to it.

``rondel.open_connection()`` and ``rondel.start_server()`` make native streams; after ``install()``
asyncio's own names do. ``rondel.Queue`` and ``rondel.Lock`` are native, too, and so are asyncio's
after ``install()``. :mod:`rondel.files` has files, :mod:`rondel.http` a client and downloads,
:mod:`rondel.testing` loops for tests.
"""

import sys as _sys

if _sys.platform == "win32":
    raise ImportError("rondel supports Linux and macOS; on Windows use asyncio's own event loops")

# In a worker process the extension may be there before the package, which is told of it here.
from . import _rondel as _rondel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import files, http, testing
    from ._rondel import Handle, SocketTransport, TimerHandle, __version__
    from .advice import Recommendation, choose
    from .advice.rule import rule
    from .generators import coroutine
    from .loop import Loop, new_event_loop
    from .metering import Metrics, export_metrics, metrics
    from .policy import EventLoopPolicy, install, uninstall
    from .pools import (
        DaskPool,
        InterpreterPool,
        PoolFuture,
        ProcessPool,
        ThreadPool,
        WorkerDied,
        to_thread,
    )
    from .pools.offload import offload, offload_map
    from .running import run
    from .server import Server
    from .streams import (
        StreamReader,
        StreamReaderProtocol,
        StreamWriter,
        open_connection,
        open_unix_connection,
        start_server,
        start_unix_server,
    )
    from .sync import (
        LifoQueue,
        Lock,
        PriorityQueue,
        Queue,
    )
    from .top import serve_metrics
    from .watchdog import Blocked, Watch, watch

# Where each name is. They are imported when they are first asked for, so that `rondel get` starts
# without asyncio, and nobody pays for a part that is not used.
_PLACES = {
    "Blocked": "watchdog",
    "DaskPool": "pools",
    "EventLoopPolicy": "policy",
    "Handle": "_rondel",
    "InterpreterPool": "pools",
    "LifoQueue": "sync",
    "Lock": "sync",
    "Loop": "loop",
    "Metrics": "metering",
    "PoolFuture": "pools",
    "PriorityQueue": "sync",
    "ProcessPool": "pools",
    "Queue": "sync",
    "Recommendation": "advice",
    "Server": "server",
    "SocketTransport": "_rondel",
    "StreamReader": "streams",
    "StreamReaderProtocol": "streams",
    "StreamWriter": "streams",
    "ThreadPool": "pools",
    "TimerHandle": "_rondel",
    "Watch": "watchdog",
    "WorkerDied": "pools",
    "__version__": "_rondel",
    "choose": "advice",
    "coroutine": "generators",
    "export_metrics": "metering",
    "install": "policy",
    "metrics": "metering",
    "new_event_loop": "loop",
    "offload": "pools",
    "offload_map": "pools",
    "open_connection": "streams",
    "open_unix_connection": "streams",
    "rule": "advice",
    "run": "running",
    "serve_metrics": "top",
    "start_server": "streams",
    "start_unix_server": "streams",
    "to_thread": "pools",
    "uninstall": "policy",
    "watch": "watchdog",
}
_MODULES = frozenset({"files", "http", "testing", *_PLACES.values()})

__all__ = (
    "Blocked",
    "DaskPool",
    "EventLoopPolicy",
    "Handle",
    "InterpreterPool",
    "LifoQueue",
    "Lock",
    "Loop",
    "Metrics",
    "PoolFuture",
    "PriorityQueue",
    "ProcessPool",
    "Queue",
    "Recommendation",
    "Server",
    "SocketTransport",
    "StreamReader",
    "StreamReaderProtocol",
    "StreamWriter",
    "ThreadPool",
    "TimerHandle",
    "Watch",
    "WorkerDied",
    "__version__",
    "choose",
    "coroutine",
    "export_metrics",
    "files",
    "http",
    "install",
    "metrics",
    "new_event_loop",
    "offload",
    "offload_map",
    "open_connection",
    "open_unix_connection",
    "rule",
    "run",
    "serve_metrics",
    "start_server",
    "start_unix_server",
    "testing",
    "to_thread",
    "uninstall",
    "watch",
)


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name in _PLACES:
        value = getattr(import_module(f".{_PLACES[name]}", __name__), name)
    elif name in _MODULES:
        value = import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
