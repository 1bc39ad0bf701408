"""One measurement: fresh processes, pinned, watched and ended."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import loops
from peers import Environment
from rows import How, Row

HERE = Path(__file__).resolve().parent
START_TIMEOUT = 15.0
#: Beyond the measured time, for connecting and for slow loops.
GRACE = 30.0
#: Each child is given an orderly end, at which an instrumented rondel (scripts/pgo.py) writes.
COUNTING = "LLVM_PROFILE_FILE" in os.environ
MICRO_TIMEOUT = 40.0
POOL_TIMEOUT = 120.0
PR_SET_PDEATHSIG = 1
#: Descriptors that a server needs beside one for each connection.
SPARE_FILES = 200

libc = ctypes.CDLL(None, use_errno=True)


class Failure(Exception):
    """A measurement that gave no figure. ``final``: another try would end the same way."""

    def __init__(self, reason: str, final: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.final = final


@dataclass
class Sample:
    """``value`` is the row's figure, in the row's unit; ``extra`` what else was learned."""

    value: float
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cores:
    """Where the measured process runs, and where the load comes from."""

    server: int
    load: int
    all: frozenset[int]

    @property
    def shared(self) -> bool:
        return self.server == self.load


def siblings(core: int) -> set[int]:
    """The hardware threads of the same physical core; only itself where the system does not say."""
    path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    try:
        parts = [part.split("-") for part in path.read_text().strip().split(",")]
        return {n for part in parts for n in range(int(part[0]), int(part[-1]) + 1)}
    except (OSError, ValueError):
        return {core}


def choose_cores() -> Cores:
    """Two cores; on different physical ones if there are."""
    usable = sorted(os.sched_getaffinity(0))
    server = usable[0]
    apart = [core for core in usable if core not in siblings(server)]
    others = [*apart, *usable[1:], server]
    return Cores(server, others[0], frozenset(usable))


def raise_file_limit() -> int:
    """The most files that a process may open, raised as far as allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(hard, 32_768)
    for limit in ((wanted, wanted), (hard, hard)):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
            break
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft


@dataclass
class Bench:
    """What every measurement needs."""

    environment: Environment
    loadgen: Path
    cores: Cores
    folder: Path
    duration: float
    warmup: float
    #: At most this many timed passes in a micro row; None for as many as the row has.
    passes: int | None = None

    def __post_init__(self) -> None:
        self.certificates = self.folder / "cert"
        self.certificates.mkdir()
        subprocess.run([self.loadgen, "cert", self.certificates], check=True, timeout=30)

    def measure(self, row: Row, loop: str) -> Sample:
        """The row's figure for the loop. Failure if there is none."""
        if row.how in (How.SERVER, How.HOLD):
            return self.server(row, loop)
        return self.micro(row, loop)

    # --- processes ------------------------------------------------------------------------------

    def environ(self, loop: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "UVLOOP_"))}
        return {**kept, **self.environment.variables.get(loop, {})}

    @contextlib.contextmanager
    def process(
        self, command: Sequence[str | Path], cores: set[int] | frozenset[int], loop: str
    ) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
        """A child on the cores, with its error output; it does not outlive the block or us."""
        with tempfile.TemporaryFile("w+", dir=self.folder, errors="replace") as errors:
            child = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=self.environ(loop),
                cwd=self.folder,
                preexec_fn=prepare(cores),
            )
            try:
                yield child, errors
            finally:
                if COUNTING:
                    child.terminate()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        child.wait(GRACE)
                child.kill()
                child.wait()
                if child.stdout:
                    child.stdout.close()

    def python(self, script: str, *arguments: str) -> list[str | Path]:
        return [self.environment.python, HERE / script, *arguments]

    # --- rows within one process ----------------------------------------------------------------

    def micro(self, row: Row, loop: str) -> Sample:
        with contextlib.ExitStack() as stack:
            is_pool = row.how is How.POOL
            arguments = [row.name, "--pool" if is_pool else "--loop", loop]
            if self.passes is not None:
                arguments += ["--passes", str(self.passes)]
            if row.peer:
                bare: list[str | Path] = [self.loadgen, "bare", row.peer]
                peer, errors = stack.enter_context(
                    self.process(bare, {self.cores.load}, loops.BARE)
                )
                arguments += ["--peer", first_line(peer, errors)["address"]]
            single = row.how in (How.MICRO, How.CLIENT)
            cores = {self.cores.server} if single else self.cores.all
            command = self.python("pools.py" if is_pool else "micro.py", *arguments)
            child, errors = stack.enter_context(self.process(command, cores, loop))
            found = last_line(child, errors, POOL_TIMEOUT if is_pool else MICRO_TIMEOUT)
        # For idle_cpu an "operation" is a second of waiting.
        value = found["ns"] / 1e9 if row.how is How.IDLE else found["ns"]
        return Sample(value, {"cpu_ns": found["cpu_ns"], "loop": found["loop"]})

    # --- rows with a server and a load generator ------------------------------------------------

    def server(self, row: Row, loop: str) -> Sample:
        path = self.folder / "echo.sock"
        path.unlink(missing_ok=True)
        if loop == loops.BARE:
            command: list[str | Path] = [self.loadgen, "bare", row.transport]
        else:
            command = self.python("servers.py", row.server, "--loop", loop)
        command += ["--path", path, "--cert", self.certificates]
        with self.process(command, {self.cores.server}, loop) as (server, errors):
            address = first_line(server, errors)["address"]
            found = self.load(row, address, server, errors)
        if row.how is How.HOLD:
            return Sample(found.pop("bytes_per_connection"), found)
        if not found["requests"]:
            raise Failure("no request was answered in the measured time")
        grown = found["rss_loaded"] - found["rss_before"]
        found["bytes_per_connection"] = grown / row.connections
        return Sample(found.pop("cpu_us") * 1e3, found)

    def load(
        self, row: Row, address: str, server: subprocess.Popen[str], server_errors: IO[str]
    ) -> dict[str, Any]:
        mode = "hold" if row.how is How.HOLD else "load"
        command: list[str | Path] = [self.loadgen, mode, row.transport, address]
        options: dict[str, object] = {
            "--connections": row.connections,
            "--size": row.size,
            "--duration": self.duration,
            "--warmup": self.warmup,
            "--pid": server.pid,
        }
        if row.transport == "tls":
            options["--ca"] = self.certificates / "cert.pem"
        if row.path:
            options["--path"] = row.path
        for name, value in options.items():
            command += [name, str(value)]
        timeout = self.duration + self.warmup + GRACE
        with self.process(command, {self.cores.load}, loops.BARE) as (child, errors):
            try:
                return last_line(child, errors, timeout)
            except Failure as failure:
                said = tail(server_errors)
                if said:
                    failure.reason += f"; the server said: {said}"
                code = server.poll()
                if code is not None:
                    failure.reason += f"; the server ended ({describe(code)})"
                raise


