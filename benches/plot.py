"""The plot for the README: ``python plot.py RESULTS.json OUT.svg OUT.png``.

Runs in the benchmark's environment, the only one that has matplotlib.
"""

from __future__ import annotations

import sys
from json import loads
from pathlib import Path
from typing import Any

import loops
import report
import summary
from matplotlib import pyplot

#: The rows that the plot shows, with short titles; those that a run has not got are left out.
PANELS = {
    "call_soon_chain": "call_soon",
    "call_later_cancel": "timer + cancel",
    "sleep0": "sleep(0)",
    "gather_10k": "gather, per task",
    "executor_gathered": "run_in_executor, gathered",
    "connect": "connect",
    "spawn": "spawn",
    "readline": "readline",
    "echo_protocol_16x1k": "TCP echo, 1 KiB",
    "echo_protocol_16x64k": "TCP echo, 64 KiB",
    "echo_streams_16x1k": "streams echo, 1 KiB",
    "echo_tls_protocol_16x1k": "TLS echo, 1 KiB",
    "echo_unix_16x1k": "Unix echo, 1 KiB",
    "echo_udp_16x1k": "UDP echo, 1 KiB",
    "uvicorn_plaintext": "uvicorn",
    "aiohttp_server": "aiohttp server",
}
COLUMNS = 4
OURS, PEER, LIMIT, TEXT = "#c8431b", "#b8bfc7", "#3d4852", "#22272e"


def panel(axes: Any, row: dict[str, Any], title: str, names: list[str]) -> None:
    """One row: a bar for each loop, the bare server as a line."""
    shown = [name for name in names if name != loops.BARE]
    found = {name: summary.spread(row, name) for name in shown}
    longest = max(figure.median for figure in found.values() if figure is not None)
    for place, name in enumerate(reversed(shown)):
        figure = found[name]
        if figure is None:
            axes.text(longest * 0.02, place, "-", va="center", fontsize=8, color=TEXT)
            continue
        error = [[figure.median - figure.low], [figure.high - figure.median]]
        axes.barh(
            place,
            figure.median,
            xerr=error if figure.count > 1 else None,
            color=OURS if name == loops.OURS else PEER,
            error_kw={"elinewidth": 0.8, "ecolor": LIMIT},
            height=0.72,
        )
        text = report.figure(figure.median, row["unit"])
        end = figure.high if figure.count > 1 else figure.median
        axes.text(end + longest * 0.03, place, text, va="center", fontsize=8, color=TEXT)
    bare = summary.spread(row, loops.BARE)
    if bare is not None:
        axes.axvline(bare.median, color=LIMIT, linestyle="--", linewidth=0.9)
    axes.set_yticks(range(len(shown)), list(reversed(shown)), fontsize=8)
    for label in axes.get_yticklabels():
        if label.get_text() == loops.OURS:
            label.set_fontweight("bold")
            label.set_color(OURS)
    axes.set_xlim(0, longest * 1.38)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.set_title(title, fontsize=10, loc="left", color=TEXT)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def draw(results: dict[str, Any], outputs: list[Path]) -> None:
    measured = {row["name"]: row for row in report.measured(results)}
    panels = [(measured[name], title) for name, title in PANELS.items() if name in measured]
    if not panels:
        raise SystemExit("plot.py: the run has none of the rows that are drawn")
    height = -(-len(panels) // COLUMNS)
    drawn = report.columns([row for row, _ in panels])
    names = [name for name in results["loops"] if name in drawn]
    size = (3.1 * COLUMNS, (0.55 + 0.21 * len(names)) * height + 0.9)
    figure, grid = pyplot.subplots(height, COLUMNS, figsize=size, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (row, title) in zip(grid.flat, panels, strict=False):
        panel(axes, row, title, names)
    told = results["machine"]
    note = (
        f"Time per operation, lower is better; servers: CPU time per request, 16 connections. "
        f"Dashed: the same in Rust without Python.\nPython {results['python']['version']}, "
        f"{told['cpu']}, {told['cores']} cores, Linux {told['kernel']}, "
        f"{results['date'][:10]}, {results['rounds']} rounds"
        f"{', quick run' if results['quick'] else ''}"
    )
    figure.suptitle(note, fontsize=9, color=TEXT, x=0.01, ha="left")
    figure.tight_layout(h_pad=1.2, w_pad=0.8)
    for output in outputs:
        figure.savefig(output, dpi=150, facecolor="white", metadata=dated(output))
        print(f"written: {output}", file=sys.stderr)


def dated(output: Path) -> dict[str, Any]:
    """Without the time of drawing in it, the same figures give the same SVG."""
    return {"Date": None} if output.suffix == ".svg" else {}


def main() -> None:
    if len(sys.argv) < 3:
        raise SystemExit("usage: plot.py RESULTS.json OUT.svg [OUT.png]")
    pyplot.switch_backend("Agg")
    pyplot.rcParams["svg.hashsalt"] = "rondel"
    pyplot.rcParams["svg.fonttype"] = "none"
    draw(loads(Path(sys.argv[1]).read_text()), [Path(path) for path in sys.argv[2:]])


if __name__ == "__main__":
    main()
