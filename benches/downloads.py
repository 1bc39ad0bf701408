"""`rondel get` beside curl, aria2c, and programs with aiohttp and rondel.http.

The same files come from nginx on loopback, in turn, in one run.

    python benches/downloads.py                       # the rondel beside this interpreter
    python benches/downloads.py --rounds 9 --folder /dev/shm --rondel .venv/bin/rondel

It needs nginx, and measures those of the others that are installed. The figures are those of the
whole process: seconds from start to end, CPU time, and the peak of its resident memory; the median
of all rounds, with the spread. Every file is compared with what was served.
"""

from __future__ import annotations

import argparse
import datetime
import filecmp
import importlib.metadata
import importlib.util
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

import report

CONFIGURATION = """
{user}
worker_processes 1;
daemon off;
pid {folder}/pid;
error_log stderr error;
events {{ worker_connections 512; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    client_body_temp_path {folder}/tmp;
    proxy_temp_path {folder}/tmp;
    fastcgi_temp_path {folder}/tmp;
    uwsgi_temp_path {folder}/tmp;
    scgi_temp_path {folder}/tmp;
    server {{ listen 127.0.0.1:{port}; root {folder}/www; }}
}}
"""


@dataclass(frozen=True)
class Row:
    name: str
    label: str
    count: int
    size: int


ROWS = (
    Row("small", "2,000 × 10 KiB", 2000, 10 << 10),
    Row("medium", "200 × 1 MiB", 200, 1 << 20),
    Row("large", "1 × 1 GiB", 1, 1 << 30),
)
EXAMPLES = Path(__file__).parent.parent / "examples"
#: Files at a time, for the commands; the programs start all, and the clients in them have 100
#: connections.
AT_A_TIME = 16


@dataclass
class Figures:
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    #: KiB
    memory: list[int] = field(default_factory=list)

    def cells(self) -> str:
        wall = statistics.median(self.wall)
        spread = (max(self.wall) - min(self.wall)) / wall / 2
        cpu = statistics.median(self.cpu)
        memory = statistics.median(self.memory) / 1024
        return f"{wall:.3f} s ±{spread:.0%} | {cpu:.3f} s | {memory:.1f} MiB"


def programs(rondel: str) -> dict[str, Callable[[Path, list[str]], list[str]]]:
    """By name: the command that downloads URLs into the folder that it runs in."""

    def ours(folder: Path, urls: list[str]) -> list[str]:
        (folder / "list").write_text("\n".join(urls))
        limit = str(AT_A_TIME)
        places = ["-j", limit, "--per-host", limit]
        return [rondel, "get", "-q", *places, "-i", str(folder / "list")]

    def curl(folder: Path, urls: list[str]) -> list[str]:
        lines = (f'url = "{url}"\noutput = "{url.rpartition("/")[2]}"\n' for url in urls)
        (folder / "config").write_text("".join(lines))
        limit = str(AT_A_TIME)
        return [
            "curl",
            "-sSZ",
            "--no-progress-meter",
            "--parallel-max",
            limit,
            "-K",
            str(folder / "config"),
        ]

    def aria2(folder: Path, urls: list[str]) -> list[str]:
        (folder / "list").write_text("\n".join(urls))
        return ["aria2c", "-q", "-j", str(AT_A_TIME), "-i", str(folder / "list")]

    def example(*arguments: str) -> Callable[[Path, list[str]], list[str]]:
        name, *options = arguments
        command = [sys.executable, str(EXAMPLES / name), *options]
        return lambda _, urls: [*command, *urls]

    found = {"rondel get": ours}
    if shutil.which("curl"):
        found["curl -Z"] = curl
    if shutil.which("aria2c"):
        found["aria2c"] = aria2
    if importlib.util.find_spec("aiohttp"):
        found["aiohttp on asyncio"] = example("download.py", "--loop", "asyncio")
        found["aiohttp on rondel"] = example("download.py", "--loop", "rondel")
        found["rondel.http"] = example("download_native.py")
    return found


