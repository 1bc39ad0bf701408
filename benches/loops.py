"""The event loops by name, each made as its own documentation says.

Runs in the measured child processes, so it imports nothing that they do not need.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable

OURS = "rondel"
#: Our loop from another wheel (``run.py --baseline``), for before and after in one run.
BASELINE = "baseline"
PEERS = ("asyncio", "uvloop", "rloop", "blazio", "zuvloop", "rsloop")
#: The servers in Rust of ``loadgen bare``: no loop, no Python.
BARE = "bare"
#: Pools of processes, by the name of their package.
STDLIB_POOL = "ProcessPoolExecutor"
POOLS = (STDLIB_POOL, "pebble", "loky", "mpire")
#: What others' figures are compared with, or compare with themselves.
NO_PEERS = (OURS, BASELINE, BARE)


def factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """The named loop's ``new_event_loop``.

    Must be called before a user would touch ssl or streams: rsloop patches ``ssl`` when it is
    imported, and ``rondel.install()`` puts its streams under asyncio's names.
    """
    if name == "asyncio":
        return asyncio.new_event_loop
    module = importlib.import_module(OURS if name == BASELINE else name)
    if module.__name__ == OURS:
        module.install()
    made: Callable[[], asyncio.AbstractEventLoop] = module.new_event_loop
    return made


def identify(loop: asyncio.AbstractEventLoop, name: str) -> str:
    """The loop's class; AssertionError if it is not the loop that ``name`` asks for."""
    wanted = OURS if name == BASELINE else name
    bases = type(loop).__mro__ if name != "asyncio" else (type(loop),)
    roots = {base.__module__.split(".")[0] for base in bases}
    kind = f"{type(loop).__module__}.{type(loop).__qualname__}"
    if wanted not in roots:
        raise AssertionError(f"asked for {name}, got {kind}")
    return kind


def reason(error: BaseException) -> str:
    """An exception in one line, for the table's footnotes."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def is_missing_feature(error: BaseException) -> bool:
    """Whether the loop says that it has no such feature (rather than failing at it)."""
    return isinstance(error, (NotImplementedError, ImportError))
