"""Python's asyncio, implemented in Rust.

The event loop is :class:`Loop`, an ``asyncio.AbstractEventLoop``. Ways to run a program on it:

* ``rondel.run(main())`` instead of ``asyncio.run(main())``;
* ``asyncio.run(main(), loop_factory=rondel.new_event_loop)`` (Python 3.12+);
* ``rondel.install()`` before the program starts, after which asyncio makes rondel's loops;
* ``asyncio.set_event_loop_policy(rondel.EventLoopPolicy())``;
* ``rondel run script.py``, which runs any asyncio program without a change to it.

:mod:`rondel.http` downloads files, as does the command ``rondel get``.
"""

import sys as _sys

if _sys.platform == "win32":
    raise ImportError("rondel supports Linux and macOS; on Windows use asyncio's own event loops")

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import http
    from ._rondel import Handle, SocketTransport, TimerHandle, __version__
    from .advice import Recommendation, choose
    from .advice.rule import rule
    from .generators import coroutine
    from .loop import Loop, new_event_loop
    from .policy import EventLoopPolicy, install, uninstall
    from .pools import ThreadPool, to_thread
    from .running import run
    from .server import Server
    from .watchdog import Blocked, Watch, watch

# Where each name is. They are imported when they are first asked for, so that `rondel get` starts
# without asyncio, and nobody pays for a part that is not used.
_PLACES = {
    "Blocked": "watchdog",
    "EventLoopPolicy": "policy",
    "Handle": "_rondel",
    "Loop": "loop",
    "Recommendation": "advice",
    "Server": "server",
    "SocketTransport": "_rondel",
    "ThreadPool": "pools",
    "TimerHandle": "_rondel",
    "Watch": "watchdog",
    "__version__": "_rondel",
    "choose": "advice",
    "coroutine": "generators",
    "install": "policy",
    "new_event_loop": "loop",
    "rule": "advice",
    "run": "running",
    "to_thread": "pools",
    "uninstall": "policy",
    "watch": "watchdog",
}
_MODULES = frozenset({"http", *_PLACES.values()})

__all__ = (
    "Blocked",
    "EventLoopPolicy",
    "Handle",
    "Loop",
    "Recommendation",
    "Server",
    "SocketTransport",
    "ThreadPool",
    "TimerHandle",
    "Watch",
    "__version__",
    "choose",
    "coroutine",
    "http",
    "install",
    "new_event_loop",
    "rule",
    "run",
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
