"""The tables: on the terminal, and in docs/performance.md.

``python benches/report.py FILE.json...`` writes the documents anew from figures that are there.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from json import loads
from pathlib import Path
from typing import Any

import loops
import summary

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
NONE = "-"
#: Rows whose memory per connection is worth a table: few connections say little.
MANY_CONNECTIONS = "1,000×"

METHOD = """\
## Method

- All loops run in one run, on the same interpreter and machine. A round measures every row on every
  loop, one loop after the other, and begins with another loop each time; every measurement has a
  fresh process. A cell is the median over the rounds, ± half of the spread: of the middle half of
  the samples from {quartiles} samples on, of all of them otherwise.
- Ratios are taken within each round and their median is shown: the machine's speed drifts between
  rounds, and much less between neighbours. "best" is the peer with the lowest median in the row.
  Below 1 means that rondel needs less. In brackets: the spread of the ratio.
- Server rows: the server has a core of its own, the load generator (Rust, `benches/loadgen`)
  another. It keeps one request in flight on each connection and compares every byte of the echo.
  The figure is the CPU time of the server's process per request, of all its threads, user and
  system: it depends much less than the rate on how fast the load generator is. Rate and latency, as
  the load generator sees them, are in tables of their own.
- `bare` is the same service in Rust on epoll without Python (TLS: rustls): what the kernel and the
  protocol cost. It makes one system call per read and write and has no use for what a loop offers.
- Rows of one process are wall time per operation, pinned to one core; those that use threads or
  processes have all cores. The aiohttp client's row is its CPU time per request.
- Rows of process pools: each pool in a process of its own, with as many workers as there are cores
  (the start: four), started by spawn, all on the same cores; awaited on the loop that suits it,
  rondel's on rondel's, the others on asyncio's. `bare` is one byte through two pipes and back, or a
  copy of 64 MiB into warm memory. What bounds rondel's is told above.
- rondel is a release wheel, installed like the peers, and guided by the profile of `pgo/` where
  that fits. The profile was recorded with these very rows, which therefore gain as much from it as
  any program may; "What the build gives" has the share. The peers are the newest releases that have
  a wheel for the interpreter. Each loop is made as its documentation says; rondel with
  `rondel.install()`.
- A loop that has not got what a row needs has a dash, with the reason below the tables and in the
  JSON.
- `make bench` repeats all of it; `make bench QUICK=1` a part, in under three minutes. The samples
  are in `benches/results/`.
"""


def figure(value: float, unit: str) -> str:
    """A figure for people, in three digits or so."""
    if unit == "bytes":
        return f"{value / 1024:.3g} KiB" if abs(value) < 1 << 20 else f"{value / (1 << 20):.3g} MiB"
    if unit == "share":
        return f"{value * 1e3:.2f} ms/s"
    for limit, divisor, name in ((1e3, 1, "ns"), (1e6, 1e3, "µs"), (1e9, 1e6, "ms")):
        if value < limit:
            return f"{value / divisor:.{0 if divisor == 1 else precision(value / divisor)}f} {name}"
    return f"{value / 1e9:.2f} s"


def precision(value: float) -> int:
    return 2 if value < 10 else 1 if value < 100 else 0


def cell(row: dict[str, Any], loop: str) -> str:
    found = summary.spread(row, loop)
    if found is None:
        return NONE
    text = figure(found.median, row["unit"])
    return f"{text} ±{found.relative:.0%}" if found.count > 1 else text


def ratio_cell(found: summary.Spread | None) -> str:
    if found is None:
        return NONE
    text = f"{found.median:.2f}"
    return f"{text} ({found.low:.2f}–{found.high:.2f})" if found.count > 1 else text


def measured(results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows for which at least one loop has a figure."""
    for row in results["rows"]:
        if any(summary.spread(row, name) for name in row["loops"]):
            yield row


def columns(rows: list[dict[str, Any]]) -> list[str]:
    """The loops, or pools, that the rows were measured for."""
    return list(dict.fromkeys(name for row in rows for name in row["loops"]))


def ratios(names: list[str]) -> list[tuple[str, str]]:
    """The ratio columns: heading, and the loop that rondel is divided by ("" for the best peer)."""
    if loops.OURS not in names:
        return []
    found = [("÷ best", "")] if any(name not in loops.NO_PEERS for name in names) else []
    others = ("uvloop", loops.STDLIB_POOL, loops.BARE, loops.BASELINE)
    return found + [(f"÷ {name}", name) for name in others if name in names]


