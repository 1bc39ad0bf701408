"""Unix signals as callbacks of the loop."""

import asyncio
import contextlib
import contextvars
import errno
import inspect
import logging
import signal
import socket
import sys
import warnings
from collections.abc import Callable
from typing import Any, TypeVarTuple

from .executor import Executing

logger = logging.getLogger("asyncio")

_Ts = TypeVarTuple("_Ts")


class Signals(Executing):
    """``add_signal_handler()`` and ``remove_signal_handler()``.

    Python writes the numbers of signals that arrived to a socket pair (``signal.set_wakeup_fd``),
    which the loop reads like any other descriptor.
    """

    def __init__(self) -> None:
        super().__init__()
        self._signal_handlers: dict[int, tuple[contextvars.Context, Any, tuple[Any, ...]]] = {}
        self._signal_pair: tuple[socket.socket, socket.socket] | None = None

    def add_signal_handler(self, sig: int, callback: Callable[[*_Ts], object], *args: *_Ts) -> None:
        """Call ``callback(*args)`` in the loop when the signal arrives.

        Raises TypeError for a coroutine function, ValueError for a number that is no signal and
        RuntimeError for a signal that cannot be caught, or outside the main thread.
        """
        if asyncio.iscoroutine(callback) or inspect.iscoroutinefunction(callback):
            raise TypeError("coroutines cannot be used with add_signal_handler()")
        _check_signal(sig)
        self._check_closed()
        handler = contextvars.copy_context(), callback, args
        try:
            if self._signal_pair is None:
                self._open_signal_pair()
            assert self._signal_pair is not None
            # Raises ValueError outside the main thread.
            signal.set_wakeup_fd(self._signal_pair[1].fileno())
        except (ValueError, OSError) as exc:
            if not self._signal_handlers:
                self._close_signal_pair()
            raise RuntimeError(str(exc)) from None

        self._signal_handlers[sig] = handler
        try:
            # A handler must be set for Python to write to the wake-up descriptor.
            signal.signal(sig, _noop)
            # Restart interrupted system calls: fewer EINTRs.
            signal.siginterrupt(sig, False)
        except OSError as exc:
            del self._signal_handlers[sig]
            if not self._signal_handlers:
                self._release_wakeup()
            raise _cannot_be_caught(sig, exc) from None

    def remove_signal_handler(self, sig: int) -> bool:
        """Restore the signal's default action; whether there was a handler."""
        _check_signal(sig)
        if self._signal_handlers.pop(sig, None) is None:
            return False
        default = signal.default_int_handler if sig == signal.SIGINT else signal.SIG_DFL
        try:
            signal.signal(sig, default)
        except OSError as exc:
            raise _cannot_be_caught(sig, exc) from None
        if not self._signal_handlers:
            self._release_wakeup()
        return True

    def _open_signal_pair(self) -> None:
        receiver, sender = self._signal_pair = socket.socketpair()
        receiver.setblocking(False)
        sender.setblocking(False)
        self.add_reader(receiver, self._read_signals)

    def _read_signals(self) -> None:
        if self._signal_pair is None:
            return
        with contextlib.suppress(BlockingIOError, InterruptedError):
            for sig in self._signal_pair[0].recv(4096):
                if sig in self._signal_handlers:
                    context, callback, args = self._signal_handlers[sig]
                    self.call_soon(callback, *args, context=context)

    def _release_wakeup(self) -> None:
        try:
            signal.set_wakeup_fd(-1)
        except (ValueError, OSError) as exc:
            logger.info("set_wakeup_fd(-1) failed: %s", exc)
        self._close_signal_pair()

    def _close_signal_pair(self) -> None:
        pair, self._signal_pair = self._signal_pair, None
        if pair is not None:
            self.remove_reader(pair[0])
            for sock in pair:
                sock.close()

    def _close_signals(self) -> None:
        if not self._signal_handlers:
            self._close_signal_pair()
        elif sys.is_finalizing():
            warnings.warn(
                f"Closing the loop {self!r} on interpreter shutdown stage, "
                f"skipping signal handlers removal",
                ResourceWarning,
                source=self,
                stacklevel=3,
            )
            self._signal_handlers.clear()
        else:
            for sig in list(self._signal_handlers):
                self.remove_signal_handler(sig)


def _check_signal(sig: object) -> None:
    if not isinstance(sig, int):
        raise TypeError(f"sig must be an int, not {sig!r}")
    if sig not in signal.valid_signals():
        raise ValueError(f"invalid signal number {sig}")


def _cannot_be_caught(sig: int, exc: OSError) -> Exception:
    return RuntimeError(f"sig {sig} cannot be caught") if exc.errno == errno.EINVAL else exc


def _noop(signum: int, frame: object) -> None:
    """Only there so that the signal is not ignored."""
