"""Run every check of the project, one after the other, and sum them up.

    python scripts/check.py               all of them
    python scripts/check.py ruff pytest   only the steps so named, and what they need

A failing step does not stop the others; only what needs its product is not run. With CI=true, or
with PYTHONS="3.11 3.13 3.14", the tests run on those other interpreters as well: CI=true takes
every supported one that this system can provide, PYTHONS those that it names, without exception.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Literal

import interpreters

ROOT = Path(__file__).resolve().parent.parent
CI = os.environ.get("CI") == "true"
MAIN = "{}.{}".format(*sys.version_info[:2])
#: What runs once more with rondel's streams, queues and so on in the place of asyncio's.
NATIVES = (
    "test_streams,test_ssl,test_server,test_subprocess,test_pep492,"
    "test_locks,test_queues,test_timeouts,test_waitfor,test_taskgroups"
)

#: The project's, and that of the benchmarks' load generator, which keeps its dependencies apart.
WORKSPACES = ("Cargo.toml", "benches/loadgen/Cargo.toml")

Outcome = Literal["ok", "failed", "skipped", "not run"]


@dataclasses.dataclass(frozen=True)
class Step:
    """One command, and how it stands to the others."""

    name: str  # its first word is what the command line selects by
    what: str  # for the heading
    command: tuple[str, ...]
    limit: int  # minutes after which it has failed
    needs: tuple[str, ...] = ()  # steps that must have gone well before
    counts: bool = False  # it runs tests, and must have run some
    may_be_skipped: bool = False  # exit status interpreters.NOT_TO_BE_HAD is not a failure


@dataclasses.dataclass
class Counts:
    """How many tests a step ran."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def add(self, other: Counts) -> None:
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


@dataclasses.dataclass
class Result:
    """What became of a step."""

    outcome: Outcome
    seconds: float = 0.0
    why: str = ""
    counts: Counts | None = None


def plan(others: list[str], required: bool) -> list[Step]:
    """All steps, in the order in which they run: the lints first, since they are quick to read."""
    return [
        Step(
            "packages",
            "Python packages for tests and lints into .venv",
            setup(".venv", sys.executable, "--requirements=test", "--requirements=lint"),
            limit=15,
        ),
        *(step for manifest in WORKSPACES for step in rust_lints(manifest)),
        Step(
            "ruff-check",
            "lints of the Python code",
            (python(".venv"), "-m", "ruff", "check", "--no-cache", "."),
            limit=2,
            needs=("packages",),
        ),
        Step(
            "ruff-format",
            "formatting of the Python code",
            (python(".venv"), "-m", "ruff", "format", "--check", "--no-cache", "."),
            limit=2,
            needs=("packages",),
        ),
        *(
            Step(
                f"mypy {version}",
                f"types of the Python code as of Python {version}",
                (python(".venv"), "-m", "mypy", "--python-version", version),
                limit=5,
                needs=("packages",),
            )
            for version in (interpreters.SUPPORTED[0], interpreters.SUPPORTED[-1])
        ),
        Step(
            "cargo-test",
            "unit tests of the crates that know nothing of Python",
            # The extension links no interpreter, so it has no test binary; pytest tests it.
            ("cargo", "test", *locked(), "--workspace", "--exclude", "rondel"),
            limit=20,
            counts=True,
        ),
        Step(
            "build",
            "release build of the extension into .venv",
            setup(".venv", sys.executable, "--build"),
            limit=30,
            needs=("packages",),
        ),
        Step(
            "stubtest",
            "the stubs of rondel._rondel against the module that was built",
            (
                *(python(".venv"), "-m", "mypy.stubtest", "rondel._rondel"),
                *("--mypy-config-file", "mypy.ini", "--allowlist", "stubtest-allowlist.txt"),
            ),
            limit=5,
            needs=("build",),
        ),
        Step(
            "docs-packages",
            "what the documentation is built with, into .venv",
            setup(".venv", sys.executable, "--requirements=docs"),
            limit=10,
            needs=("build",),
        ),
        Step(
            "docs",
            "the documentation as a site; a broken link is an error",
            (python(".venv"), "-m", "mkdocs", "build", "--quiet"),
            limit=5,
            needs=("docs-packages",),
        ),
        Step(
            "system",
            "what the tests need of the system",
            ("scripts/system-packages.sh", python(".venv")),
            limit=15,
            needs=("packages",),
        ),
        *tests(".venv", MAIN, "build"),
        *(step for version in others for step in other_interpreter(version, required)),
    ]


