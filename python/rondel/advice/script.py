"""Where a script's time goes: sampled while it runs, without a change to it."""

import dataclasses
import os
import site
import sys
import threading
import time
from collections.abc import Callable, Collection
from types import CodeType, FrameType
from typing import Any, Literal, NamedTuple, get_args

from .. import doing as words
from .._rondel import Sampler
from ..doing import ASYNCIO, CURES, RONDEL, is_standard
from .recommendation import IO_BOUND, VERY_SLOW
from .rule import rule
from .table import bar, duration, render

#: What a thread can be found doing. "loop" is to wait in an event loop for whatever comes first.
Doing = Literal[
    "gil", "native", "sleeping", "socket", "file", "pipe", "lock", "child", "loop", "other"
]

_KNOWN: tuple[Doing, ...] = get_args(Doing)

NAMES: dict[str, str] = {
    **words.NAMES,
    # C code that holds the GIL is not told apart.
    "gil": "computing with the GIL",
    "loop": "waiting in the event loop",
}

#: What work of a program without an event loop should become.
PLACES: dict[Doing, str] = {
    "gil": "CPU-bound: use processes (rondel.ProcessPool)",
    "native": "CPU-bound without the GIL: use threads (rondel.ThreadPool)",
    "file": "I/O-bound: use threads (rondel.ThreadPool)",
    "pipe": "I/O-bound: use threads (rondel.ThreadPool)",
    "child": "I/O-bound: start them together (asyncio.create_subprocess_exec)",
}

#: Seconds between two looks.
SAMPLING = 0.002

#: Looks in a row that show a pool's thread without work when there is no more.
IDLE = 10

#: Functions below this share of the time are not worth a line.
SHARE = 0.02

_WAITS: tuple[Doing, ...] = ("sleeping", "socket", "file", "pipe", "child")


@dataclasses.dataclass(frozen=True)
class Function:
    """One function of the script, doing one thing. Times are seconds."""

    name: str
    file: str
    line: int
    doing: Doing
    seconds: float
    #: How long it did so at a time, on average.
    each: float
    #: Whether an event loop ran below it, which could do nothing else meanwhile.
    blocks: bool
    advice: str


