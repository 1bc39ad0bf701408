"""Which way suits this code: the event loop, threads or processes? Measured, not guessed.

* :func:`choose` runs one call under each option and recommends the fastest;
* :func:`rule` is the rule of thumb as code;
* ``rondel advise`` prints either for a function, or for a script where its time goes.
"""

from .choosing import choose
from .recommendation import Recommendation, Trial
from .rule import Option, rule

__all__ = ("Option", "Recommendation", "Trial", "choose", "rule")
