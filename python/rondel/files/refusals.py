"""What Python's own buffers say when they refuse an operation, in the words of the running version.

The native buffer asks here for the exception when it finds that it cannot do what it is asked: the
file is closed, open for the other direction, or the arguments are of the wrong type.
"""

import io
import os
from collections.abc import Callable
from typing import Any

_MAKE: dict[str, Callable[[], Any]] = {
    "reader": lambda: io.BufferedReader(io.FileIO(os.devnull, "r")),
    "writer": lambda: io.BufferedWriter(io.FileIO(os.devnull, "w")),
    "random": lambda: io.BufferedRandom(io.FileIO(os.devnull, "r+")),
}


def refuse(kind: str, closed: bool, method: str, args: tuple[Any, ...]) -> Any:
    """Call a method on a buffer of Python's in the same state: an exception, or what it returns."""
    if kind == "detached":
        raise ValueError("raw stream has been detached")
    with _MAKE[kind]() as stand_in:
        if closed:
            stand_in.close()
        return getattr(stand_in, method)(*args)
