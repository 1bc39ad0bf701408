"""What :func:`rondel.choose` returns: the option, the sentence that says why, and the evidence."""

import dataclasses
from typing import Any

from .rule import Option
from .table import bar, duration, rate, render

#: A call that uses less of its time on a core than this is I/O-bound: it mostly waits.
IO_BOUND = 0.5

#: A wait of this many seconds per call is very slow: hundreds of them at once pay off.
VERY_SLOW = 0.02


@dataclasses.dataclass(frozen=True)
class Trial:
    """One option, as it was tried: how fast, or why not."""

    option: Option
    #: Threads, processes, or calls in flight on the event loop.
    workers: int = 1
    #: How many calls were made, in how many seconds of wall time.
    calls: int = 0
    seconds: float = 0.0
    #: Calls that were sent to a worker at a time.
    chunk: int = 1
    #: Seconds until the pool's workers had answered for the first time.
    startup: float = 0.0
    #: Why it could not be tried; None where it was.
    untried: str | None = None

    @property
    def throughput(self) -> float:
        """Calls per second."""
        return self.calls / self.seconds if self.seconds else 0.0


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """What suits a call, and how that was found out. Times are seconds."""

    option: Option
    sentence: str
    #: The fewest workers that come within a tenth of the option's best throughput.
    workers: int
    #: Calls to send to a worker at a time: more than one where a call costs less than its way.
    chunk: int
    #: Whether the call mostly waits, and not for a core.
    io_bound: bool
    #: One call on its own: wall time, CPU time of the process, and the share of the wall time in
    #: which the GIL was held (None where there is no GIL).
    wall: float
    cpu: float
    gil: float | None
    #: What a call costs to ship to another process: seconds to pickle and unpickle the function,
    #: its arguments and its result, and their bytes; None where they cannot be pickled.
    ship_seconds: float | None
    ship_bytes: int | None
    trials: tuple[Trial, ...]

    @property
    def io_very_slow(self) -> bool:
        """Whether it waits for long."""
        return self.io_bound and self.wall - self.cpu >= VERY_SLOW

    def to_dict(self) -> dict[str, Any]:
        """Return everything as what JSON can hold."""
        trials = [
            dataclasses.asdict(trial) | {"throughput": trial.throughput} for trial in self.trials
        ]
        derived = {"io_very_slow": self.io_very_slow}
        return dataclasses.asdict(self) | derived | {"trials": trials}

    def __str__(self) -> str:
        lines = [self.sentence, "", *self._evidence(), ""]
        best = max((trial.throughput for trial in self.trials), default=0.0)
        # A second try of the same replaces the first where it was faster.
        shown = {(trial.option, trial.workers): trial for trial in self._by_throughput()}
        order = dict.fromkeys((trial.option, trial.workers) for trial in self.trials)
        rows = [_row(shown[key], best, self) for key in order]
        lines += render(("option", "workers", "calls/s", "", ""), rows, right=(1, 2))
        return "\n".join(lines)

    def _by_throughput(self) -> list[Trial]:
        return sorted(self.trials, key=lambda trial: trial.throughput)

    def _evidence(self) -> list[str]:
        share = self.cpu / self.wall if self.wall else 0.0
        facts = [f"one call: {duration(self.wall)}, on a core for {share:.0%} of it"]
        if self.gil is not None:
            facts.append(f"the GIL held for {self.gil:.0%}")
        lines = [", ".join(facts)]
        if self.ship_seconds is not None:
            shipped = f"{duration(self.ship_seconds)} and {self.ship_bytes:,} bytes"
            lines.append(f"shipped to another process: {shipped} of pickling a call")
        if self.io_very_slow and self.option == "threads":
            lines.append("it waits long: as a coroutine function it would suit asyncio")
        return lines


def _row(trial: Trial, best: float, recommendation: Recommendation) -> tuple[str, ...]:
    if trial.untried is not None:
        return (trial.option, "", "", "", trial.untried)
    notes = []
    if trial.option == recommendation.option and trial.workers == recommendation.workers:
        notes.append("<- this")
    if trial.chunk > 1:
        notes.append(f"{trial.chunk} calls at a time")
    if trial.startup >= 0.01:
        notes.append(f"started in {duration(trial.startup)}")
    share = trial.throughput / best if best else 0.0
    workers = "" if trial.option == "direct" else str(trial.workers)
    return (trial.option, workers, rate(trial.throughput), bar(share, 24), ", ".join(notes))
