"""Runs the interpreter's own Lib/test/test_asyncio on rondel's loop; README.md says more.

usage: python conformance/run.py [--loop rondel|asyncio] [--modules a,b] [--jobs N] [-k PATTERN]

To be run by an interpreter in which rondel is installed and which came with its `test` package.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import importlib
import importlib.util
import json
import os
import platform
import select
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NETNS = HERE.parent / "scripts" / "netns.py"
ISOLATED = "RONDEL_CONFORMANCE_ISOLATED"  # environment variable: netns.py has been called

#: Exit status when this interpreter lacks CPython's test package (argparse takes 2).
NOT_TO_BE_HAD = 3

PACKAGE = "test.test_asyncio."
# Modules of test_asyncio that are not loaded at all: they are about Windows, or wholly about one
# of asyncio's private classes, which they build over mocks (BaseSelectorEventLoop and its
# transports, BaseProactorEventLoop).
NOT_LOADED = {
    "test_proactor_events",
    "test_selector_events",
    "test_windows_events",
    "test_windows_utils",
}
# asyncio's users elsewhere in CPython's suite; the last two are one file, moved in 3.12.
BEYOND = [
    "test.test_asyncgen",
    "test.test_contextlib_async",
    "test.test_coroutines",
    "test.test_unittest.test_async_case",
    "unittest.test.test_async_case",
]
# The tests of thread and process pools; the first is one file for all of them, up to 3.11.
POOLS = [
    "test.test_concurrent_futures",
    "test.test_concurrent_futures.test_as_completed",
    "test.test_concurrent_futures.test_deadlock",
    "test.test_concurrent_futures.test_init",
    "test.test_concurrent_futures.test_process_pool",
    "test.test_concurrent_futures.test_shutdown",
    "test.test_concurrent_futures.test_thread_pool",
    "test.test_concurrent_futures.test_wait",
]
# Modules whose tests need no loop, and the version since which that is so. While another module
# runs, at least one must be made.
LOOPLESS = {
    "test_contextlib_async": 14,
    "test_protocols": 11,
    "test_tools": 14,
    "test_transports": 11,
}


@dataclasses.dataclass
class ModuleResult:
    """What became of one module's tests."""

    module: str
    outcomes: dict[str, str] = dataclasses.field(default_factory=dict)  # test -> outcome
    on_ours: set[str] = dataclasses.field(default_factory=set)  # tests that made a rondel loop
    details: dict[str, str] = dataclasses.field(default_factory=dict)  # failed test -> why
    stale: list[str] = dataclasses.field(default_factory=list)
    would_pass: list[str] = dataclasses.field(default_factory=list)
    loops: int = 0
    seconds: float = 0.0

    def count(self, *outcomes: str) -> int:
        return sum(outcome in outcomes for outcome in self.outcomes.values())

    def fail(self, test: str, detail: str) -> None:
        self.outcomes[test] = "failed"
        self.details[test] = detail

    def row(self) -> list[str]:
        passed = [test for test, outcome in self.outcomes.items() if outcome == "passed"]
        return [
            self.module.rpartition(".")[2],
            str(len(passed) + self.count("failed")),
            str(len(passed)),
            str(sum(test in self.on_ours for test in passed)),
            str(self.count("goes-on", "white-box", "twin")),
            str(self.count("skipped")),
            str(self.count("failed")),
            str(self.loops),
            f"{self.seconds:.1f}",
        ]


HEADER = [
    "module",
    "run",
    "passed",
    "on rondel",
    "excluded",
    "skipped",
    "failed",
    "loops",
    "seconds",
]


