"""The timeline of a run as one page: ``rondel run --html report.html script.py``."""

import asyncio
import atexit
import datetime
import html
import json
import os
import pathlib
import sys
import time
import weakref
from typing import TYPE_CHECKING, Any

from .. import watchdog

if TYPE_CHECKING:
    from ..loop import Loop

#: Stretches of running, and tasks, that are kept; what comes after that is counted.
MOST_SPANS = 200_000
MOST_TASKS = 20_000
#: Seconds: stretches of the same task that are closer are drawn as one.
CLOSE = 20e-6

#: The row of callbacks that are no task's.
_NO_TASK = 0


class Recorder:
    """Records which task ran when, on all loops that are made from now on; writes the page at exit.

    Each callback costs some microseconds. A loop that the program itself watches is not recorded
    from then on.
    """

    def __init__(self, path: str | os.PathLike[str], threshold: float, log: bool) -> None:
        self.path = pathlib.Path(path)
        self._threshold = threshold
        self._log = log
        self._owner = os.getpid()
        self._date = datetime.datetime.now().astimezone()
        self._began = time.monotonic()
        self._rows: weakref.WeakKeyDictionary[asyncio.Task[Any], int] = weakref.WeakKeyDictionary()
        # Name, coroutine, first and last second, whether it was done, steps, seconds of running.
        self._tasks: list[list[Any]] = [["callbacks", "no task", 0.0, 0.0, False, 0, 0.0]]
        # Row, start, seconds.
        self._spans: list[list[Any]] = []
        # Start and seconds of stretches in which the loop did not poll long enough to be seen.
        self._busy: list[list[float]] = []
        self._blocked: list[dict[str, Any]] = []
        self._lost = 0

    def record(self, loop: "Loop") -> None:
        """Record a loop until it is closed."""
        watchdog.Watch(loop, self._threshold, self._on_block, self._log, self._trace)

    def _trace(self, start: float, seconds: float, what: Any) -> None:
        at = start - self._began
        task = watchdog.task_of(what)
        row = self._row(task, at) if task is not None else _NO_TASK
        known = self._tasks[row]
        known[3] = at + seconds
        known[4] = task is not None and task.done()
        known[5] += 1
        known[6] += seconds
        _extend(self._busy, [at, seconds], at)
        last = self._spans[-1] if self._spans else None
        if last is not None and last[0] == row and at - last[1] - last[2] < CLOSE:
            last[2] = at + seconds - last[1]
        elif len(self._spans) < MOST_SPANS:
            self._spans.append([row, at, seconds])
        else:
            self._lost += 1

    def _row(self, task: "asyncio.Task[Any]", at: float) -> int:
        row = self._rows.get(task)
        if row is None:
            if len(self._tasks) >= MOST_TASKS:
                return _NO_TASK
            row = self._rows[task] = len(self._tasks)
            coro = task.get_coro()
            name = getattr(coro, "__qualname__", None) or repr(coro)
            self._tasks.append([task.get_name(), name, at, at, False, 0, 0.0])
        return row

    def _on_block(self, blocked: watchdog.Blocked) -> None:
        end = time.monotonic() - self._began
        culprit = blocked.culprit
        self._blocked.append(
            {
                "at": end - blocked.seconds,
                "seconds": blocked.seconds,
                "row": self._rows.get(blocked.task, _NO_TASK) if blocked.task else _NO_TASK,
                "who": str(culprit) if culprit else blocked.callback,
                "text": str(blocked),
            }
        )

    def write(self) -> None:
        """Write the page, if this is the process that began it. Raises OSError."""
        if os.getpid() != self._owner:
            return
        data = {
            "length": time.monotonic() - self._began,
            "tasks": self._tasks,
            "spans": self._spans,
            "busy": self._busy,
            "blocked": self._blocked,
            "lost": self._lost,
        }
        title = html.escape(" ".join(sys.argv))
        page = pathlib.Path(__file__).with_name("page.html").read_text(encoding="utf-8")
        for mark, text in (
            ("@TITLE@", title),
            ("@DATE@", f"{self._date:%Y-%m-%d %H:%M:%S %z}"),
            # Nothing in it may end the element that it is in.
            ("@DATA@", json.dumps(_rounded(data)).replace("<", "\\u003c")),
        ):
            page = page.replace(mark, text)
        self.path.write_text(page, encoding="utf-8")


def _extend(busy: list[list[float]], stretch: list[float], at: float) -> None:
    """Add a stretch, to the last one if that has only just ended."""
    if busy and at - busy[-1][0] - busy[-1][1] < CLOSE:
        busy[-1][1] = at + stretch[1] - busy[-1][0]
    elif len(busy) < MOST_SPANS:
        busy.append(stretch)


def _rounded(data: Any) -> Any:
    """Times to a tenth of a microsecond, which keeps the page small."""
    if isinstance(data, float):
        return round(data, 7)
    if isinstance(data, list):
        return [_rounded(one) for one in data]
    if isinstance(data, dict):
        return {key: _rounded(one) for key, one in data.items()}
    return data


def record(path: str | os.PathLike[str], *, threshold: float = 0.1, log: bool = False) -> Recorder:
    """Record all loops that are made from now on, and write the page to `path` at exit.

    Callbacks that hold a loop for `threshold` seconds or longer are shown with their stacks, and
    logged if `log` is true, as by :func:`rondel.watch`.
    """
    from .. import loop

    recorder = Recorder(path, threshold, log)
    loop.on_new_loop.append(recorder.record)
    atexit.register(recorder.write)
    return recorder