def prepare(cores: set[int] | frozenset[int]) -> Callable[[], None]:
    """What a child does before it becomes the program. It dies with us, however we die."""

    def inside() -> None:
        os.sched_setaffinity(0, cores)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    return inside


def describe(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def tail(errors: IO[str]) -> str:
    """The last line of the error output."""
    errors.seek(0)
    lines = [line.strip() for line in errors if line.strip()]
    return lines[-1][:300] if lines else ""


def understood(line: str, child: subprocess.Popen[str], errors: IO[str]) -> dict[str, Any]:
    """The child's JSON object. Failure if there is none, or if it tells of one."""
    try:
        found: dict[str, Any] = json.loads(line)
    except ValueError:
        code = child.wait(timeout=5)
        said = tail(errors)
        raise Failure(f"{said or 'no output'} ({describe(code)})") from None
    if "unsupported" in found:
        raise Failure(found["unsupported"], final=True)
    if "failed" in found:
        raise Failure(found["failed"])
    return found


def first_line(child: subprocess.Popen[str], errors: IO[str]) -> dict[str, Any]:
    """What a server says when it is ready."""
    assert child.stdout is not None
    if not select.select([child.stdout], [], [], START_TIMEOUT)[0]:
        raise Failure(f"did not start in {START_TIMEOUT:.0f} s", final=True)
    return understood(child.stdout.readline(), child, errors)


def last_line(child: subprocess.Popen[str], errors: IO[str], timeout: float) -> dict[str, Any]:
    """What a process says at its end."""
    try:
        output, _ = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise Failure(f"did not finish in {timeout:.0f} s", final=True) from None
    lines = output.strip().splitlines()
    return understood(lines[-1] if lines else "", child, errors)


def busy() -> float:
    """The share of all cores that was in use over the last tenth of a second or so."""

    def read() -> tuple[int, int]:
        with open("/proc/stat") as stat:
            fields = [int(part) for part in stat.readline().split()[1:9]]
        return sum(fields), fields[3] + fields[4]

    total, idle = read()
    time.sleep(0.2)
    total_after, idle_after = read()
    passed = max(total_after - total, 1)
    return 1 - (idle_after - idle) / passed


if sys.platform != "linux":
    raise SystemExit("the benchmark needs Linux: it pins processes to cores and reads /proc")
