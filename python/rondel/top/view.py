"""``rondel top``: a view of another process's loops, once or again and again."""

import argparse
import json
import os
import pathlib
import select
import shutil
import socket
import sys
import termios
import time
import tty
from typing import Any

from ..doing import NAMES
from ..metering import BOUNDS, Histogram
from . import places

#: Seconds that a process has to answer.
PATIENCE = 10.0

_HOME, _CLEAR, _REST_OF_LINE = "\x1b[H", "\x1b[J", "\x1b[K"
_OTHER_SCREEN, _OWN_SCREEN = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command's options."""
    top = commands.add_parser(
        "top",
        help="look at the loops of a running process",
        description="Look at the loops of a running process: their tasks and where they wait, lag, "
        "and what blocks them. The process was started by 'rondel run --top' or with RONDEL_TOP=1, "
        "or calls rondel.serve_metrics(). Ends with q.",
    )
    top.add_argument("target", nargs="?", help="a PID, or the path of a socket; none: the only one")
    top.add_argument("--once", action="store_true", help="print it once; so without a terminal")
    top.add_argument("--json", action="store_true", help="print what the process says, once")
    top.add_argument("--interval", type=float, default=1.0, help="seconds between two looks")


def main(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    try:
        path = _path(options.target)
        if options.json:
            print(json.dumps(ask(path), indent=2))
        elif options.once or not (sys.stdin.isatty() and sys.stdout.isatty()):
            print("\n".join(lines(ask(path), None)))
        else:
            _live(path, max(options.interval, 0.05))
    except (OSError, ValueError) as error:
        print(f"rondel top: {error}", file=sys.stderr)
        return 1
    return 0


def _path(target: str | None) -> pathlib.Path:
    if target is None:
        found = places.processes()
        if len(found) != 1:
            named = ", ".join(map(str, found)) or "none"
            raise ValueError(f"say which process; those that can be looked at: {named}")
        return places.of_process(found[0])
    path = places.of_process(int(target)) if target.isdecimal() else pathlib.Path(target)
    if not path.exists():
        raise ValueError(
            f"there is no socket {path}; is the process running, under 'rondel run --top' or "
            "with RONDEL_TOP=1?"
        )
    return path


def ask(path: pathlib.Path) -> dict[str, Any]:
    """Return what the process at this socket says. Raises OSError, ValueError for other answers."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(path))
        parts = []
        while part := client.recv(65536):
            parts.append(part)
    answer = json.loads(b"".join(parts))
    if not isinstance(answer, dict) or "loops" not in answer:
        raise ValueError(f"{path} does not speak to rondel top")
    return {**answer, "at": time.monotonic()}


def lines(now: dict[str, Any], before: dict[str, Any] | None) -> list[str]:
    """Return the view's lines; rates and lag are since `before`, or since the loop was made."""
    python = now["python"] or {}
    program = " ".join(python.get("program", ())) or "?"
    shown = [f"process {now['pid']}: {program}"]
    if now["python"] is None:
        shown.append("C code holds the GIL: what its tasks do cannot be told")
    for key, native in now["loops"].items():
        old = (before or {}).get("loops", {}).get(key)
        shown += ["", *_loop_lines(key, native, old)]
        shown += _blocked_lines(native["blocked"])
        details = python.get("loops", {}).get(key)
        if details is not None:
            then = ((before or {}).get("python") or {}).get("loops", {}).get(key)
            shown += _detail_lines(details, then)
    if not now["loops"]:
        shown += ["", "no loop"]
    return [_printable(line) for line in shown]


def _loop_lines(key: str, native: dict[str, Any], old: dict[str, Any] | None) -> list[str]:
    past = old or dict.fromkeys(native, 0)
    total = (native["total"] - past["total"]) or 1.0
    shares = ", ".join(
        f"{100 * (native[name] - past[name]) / total:.0f} % {text}"
        for name, text in (("running", "running"), ("idle", "idle"), ("gil", "waiting for the GIL"))
    )
    rates = ", ".join(
        f"{(native[name] - past[name]) / total:,.0f} {name}/s" for name in ("turns", "callbacks")
    )
    return [f"loop {key}: {shares}; {rates}"]


def _blocked_lines(blocked: dict[str, Any] | None) -> list[str]:
    if blocked is None:
        return []
    stack = [line for line in blocked["stack"].splitlines() if line.startswith("  File")]
    return [
        f"  BLOCKED for {blocked['seconds']:.1f} s, {NAMES[blocked['doing']]}",
        *(f"  {line}" for line in stack[:10]),
    ]


def _detail_lines(details: dict[str, Any], then: dict[str, Any] | None) -> list[str]:
    metrics = details["metrics"]
    lag = _since(metrics["lag"], then["metrics"]["lag"] if then else None)
    shown = [
        f"  lag: {_time(lag.quantile(0.5))} median, {_time(lag.quantile(0.99))} for 99 %; "
        f"longest ever {_time(metrics['lag']['longest'])}, "
        f"timers late by {_time(metrics['lateness']['longest'])}",
        f"  {metrics['ready']} ready, {metrics['timers']} timers, "
        f"{metrics['transports']} transports, {details['task_count']} tasks",
    ]
    for place in details["places"]:
        inner = f", in {place['on']}" if place["on"] else ""
        shown.append(f"  {place['count']:>6} {place['state']:<8} {place['where']}{inner}")
    if details["slow"]:
        shown.append(f"  slow callbacks ({_time(details['threshold'])} and longer):")
    for slow in details["slow"]:
        shown.append(
            f"  {slow['times']:>6} times, {_time(slow['total'])} in all, "
            f"{_time(slow['longest'])} at most: {slow['name']}, {NAMES[slow['doing']]}"
        )
    return shown


def _since(now: dict[str, Any], then: dict[str, Any] | None) -> Histogram:
    past = then["counts"] if then else [0] * (len(BOUNDS) + 1)
    counts = tuple(new - old for new, old in zip(now["counts"], past, strict=True))
    return Histogram(counts, now["total"], now["longest"])


def _time(seconds: float) -> str:
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.2f} {unit}"
    return f"{seconds * 1e6:.0f} us"


def _printable(line: str) -> str:
    # Names are the program's: they must not reach the terminal as commands.
    return "".join(at if at.isprintable() else "?" for at in line)


def _live(path: pathlib.Path, interval: float) -> None:
    terminal = sys.stdin.fileno()
    saved = termios.tcgetattr(terminal)
    print(_OTHER_SCREEN, end="")
    try:
        tty.setcbreak(terminal)
        before = None
        while True:
            now = ask(path)
            width, height = shutil.get_terminal_size()
            shown = [line[:width] for line in lines(now, before)[: height - 1]]
            print(_HOME + "".join(f"{at}{_REST_OF_LINE}\n" for at in shown) + _CLEAR, end="")
            sys.stdout.flush()
            before = now
            ready, _, _ = select.select([terminal], [], [], interval)
            if ready and os.read(terminal, 1) in (b"q", b""):
                return
    except KeyboardInterrupt:
        return
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, saved)
        print(_OWN_SCREEN, end="", flush=True)
