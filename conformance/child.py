"""Runs one of CPython's test modules in this process and tells run.py, line by line, how it goes.

Started by run.py with the path of a JSON file as its only argument. Every line written to the
pipe is a JSON object whose "event" is one of:

    loaded   "stale": patterns of exclusions that match no test of this module
    start    "test"
    end      "test", "outcome", "detail", "ours": rondel's loops created, "excluded": kind or null
    done     "ours": loops created by the whole module

A process that ends without "done" hung or crashed in the test that started last.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import fnmatch
import json
import os
import signal
import sys
import traceback
import unittest
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import exclusions
import swap


@dataclasses.dataclass
class Job:
    """What run.py asks for."""

    module: str
    loop: str  # "rondel" or "asyncio"
    streams: str  # "native" or "asyncio"
    sync: str  # likewise
    pipe: int  # file descriptor for the lines
    limit: float  # seconds for one test
    pattern: str | None  # run only tests whose name contains or matches it
    run_excluded: bool
    already_run: list[str]  # tests that an earlier process of this module has reported


class Reporter(unittest.TestResult):
    """Collects the outcome of each test, and writes it to the pipe when the test is over."""

    def __init__(self, job: Job, excluded: dict[str, exclusions.Exclusion]) -> None:
        super().__init__()
        self._job = job
        self._excluded = excluded
        self._pipe = os.fdopen(job.pipe, "w", buffering=1)
        self._outcome: str | None = None
        self._details: list[str] = []
        self._before = (0, 0)

    def send(self, event: str, **fields: Any) -> None:
        self._pipe.write(json.dumps({"event": event, **fields}) + "\n")

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self._outcome, self._details = None, []
        self._before = (swap.Created.ours, swap.Created.stock)
        self.send("start", test=short_name(test))
        faulthandler.dump_traceback_later(self._job.limit, exit=True)

    def stopTest(self, test: unittest.TestCase) -> None:
        faulthandler.dump_traceback_later(self._job.limit, exit=True)  # the time between tests
        super().stopTest(test)
        if self._outcome is None:  # KeyboardInterrupt, which is about to end this process
            return
        ours = swap.Created.ours - self._before[0]
        stock = swap.Created.stock - self._before[1]
        if self._outcome == "passed" and self._job.loop == "rondel" and stock and not ours:
            self._outcome = "failed"
            self._details.append("The test ran on a loop of asyncio's own classes only.")
        self._end(short_name(test), ours)

    def _end(self, name: str, ours: int) -> None:
        exclusion = self._excluded.get(name)
        self.send(
            "end",
            test=name,
            outcome=self._outcome,
            detail="\n".join(self._details),
            ours=ours,
            excluded=exclusion.kind if exclusion else None,
        )

    def _fail(self, test: unittest.TestCase, err: Any) -> None:
        detail = "".join(traceback.format_exception(*err))
        if is_test(test):
            self._outcome = "failed"
            self._details.append(detail)
            return
        # setUpClass, setUpModule and their counterparts have no start and stop.
        self._outcome, self._details = "failed", [detail]
        self._end(test.id(), 0)

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        self._fail(test, err)

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        self._fail(test, err)

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        if err is not None:
            self._details.append(f"In {subtest}:")
            self._fail(test, err)

    def addSuccess(self, test: unittest.TestCase) -> None:
        self._outcome = "passed"

    def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:
        self._outcome = "passed"

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        self._outcome = "failed"
        self._details.append("The test is marked as an expected failure, and succeeded.")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        if hasattr(test, "test_case"):  # a subtest: the test goes on, and only failures count
            self._outcome = self._outcome or "passed"
            return
        if not is_test(test):
            self._outcome, self._details = "skipped", [reason]
            self._end(test.id(), 0)
        elif self._outcome != "failed":
            self._outcome = "skipped"
            self._details.append(reason)


def is_test(test: object) -> bool:
    """Whether this is a test, or what unittest reports a failed setUpClass or setUpModule as."""
    return hasattr(test, "_testMethodName")


def short_name(test: unittest.TestCase) -> str:
    """`Class.test_method`, without the module."""
    return f"{type(test).__qualname__}.{test._testMethodName}"


def flatten(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    """The tests of nested suites, in order."""
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from flatten(item)
        else:
            yield item


def wanted(name: str, pattern: str | None) -> bool:
    return pattern is None or pattern in name or fnmatch.fnmatchcase(name, pattern)


def main() -> None:
    job = Job(**json.loads(Path(sys.argv[1]).read_text()))
    os.set_inheritable(job.pipe, False)
    # A job in the background of a shell starts with SIGINT ignored, and tests of
    # KeyboardInterrupt then wait for ever.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.enable()
    faulthandler.dump_traceback_later(job.limit, exit=True)
    warnings.simplefilter("default")

    if job.loop == "rondel":
        import rondel

        if ".test_concurrent_futures" in job.module:
            swap.install_pools(rondel.ThreadPool, rondel.ProcessPool)
        else:
            swap.install(rondel.Loop)
            if job.streams == "native":
                swap.install_streams(rondel.streams)
            if job.sync == "native":
                swap.install_sync(rondel.sync)

    tests = list(flatten(unittest.defaultTestLoader.loadTestsFromName(job.module)))
    if job.loop == "rondel" and job.module in sys.modules:
        swap.adapt(sys.modules[job.module])
    table = exclusions.for_module(job.module, job.loop)
    excluded: dict[str, exclusions.Exclusion] = {}
    used: set[str] = set()
    selected: list[unittest.TestCase] = []
    for test in tests:
        if not is_test(test):
            selected.append(test)
            continue
        name = short_name(test)
        for exclusion in table:
            matching = exclusion.matching(name)
            used |= matching
            if matching:
                excluded.setdefault(name, exclusion)
        if name in job.already_run or not wanted(name, job.pattern):
            continue
        selected.append(test)

    reporter = Reporter(job, excluded)
    reporter.send("loaded", stale=sorted({p for e in table for p in e.tests} - used))
    suite = unittest.TestSuite()
    for test in selected:
        reason = excluded.get(short_name(test)) if is_test(test) else None
        if reason is None or job.run_excluded:
            suite.addTest(test)
        else:
            reporter.send(
                "end",
                test=short_name(test),
                outcome=reason.kind,
                detail=reason.reason,
                ours=0,
                excluded=reason.kind,
            )
    suite.run(reporter)
    faulthandler.dump_traceback_later(job.limit, exit=True)
    reporter.send("done", ours=swap.Created.ours)


if __name__ == "__main__":
    main()