def rust_lints(manifest: str) -> list[Step]:
    """The steps that look at the Rust code of one workspace."""
    where = str(Path(manifest).parent)
    of = "" if where == "." else f" {where}"
    at = f"--manifest-path={manifest}"
    return [
        Step(
            f"rustfmt{of}",
            "formatting of the Rust code",
            ("cargo", "fmt", at, "--all", "--check"),
            limit=2,
        ),
        Step(
            f"clippy{of}",
            "lints of the Rust code, warnings are errors",
            ("cargo", "clippy", at, *locked(), "--workspace", "--all-targets", "--", "-Dwarnings"),
            limit=20,
        ),
    ]


def other_interpreter(version: str, required: bool) -> list[Step]:
    """The steps that test rondel on an interpreter that is not the main one."""
    environment = f".venvs/{version}"
    return [
        Step(
            f"build {version}",
            f"CPython {version}, with the tests' packages and rondel in {environment}",
            setup(environment, version, "--requirements=test", "--build"),
            limit=45,
            may_be_skipped=not required,
        ),
        *tests(environment, version, f"build {version}"),
    ]


def tests(environment: str, version: str, build: str) -> list[Step]:
    """The steps that run Python tests in `environment`."""
    jobs = str(min(os.cpu_count() or 1, 4))
    return [
        Step(
            f"pytest {version}",
            f"rondel's tests on CPython {version}",
            (python(environment), "-m", "pytest", "--continue-on-collection-errors"),
            limit=30,
            needs=(build,),
            counts=True,
        ),
        Step(
            f"conformance {version}",
            f"CPython {version}'s own suites on rondel's loop",
            (python(environment), "conformance/run.py", "--jobs", jobs),
            limit=30,
            needs=(build,),
            counts=True,
            # Where CPython's test package is missing; see scripts/system-packages.sh.
            may_be_skipped=not CI,
        ),
        Step(
            f"conformance {version} natives",
            f"CPython {version}'s suites of streams and synchronisation on rondel's native ones",
            (
                *(python(environment), "conformance/run.py", "--jobs", jobs),
                *("--streams", "native", "--sync", "native", "--modules", NATIVES),
            ),
            limit=10,
            needs=(build,),
            counts=True,
            may_be_skipped=not CI,
        ),
    ]


def setup(environment: str, base: str, *options: str) -> tuple[str, ...]:
    return (sys.executable, "scripts/setup_env.py", environment, "--python", base, *options)


def python(environment: str) -> str:
    return f"{environment}/bin/python"


def locked() -> tuple[str, ...]:
    """In CI a Cargo.lock that does not fit its Cargo.toml is an error, not something to mend."""
    return ("--locked",) if CI else ()


def select(steps: list[Step], names: list[str]) -> list[Step]:
    """The steps with these names, or whose first word or its start they are, and their needs."""
    chosen: set[str] = set()
    for name in names:
        found = [step for step in steps if re.match(rf"{re.escape(name)}($|[ -])", step.name)]
        if not found:
            sys.exit(f"No step is named {name}; there are {', '.join(s.name for s in steps)}.")
        chosen.update(step.name for step in found)
    for step in reversed(steps):
        if step.name in chosen:
            chosen.update(step.needs)
    return [step for step in steps if step.name in chosen]


def run_step(step: Step, results: dict[str, Result]) -> Result:
    """Run one step, its output in sight, and say how it went."""
    print(f"\n==> {step.name}: {step.what}", flush=True)
    lacking = [need for need in step.needs if results[need].outcome != "ok"]
    if lacking:
        skipped = all(results[need].outcome == "skipped" for need in lacking)
        result = Result("skipped" if skipped else "not run", why=f"it needs the step {lacking[0]}")
    else:
        print(f"    {shlex.join(step.command)}", flush=True)
        start = time.monotonic()
        result = execute(step)
        result.seconds = time.monotonic() - start
    why = f": {result.why}" if result.why else ""
    print(f"<== {step.name}: {result.outcome} after {result.seconds:.1f} s{why}", flush=True)
    return result


