"""choose(): which option suits a call, found out by running it under each."""

import inspect
import multiprocessing
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from .._rondel import Sampler
from ..cores import queued, usable
from ..running import run
from .recommendation import IO_BOUND, VERY_SLOW, Recommendation, Trial
from .rule import Option
from .trials import in_own_thread, try_direct, try_loop, try_pool

#: An option that comes this near to the fastest is preferred when it is simpler.
NEAR = 0.9

#: The simplest first.
ORDER: tuple[Option, ...] = ("direct", "asyncio", "threads", "processes")

#: The most threads, or calls in flight on a loop, and the most processes per core that are tried.
MOST_WORKERS = 512
MOST_PROCESSES_PER_CORE = 8

#: An option is tried again when it reached this share of the fastest one's throughput.
FINALIST = 0.5

#: A call that takes fewer seconds than this is not worth a word about what it does.
TOO_SHORT = 20e-6

#: How often the GIL is looked at while the call runs on its own, in seconds.
SAMPLING = 0.0005


def choose(fn: Callable[..., Any], /, *args: Any, budget: float = 5.0) -> Recommendation:
    """Return which option suits ``fn(*args)``: the event loop, threads, processes, or none.

    The call is made many times: first on its own, then in small batches under each option, for
    about `budget` seconds in all (more where single calls are longer than that). `fn` is a function
    or a coroutine function; it must not mind being called again and again, from several threads and
    processes at once. Works whether or not an event loop runs in this thread, and blocks until it
    is done.

    The recommended option is the fastest of those tried; within a tenth of it, the simplest.

    Raises what the call itself raises, ValueError for a budget that is not positive, and
    RuntimeError in a process that is still importing its main module
    (:mod:`multiprocessing`'s rule: guard the call with ``if __name__ == "__main__":``).
    """
    if not callable(fn):
        raise TypeError(f"fn must be callable, not {fn!r}")
    if not budget > 0:
        raise ValueError("budget must be a positive number of seconds")
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            "choose() starts processes, so the main module must guard it with "
            'if __name__ == "__main__":'
        )
    alone = _Alone(fn, args, budget * 0.15)
    shipping = _shipping(fn, args, alone.result)
    attempts = _Attempts(fn, args, alone, shipping)
    trials = attempts.all(budget * 0.6)
    trials += attempts.finals(trials, budget * 0.25)
    option, workers, chunk = _best(trials)
    return Recommendation(
        option=option,
        sentence=_sentence(option, alone),
        workers=workers,
        chunk=chunk,
        io_bound=alone.io_bound,
        wall=alone.wall,
        cpu=alone.cpu,
        gil=alone.gil,
        ship_seconds=None if isinstance(shipping, str) else shipping[0],
        ship_bytes=None if isinstance(shipping, str) else shipping[1],
        trials=tuple(trials),
    )


class _Alone:
    """One call on its own: what it takes of wall and CPU time and of the GIL, and its result."""

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...], seconds: float) -> None:
        self.is_coroutine = inspect.iscoroutinefunction(fn)
        self.result: Any = None
        if self.is_coroutine:
            in_own_thread(lambda: run(self._measure_coroutine(fn, args, seconds)))
        else:
            self.result = fn(*args)
            if inspect.isawaitable(self.result):
                if inspect.iscoroutine(self.result):
                    self.result.close()
                raise TypeError("fn returns an awaitable: pass a coroutine function (async def)")
            self._begin()
            while self._unfinished(seconds):
                fn(*args)
            self._end()

    async def _measure_coroutine(
        self, fn: Callable[..., Any], args: tuple[Any, ...], seconds: float
    ) -> None:
        self.result = await fn(*args)
        self._begin()
        while self._unfinished(seconds):
            await fn(*args)
        self._end()

    def _begin(self) -> None:
        self._calls = 0
        self._sampler = Sampler(SAMPLING)
        self._sampler.start()
        self._cpu_began = time.process_time()
        self._queued_began = queued()
        self._wall_began = time.perf_counter()

    def _unfinished(self, seconds: float) -> bool:
        # The first call, before these, warmed up what there is to warm up.
        if self._calls and time.perf_counter() - self._wall_began >= seconds:
            return False
        self._calls += 1
        return True

    def _end(self) -> None:
        self.wall = (time.perf_counter() - self._wall_began) / self._calls
        self.cpu = (time.process_time() - self._cpu_began) / self._calls
        # A busy machine lets a call wait for its core, which is not to wait for I/O.
        self._busy = self.cpu + (queued() - self._queued_began) / self._calls
        sampled, held = self._sampler.stop()
        has_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
        self.gil = held / sampled if has_gil and sampled else None

    @property
    def waits(self) -> bool:
        return self._busy < 0.9 * self.wall

    @property
    def io_bound(self) -> bool:
        return self._busy < IO_BOUND * self.wall


