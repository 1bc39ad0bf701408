"""What a process's loops are doing, for ``rondel top``: the process's side is :mod:`.serving`."""

from .serving import Serving, serve_metrics

__all__ = ("Serving", "serve_metrics")
