"""Other ways to do more than one thing at a time, each a ``concurrent.futures.Executor``."""

from .threads import ThreadPool, to_thread

__all__ = ("ThreadPool", "to_thread")
