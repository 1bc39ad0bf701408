"""The benchmark: all loops side by side, in rounds, in one run. See README.md in this folder."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import loops
import measure
import peers
import report
import rows
from measure import Bench, Failure
from peers import SetupError, tell
from rows import Row

RESULTS = peers.HERE / "results"
#: The quick run's measuring ends by then, so that all of it ends within three minutes.
QUICK_BUDGET = 140.0
QUICK_IDLE_CONNECTIONS = 2_000
#: More than this share of the machine in use by others spoils figures.
QUIET = 0.10


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benches/run.py", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rows, under three minutes")
    parser.add_argument(
        "--rows",
        default="",
        help="comma-separated parts of row names or groups, e.g. echo_tls,http",
    )
    parser.add_argument("--loops", default="", help="comma-separated loops; all without")
    parser.add_argument(
        "--python", type=Path, default=Path(sys.executable), help="the interpreter of all loops"
    )
    parser.add_argument("--json", type=Path, help="where the figures go; benches/results without")
    parser.add_argument("--rounds", type=int, help="5; 3 in the quick run, as far as time allows")
    parser.add_argument("--budget", type=float, help="seconds after which measuring ends")
    parser.add_argument("--duration", type=float, help="seconds of load per measurement")
    parser.add_argument("--wheel", type=Path, help="measure this rondel, not the checkout's")
    parser.add_argument("--baseline", type=Path, help="a second rondel, as a loop of its own")
    parser.add_argument("--refresh", action="store_true", help="look for newer peers first")
    parser.add_argument(
        "--docs",
        action=argparse.BooleanOptionalAction,
        help="write docs/performance.*; by default after a full run of all rows and loops",
    )
    parser.add_argument("--list", action="store_true", help="list the rows and stop")
    return parser.parse_args()


def wanted_loops(options: argparse.Namespace) -> list[str]:
    known = [*loops.PEERS, *loops.POOLS, loops.OURS, loops.BARE]
    chosen = [name.strip() for name in options.loops.split(",") if name.strip()] or known
    for name in chosen:
        if name not in known:
            raise SetupError(f"no loop is called {name!r}; there are {', '.join(known)}")
    if options.baseline is not None:
        chosen.append(loops.BASELINE)
    return chosen


def machine(environment: peers.Environment, cores: measure.Cores) -> dict[str, Any]:
    """What the figures depend on, as far as the system tells."""
    model = "unknown"
    memory = 0
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal"):
            memory = int(line.split()[1]) * 1024
    return {
        "cpu": model,
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "server_core": cores.server,
        "load_core": cores.load,
        "siblings": cores.load in measure.siblings(cores.server),
        "memory_bytes": memory,
        "kernel": platform.release(),
        "libc": environment.about["libc"],
    }


class Run:
    """The rounds, and what they found so far."""

    def __init__(self, bench: Bench, chosen: list[Row], names: list[str]) -> None:
        self.bench = bench
        self.rows = chosen
        self.names = names
        #: By row and loop: the samples, each with its round, and the failures.
        self.samples: dict[str, dict[str, list[dict[str, Any]]]] = {}
        self.failures: dict[str, dict[str, list[str]]] = {}
        self.given_up: set[tuple[str, str]] = set()
        self.rounds_done = 0
        self.cut_short = False

    def rounds(self, count: int, deadline: float | None) -> None:
        longest = 0.0
        for number in range(count):
            began = time.monotonic()
            for row in self.rows:
                if deadline is not None and time.monotonic() + longest > deadline:
                    self.cut_short = True
                    return
                if row.how is rows.How.IDLE and number and deadline is not None:
                    continue
                start = time.monotonic()
                self.rounds_done = number + 1
                self.row(row, number, count)
                longest = max(longest, time.monotonic() - start)
            tell(f"round {number + 1} of {count} took {time.monotonic() - began:.0f} s")

    def row(self, row: Row, number: int, count: int) -> None:
        # Each round begins with another loop, so that none always has the same neighbour.
        names = row.between(self.names)
        turn = number % len(names) if names else 0
        told: dict[str, str] = {}
        for name in [*names[turn:], *names[:turn]]:
            if (row.name, name) in self.given_up or (name == loops.BARE and not row.has_bare):
                continue
            try:
                sample = self.bench.measure(row, name)
            except Failure as failure:
                told[name] = f"failed: {failure.reason}"
                self.failures.setdefault(row.name, {}).setdefault(name, []).append(failure.reason)
                if failure.final:
                    self.given_up.add((row.name, name))
                continue
            told[name] = report.figure(sample.value, row.unit)
            found = self.samples.setdefault(row.name, {}).setdefault(name, [])
            found.append({"round": number, "value": sample.value, **sample.extra})
        line = ", ".join(f"{name} {told[name]}" for name in names if name in told)
        tell(f"[{number + 1}/{count}] {row.label}: {line}")

    def result(self, row: Row) -> dict[str, Any]:
        samples = self.samples.get(row.name, {})
        failures = self.failures.get(row.name, {})
        found: dict[str, Any] = {}
        for name in row.between(self.names):
            if name in samples:
                found[name] = {"samples": samples[name], "failures": failures.get(name, [])}
            elif name in failures:
                found[name] = {"reason": failures[name][-1]}
            elif name == loops.BARE:
                found[name] = {"reason": "there is no bare counterpart"}
            else:
                found[name] = {"reason": "not measured: the time was up"}
        about = {
            "name": row.name,
            "group": row.group,
            "label": row.label,
            "unit": row.unit,
            "how": row.how.value,
        }
        return {**about, "loops": found}


def chosen_rows(options: argparse.Namespace, open_files: int) -> list[Row]:
    patterns = [part.strip() for part in options.rows.split(",") if part.strip()]
    try:
        found = rows.select(patterns, options.quick)
    except ValueError as error:
        raise SetupError(str(error)) from None
    most = open_files - measure.SPARE_FILES
    if options.quick:
        found = [
            rows.fewer(row, QUICK_IDLE_CONNECTIONS, "quick run")
            if row.how is rows.How.HOLD
            else row
            for row in found
        ]
    return [rows.fewer(row, most, "limit on open files") for row in found]


def measure_all(run: Run, options: argparse.Namespace, rounds: int) -> list[str]:
    """Runs the rounds, and tells what cut them short; what was measured by then is kept."""
    budget = options.budget or (QUICK_BUDGET if options.quick else None)
    try:
        run.rounds(rounds, time.monotonic() + budget if budget else None)
    except KeyboardInterrupt:
        return [f"interrupted in round {run.rounds_done} of {rounds}"]
    return [f"the time was up in round {run.rounds_done} of {rounds}"] if run.cut_short else []


def main() -> None:
    options = parse()
    if options.list:
        for row in rows.ALL:
            print(f"{row.name:28} {'quick' if row.quick else '':6} {row.group}: {row.label}")
        return
    # So that `timeout` keeps the figures, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    chosen = chosen_rows(options, measure.raise_file_limit())
    wanted = wanted_loops(options)
    environment = peers.prepare(
        options.python.absolute(),
        wanted,
        refresh=options.refresh,
        wheel=options.wheel,
        baseline=options.baseline,
    )
    loadgen = peers.build_loadgen()
    names = [name for name in wanted if name not in environment.missing]
    cores = measure.choose_cores()
    rounds = options.rounds or (3 if options.quick else 5)
    duration = options.duration or (0.3 if options.quick else 1.0)
    warnings = []
    if cores.shared:
        warnings.append("there is one core only: servers and load share it")
    used = measure.busy()
    if used > QUIET:
        warnings.append(f"other programs used {used:.0%} of the machine at the start")
    for warning in warnings:
        tell(f"warning: {warning}")
    started = datetime.datetime.now(datetime.UTC)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        warmup, passes = (0.1, 1) if options.quick else (0.3, None)
        bench = Bench(environment, loadgen, cores, Path(folder), duration, warmup, passes)
        run = Run(bench, chosen, names)
        cut = measure_all(run, options, rounds)
    whole = not options.rows and not options.loops and not cut
    results = {
        "date": started.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - start, 1),
        "quick": options.quick,
        "rounds": run.rounds_done,
        "duration": duration,
        "python": environment.about,
        "machine": machine(environment, cores),
        "versions": environment.versions,
        "loops": names,
        "missing": {name: environment.missing[name] for name in wanted if name not in names},
        "warnings": warnings + cut,
        "rows": [run.result(row) for row in chosen],
    }
    kind = "quick" if options.quick else ("full" if whole else "part")
    path = options.json or RESULTS / f"{kind}-{environment.about['short']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(report.text(results))
    tell(f"figures: {path}")
    write_docs = options.docs if options.docs is not None else kind == "full"
    if write_docs:
        others = sorted(RESULTS.glob("full-*.json"), reverse=True)
        report.write_docs([path, *(o for o in others if o != path)], environment.python)


if __name__ == "__main__":
    try:
        main()
    except SetupError as error:
        raise SystemExit(f"benches/run.py: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
