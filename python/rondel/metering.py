"""What a loop counts while it runs, for people, for Prometheus and for OpenTelemetry."""

import asyncio
import dataclasses
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from ._rondel import Loop as _NativeLoop

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

    from .loop import Loop

#: Upper bounds of the histograms' buckets in seconds, each twice the one before.
BOUNDS: tuple[float, ...] = tuple(_NativeLoop._histogram_bounds())


@dataclasses.dataclass(frozen=True)
class Histogram:
    """How many times were how long."""

    #: How many were at most as long as each of :data:`BOUNDS` and longer than the one before; the
    #: last number is of those that were longer than all.
    counts: tuple[int, ...]
    #: All times together, in seconds.
    total: float
    #: The longest one, in seconds.
    longest: float

    @property
    def count(self) -> int:
        """How many times there were."""
        return sum(self.counts)

    def quantile(self, share: float) -> float:
        """Return the seconds that this share of the times (0 to 1) did not exceed.

        It is the upper bound of the bucket that the time is in, or `longest` if that is less: up to
        twice the true value. 0.0 when there were no times.
        """
        left = share * self.count
        for bound, count in zip(BOUNDS, self.counts, strict=False):
            left -= count
            if left <= 0:
                return min(bound, self.longest)
        return self.longest

    def cumulative(self) -> Iterator[tuple[str, int]]:
        """Yield each bound as text, "+Inf" at the end, and how many times were not longer."""
        so_far = 0
        for bound, count in zip((*map("{:g}".format, BOUNDS), "+Inf"), self.counts, strict=True):
            so_far += count
            yield bound, so_far


@dataclasses.dataclass(frozen=True)
class Metrics:
    """What a loop has counted since it was made, and what is there now. From :func:`metrics`."""

    #: Turns: rounds of running what was ready.
    turns: int
    #: Callbacks that have run: handles, events of transports, steps of native code.
    callbacks: int
    #: Times that the loop asked the system for events.
    polls: int
    #: Events that it got.
    events: int
    #: Callbacks that wait for the next turn now.
    ready: int
    #: The most that there were at the beginning of a turn.
    most_ready: int
    #: Timers that wait, without those that were cancelled.
    timers: int
    #: Open transports: sockets, and pipes that are read or written.
    transports: int
    #: Seconds that the loop has run: the sum of the four below.
    total: float
    #: Seconds in callbacks, and in the loop's own work between two polls.
    running: float
    #: Seconds of waiting because nothing was to do.
    idle: float
    #: Seconds of asking for events without waiting, because something was to do.
    polling: float
    #: Seconds of waiting for the GIL, after other threads were given it.
    gil: float
    #: How long the loop was away from its poller each time: at most so long had an event to wait.
    lag: Histogram
    #: How late the first timer was, at each poll that found timers due; waiting for the GIL counts.
    lateness: Histogram

    def prometheus(self, **labels: str) -> str:
        """Return the numbers in Prometheus' text format, with these labels on each."""
        return prometheus([(labels, self)])


def metrics(loop: asyncio.AbstractEventLoop | None = None) -> Metrics:
    """Return what a rondel loop has counted; without a `loop`, the running one.

    May be called from any thread. Counting is always on: it costs a few instructions per turn and
    per callback, and the clock is read where the loop reads it anyway. Times are therefore as fine
    as the loop's polls, 50 us on a busy loop. Raises TypeError for a loop that is not rondel's,
    RuntimeError without a loop.
    """
    found = _ours(loop)._metrics()
    for name in ("lag", "lateness"):
        counts, total, longest = found[name]
        found[name] = Histogram(tuple(counts), total, longest)
    return Metrics(**found)


def _ours(loop: asyncio.AbstractEventLoop | None) -> "Loop":
    from .loop import Loop

    loop = asyncio.get_running_loop() if loop is None else loop
    if not isinstance(loop, Loop):
        raise TypeError(f"only rondel's loops have metrics, not {loop!r}")
    return loop


#: The fields by kind, with what they are.
_COUNTERS = {
    "turns": "Rounds of running what was ready",
    "callbacks": "Callbacks that have run",
    "polls": "Times that the loop asked the system for events",
    "events": "Events that it got",
}
_GAUGES = {
    "ready": "Callbacks that wait for the next turn",
    "most_ready": "The most callbacks that were ready at the beginning of a turn",
    "timers": "Timers that wait",
    "transports": "Open transports",
}
_TIMES = ("running", "idle", "polling", "gil")
_TIMES_TEXT = "Seconds that the loop has spent in each state"
_HISTOGRAMS = {
    "lag": "Seconds that the loop was away from its poller, each time",
    "lateness": "Seconds by which timers ran late",
}