def line(row: dict[str, Any], names: list[str]) -> list[str]:
    cells = [row["label"], *(cell(row, name) for name in names)]
    for _, other in ratios(names):
        divisor = other or summary.best_peer(row)
        text = ratio_cell(summary.ratio(row, loops.OURS, divisor) if divisor else None)
        cells.append(f"{text} {divisor}" if not other and text != NONE else text)
    return cells


def table_of(rows: list[dict[str, Any]], title: str = "") -> list[list[str]]:
    """The rows of a group, and a heading above them."""
    names = columns(rows)
    head = [title, *names, *(title for title, _ in ratios(names))]
    return [head, *(line(row, names) for row in rows)]


def groups(results: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in measured(results):
        found.setdefault(row["group"], []).append(row)
    return found


def verdicts(results: dict[str, Any]) -> str:
    """How often rondel is ahead of the best peer."""
    counts = {"ahead": 0, "level": 0, "behind": 0}
    for row in measured(results):
        peer = summary.best_peer(row)
        found = summary.ratio(row, loops.OURS, peer) if peer else None
        if found is not None:
            counts[summary.verdict(found)] += 1
    total = sum(counts.values())
    if not total:
        return ""
    return (
        f"rondel against the best peer in each of {total} rows: ahead in {counts['ahead']}, "
        f"within the spread in {counts['level']}, behind in {counts['behind']}."
    )


def reasons(results: dict[str, Any]) -> list[str]:
    """Why cells are empty, or rest on fewer samples; what is the same for several in one line."""
    rows: dict[tuple[str, str], list[str]] = {}
    for row in results["rows"]:
        for name, outcome in row["loops"].items():
            why = [f"failed in some rounds: {text}" for text in outcome.get("failures", [])]
            if "reason" in outcome and name != loops.BARE:
                why.append(outcome["reason"])
            for text in dict.fromkeys(why):
                rows.setdefault((name, text), []).append(row["label"])
    names: dict[tuple[str, str], list[str]] = {}
    for (name, text), labels in rows.items():
        names.setdefault((text, "; ".join(labels)), []).append(name)
    missing = [f"{name}: not measured: {why}" for name, why in results["missing"].items()]
    found = [f"{', '.join(who)}: {text} [{labels}]" for (text, labels), who in names.items()]
    return missing + found


# --- terminal -----------------------------------------------------------------------------------


def aligned(table: list[list[str]]) -> str:
    widths = [max(len(cells[column]) for cells in table) for column in range(len(table[0]))]
    lines = []
    for cells in table:
        first = cells[0].ljust(widths[0])
        rest = [text.rjust(width) for text, width in zip(cells[1:], widths[1:], strict=True)]
        lines.append("  ".join([first, *rest]))
    return "\n".join(lines)


def text(results: dict[str, Any]) -> str:
    """The run for a terminal."""
    parts = [f"Python {results['python']['version']}, {results['rounds']} rounds; lower is better"]
    for group, rows in groups(results).items():
        parts.append(aligned(table_of(rows, group)))
    why = reasons(results)
    if why:
        parts.append("\n".join(why))
    parts += [f"warning: {warning}" for warning in results["warnings"]]
    if verdicts(results):
        parts.append(verdicts(results))
    return "\n\n".join(parts)


# --- docs/performance.md ------------------------------------------------------------------------


def markdown(table: list[list[str]]) -> str:
    head, *body = table
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *body))


def machine(results: dict[str, Any]) -> str:
    told, python = results["machine"], results["python"]
    versions = {name: version for name, version in results["versions"].items() if name != "asyncio"}
    shared = ", hardware threads of one core" if told["siblings"] else ""
    optimised = ", --enable-optimizations" if "--enable-optimizations" in python["flags"] else ""
    facts = [
        f"**Date**: {results['date']}, {results['rounds']} rounds of {results['duration']} s of "
        f"load per measurement, {results['seconds'] / 60:.0f} minutes in all",
        f"**Machine**: {told['cpu']}, {told['cores']} cores, "
        f"{told['memory_bytes'] / (1 << 30):.0f} GiB, Linux {told['kernel']}, {told['libc']}; "
        f"server on core {told['server_core']}, load on core {told['load_core']}{shared}",
        f"**Python**: {python['version']} ({python['build']}, {python['compiler']}{optimised}), "
        f"{python['openssl']}",
        "**Versions**: " + ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]
    facts += [f"**Note**: {warning}" for warning in results["warnings"]]
    return "\n".join(f"- {fact}" for fact in facts)


