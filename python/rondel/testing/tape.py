"""The tape: the one source of every choice that a test's loop makes."""

import random
from collections.abc import Sequence
from typing import TypeVar

_T = TypeVar("_T")


class Tape:
    """Choices that follow from a seed.

    Two tapes of the same seed that are asked the same questions give the same answers. Without a
    seed (None) a tape makes the plainest choice each time: the first of several, the least of a
    range, no disorder and no mishap.

    Args:
        seed: The seed, or None.

    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed
        # Of a text: the hash of a number ignores its sign.
        self._source = random.Random(f"rondel {seed}")

    def below(self, limit: int) -> int:
        """A number from 0 to ``limit - 1``."""
        return 0 if self.seed is None else int(self._source.random() * limit)

    def between(self, least: float, most: float) -> float:
        """A number from ``least`` to ``most``."""
        if self.seed is None or least >= most:
            return least
        return least + (most - least) * self._source.random()

    def chance(self, probability: float) -> bool:
        """Whether something happens that does with this probability (0 to 1)."""
        return self.seed is not None and self._source.random() < probability

    def shuffled(self, items: Sequence[_T]) -> list[_T]:
        """The items in another order."""
        items = list(items)
        if self.seed is not None:
            for last in range(len(items) - 1, 0, -1):
                other = self.below(last + 1)
                items[last], items[other] = items[other], items[last]
        return items

    def random(self) -> random.Random:
        """A generator of random numbers whose seed comes from the tape."""
        return random.Random(f"rondel {self.seed} {self._source.random()}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(seed={self.seed!r})"
