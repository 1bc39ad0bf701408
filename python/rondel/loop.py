"""The event loop: the native part plus what happens once per connection, or more rarely."""

import asyncio
import os
import sys
import warnings
import weakref
from asyncio import coroutines
from collections.abc import AsyncGenerator, Callable
from typing import Any, Protocol, Self

from .sendfile import Sendfile
from .watchdog import parse_threshold, watch

#: Called with each new loop.
on_new_loop: list[Callable[["Loop"], object]] = []


class _Stopping(Protocol):
    """What ends with the loop."""

    def stop(self) -> None: ...


class Loop(Sendfile, asyncio.AbstractEventLoop):
    """An asyncio event loop whose engine is written in Rust.

    It does what the asyncio documentation says of an event loop on Unix, and may be subclassed.
    A loop belongs to the thread that runs it; only :meth:`call_soon_threadsafe` may be called from
    others.

    ``nesting`` says whether it may be run where a loop runs already: again inside one of its own
    callbacks, or inside another loop's, which stands still meanwhile. asyncio forbids both, and it
    is false except in notebooks.

    The classes below it are layers, each resting on the one before: the native loop, error
    handling, executors and name resolution, signals, pipes and child processes, TLS, connections
    and servers, Unix sockets, datagram sockets, sending files.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: D102
        # Subclasses may take arguments of their own. Debug mode is for python -X dev and
        # PYTHONASYNCIODEBUG.
        debug: bool = coroutines._is_debug_mode()  # type: ignore[attr-defined]
        return super().__new__(cls, debug=debug)

    def __init__(self) -> None:
        super().__init__()
        self._asyncgens: weakref.WeakSet[AsyncGenerator[Any, Any]] = weakref.WeakSet()
        self._asyncgens_shutdown_called = False
        self._watches: list[_Stopping] = []
        if threshold := os.environ.get("RONDEL_WATCH"):
            watch(self, threshold=parse_threshold(threshold))
        if "ipykernel" in sys.modules:
            from .nesting import in_notebook

            self.nesting = in_notebook()
        for hook in on_new_loop:
            hook(self)
        if os.environ.get("RONDEL_TOP", "0") not in ("", "0"):
            from .top.serving import serve_own

            serve_own(self)

    def _watch_ended_by_close(self, watch: _Stopping) -> None:
        self._watches.append(watch)

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} running={self.is_running()} "
            f"closed={self.is_closed()} debug={self.get_debug()}>"
        )

    def close(self) -> None:
        """Close the loop: drop what is queued, shut the executor down without waiting.

        Does nothing on a closed loop. Raises RuntimeError while the loop runs.
        """
        if self.is_running():
            raise RuntimeError("Cannot close a running event loop")
        if self.is_closed():
            return
        self._log_debug("Close %r", self)
        for ended in self._watches:
            ended.stop()
        self._close_signals()
        self._close()
        self._close_executor()

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if not self.is_closed():
            _warn(f"unclosed event loop {self!r}", ResourceWarning, source=self)
            if not self.is_running():
                self.close()

    def _asyncgen_firstiter_hook(self, agen: AsyncGenerator[Any, Any]) -> None:
        if self._asyncgens_shutdown_called:
            warnings.warn(
                f"asynchronous generator {agen!r} was scheduled after "
                f"loop.shutdown_asyncgens() call",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )
        self._asyncgens.add(agen)

    def _asyncgen_finalizer_hook(self, agen: AsyncGenerator[Any, Any]) -> None:
        self._asyncgens.discard(agen)
        if not self.is_closed():
            self.call_soon_threadsafe(self.create_task, agen.aclose())

    async def shutdown_asyncgens(self) -> None:
        """Close all asynchronous generators that are still being iterated (PEP 525)."""
        self._asyncgens_shutdown_called = True
        closing = list(self._asyncgens)
        if not closing:
            return
        self._asyncgens.clear()
        results = await asyncio.gather(*[agen.aclose() for agen in closing], return_exceptions=True)
        for result, agen in zip(results, closing, strict=True):
            if isinstance(result, Exception):
                self.call_exception_handler(
                    {
                        "message": "an error occurred during closing of "
                        f"asynchronous generator {agen!r}",
                        "exception": result,
                        "asyncgen": agen,
                    }
                )


Loop._own_scheduling()


def new_event_loop() -> Loop:
    """Make a new event loop; the caller closes it."""
    return Loop()
