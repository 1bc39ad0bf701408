"""Other ways to do more than one thing at a time, each a ``concurrent.futures.Executor``."""

import concurrent.futures
import sys
from typing import TYPE_CHECKING, Any, TypeGuard

from .threads import ThreadPool, to_thread

if TYPE_CHECKING:
    from .processes import PoolFuture, ProcessPool, WorkerDied

__all__ = ("PoolFuture", "ProcessPool", "ThreadPool", "WorkerDied", "to_thread")


def __getattr__(name: str) -> Any:
    # multiprocessing takes as long to import as all of rondel: only programs that use it pay.
    if name not in ("PoolFuture", "ProcessPool", "WorkerDied"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import processes

    value = globals()[name] = getattr(processes, name)
    return value


def is_process_pool(executor: concurrent.futures.Executor) -> "TypeGuard[ProcessPool]":
    """Whether calls may go past ``executor.submit()``: it is a process pool of ours whose submit()
    nobody has replaced.
    """
    # Nobody can have one unless the module is there.
    module = sys.modules.get(f"{__name__}.processes")
    return module is not None and bool(module.is_process_pool(executor))