def throughput(row: dict[str, Any], loop: str) -> str:
    rate = summary.spread(row, loop, "rate")
    half = summary.spread(row, loop, "p50_us")
    most = summary.spread(row, loop, "p99_us")
    if rate is None or half is None or most is None:
        return NONE
    return f"{rate.median:,.0f}/s, {half.median:,.0f}, {most.median:,.0f}"


def memory(row: dict[str, Any], loop: str) -> str:
    found = summary.spread(row, loop, "bytes_per_connection")
    return NONE if found is None else figure(found.median, "bytes")


def section(results: dict[str, Any]) -> str:
    kind = "quick run" if results["quick"] else "full run"
    if len(groups(results)) == 1:
        kind = next(iter(groups(results)))
    parts = [f"## Python {results['python']['version']}, {kind}", machine(results)]
    if verdicts(results):
        parts.append(verdicts(results))
    names = results["loops"]
    found = groups(results)
    for group, rows in found.items():
        parts += [f"### {group}", markdown(table_of(rows))]
    names = [name for name in names if name not in loops.POOLS]
    served = [row for row in measured(results) if row["how"] == "server"]
    if served:
        parts.append("### Rate and latency: requests per second, p50 and p99 in µs")
        body = [[row["label"], *(throughput(row, name) for name in names)] for row in served]
        parts.append(markdown([["", *names], *body]))
    crowded = [row for row in served if MANY_CONNECTIONS in row["label"]]
    if crowded:
        parts.append("### Resident memory per connection under load")
        body = [[row["label"], *(memory(row, name) for name in names)] for row in crowded]
        parts.append(markdown([["", *names], *body]))
    why = reasons(results)
    if why:
        parts += ["### What is missing", "\n".join(f"- {text}" for text in why)]
    return "\n\n".join(parts)


#: The section that benches/downloads.py writes.
DOWNLOADS = HERE / "results" / "downloads.md"


def downloads() -> list[str]:
    """The section about downloads, if it was measured."""
    return [DOWNLOADS.read_text().strip()] if DOWNLOADS.exists() else []


def write_downloads(text: str) -> None:
    """Keep the section about downloads, and put it into docs/performance.md in place of the old."""
    path = DOCS / "performance.md"
    whole = path.read_text()
    method = whole.index("## Method\n")
    for old in downloads():
        if old in whole:
            whole = whole.replace(f"{old}\n\n", "")
            method = whole.index("## Method\n")
    DOWNLOADS.parent.mkdir(exist_ok=True)
    DOWNLOADS.write_text(f"{text}\n")
    path.write_text(f"{whole[:method]}{text}\n\n{whole[method:]}")


def write_docs(paths: list[Path], python: Path) -> None:
    """docs/performance.md and its plots from the runs; the first one is drawn."""
    runs = [loads(path.read_text()) for path in paths]
    intro = (
        "# Performance\n\n<!-- Generated by benches/run.py; changes are lost. -->\n\n"
        "![The loops side by side](performance.svg)\n\n"
        "Every loop in one run, lower is better. The plot shows the first run below; how it was "
        "measured is at the end."
    )
    method = METHOD.format(quartiles=summary.QUARTILES_FROM)
    DOCS.mkdir(exist_ok=True)
    path = DOCS / "performance.md"
    bounds = (HERE / "bounds.md").read_text()
    parts = [intro, *(section(run) for run in runs), *downloads(), bounds, method]
    path.write_text("\n\n".join(parts))
    print(f"written: {path}", file=sys.stderr)
    plots = [DOCS / "performance.svg", DOCS / "performance.png"]
    command = [python, HERE / "plot.py", paths[0], *plots]
    subprocess.run([str(part) for part in command], check=True, timeout=120)


def main() -> None:
    paths = [Path(argument) for argument in sys.argv[1:]]
    if not paths:
        raise SystemExit("usage: report.py FILE.json... (matplotlib is needed for the plot)")
    write_docs(paths, Path(sys.executable))


if __name__ == "__main__":
    main()