def execute(step: Step) -> Result:
    """Run the step's command to its end or its time limit, and read the tests' counts from it."""
    try:
        process = subprocess.Popen(
            step.command,
            cwd=ROOT,
            # clippy has to look at some interpreter: the one that the extension is built for.
            env={**os.environ, "PYO3_PYTHON": sys.executable, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        return Result("failed", why=f"{step.command[0]} did not start: {error.strerror}")
    assert process.stdout is not None
    reader = Reader(process.stdout)
    reader.start()
    try:
        status = process.wait(step.limit * 60)
    except subprocess.TimeoutExpired:
        return Result("failed", why=f"stopped after its limit of {step.limit} minutes")
    finally:
        # Also what the command left behind, which would hold the pipe open.
        end_descendants(process)
        reader.join(10)
    counts = reader.counts if step.counts else None
    if status == 0 and counts is not None and counts.passed == 0:
        return Result("failed", why="it ran no test", counts=counts)
    if status == 0:
        return Result("ok", counts=counts)
    if status == interpreters.NOT_TO_BE_HAD and step.may_be_skipped:
        return Result("skipped", why=reader.last_line)
    why = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    return Result("failed", why=why, counts=counts)


def adopt_orphans() -> None:
    """Become the parent of whatever loses its own below this process; see prctl(2)."""
    pr_set_child_subreaper = 36
    ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1, 0, 0, 0)


def end_descendants(process: subprocess.Popen[bytes]) -> None:
    """Kill `process` and everything that it started and left, in whatever session it is."""
    process.kill()
    process.wait()
    while children := own_children():
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        for pid in children:
            os.waitpid(pid, 0)


def own_children() -> list[int]:
    """The processes whose parent this one is, ended ones included, as proc(5) shows them."""
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in parentheses, may itself hold spaces and parentheses.
            parent = stat.read_text(errors="replace").rpartition(")")[2].split()[1]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == os.getpid():
            children.append(int(stat.parent.name))
    return children


class Reader(threading.Thread):
    """Hands a command's output on as it comes and picks out the lines that count tests."""

    # cargo test prints a line for each test binary; the others close with one for the whole run.
    CARGO = re.compile(r"test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored")
    WORD = r"passed|failed|skipped|deselected|xfailed|xpassed|warnings?|errors?"
    CLOSING = re.compile(rf"=* ?(\d+ ({WORD})(, )?)+( in [\d.]+s.*)?")
    COUNT = re.compile(r"(\d+) ([a-z]+)")

    def __init__(self, pipe: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self._pipe = pipe
        self._cargo = Counts()
        self._closing = Counts()
        self.last_line = ""

    @property
    def counts(self) -> Counts:
        total = dataclasses.replace(self._cargo)
        total.add(self._closing)
        return total

    def run(self) -> None:
        for raw in self._pipe:
            line = raw.decode(errors="replace").rstrip("\n")
            print(line, flush=True)
            self.last_line = line or self.last_line
            if match := self.CARGO.match(line):
                self._cargo.add(Counts(*map(int, match.groups())))
            elif self.CLOSING.fullmatch(line):
                self._closing = self.read_closing(line)

    @classmethod
    def read_closing(cls, line: str) -> Counts:
        """Read "3 passed, 1 failed, 2 skipped", or pytest's "== 1 failed, 3 passed in 4.2s =="."""
        found = {word: int(number) for number, word in cls.COUNT.findall(line)}
        return Counts(
            passed=found.get("passed", 0) + found.get("xfailed", 0),
            failed=found.get("failed", 0) + found.get("error", 0) + found.get("errors", 0),
            skipped=found.get("skipped", 0),
        )


def summarize(results: dict[str, Result], seconds: float) -> bool:
    """Print the table of all steps and the closing lines; True if nothing failed."""
    print(f"\n==> summary, after {seconds / 60:.1f} minutes")
    width = max(map(len, results))
    for name, result in results.items():
        told = "; ".join(filter(None, (str(result.counts or ""), result.why)))
        row = f"{name:{width}}  {result.outcome:7}  {result.seconds:7.1f} s  {told}"
        print(row.rstrip())
    bad = [name for name, result in results.items() if result.outcome in ("failed", "not run")]
    total = Counts()
    for result in results.values():
        if result.counts is not None:
            total.add(result.counts)
    if bad:
        print(f"These steps did not succeed: {', '.join(bad)}.")
    if any(result.counts is not None for result in results.values()):
        print(total)
    return not bad


def other_versions() -> tuple[list[str], bool]:
    """The versions to test beside the main one, and whether the user has named them."""
    named = os.environ.get("PYTHONS", "").split()
    for version in named:
        if version not in interpreters.SUPPORTED:
            supported = ", ".join(interpreters.SUPPORTED)
            sys.exit(f"PYTHONS names {version}, but rondel supports {supported}.")
    versions = named or (interpreters.SUPPORTED if CI else ())
    return [version for version in versions if version != MAIN], bool(named)


def main(names: list[str]) -> int:
    """Run the steps with these names, or all; the process's exit status."""
    # A job started in the background inherits SIGINT ignored, and so would each test that sends
    # it. A handler of ours is reset to the default in every command, an ignored signal is not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # To be terminated ends the commands as well, as an interrupt does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    adopt_orphans()
    steps = plan(*other_versions())
    if names:
        steps = select(steps, names)
    results: dict[str, Result] = {}
    start = time.monotonic()
    try:
        for step in steps:
            results[step.name] = run_step(step, results)
    except KeyboardInterrupt:
        print("\ninterrupted")
        return 130
    return 0 if summarize(results, time.monotonic() - start) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