def serve(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if nginx is None:
        raise SystemExit("nginx is not installed")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    (folder / "tmp").mkdir()
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(CONFIGURATION.format(folder=folder, port=port, user=user))
    process = subprocess.Popen([nginx, "-p", folder, "-c", folder / "nginx.conf"])
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 30
    while True:
        try:
            with urlopen(f"{url}/small/0.bin", timeout=5):
                return process, url
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("nginx did not start") from None
            time.sleep(0.05)


#: Starts a program and tells what it used. A process of its own, and a small one: a child's peak
#: memory begins with that of the process that it was forked from.
LAUNCHER = """
import os, sys, time
started = time.monotonic()
process = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(process, 0)
wall = time.monotonic() - started
print(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status) != 0)
"""


def measure(command: list[str], folder: Path, figures: Figures) -> None:
    launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, *command]
    done = subprocess.run(
        launcher, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False
    )
    if done.returncode:
        raise SystemExit(f"{command[0]} failed")
    wall, cpu, memory = done.stdout.split()[-3:]
    figures.wall.append(float(wall))
    figures.cpu.append(float(cpu))
    figures.memory.append(int(memory))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where files are served from and written to")
    parser.add_argument("--rondel", default=str(Path(sys.executable).with_name("rondel")))
    parser.add_argument("--docs", action="store_true", help="put it into docs/performance.md")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="rondel-downloads-", dir=options.folder) as name:
        folder = Path(name)
        generator = random.Random(0)
        for row in ROWS:
            (folder / "www" / row.name).mkdir(parents=True)
            for number in range(row.count):
                with (folder / "www" / row.name / f"{number}.bin").open("wb") as file:
                    for at in range(0, row.size, 1 << 20):
                        file.write(generator.randbytes(min(1 << 20, row.size - at)))
        os.sync()
        server, url = serve(folder)
        try:
            table = run(folder, url, options.rondel, options.rounds)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()
    print(table)
    if options.docs:
        report.write_downloads(section(table, options.rounds, options.rondel, load))


def section(table: str, rounds: int, rondel: str, load: float) -> str:
    """The table with what it was measured on."""

    def version(*command: str) -> str:
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        return " ".join(told.stdout.split()[:3])

    versions = [version(rondel, "get", "--version"), version("curl", "--version")]
    versions += [version("aria2c", "--version"), f"Python {sys.version.split()[0]}"]
    if importlib.util.find_spec("aiohttp"):
        versions.append(f"aiohttp {importlib.metadata.version('aiohttp')}")
    used = ", ".join(text for text in versions if text)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return (
        f"## Downloads\n\nFiles from nginx on loopback to the disk, by whole processes, in turn: "
        f"median of {rounds} rounds with half the range; peak of resident memory. {now}, "
        f"{os.cpu_count()} cores, load average {load:.1f} before (wall times tell little where it "
        f"is not near 0); {used}. `python benches/downloads.py --docs` repeats it.\n\n"
        f"{table}"
    )


def run(folder: Path, url: str, rondel: str, rounds: int) -> str:
    chosen = programs(rondel)
    table = {row: {name: Figures() for name in chosen} for row in ROWS}
    for number in range(rounds):
        for row in ROWS:
            urls = [f"{url}/{row.name}/{index}.bin" for index in range(row.count)]
            # Each round begins with another program.
            names = list(chosen)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                target = folder / "target"
                target.mkdir()
                lists = folder / "lists"
                lists.mkdir()
                measure(chosen[name](lists, urls), target, table[row][name])
                served = [f"{index}.bin" for index in range(row.count)]
                source = folder / "www" / row.name
                same, *wrong = filecmp.cmpfiles(source, target, served, shallow=False)
                if len(same) != row.count:
                    raise SystemExit(f"{name} did not bring what was served: {wrong}")
                shutil.rmtree(target)
                shutil.rmtree(lists)
    lines = ["| files | program | wall | CPU | peak memory |", "| --- | --- | ---: | ---: | ---: |"]
    for row, by_name in table.items():
        for name, figures in by_name.items():
            lines.append(f"| {row.label} | {name} | {figures.cells()} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
