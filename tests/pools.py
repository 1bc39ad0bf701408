"""What tests of thread and process pools need: limits, marks, pools, ways to wait."""

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

#: Seconds after which something that a test waits for is not coming any more: a worker on a loaded
#: machine takes its time to start.
LIMIT = 60

#: Of every file with tests of process pools.
PROCESS_MARKS = [
    pytest.mark.skipif(sys.platform != "linux", reason="process pools are Linux's"),
    pytest.mark.timeout(120),
]

ThreadPoolFactory = Callable[..., ThreadPoolExecutor]


def wait_until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.005)


def block(pool: ThreadPoolExecutor, threads: int = 1) -> threading.Event:
    """Keep so many threads of the pool busy until the event is set."""
    release = threading.Event()
    ready = threading.Barrier(threads + 1)

    def body() -> None:
        ready.wait(LIMIT)
        release.wait(LIMIT)

    for _ in range(threads):
        pool.submit(body)
    ready.wait(LIMIT)
    return release


def run_program(program: str) -> str:
    """Run a program of its own; return its output, errors included."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout
