"""The main job: run the download programs for real and show what came of it.

    python examples/run_downloads.py [--files COUNTxSIZE ...]

starts the origin server (examples/origin.py), downloads everything from it by aiohttp on asyncio's
loop, by the same program on rondel's, by rondel.http and rondel.files, and by ``rondel get``, each
time as a process of its own, verifies every file against the origin's checksums and prints a table.
Exit status 1 if a download or a checksum failed.

    python examples/run_downloads.py URL...

downloads those URLs into ``downloads/`` by aiohttp on rondel's loop instead.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

from asked import file_name
from origin import DEFAULT_FILES, Entry

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Program:
    """One way to download: its name, its command, what it imports, and the loop that it reports."""

    name: str
    command: tuple[str, ...]
    imports: str
    loop: str | None

    def arguments(self, directory: Path, urls: Sequence[str]) -> list[str]:
        """The whole command line for these downloads."""
        return [sys.executable, *self.command, "-o", str(directory), *urls]


AIOHTTP = str(HERE / "download.py")
ON_RONDEL = Program(
    "aiohttp on rondel",
    (AIOHTTP, "--loop", "rondel"),
    "aiohttp, async_timeout, rondel",
    "rondel",
)
PROGRAMS = (
    Program(
        "aiohttp on asyncio", (AIOHTTP, "--loop", "asyncio"), "aiohttp, async_timeout", "asyncio"
    ),
    ON_RONDEL,
    Program(
        "rondel.http",
        (str(HERE / "download_native.py"),),
        "async_timeout, rondel.http, rondel.files",
        "rondel",
    ),
    # The origin is on this machine, whatever proxy leads out of it.
    Program("rondel get", ("-m", "rondel", "get", "-q", "--no-proxy"), "rondel._rondel", None),
)


@dataclass(frozen=True)
class Outcome:
    """What one run of a download program came to."""

    program: str
    files: int
    total_files: int
    size: int
    wall: float
    cpu: float
    verified: int | None
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True if every file arrived, and unharmed where a checksum is known."""
        return not self.problems and self.files == self.total_files


@dataclass(frozen=True)
class Run:
    """One run of a download program: wall and CPU seconds, and what went wrong."""

    wall: float
    cpu: float
    problems: tuple[str, ...]


# --- what people see --------------------------------------------------------------------------


def human(size: float) -> str:
    """A number of bytes as people read it: ``"212.4 MiB"``."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


class Progress:
    """A line that is redrawn in place on a terminal; elsewhere a line now and then."""

    WIDTH = 28
    PLAIN_SECONDS = 1.0

    def __init__(self, label: str, files: int, size: int | None) -> None:
        self._label = label
        self._files = files
        self._size = size
        self._live = sys.stdout.isatty()
        self._started = self._shown = time.monotonic()

    def show(self, files: int, size: int, *, final: bool = False) -> None:
        """Show that this many files hold this many bytes together."""
        now = time.monotonic()
        if not (final or self._live or now - self._shown >= self.PLAIN_SECONDS):
            return
        self._shown = now
        seconds = now - self._started
        done = human(size) if self._size is None else f"{human(size)} of {human(self._size)}"
        text = f"{self._label:<18} {files}/{self._files} files  {done}  {seconds:.1f} s"
        if not self._live:
            print(f"  {text}", flush=True)
            return
        share = size / self._size if self._size else files / self._files
        # A line that wraps could not be redrawn in place.
        room = shutil.get_terminal_size().columns - len(text) - 5
        width = max(0, min(self.WIDTH, room))
        filled = min(width, round(share * width))
        bar = "█" * filled + "░" * (width - filled)
        print(f"\r\x1b[K  {bar}  {text}", end="\n" if final else "", flush=True)


def print_table(outcomes: Sequence[Outcome]) -> None:
    """Print a row per run, numbers to the right."""
    heads = ("program", "files", "bytes", "seconds", "CPU seconds", "MiB/s", "checksums")
    rows = [
        (
            outcome.program,
            f"{outcome.files}/{outcome.total_files}",
            f"{outcome.size:,}",
            f"{outcome.wall:.2f}",
            f"{outcome.cpu:.2f}",
            f"{outcome.size / (1 << 20) / outcome.wall:.0f}",
            "none known"
            if outcome.verified is None
            else f"{outcome.verified}/{outcome.total_files} verified",
        )
        for outcome in outcomes
    ]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *rest = (
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  " + "   ".join((first, *rest))

    print()
    print(line(heads))
    print("  " + "   ".join("─" * width for width in widths))
    for row in rows:
        print(line(row))
    for outcome in outcomes:
        for problem in outcome.problems:
            print(f"  {outcome.program}: {problem}")
    print()


# --- running it -------------------------------------------------------------------------------


@contextlib.contextmanager
def origin(files: Sequence[str]) -> Iterator[tuple[str, list[Entry]]]:
    """Start the origin server; give its address and what it serves."""
    command = [sys.executable, str(HERE / "origin.py"), *files]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            url = process.stdout.readline().decode().strip()
            if not url:
                raise SystemExit("the origin server did not start (its message is above)")
            with urlopen(f"{url}/manifest.json", timeout=30) as response:
                yield url, [Entry(**entry) for entry in json.load(response)]
        finally:
            process.stdin.close()


def present(directory: Path, names: Sequence[str]) -> dict[str, int]:
    """Sizes in bytes of those of the named files that exist, whole or (`rondel get`'s) in part."""
    sizes = {}
    for name in names:
        for path in (directory / name, directory / f"{name}.rondel-part"):
            with contextlib.suppress(FileNotFoundError):
                sizes[name] = path.stat().st_size
                break
    return sizes


def warm_up(program: Program) -> None:
    """Load the program and its imports once, so that the first run does not pay for a cold disk."""
    imports = [sys.executable, "-c", f"import {program.imports}"]
    if subprocess.run(imports, check=False).returncode:
        raise SystemExit(f"{program.name} cannot run here (its message is above)")


def run_program(
    program: Program, urls: Sequence[str], directory: Path, sizes: Mapping[str, int] | None
) -> Run:
    """Run a download program, showing progress.

    `sizes` are the files' expected sizes in bytes, where they are known.
    """
    names = [file_name(url) for url in urls]
    progress = Progress(program.name, len(urls), None if sizes is None else sum(sizes.values()))

    def show(*, final: bool = False) -> None:
        found = present(directory, names)
        complete = sum(sizes is None or size == sizes[name] for name, size in found.items())
        progress.show(complete, sum(found.values()), final=final)

    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started = time.monotonic()
        process = subprocess.Popen(program.arguments(directory, urls), stdout=out, stderr=err)
        try:
            # wait4 rather than wait(): it is what tells the CPU time of this very child.
            while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
                show()
                time.sleep(0.05)
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(ended[1])
        show(final=True)
        out.seek(0)
        err.seek(0)
        messages = err.read().splitlines()
        ran_on = out.readline().strip().rpartition(" ")[2]
    cpu = ended[2].ru_utime + ended[2].ru_stime
    if process.returncode == 0 and program.loop not in (None, ran_on.partition(".")[0]):
        messages.append(f"the program ran on {ran_on or 'an unknown loop'}")
    elif process.returncode == 0:
        # Warnings, which are worth seeing and no failure.
        print(*messages, sep="\n", end="\n" if messages else "", file=sys.stderr)
        messages = []
    elif not messages:
        messages = [f"the program ended with status {process.returncode}"]
    return Run(wall, cpu, tuple(messages))


def verify(directory: Path, entries: Sequence[Entry]) -> list[str]:
    """Compare every file with its checksum; return a sentence per file that is not right."""
    problems = []
    for entry in entries:
        try:
            with open(directory / entry.name, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            problems.append(f"{entry.name} is missing")
            continue
        if found != entry.sha256:
            size = (directory / entry.name).stat().st_size
            problems.append(f"{entry.name} is not what was served ({size} of {entry.size} bytes)")
    return problems


def compare_programs(files: Sequence[str]) -> list[Outcome]:
    """Download everything from the origin, once by each program."""
    outcomes = []
    print("starting the origin server …", flush=True)
    with origin(files) as (url, entries):
        sizes = {entry.name: entry.size for entry in entries}
        urls = [f"{url}/{entry.name}" for entry in entries]
        print(f"{len(urls)} files, {human(sum(sizes.values()))}, from {url}", flush=True)
        for program in PROGRAMS:
            warm_up(program)
            # A directory per run, gone before the next one: nothing left from the first run can
            # pass for a download of the second, or make it wait for the disk.
            with tempfile.TemporaryDirectory(prefix="downloads-") as name:
                directory = Path(name)
                run = run_program(program, urls, directory, sizes)
                found = present(directory, list(sizes))
                wrong = verify(directory, entries)
                outcomes.append(
                    Outcome(
                        program.name,
                        files=sum(sizes[name] == size for name, size in found.items()),
                        total_files=len(urls),
                        size=sum(found.values()),
                        wall=run.wall,
                        cpu=run.cpu,
                        verified=len(entries) - len(wrong),
                        problems=(*run.problems, *wrong),
                    )
                )
    return outcomes


def download_urls(urls: Sequence[str], directory: Path) -> list[Outcome]:
    """Download what the user named, on rondel's loop; only whole files reach `directory`."""
    directory.mkdir(exist_ok=True)
    urls = list(dict.fromkeys(urls))
    print(f"{len(urls)} URLs into {directory}{os.sep}", flush=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=directory) as name:
        partial = Path(name)
        run = run_program(ON_RONDEL, urls, partial, None)
        complete = [
            file_name(url)
            for url in urls
            if not any(problem.startswith(f"failed: {url}: ") for problem in run.problems)
        ]
        found = present(partial, complete)
        for name in found:
            (partial / name).replace(directory / name)
    return [
        Outcome(
            ON_RONDEL.name,
            files=len(found),
            total_files=len(urls),
            size=sum(found.values()),
            wall=run.wall,
            cpu=run.cpu,
            verified=None,
            problems=run.problems,
        )
    ]


def main() -> int:
    """Run, print the table, and say by the exit status whether all is well."""
    parser = argparse.ArgumentParser(
        description="Download by aiohttp on both loops, by rondel.http and by rondel get; compare."
    )
    parser.add_argument("urls", nargs="*", metavar="URL", help="download these instead")
    parser.add_argument(
        "--files",
        nargs="+",
        metavar="COUNTxSIZE",
        default=DEFAULT_FILES,
        help="what the origin serves (default: {})".format(" ".join(DEFAULT_FILES)),
    )
    arguments = parser.parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that cannot show a bar's characters is no reason to fail.
        sys.stdout.reconfigure(errors="replace")
    try:
        outcomes = (
            download_urls(arguments.urls, Path("downloads"))
            if arguments.urls
            else compare_programs(arguments.files)
        )
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    print_table(outcomes)
    if arguments.urls:
        print("No checksums are known for these files, so their content was not verified.")
    return 0 if all(outcome.ok for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
