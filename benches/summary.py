"""Statistics over a run's samples: medians, spreads, ratios within rounds."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import loops

#: From this many samples on, the spread is the middle half of them, otherwise all of them.
QUARTILES_FROM = 4


@dataclass(frozen=True)
class Spread:
    """A median, and the bounds between which the samples (or their middle half) lie."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        if len(values) >= QUARTILES_FROM:
            low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        else:
            low, high = min(values), max(values)
        return cls(statistics.median(values), low, high, len(values))

    @property
    def relative(self) -> float:
        """Half the distance between the bounds, over the median."""
        return (self.high - self.low) / 2 / self.median if self.median > 0 else 0.0


def by_round(row: dict[str, Any], loop: str, key: str = "value") -> dict[int, float]:
    samples = row["loops"].get(loop, {}).get("samples", [])
    return {sample["round"]: sample[key] for sample in samples if sample.get(key) is not None}


def spread(row: dict[str, Any], loop: str, key: str = "value") -> Spread | None:
    """The loop's figure in the row; None if it has none."""
    values = list(by_round(row, loop, key).values())
    return Spread.of(values) if values else None


def ratio(row: dict[str, Any], loop: str, other: str) -> Spread | None:
    """The loop's figure over the other's, taken within each round, so that the drift of the
    machine's speed from round to round does not count.
    """
    ours, theirs = by_round(row, loop), by_round(row, other)
    values = [ours[n] / theirs[n] for n in ours if theirs.get(n, 0) > 0]
    return Spread.of(values) if values else None


def best_peer(row: dict[str, Any]) -> str | None:
    """The peer with the lowest median."""
    found = {name: spread(row, name) for name in row["loops"] if name not in loops.NO_PEERS}
    medians = {name: figure.median for name, figure in found.items() if figure is not None}
    return min(medians, key=lambda name: medians[name]) if medians else None


def verdict(found: Spread) -> str:
    """Whether a ratio to the best peer says that we are ahead, behind, or neither (noise).

    A single sample says neither.
    """
    if found.count < 2:
        return "level"
    if found.high < 1:
        return "ahead"
    return "behind" if found.low > 1 else "level"
