"""Exceptions that nobody awaits: the loop's exception handler and its log lines."""

import asyncio
import logging
import sys
import traceback
from asyncio import base_events
from typing import Any

from . import _rondel

Context = dict[str, Any]


class ErrorHandling(_rondel.Loop):
    """``call_exception_handler()`` and relatives, with asyncio's messages.

    They go to the logger "asyncio", by the name under which suites replace it.
    """

    def default_exception_handler(self, context: Context) -> None:
        """Log what happened; used when no exception handler is set."""
        message = context.get("message") or "Unhandled exception in event loop"
        exception = context.get("exception")
        exc_info = (
            (type(exception), exception, exception.__traceback__) if exception is not None else None
        )
        handle = self._current_handle
        if "source_traceback" not in context and handle is not None and handle._source_traceback:
            context["handle_traceback"] = handle._source_traceback

        lines = [message]
        for key in sorted(context):
            if key in ("message", "exception"):
                continue
            value = context[key]
            if key in ("source_traceback", "handle_traceback"):
                what = "Object" if key == "source_traceback" else "Handle"
                stack = "".join(traceback.format_list(value)).rstrip()
                text = f"{what} created at (most recent call last):\n{stack}"
            else:
                text = repr(value)
            lines.append(f"{key}: {text}")
        _logger().error("\n".join(lines), exc_info=exc_info)

    def call_exception_handler(self, context: Context) -> None:
        """Call the exception handler with a context (see asyncio's documentation for its keys).

        Whatever a handler raises is logged, except KeyboardInterrupt and SystemExit. On Python
        3.12+ the handler runs in the context of the task, future or handle concerned.
        """
        handler = self.get_exception_handler()
        if handler is None:
            self._call_default_handler(context, "Exception in default exception handler")
            return
        try:
            run_in = _context_of(context)
            if run_in is not None:
                run_in.run(handler, self, context)
            else:
                handler(self, context)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._call_default_handler(
                {
                    "message": "Unhandled error in exception handler",
                    "exception": exc,
                    "context": context,
                },
                "Exception in default exception handler while handling an unexpected error "
                "in custom exception handler",
            )

    def _call_default_handler(self, context: Context, if_it_fails: str) -> None:
        try:
            self.default_exception_handler(context)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:
            _logger().error(if_it_fails, exc_info=True)

    def _log_slow_callback(self, callback: object, seconds: float) -> None:
        """Debug mode: a callback took longer than ``slow_callback_duration``."""
        _logger().warning("Executing %s took %.3f seconds", _describe(callback), seconds)

    def _log_debug(self, message: str, *args: object) -> None:
        if self.get_debug():
            _logger().debug(message, *args)


def _logger() -> logging.Logger:
    logger: logging.Logger = base_events.logger  # type: ignore[attr-defined]
    return logger


def _context_of(context: Context) -> Any:
    if sys.version_info < (3, 12):
        return None
    for key in ("task", "future", "handle"):
        thing = context.get(key)
        if thing is not None:
            run_in = thing.get_context() if hasattr(thing, "get_context") else None
            return run_in if hasattr(run_in, "run") else None
    return None


def _describe(callback: object) -> str:
    """A task's step is better described by the task."""
    step = getattr(callback, "_callback", None)
    task = getattr(step, "__self__", None)
    return repr(task) if isinstance(task, asyncio.Task) else str(callback)
