"""Other ways to do more than one thing at a time, each a ``concurrent.futures.Executor``."""

from .dask import DaskPool
from .interpreters import InterpreterPool
from .offload import offload, offload_map
from .threads import ThreadPool, to_thread

__all__ = ("DaskPool", "InterpreterPool", "ThreadPool", "offload", "offload_map", "to_thread")
