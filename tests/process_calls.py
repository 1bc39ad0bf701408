"""Functions that tests call in worker processes. The workers import nothing else of the tests."""

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

initialized: list[Any] = []
kept: list[Any] = []


def echo(value: Any = None) -> Any:
    return value


def describe(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
    return args, kwargs


def fail(error: BaseException) -> None:
    raise error


def exit_by(how: str) -> None:
    """End this process."""
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "exit":
        os._exit(3)
    elif how == "fault":
        # No core file, and no stack of the test run's faulthandler.
        import faulthandler
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        faulthandler.disable()
        ctypes.string_at(0)
    elif how == "thread":
        threading.Thread(target=os._exit, args=(4,)).start()
    time.sleep(60)


def die_at(number: int, deadly: int) -> int:
    """Return the number, but for each so many: the process is killed there."""
    if number % deadly == deadly - 1:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    return number * 2


def pid() -> int:
    return os.getpid()


def nap(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def touch_and_wait(path: Path, seconds: float = 60) -> None:
    """Make a file, and go on for long."""
    path.touch()
    time.sleep(seconds)


def spin(path: Path) -> None:
    """Make a file with this process's number, and compute for ever."""
    path.write_text(str(os.getpid()))
    while True:
        pass


def touch(path: Path) -> None:
    path.touch()


def initialize(value: Any) -> None:
    initialized.append(value)


def get_initialized() -> list[Any]:
    return initialized


def fail_to_initialize() -> None:
    raise ValueError("not today")


def main_name() -> str:
    return str(sys.modules["__main__"].__name__)


class Unpicklable:
    """What can be neither sent nor returned."""

    def __reduce__(self) -> Any:
        raise TypeError("I stay here")


class UnpicklableError(Exception):
    """An exception that cannot be sent back."""

    def __reduce__(self) -> Any:
        raise TypeError("I stay here")


class Unloadable:
    """What can be sent, and does not arrive."""

    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> None:
    raise LookupError("not here")


def make(what: type) -> Any:
    return what()


def make_error() -> None:
    raise UnpicklableError


# ---- arrays


def total(array: Any) -> float:
    return float(array.sum())


def flags(array: Any) -> tuple[bool, bool]:
    return bool(array.flags.writeable), bool(array.flags.f_contiguous)


def add_one(array: Any) -> None:
    array += 1


def keep(value: Any) -> None:
    kept.append(value)


def total_of_kept() -> float:
    return sum(float(array.sum()) for array in kept)


def forget_kept() -> None:
    kept.clear()


def ones(count: int) -> Any:
    import numpy

    return numpy.ones(count)


def blank(size: int) -> bytes:
    return b"\x07" * size


def memory_in_huge_pages(*_: Any) -> int:
    """KiB of this process, while it has its arguments."""
    with open("/proc/self/smaps_rollup") as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages:"))
