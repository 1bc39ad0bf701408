"""A pool of processes, measured: ``python pools.py ROW --pool NAME``; see pool_rows.py.

Workers import the main module, so it imports nothing that the calls do not need.
"""

import time
from typing import Any


def nothing() -> None:
    pass


def length(value: Any) -> int:
    return len(value)


def nap() -> None:
    time.sleep(0.01)


def ones(count: int) -> Any:
    import numpy

    return numpy.ones(count)


if __name__ == "__main__":
    import pool_rows

    pool_rows.main()
