"""Who blocks the loop? A watchdog that shows the stack of what does, taken while it does.

An event loop runs one callback at a time, so a callback that computes, sleeps or waits for a disk
holds up every other task. asyncio's debug mode says afterwards that a callback was slow; the
watchdog says what it was doing.
"""

import asyncio
import atexit
import dataclasses
import faulthandler
import io
import logging
import os
import re
import signal
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from ._rondel import Watchdog
from .doing import ASYNCIO, CURES, NAMES, RONDEL, is_standard

if TYPE_CHECKING:
    from .loop import Loop

logger = logging.getLogger("rondel.watch")

#: The signal by which the watchdog asks the loop's thread for its stack.
SIGNAL = signal.SIGRTMAX - 2 if hasattr(signal, "SIGRTMAX") else signal.SIGUSR2

#: How many reports a watch keeps.
KEPT = 1000

# As faulthandler writes it, the innermost first.
_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in (?P<name>.*)$', re.MULTILINE)


class Frame(NamedTuple):
    """A function on the stack, and the line it was at."""

    file: str
    line: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.file}:{self.line})"


@dataclasses.dataclass(frozen=True)
class Blocked:
    """One callback that held the loop."""

    #: How long, in seconds.
    seconds: float
    #: What it was found doing: a key of rondel.doing.NAMES.
    doing: str
    #: The loop's stack at that time, innermost frame first; the coroutines that awaited each other
    #: are on it. Empty where the callback was not seen.
    stack: tuple[Frame, ...]
    #: The task that ran; None for a plain callback.
    task: "asyncio.Task[Any] | None"
    #: The callback's handle, or the transport whose protocol was called, as text.
    callback: str

    @property
    def culprit(self) -> Frame | None:
        """The innermost function that is not the standard library's."""
        for frame in self.stack:
            if frame.file.startswith((ASYNCIO, RONDEL)):
                break
            if not is_standard(frame.file):
                return frame
        return self.stack[0] if self.stack else None

    def __str__(self) -> str:
        head = f"The event loop was blocked for {self.seconds:.3f} s, {NAMES[self.doing]}"
        lines = [f"{head}, in {self.culprit}" if self.culprit else head]
        if self.task is not None:
            lines.append(f"  by {self.task!r}")
        else:
            lines.append(f"  by {self.callback}")
        lines += [
            f'  File "{frame.file}", line {frame.line}, in {frame.name}' for frame in self.stack
        ]
        if cure := CURES.get(self.doing):
            lines.append(f"  instead: {cure}")
        return "\n".join(lines)


class Culprit(NamedTuple):
    """One function in the summary: how often it held the loop, and for how many seconds."""

    name: str
    doing: str
    times: int
    total: float
    longest: float


class Watch:
    """A watch over a loop; :func:`watch` makes it. As a context manager it stops at the end."""

    def __init__(
        self,
        loop: "Loop",
        threshold: float,
        on_block: Callable[[Blocked], object] | None,
        log: bool,
        trace: Callable[[float, float, Any], object] | None = None,
    ) -> None:
        #: Seconds from which on it is reported.
        self.threshold = threshold
        #: What held the loop, the latest 1,000.
        self.blocked: list[Blocked] = []
        self._culprits: dict[tuple[str, str], Culprit] = {}
        self._on_block = on_block
        self._log = log
        self._owner = os.getpid()
        self._dog = Watchdog(loop, threshold, SIGNAL, _stacks(), self._report, trace)
        self._dog.start()
        _watches.append(self)
        loop._watch_ended_by_close(self)

    def _report(self, seconds: float, doing: str, stack: str, what: Any) -> None:
        frames = tuple(
            Frame(found["file"], int(found["line"]), found["name"])
            for found in _FRAME.finditer(stack)
        )
        blocked = Blocked(seconds, doing, frames, task_of(what), repr(what))
        self.blocked.append(blocked)
        del self.blocked[:-KEPT]
        name = str(blocked.culprit) if blocked.culprit else blocked.callback
        before = self._culprits.get((name, doing), Culprit(name, doing, 0, 0.0, 0.0))
        self._culprits[name, doing] = Culprit(
            name,
            doing,
            before.times + 1,
            before.total + seconds,
            max(before.longest, seconds),
        )
        if self._log:
            logger.warning("%s", blocked)
        if self._on_block is not None:
            self._on_block(blocked)

    def summary(self) -> list[Culprit]:
        """Return what held the loop, grouped by function, the costliest first."""
        return sorted(self._culprits.values(), key=lambda culprit: -culprit.total)

    def stop(self) -> None:
        """End the watch, and log the summary if there is any. A second call does nothing."""
        if self not in _watches:
            return
        _watches.remove(self)
        if self._owner != os.getpid():
            return  # A forked child has neither the thread, to wait for, nor anything to tell.
        self._dog.stop()
        if self._log and self._culprits:
            lines = [
                f"  {culprit.times} times, {culprit.total:.3f} s in all, {culprit.longest:.3f} s "
                f"at most: {culprit.name}, {NAMES[culprit.doing]}"
                for culprit in self.summary()
            ]
            logger.warning("What blocked the event loop:\n%s", "\n".join(lines))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


