"""Loops for tests: virtual time, and an order of callbacks that a seed decides.

* :func:`run` runs a coroutine on such a loop, :func:`explore` a coroutine function with many seeds;
* ``@pytest.mark.rondel(seed=range(100))`` does so with an asynchronous test;
* :class:`Network` says how the connections in memory behave.

docs/testing.md tells what may change places, and what never does.
"""

# Imported when asked for: pytest imports this package each time it starts, for its plugin's sake.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from .director import Deadlock
    from .loop import Loop, RealWorldError, new_event_loop
    from .network import Network
    from .running import explore, run
    from .tape import Tape

_PLACES = {
    "Deadlock": "director",
    "Loop": "loop",
    "Network": "network",
    "RealWorldError": "loop",
    "Tape": "tape",
    "explore": "running",
    "new_event_loop": "loop",
    "run": "running",
}

__all__ = (
    "Deadlock",
    "Loop",
    "Network",
    "RealWorldError",
    "Tape",
    "explore",
    "new_event_loop",
    "run",
)


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_PLACES[name]}", __name__), name)
    globals()[name] = value
    return value
