"""ASGI servers as processes of their own, started as their users start them."""

import contextlib
import http.client
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from support import HOST

PROGRAMS = Path(__file__).parent / "programs"
#: Seconds that a server has to start, to answer, to stop.
LIMIT = 20


class ServerProcess:
    """A running server: its port, and what the application said on standard output."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log
        self.port = self._wait_for_port()

    def _wait_for_port(self) -> int:
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := re.search(rf"running on https?://{HOST}:(\d+)", self.log(), re.IGNORECASE):
                return int(found[1])
            time.sleep(0.02)
        raise AssertionError(f"the server did not start:\n{self.log()}")

    def log(self) -> str:
        """What the server logged so far."""
        return self._log.read_text()

    def line(self) -> str:
        """The next line that the application prints; "" after the last."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def stop(self, number: signal.Signals) -> tuple[list[str], int]:
        """Send the signal; what the application printed from then on, and the exit status."""
        self.process.send_signal(number)
        assert self.process.stdout is not None
        lines = self.process.stdout.read().decode().split("\n")
        return lines[:-1], self.process.wait(LIMIT)

    @contextlib.contextmanager
    def client(self) -> Iterator[http.client.HTTPConnection]:
        """A connection to the server."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=LIMIT)
        with contextlib.closing(connection):
            yield connection


@contextlib.contextmanager
def running(command: list[str], log: Path) -> Iterator[ServerProcess]:
    """Start a server, wait until it listens; kill it afterwards if the test did not stop it."""
    error: IO[bytes]
    with (
        log.open("wb") as error,
        subprocess.Popen(
            [sys.executable, *command], cwd=PROGRAMS, stdout=subprocess.PIPE, stderr=error
        ) as process,
    ):
        try:
            yield ServerProcess(process, log)
        finally:
            process.kill()