#: The watches that go on.
_watches: list[Watch] = []

#: Memory that interrupted threads write their stacks to, and the process it belongs to.
_file: io.FileIO | None = None
_owner = 0


def _stacks() -> str:
    """Return the path of the file with the stacks; have the signal answered from now on."""
    global _file, _owner
    if _file is None or _owner != os.getpid():
        memory = os.memfd_create("rondel-watch")
        # Appending: the watchdog empties the file when it has become long.
        _file = io.FileIO(os.open(_path(memory), os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC), "w")
        os.close(memory)
        _owner = os.getpid()
        faulthandler.register(SIGNAL, file=_file, all_threads=False)
    return _path(_file.fileno())


def _path(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def task_of(what: Any) -> "asyncio.Task[Any] | None":
    """Return the task that a handle is a step of."""
    callback = getattr(what, "_callback", None)
    task = getattr(callback, "__self__", None)
    return task if isinstance(task, asyncio.Task) else None


@atexit.register
def _stop_all() -> None:
    # Their threads must not ask for the GIL of an interpreter that is gone.
    for watch in list(_watches):
        watch.stop()


def parse_threshold(text: str) -> float:
    """Return the seconds that "100ms", "0.1s" or "0.1" say; ValueError for anything else."""
    number, unit = text.strip(), 1.0
    for suffix, factor in (("ms", 1e-3), ("us", 1e-6), ("s", 1.0)):
        if number.endswith(suffix):
            number, unit = number.removesuffix(suffix), factor
            break
    seconds = float(number) * unit
    if not 0 < seconds < float("inf"):
        raise ValueError(f"not a positive time: {text!r}")
    return seconds


def watch(
    loop: asyncio.AbstractEventLoop | None = None,
    *,
    threshold: float = 0.1,
    on_block: Callable[[Blocked], object] | None = None,
    log: bool = True,
) -> Watch:
    """Watch a rondel loop for callbacks that hold it for `threshold` seconds or longer.

    Without a `loop` it is the running one. Each such callback is logged as a warning of the logger
    "rondel.watch" (unless `log` is false), given to `on_block`, and kept in the watch's `blocked`;
    :meth:`Watch.stop` ends the watch and logs a summary. A loop is watched by one watch at a time,
    and stops it when it is closed.

    The callback that begins a watch is not under it yet. The stack is taken by a signal
    (``rondel.watchdog.SIGNAL``), which faulthandler answers; a system call that the callback waits
    in is restarted, as after any signal (PEP 475). Raises TypeError for a loop that is not
    rondel's, ValueError for a threshold that is not positive, RuntimeError without a loop.
    """
    from .loop import Loop  # Which starts watches itself.

    loop = asyncio.get_running_loop() if loop is None else loop
    if not isinstance(loop, Loop):
        raise TypeError(f"only rondel's loops can be watched, not {loop!r}")
    if not threshold > 0:
        raise ValueError("threshold must be a positive number of seconds")
    return Watch(loop, threshold, on_block, log)