def _shipping(
    fn: Callable[..., Any], args: tuple[Any, ...], result: Any
) -> tuple[float, int] | str:
    """Return the seconds and bytes of a call's way to a process and back, or why it has none."""
    began = time.perf_counter()
    try:
        there = pickle.dumps((fn, args), protocol=5)
        pickle.loads(there)
        back = pickle.dumps(result, protocol=5)
        pickle.loads(back)
    except Exception as exc:
        # Pickling runs the objects' own code, which fails in its own ways.
        return f"cannot be pickled: {exc}"
    return time.perf_counter() - began, len(there) + len(back)


class _Attempts:
    """The options as they can be tried for one call."""

    def __init__(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        alone: _Alone,
        shipping: tuple[float, int] | str,
    ) -> None:
        self._fn = fn
        self._args = args
        self._alone = alone
        self._shipping = shipping

    def all(self, budget: float) -> list[Trial]:
        """Try every option with as many workers as pay off, in about `budget` seconds."""
        share = budget / 3
        trials: list[Trial] = []
        if self._alone.is_coroutine:
            trials.append(Trial("direct", calls=1, seconds=self._alone.wall))
            trials += self._climb("asyncio", MOST_WORKERS, share)
        else:
            trials.append(self._attempt("direct", 1, min(share / 2, max(self._alone.wall, 0.2))))
            trials.append(Trial("asyncio", untried="not a coroutine function (async def)"))
        trials += self._climb("threads", MOST_WORKERS, share)
        if isinstance(self._shipping, str):
            trials.append(Trial("processes", untried=self._shipping))
        else:
            try:
                trials += self._climb("processes", usable() * MOST_PROCESSES_PER_CORE, share)
            except Exception as exc:
                # The function may fail there in any way of its own.
                why = f"failed there: {type(exc).__name__}: {exc}"
                trials.append(Trial("processes", untried=why))
        return trials

    def finals(self, trials: list[Trial], budget: float) -> list[Trial]:
        """Try the best of each option that is not far behind again: other programs disturb."""
        fastest = max(trial.throughput for trial in trials)
        best: dict[Option, Trial] = {}
        for trial in sorted(trials, key=lambda trial: trial.throughput):
            if trial.throughput > FINALIST * fastest:
                best[trial.option] = trial
        if len(best) < 2:
            return []
        seconds = budget / len(best)
        return [
            self._attempt(option, trial.workers, seconds)
            for option, trial in best.items()
            if seconds > 2 * self._alone.wall
            and not (option == "direct" and self._alone.is_coroutine)
        ]

    def _climb(self, option: Option, most: int, seconds: float) -> Iterator[Trial]:
        """Try an option with more and more workers while that pays off and time is left."""
        alone = self._alone
        workers = usable()
        if alone.waits and alone.wall > seconds / 8:
            # There is no time to climb: begin where calls that wait so long need to be.
            workers = min(most, 16 * workers)
        began = time.perf_counter()
        best = 0.0
        while True:
            left = seconds - (time.perf_counter() - began)
            trial = self._attempt(option, workers, max(left / 3, 0.05))
            yield trial
            left = seconds - (time.perf_counter() - began)
            gained = trial.throughput > 1.1 * best
            best = max(best, trial.throughput)
            if not alone.waits or not gained or workers >= most or left < 1.5 * alone.wall:
                return
            workers = min(most, workers * 4)

    def _attempt(self, option: Option, workers: int, seconds: float) -> Trial:
        if option == "direct":
            return try_direct(self._fn, self._args, seconds)
        if option == "asyncio":
            return try_loop(self._fn, self._args, workers, seconds)
        return try_pool(option, self._fn, self._args, workers, seconds, self._alone.wall)


def _best(trials: list[Trial]) -> tuple[Option, int, int]:
    """Return the option, and the fewest workers with which it is near its best."""
    fastest = max(trial.throughput for trial in trials)
    for option in ORDER:
        of_option = [trial for trial in trials if trial.option == option and not trial.untried]
        top = max((trial.throughput for trial in of_option), default=0.0)
        if top >= NEAR * fastest:
            enough = [trial for trial in of_option if trial.throughput >= NEAR * top]
            trial = min(enough, key=lambda trial: trial.workers)
            return option, trial.workers, trial.chunk
    raise AssertionError("the fastest is one of them")


def _sentence(option: Option, alone: _Alone) -> str:
    gil = alone.gil or 0.0
    if option == "asyncio":
        slow = alone.wall - alone.cpu >= VERY_SLOW
        return f"I/O-bound{' and very slow' if slow else ''}: use asyncio"
    if option == "threads":
        if alone.io_bound:
            return "I/O-bound: use threads"
        return "CPU-bound, but mostly without the GIL: use threads"
    if option == "processes":
        if alone.waits and gil > 0.1:
            return "Partly CPU-bound with the GIL, partly waiting: use processes"
        return "I/O-bound: use processes" if alone.io_bound else "CPU-bound: use processes"
    if alone.wall < TOO_SHORT:
        return "Too short to be worth its way elsewhere: call it directly"
    if alone.io_bound:
        return "I/O-bound, but nothing tried is faster: call it directly"
    return "CPU-bound, but nothing tried is faster: call it directly"
