"""Functions that tests send to other interpreters, processes and machines."""

import os
import time

import rondel

NUMBERS = [1, 2, 3]


def add(x: int, y: int) -> int:
    return x + y


def double(x: int) -> int:
    return 2 * x


def fail(text: str) -> None:
    raise LookupError(text)


class Unpicklable(Exception):
    def __reduce__(self) -> str:
        raise TypeError("not this one")


def fail_unpicklable() -> None:
    raise Unpicklable("odd")


def change_globals() -> list[int]:
    NUMBERS.append(len(NUMBERS) + 1)
    return NUMBERS


def use_rondel() -> None:
    rondel.new_event_loop()


def compute(rounds: int) -> int:
    total = 0
    for number in range(rounds):
        total += number
    return total


def process_number(_: object = None) -> int:
    return os.getpid()


def sleep_and_tell(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def size_and_process(data: bytes) -> tuple[int, int]:
    return len(data), os.getpid()
