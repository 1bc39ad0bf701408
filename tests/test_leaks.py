"""10,000 connections and 1,000 loops leave descriptors, memory and objects where they were."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parent / "programs" / "leaks.py"

# How much resident memory, in bytes, may differ from one moment to another without a leak. CPython
# gets memory from the system in arenas of 1 MiB, glibc's malloc in steps of 128 KiB, both touched
# page by page; asyncio's own loop shows up to 0.4 MiB here. The smallest leak in question is above
# the tolerance: one transport, handle or future per connection is at least 100 bytes, hence 1.2 MB
# in 12,000 connections; a loop is some KiB at least.
TOLERANCE = 1 << 20
# The same over TLS, where OpenSSL allocates much more and in other sizes (asyncio's own loop shows
# up to 0.6 MiB here). A connection that it does not give back is some 20 KiB, 20 MB in 1,000.
TLS_TOLERANCE = 4 << 20
# Objects that the interpreter makes once in a while for itself (a resized table, a cache's entry).
OBJECTS = 20
ATTEMPTS = 3


@pytest.fixture(params=["asyncio", "rondel"])
def loop_name(request: pytest.FixtureRequest) -> str:
    """The loop that the program uses."""
    return str(request.param)


def measure(*arguments: object) -> tuple[dict[str, int], dict[str, int]]:
    """What the program held before and after; in its own process, since pytest's memory moves."""
    result = subprocess.run(
        [sys.executable, str(PROGRAM), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    # Nothing may be said either: what goes wrong in a finalizer is printed and no more.
    assert (result.returncode, result.stderr) == (0, "")
    held: dict[str, Any] = json.loads(result.stdout)
    return held["before"], held["after"]


def assert_nothing_stays(*arguments: object, tolerance: int = TOLERANCE) -> None:
    """Run the program; what it held before is what it holds after.

    Memory is measured again when it has grown: the allocator keeps some now and then, a leak is
    there each time.
    """
    for _ in range(ATTEMPTS):
        before, after = measure(*arguments)
        told = f"before {before}, after {after}"
        assert after["fds"] == before["fds"], told
        assert after["threads"] == before["threads"], told
        assert after["objects"] - before["objects"] <= OBJECTS, told
        if after["resident"] - before["resident"] <= tolerance:
            return
    raise AssertionError(f"{told}, as each time before")


@pytest.mark.timeout(300)
def test_connections(loop_name: str) -> None:
    # 12 ways, of which one is refused and one cancelled: this opens at least 10,000.
    assert_nothing_stays(loop_name, "connections", 2400, 12_000)


@pytest.mark.timeout(300)
def test_tls_connections(loop_name: str) -> None:
    # 10 ways, of which two never come to a handshake's end: this makes at least 1,000.
    assert_nothing_stays(loop_name, "tls", 500, 1300, tolerance=TLS_TOLERANCE)


@pytest.mark.timeout(300)
def test_tls_connections_while_the_collector_runs(loop_name: str) -> None:
    assert_nothing_stays(loop_name, "tls_collecting", 20, 30, tolerance=TLS_TOLERANCE)


@pytest.mark.timeout(300)
def test_connections_while_the_collector_runs(loop_name: str) -> None:
    assert_nothing_stays(loop_name, "collecting", 10, 40)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "scenario", ["closed_loop", "closed_with_work", "dropped_loop", "dropped_with_work"]
)
def test_loops(loop_name: str, scenario: str) -> None:
    assert_nothing_stays(loop_name, scenario, 200, 1000)
