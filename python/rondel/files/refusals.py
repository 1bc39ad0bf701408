"""What Python's own buffers say when they refuse an operation, in the words of the running version.

The native buffer asks here for the exception when it finds that it cannot do what it is asked: the
file is closed, open for the other direction, or the arguments are of the wrong type.
"""

import io
from collections.abc import Callable
from typing import Any


class _Nothing(io.RawIOBase):
    """A file without content."""

    def __init__(self, reads: bool, writes: bool) -> None:
        self._reads = reads
        self._writes = writes

    def readable(self) -> bool:
        return self._reads

    def writable(self) -> bool:
        return self._writes

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        return 0

    def write(self, buffer: Any, /) -> int:
        return len(buffer)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return 0

    def truncate(self, size: int | None = None, /) -> int:
        return 0


_MAKE: dict[str, Callable[[], Any]] = {
    "reader": lambda: io.BufferedReader(_Nothing(True, False)),
    "writer": lambda: io.BufferedWriter(_Nothing(False, True)),
    "random": lambda: io.BufferedRandom(_Nothing(True, True)),  # type: ignore[arg-type]
}


def refuse(kind: str, closed: bool, method: str, args: tuple[Any, ...]) -> Any:
    """Call a method on a buffer of Python's in the same state: an exception, or what it returns."""
    if kind == "detached":
        raise ValueError("raw stream has been detached")
    stand_in = _MAKE[kind]()
    if closed:
        stand_in.close()
        if method in ("tell", "truncate"):
            raise ValueError("I/O operation on closed file.")
    return getattr(stand_in, method)(*args)