@dataclasses.dataclass(frozen=True)
class ScriptReport:
    """Where a script's time went. Times are seconds."""

    sentence: str
    wall: float
    cpu: float
    #: The main thread's time, by what it was doing.
    doing: dict[Doing, float]
    #: The costliest first.
    functions: tuple[Function, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as what JSON can hold."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        lines = [self.sentence, "", f"{duration(self.wall)}, {duration(self.cpu)} on a core", ""]
        total = sum(self.doing.values()) or 1.0
        spent = sorted(self.doing.items(), key=lambda item: -item[1])
        shares = [
            (NAMES[doing], duration(seconds), f"{seconds / total:.0%}", bar(seconds / total, 24))
            for doing, seconds in spent
        ]
        lines += render(("main thread", "time", "share", ""), shares, right=(1, 2))
        if self.functions:
            rows = [
                (
                    f"{entry.name} ({os.path.basename(entry.file)}:{entry.line})",
                    NAMES[entry.doing],
                    duration(entry.seconds),
                    entry.advice,
                )
                for entry in self.functions
            ]
            lines += ["", *render(("function", "was", "time", "advice"), rows, right=(2,))]
        return "\n".join(lines)


class _Spent(NamedTuple):
    seconds: float
    times: int


class _Place(NamedTuple):
    """Where a thread is: the script's innermost function, and whether a loop runs below it."""

    code: CodeType | None
    blocks: bool


class _Watcher:
    """Adds up what the sampler reports."""

    def __init__(self, main: int, folder: str, others: Collection[threading.Thread]) -> None:
        self.main = main
        #: Threads that have nothing to do with the script.
        self.others = others
        #: Threads of pools, and at how many looks in a row they have had no work.
        self.idle: dict[threading.Thread, int] = {}
        self.folder = folder
        self.doing: dict[Doing, float] = {}
        self.places: dict[tuple[CodeType, Doing, bool], _Spent] = {}
        self._last: dict[int, tuple[int, int, Doing]] = {}

    def report(self, seconds: float, held: bool, threads: list[tuple[int, str]]) -> None:
        states = dict(threads)
        frames = sys._current_frames()
        idle = {}
        for thread in threading.enumerate():
            frame = frames.get(thread.ident or 0)
            state = states.get(thread.native_id or 0)
            if frame is None or state is None or thread in self.others:
                continue
            if self._add(thread.ident == self.main, frame, state, held, seconds):
                idle[thread] = self.idle.get(thread, 0) + 1
        self.idle = idle

    def _add(self, is_main: bool, frame: FrameType, state: str, held: bool, seconds: float) -> bool:
        """Add what a thread does; whether it is one of a pool and without work."""
        code, blocks = self._place(frame)
        doing = _classify(state, held, idle=code is None)
        if is_main:
            self.doing[doing] = self.doing.get(doing, 0.0) + seconds
        elif doing == "lock":
            file = "" if code is None else code.co_filename
            return is_standard(file) or file.startswith(RONDEL)
        if code is None:
            return False
        # The same instruction of the same call, doing the same, has gone on since the last look.
        now = (id(frame), frame.f_lasti, doing)
        begins = self._last.get(is_main) != now
        self._last[is_main] = now
        key = (code, doing, blocks)
        before = self.places.get(key, _Spent(0.0, 0))
        self.places[key] = _Spent(before.seconds + seconds, before.times + begins)
        return False

    def _place(self, innermost: FrameType) -> _Place:
        """Find the innermost function that is the script's own, else a library's."""
        library: CodeType | None = None
        own: CodeType | None = None
        frame: FrameType | None = innermost
        while frame is not None:
            code = frame.f_code
            file = code.co_filename
            if file.startswith(_LOOPS):
                return _Place(own or library, own is not None or library is not None)
            if code.co_name.startswith("<") and code.co_name != "<module>":
                pass  # Generators and lambdas go by the function that wrote them.
            elif is_standard(file) or file.startswith(RONDEL):
                pass
            elif own is None and file.startswith(self.folder) and not file.startswith(_INSTALLED):
                own = code
            elif library is None:
                library = code
            frame = frame.f_back
        # Python's own ways to start a program are nobody's.
        return _Place(own or library or innermost.f_code, blocks=False)


def _classify(state: str, held: bool, *, idle: bool) -> Doing:
    if state == "running":
        return "gil" if held else "native"
    if idle:
        return "loop"
    if state == "polling":
        return "socket"
    return state if state in _KNOWN else "other"


_INSTALLED = tuple(site.getsitepackages())
_LOOPS = (
    *(os.path.join(ASYNCIO, name) for name in ("base_events", "runners", "events")),
    *(os.path.join(RONDEL, name) for name in ("loop", "running")),
)


def sample_script(execute: Callable[[], object], folder: str) -> ScriptReport:
    """Call execute(), which runs the script whose files are in `folder`, and report on it.

    Threads of the script that are no daemons are waited for, as at the end of a program, those of
    pools until they have no more work. Raises what the script raises.
    """
    others = {
        thread for thread in threading.enumerate() if thread is not threading.current_thread()
    }
    watcher = _Watcher(threading.get_ident(), folder.rstrip(os.sep) + os.sep, others)
    sampler = Sampler(SAMPLING, watcher.report)
    began, cpu_began = time.perf_counter(), time.process_time()
    sampler.start()
    try:
        execute()
        for thread in threading.enumerate():
            if thread is threading.current_thread() or thread.daemon or thread in others:
                continue
            # One look may find a thread between two things.
            while thread.is_alive() and watcher.idle.get(thread, 0) < IDLE:
                thread.join(10 * SAMPLING)
    finally:
        sampler.stop()
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    functions = _functions(watcher, wall)
    return ScriptReport(_sentence(watcher, functions), wall, cpu, watcher.doing, functions)


def _functions(watcher: _Watcher, wall: float) -> tuple[Function, ...]:
    found = [
        Function(
            name=code.co_qualname,
            file=code.co_filename,
            line=code.co_firstlineno,
            doing=doing,
            seconds=spent.seconds,
            each=spent.seconds / max(spent.times, 1),
            blocks=blocks,
            advice=_advice(doing, blocks, spent.seconds / max(spent.times, 1)),
        )
        for (code, doing, blocks), spent in watcher.places.items()
        if spent.seconds >= SHARE * wall
    ]
    return tuple(sorted(found, key=lambda function: -function.seconds))


def _advice(doing: Doing, blocks: bool, each: float) -> str:
    if blocks:
        return "blocks the event loop" + (f": {cure}" if (cure := CURES.get(doing)) else "")
    if doing in ("sleeping", "socket"):
        return _waiting(each)
    return PLACES.get(doing, "")


def _waiting(each: float) -> str:
    option = rule(io_bound=True, io_very_slow=each >= VERY_SLOW)
    if option == "asyncio":
        return "I/O-bound and very slow: use asyncio"
    return "I/O-bound: use threads (rondel.ThreadPool)"


def _sentence(watcher: _Watcher, functions: tuple[Function, ...]) -> str:
    if blocking := [function for function in functions if function.blocks]:
        worst = blocking[0]
        return f"The event loop is blocked, most of all by {worst.name}, {NAMES[worst.doing]}"
    spent = watcher.doing
    total = sum(spent.values()) or 1.0
    if spent.get("loop", 0.0) >= IO_BOUND * total:
        return "I/O-bound, and on an event loop already: nothing blocks it"
    waits = [function for function in functions if function.doing in _WAITS]
    if sum(spent.get(doing, 0.0) for doing in _WAITS) >= IO_BOUND * total:
        each = max(waits, key=lambda wait: wait.seconds).each if waits else 0.0
        return _waiting(each)
    if spent.get("native", 0.0) > spent.get("gil", 0.0):
        return "CPU-bound, but mostly without the GIL: use threads (rondel.ThreadPool)"
    return PLACES["gil"]