def prometheus(loops: Iterable[tuple[Mapping[str, str], Metrics]]) -> str:
    """Return the metrics of several loops, each with its labels, in Prometheus' text format.

    Raises ValueError for a label whose name Prometheus does not allow.
    """
    checked = [(_checked(labels), measured) for labels, measured in loops]
    lines = []

    def family(name: str, kind: str, text: str, read: _Read) -> None:
        lines.append(f"# HELP rondel_loop_{name} {text}.")
        lines.append(f"# TYPE rondel_loop_{name} {kind}")
        for labels, measured in checked:
            for suffix, more, value in read(measured):
                pairs = ",".join(f'{key}="{_escaped(at)}"' for key, at in (labels | more).items())
                shown = f"{{{pairs}}}" if pairs else ""
                lines.append(f"rondel_loop_{name}{suffix}{shown} {value}")

    for name, text in _COUNTERS.items():
        family(f"{name}_total", "counter", text, _field(name))
    for name, text in _GAUGES.items():
        family(name, "gauge", text, _field(name))
    family("seconds_total", "counter", _TIMES_TEXT, _states)
    for name, text in _HISTOGRAMS.items():
        family(f"{name}_seconds", "histogram", text, _histogram(name))
    return "\n".join(lines) + "\n"


#: Reads samples: what is added to the name, the labels, and the value.
_Read = Callable[[Metrics], Iterable[tuple[str, dict[str, str], float]]]


def _field(name: str) -> _Read:
    return lambda measured: [("", {}, getattr(measured, name))]


def _states(measured: Metrics) -> Iterator[tuple[str, dict[str, str], float]]:
    for state in _TIMES:
        yield "", {"state": state}, getattr(measured, state)


def _histogram(name: str) -> _Read:
    def read(measured: Metrics) -> Iterator[tuple[str, dict[str, str], float]]:
        histogram: Histogram = getattr(measured, name)
        for bound, count in histogram.cumulative():
            yield "_bucket", {"le": bound}, count
        yield "_sum", {}, histogram.total
        yield "_count", {}, histogram.count

    return read


def _checked(labels: Mapping[str, str]) -> dict[str, str]:
    for name in labels:
        if not (name.isascii() and name.isidentifier()) or name.startswith("__"):
            raise ValueError(f"not the name of a label: {name!r}")
        if name in ("le", "state"):
            raise ValueError(f"the label {name!r} is taken")
    return dict(labels)


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def export_metrics(
    loop: asyncio.AbstractEventLoop | None = None,
    *,
    provider: "MeterProvider | None" = None,
    attributes: Mapping[str, str] | None = None,
) -> None:
    """Have OpenTelemetry observe a rondel loop; without a `loop`, the running one.

    Makes observable instruments ``rondel.loop.*`` with the `provider`, or the global one, with
    `attributes` on each observation. They say nothing any more once the loop is closed; several
    loops need different attributes to be told apart. OpenTelemetry has no observable histograms:
    those of :class:`Metrics` become counters, of seconds (``….time``) and of times by their
    bucket's upper bound (``….buckets``, attribute "le", cumulative as in Prometheus).

    Needs the package opentelemetry-api; ImportError without it. Otherwise it raises what
    :func:`metrics` raises.
    """
    from opentelemetry.metrics import Observation, get_meter_provider

    from . import __version__

    known = weakref.ref(_ours(loop))
    fixed = dict(attributes or {})

    def observe(
        read: _Read, suffix: str = ""
    ) -> "list[Callable[[CallbackOptions], list[Observation]]]":
        def callback(_options: "CallbackOptions") -> "list[Observation]":
            loop = known()
            if loop is None or loop.is_closed():
                return []
            return [
                Observation(value, fixed | more)
                for kind, more, value in read(metrics(loop))
                if kind == suffix
            ]

        return [callback]

    meter = (provider or get_meter_provider()).get_meter("rondel", __version__)
    for name, text in _COUNTERS.items():
        meter.create_observable_counter(f"rondel.loop.{name}", observe(_field(name)), "1", text)
    for name, text in _GAUGES.items():
        meter.create_observable_gauge(f"rondel.loop.{name}", observe(_field(name)), "1", text)
    meter.create_observable_counter("rondel.loop.time", observe(_states), "s", _TIMES_TEXT)
    for name, text in _HISTOGRAMS.items():
        times, buckets = (observe(_histogram(name), suffix) for suffix in ("_sum", "_bucket"))
        meter.create_observable_counter(f"rondel.loop.{name}.time", times, "s", text)
        meter.create_observable_counter(f"rondel.loop.{name}.buckets", buckets, "1", text)