class ModuleRun:
    """Runs one module, in one process or, after a hang or a crash, in several."""

    def __init__(self, options: argparse.Namespace, module: str) -> None:
        self._options = options
        self._result = ModuleResult(module)
        self._current: str | None = None
        self._done = False
        self._loops_told = 0  # of this process, by the tests that have ended

    def __call__(self) -> ModuleResult:
        start = time.monotonic()
        while not self._done:
            before = len(self._result.outcomes)
            self._run_process(start + self._options.module_limit)
            if len(self._result.outcomes) == before:
                break
        self._result.seconds = time.monotonic() - start
        short = self._result.module.rpartition(".")[2]
        options = self._options
        if (
            options.loop == "rondel"
            and sys.version_info.minor < LOOPLESS.get(short, 99)
            and self._result.count("passed")
            and not self._result.loops
        ):
            self._result.fail(short, "No loop of rondel was created while this module ran.")
        return self._result

    def _run_process(self, deadline: float) -> None:
        options = self._options
        read_end, write_end = os.pipe()
        with tempfile.TemporaryDirectory(prefix="conformance-") as directory:
            work = Path(directory, "work")
            work.mkdir()
            job = {
                "module": self._result.module,
                "loop": options.loop,
                "streams": options.streams,
                "sync": options.sync,
                "pipe": write_end,
                "limit": options.limit,
                "pattern": options.k,
                "run_excluded": options.run_excluded,
                "already_run": sorted(self._result.outcomes),
            }
            job_file = Path(directory, "job.json")
            job_file.write_text(json.dumps(job))
            log = Path(directory, "log")
            with log.open("w") as output:
                process = subprocess.Popen(
                    [sys.executable, str(HERE / "child.py"), str(job_file)],
                    cwd=work,
                    env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=[write_end],
                    start_new_session=True,
                )
            os.close(write_end)
            try:
                timed_out = self._read_lines(process, read_end, deadline)
            finally:
                os.close(read_end)
                _kill_session(process)
            if not self._done:
                self._blame(process.returncode, timed_out, log.read_text(errors="replace"))
            elif options.verbose:
                sys.stdout.write(log.read_text(errors="replace"))

    def _read_lines(self, process: subprocess.Popen[bytes], pipe: int, deadline: float) -> bool:
        """Handles the child's lines until it ends; True if it had to be stopped."""
        pending = b""
        # The child's own watch ends it after `limit`, with a traceback; this is for the case that
        # even that does not work.
        grace = self._options.limit + 15
        last = time.monotonic()
        while True:
            ended = process.poll() is not None
            readable, _, _ = select.select([pipe], [], [], 0 if ended else 0.5)
            now = time.monotonic()
            if readable:
                chunk = os.read(pipe, 65536)
                if chunk:
                    last = now
                    *lines, pending = (pending + chunk).split(b"\n")
                    for line in lines:
                        self._handle(json.loads(line))
                    continue
                time.sleep(0.05)  # the end of the pipe comes a little before that of the process
            if ended:
                return False
            if now > last + grace or now > deadline:
                os.kill(process.pid, signal.SIGABRT)  # faulthandler shows where it stood
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                return True

    def _handle(self, line: dict[str, Any]) -> None:
        result = self._result
        match line["event"]:
            case "loaded":
                result.stale = line["stale"]
            case "start":
                self._current = line["test"]
            case "end":
                self._current = None
                self._end(line)
            case "done":
                self._done = True
                self._current = None
                result.loops += line["ours"] - self._loops_told

    def _end(self, line: dict[str, Any]) -> None:
        result, test, outcome = self._result, line["test"], line["outcome"]
        result.loops += line["ours"]
        self._loops_told += line["ours"]
        if line["ours"]:
            result.on_ours.add(test)
        if line["excluded"] and outcome != line["excluded"]:
            if outcome == "passed":
                result.would_pass.append(test)
            outcome = line["excluded"]
        if outcome == "failed":
            result.fail(test, line["detail"])
        else:
            result.outcomes[test] = outcome
        if self._options.verbose:
            print(f"{result.module.rpartition('.')[2]}.{test}: {outcome}", flush=True)

    def _blame(self, returncode: int, timed_out: bool, log: str) -> None:
        """Records the hang or crash of a process that ended without its last line."""
        self._loops_told = 0
        culprit, self._current = self._current, None
        if timed_out or "Timeout (" in log:
            cause = f"The test hung: it was stopped after {self._options.limit:g} s."
        elif returncode < 0:
            cause = f"The process was killed by {signal.Signals(-returncode).name}."
        else:
            cause = f"The process ended early, with exit code {returncode}."
        tail = "\n".join(log.splitlines()[-60:])
        where = culprit or f"{self._result.module} (outside of any test)"
        self._result.fail(where, f"{cause}\n{tail}")


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    """Ends whatever a module's process left running."""
    if process.poll() is None:
        process.kill()
        process.wait()
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def module_names(only: str | None) -> list[str]:
    """The modules to run, in order; `only` is a list of names or patterns with commas between."""
    folder = Path(importlib.import_module("test.test_asyncio").__path__[0])
    names = [
        PACKAGE + path.stem
        for path in sorted(folder.glob("test_*.py"))
        if path.stem not in NOT_LOADED
    ]
    names += [name for name in BEYOND if _exists(name)]
    names += [name for name in POOLS if _exists(name) and not _is_package(name)]
    if only is None:
        return names
    patterns = only.split(",")
    chosen = [
        name
        for name in names
        if any(fnmatch.fnmatchcase(name.rpartition(".")[2], pattern) for pattern in patterns)
    ]
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name.rpartition(".")[2], pattern) for name in names):
            sys.exit(f"No test module is named {pattern}.")
    return chosen


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _is_package(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.submodule_search_locations is not None


def python_info(loop: str) -> str:
    parts = [f"{platform.python_implementation()} {platform.python_version()}", sys.executable]
    if loop == "rondel":
        rondel: Any = importlib.import_module("rondel")
        parts.append(f"rondel {getattr(rondel, '__version__', '')} from {rondel.__file__}")
    parts.append(ssl.OPENSSL_VERSION)
    return ", ".join(parts)


def print_table(rows: list[list[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join(cells))


def report(results: list[ModuleResult], options: argparse.Namespace) -> bool:
    """Prints everything, writes the JSON file; True if nothing failed."""
    for result in results:
        for test, detail in result.details.items():
            print(f"\n=== {result.module.rpartition('.')[2]}: {test}\n{detail.rstrip()}")
    print()
    total = ModuleResult("total")
    for result in results:
        name = result.module
        total.outcomes |= {f"{name}.{test}": out for test, out in result.outcomes.items()}
        total.on_ours |= {f"{name}.{test}" for test in result.on_ours}
        total.loops += result.loops
        total.seconds += result.seconds
    print_table([HEADER, *(result.row() for result in results), total.row()])
    for result in results:
        short = result.module.rpartition(".")[2]
        for pattern in result.stale:
            print(f"Stale exclusion: {pattern} matches no test of {short}.")
        for test in result.would_pass:
            print(f"Excluded, but passes: {short}.{test}")
    if options.json:
        text = {
            "python": platform.python_version(),
            "loop": options.loop,
            "modules": {
                result.module: {
                    "tests": result.outcomes,
                    "on_rondel": sorted(result.on_ours),
                    "details": result.details,
                    "would_pass": result.would_pass,
                    "stale": result.stale,
                    "loops": result.loops,
                    "seconds": round(result.seconds, 2),
                }
                for result in results
            },
        }
        Path(options.json).write_text(json.dumps(text, indent=1) + "\n")
    passed, failed, skipped = (total.count(what) for what in ("passed", "failed", "skipped"))
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return failed == 0


def only_loopback() -> bool:
    return [name for _, name in socket.if_nameindex()] == ["lo"]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Run the interpreter's own Lib/test/test_asyncio on rondel's loop."
    )
    parser.add_argument("--loop", choices=["rondel", "asyncio"], default="rondel")
    parser.add_argument(
        "--streams", choices=["native", "asyncio"], default="asyncio", help="whose stream classes"
    )
    parser.add_argument(
        "--sync",
        choices=["native", "asyncio"],
        default="asyncio",
        help="whose queues and locks",
    )
    parser.add_argument("--modules", metavar="A,B", help="only these modules (patterns are fine)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="modules at a time")
    parser.add_argument("-k", metavar="PATTERN", help="only tests whose Class.test contains it")
    parser.add_argument("--run-excluded", action="store_true", help="run excluded tests as well")
    parser.add_argument("--limit", type=float, default=60, metavar="S", help="seconds for a test")
    parser.add_argument(
        "--module-limit", type=float, default=900, metavar="S", help="seconds for a module"
    )
    parser.add_argument("--json", metavar="FILE", help="write every test's outcome to FILE")
    parser.add_argument("--python-info", action="store_true", help="say what would run, and stop")
    parser.add_argument("-v", "--verbose", action="store_true")
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    if not _exists("test.test_asyncio"):
        print(
            f"{sys.executable} has no test.test_asyncio: this Python was installed without "
            "CPython's test package. Use one built from source, or install the package that "
            "brings it (libpython3-testsuite on Debian)."
        )
        return NOT_TO_BE_HAD
    if options.loop == "rondel" and not _exists("rondel"):
        print(f"rondel is not installed for {sys.executable}.")
        return 2
    if options.python_info:
        print(python_info(options.loop))
        return 0
    if not only_loopback() and ISOLATED not in os.environ:
        # Some tests name public addresses: nothing of theirs may leave this machine.
        os.environ[ISOLATED] = "tried"  # netns.py goes on without, where it is not permitted
        command = [sys.executable, str(NETNS), sys.executable, *sys.argv]
        os.execv(command[0], command)
    names = module_names(options.modules)
    print(python_info(options.loop), flush=True)
    lock = threading.Lock()

    def run(name: str) -> ModuleResult:
        result = ModuleRun(options, name)()
        with lock:
            failed = result.count("failed")
            print(
                f"{name}: {result.count('passed')} passed, {failed} failed"
                f" in {result.seconds:.1f} s",
                flush=True,
            )
        return result

    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(run, names))
    good = report(results, options)
    if not any(result.outcomes for result in results):
        print("No test was found.")
        return 1
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
