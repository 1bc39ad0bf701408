"""A Dask scheduler and two workers, in processes of their own."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

distributed = pytest.importorskip("distributed")
LIMIT = 60


class Cluster(NamedTuple):
    """What was started; worker processes by their name."""

    address: str
    workers: dict[str, subprocess.Popen[bytes]]


def start(log: pathlib.Path, *command: str) -> subprocess.Popen[bytes]:
    # Workers find the tests' own functions where this process does.
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parent)}
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
        )


def address_in(file: pathlib.Path, process: subprocess.Popen[bytes]) -> str:
    end = time.monotonic() + LIMIT
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError, ValueError):
            return str(json.loads(file.read_text())["address"])
        time.sleep(0.05)
    raise AssertionError("the scheduler has not started")


@contextlib.contextmanager
def running(directory: pathlib.Path) -> Iterator[Cluster]:
    """A scheduler and two workers, of two threads each."""
    host = ("--host", "127.0.0.1", "--no-dashboard")
    file = directory / "scheduler.json"
    scheduler = start(
        directory / "scheduler.log",
        *("distributed.cli.dask_scheduler", *host, "--port", "0", "--scheduler-file", str(file)),
    )
    workers: dict[str, subprocess.Popen[bytes]] = {}
    try:
        address = address_in(file, scheduler)
        for name in ("one", "two"):
            workers[name] = start(
                directory / f"{name}.log",
                *("distributed.cli.dask_worker", address, *host, "--no-nanny", "--name", name),
                *("--nthreads", "2", "--local-directory", str(directory / name)),
            )
        with distributed.Client(address, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=LIMIT)
        yield Cluster(address, workers)
    finally:
        for process in (*workers.values(), scheduler):
            process.terminate()
        for process in (*workers.values(), scheduler):
            try:
                # Dask's own way out may wait for a scheduler that has gone.
                process.wait(2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
