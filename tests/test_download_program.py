"""The examples as a user runs them: the download program, its origin, and the main job."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import pytest
from support import HOST, in_thread, unused_port

EXAMPLES = Path(__file__).parent.parent / "examples"
# Empty and one-byte files, both sides of the 1,024 bytes that the program reads at a time, and of
# the 64 KiB at which aiohttp tells the transport to pause.
FILES = ("2x0B", "1x1B", "1x1023B", "1x1024B", "1x1025B", "20x10KiB", "3x65537B", "2x5MiB")
LIMIT = 25


class Origin(NamedTuple):
    """The running origin server: its address and its files."""

    url: str
    manifest: list[dict[str, Any]]

    @property
    def urls(self) -> list[str]:
        return [f"{self.url}/{entry['name']}" for entry in self.manifest]


class Program(NamedTuple):
    """A download program: its file, and what it is told by ``--loop``."""

    file: str
    loop: str


WAYS = [
    Program("download.py", "asyncio"),
    Program("download.py", "rondel"),
    Program("download_native.py", "rondel"),
]


@pytest.fixture(params=WAYS, ids=lambda program: f"{program.file}-{program.loop}")
def way(request: pytest.FixtureRequest) -> Program:
    return Program(*request.param)


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    command = [sys.executable, str(EXAMPLES / "origin.py"), *FILES]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        url = process.stdout.readline().strip()
        with urlopen(f"{url}/manifest.json", timeout=LIMIT) as response:
            yield Origin(url, json.load(response))
        process.stdin.close()
        # It says nothing and goes when its standard input ends.
        assert process.stdout.read() == ""
        assert process.wait(LIMIT) == 0


def program(name: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
        **options,
    )


def download(
    way: Program, urls: Sequence[str], directory: Path
) -> subprocess.CompletedProcess[str]:
    return program(way.file, "--loop", way.loop, "-o", str(directory), *urls)


def test_every_file_arrives_unharmed(way: Program, origin: Origin, tmp_path: Path) -> None:
    target = tmp_path / "made" / "by the program"
    result = download(way, origin.urls, target)
    assert (result.returncode, result.stderr) == (0, "")
    found = {
        path.name: (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in target.iterdir()
    }
    assert found == {entry["name"]: (entry["size"], entry["sha256"]) for entry in origin.manifest}
    # The loop that it says is the one it was given, not what it was asked for.
    assert re.fullmatch(rf"{len(origin.urls)} URLs on {way.loop}\..*\n", result.stdout)


def test_the_program_needs_nothing_of_rondel_but_the_loop() -> None:
    source = (EXAMPLES / "download.py").read_text()
    function = re.search(r"def select_loop.*?(?=\n\n\n)", source, re.DOTALL)
    assert function is not None
    code = re.sub(r'"""(?s:.*?)"""|#.*', "", source.replace(function[0], ""))
    # What is left of the name is the choice on the command line.
    assert re.findall(r".*rondel.*", code) == [
        '    select_loop(read_command_line("rondel", "asyncio"))'
    ]


def test_the_native_program_has_its_imports_changed_and_no_more() -> None:
    def body(name: str) -> list[str]:
        source = (EXAMPLES / name).read_text()
        return source[source.index("async def download_coroutine") :].splitlines()

    ours, theirs = body("download_native.py"), body("download.py")
    assert [line for line in ours if line not in theirs] == [
        '        async with files.open(file_name(url), "wb") as file:',
        "                await file.write(chunk)",
        '    read_command_line("rondel")',
        "    sys.exit(1 if rondel.run(main()) else 0)",
    ]
    assert len(ours) < len(theirs)


def test_failures_are_told_and_the_rest_arrives(
    way: Program, origin: Origin, tmp_path: Path
) -> None:
    missing = f"{origin.url}/missing"
    refused = f"http://{HOST}:{unused_port()}/refused"
    good = origin.urls[-1]
    with short_server() as short:
        result = download(way, [missing, refused, short, good], tmp_path)
    assert result.returncode == 1
    assert [line.split(": ")[1] for line in result.stderr.splitlines() if line] == [
        missing,
        refused,
        short,
    ]
    assert f"failed: {missing}: ClientResponseError: 404" in result.stderr
    assert f"failed: {refused}: ClientConnectorError: " in result.stderr
    assert f"failed: {short}: ClientPayloadError: " in result.stderr
    last = origin.manifest[-1]
    assert hashlib.sha256((tmp_path / last["name"]).read_bytes()).hexdigest() == last["sha256"]


@contextlib.contextmanager
def short_server() -> Iterator[str]:
    """The URL of a server that promises more than it sends."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():
                pass
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + bytes(50_000))

    with socketserver.TCPServer((HOST, 0), Handler) as server:
        with in_thread(server.serve_forever, 0.05):
            try:
                yield f"http://{HOST}:{server.server_address[1]}/short"
            finally:
                server.shutdown()


@pytest.mark.timeout(60)
def test_a_server_that_stalls_is_given_up_after_ten_seconds(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as listener, ThreadPoolExecutor() as pool:
        url = f"http://{HOST}:{listener.getsockname()[1]}/stalls"
        started = time.monotonic()
        # All at once: each waits for ten seconds.
        results = [pool.submit(download, way, [url], tmp_path) for way in WAYS]
        for result in map(Future.result, results):
            assert (result.returncode, result.stderr) == (1, f"failed: {url}: TimeoutError: \n")
            assert 10 <= time.monotonic() - started < 20


def test_two_urls_for_one_file_are_refused(tmp_path: Path) -> None:
    result = download(
        Program("download.py", "rondel"),
        ["http://a.invalid/f", "http://b.invalid/f"],
        tmp_path / "target",
    )
    assert result.returncode == 2
    assert "same file" in result.stderr
    assert not (tmp_path / "target").exists()


def test_interrupting_it_leaves_at_once(way: Program, tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as listener:
        url = f"http://{HOST}:{listener.getsockname()[1]}/stalls"
        command = [sys.executable, str(EXAMPLES / way.file), "--loop", way.loop, url]
        with subprocess.Popen(
            command, cwd=tmp_path, stderr=subprocess.PIPE, preexec_fn=heed_sigint
        ) as process:
            try:
                listener.settimeout(LIMIT)
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(LIMIT)
                    assert connection.recv(65_536).startswith(b"GET /stalls")
                    started = time.monotonic()
                    process.send_signal(signal.SIGINT)
                    assert process.stderr is not None
                    message = process.stderr.read().decode()
                    assert process.wait(LIMIT) == -signal.SIGINT
                    assert time.monotonic() - started < 5
                    assert re.search("^KeyboardInterrupt$", message, re.MULTILINE)
            finally:
                process.kill()


def heed_sigint() -> None:
    """A process started in the background inherits SIGINT ignored; Python then leaves it so."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


# --- the main job -----------------------------------------------------------------------------

PROGRAMS = ["aiohttp on asyncio", "aiohttp on rondel", "rondel.http", "rondel get"]


def rows(output: str) -> dict[str, list[str]]:
    """The table's rows by program, the cells of each."""
    table = output[output.index("─") :]
    found = re.findall(rf"^  ({'|'.join(PROGRAMS)}) {{2,}}(\S.*)$", table, re.MULTILINE)
    return {program: re.split(r" {2,}", rest) for program, rest in found}


@pytest.mark.timeout(60)
def test_the_main_job_compares_the_programs() -> None:
    result = program("run_downloads.py", "--files", "30x10KiB", "3x1MiB")
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    table = rows(result.stdout)
    assert list(table) == PROGRAMS
    for files, size, wall, cpu, rate, checksums in table.values():
        assert (files, size, checksums) == ("33/33", "3,452,928", "33/33 verified")
        assert float(wall) > 0 and float(cpu) > 0 and float(rate) >= 0


SPOIL = """
def spoil(name):
    with open(name, "r+b") as file:
        if name == "10KiB-02.bin":
            first = file.read(1)
            file.seek(0)
            file.write(bytes([first[0] ^ 1]))
        if name == "10KiB-03.bin":
            file.truncate(10)


"""


@pytest.mark.timeout(60)
def test_the_main_job_notices_harm(tmp_path: Path) -> None:
    """A download program that changes one byte, or writes too little, is found out."""
    for name in EXAMPLES.glob("*.py"):
        shutil.copy(name, tmp_path)
    path = tmp_path / "download.py"
    source = path.read_text()
    head, end = "async def download_coroutine", "        return await response.release()\n"
    assert source.count(head) == source.count(end) == 1
    source = source.replace(end, f"        spoil(file_name(url))\n{end}")
    path.write_text(source.replace(head, SPOIL + head))
    result = subprocess.run(
        [sys.executable, str(tmp_path / "run_downloads.py"), "--files", "4x10KiB"],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert result.returncode == 1
    table = rows(result.stdout)
    for name, cells in table.items():
        spoilt = name in ("aiohttp on asyncio", "aiohttp on rondel")
        assert cells[0] == ("3/4" if spoilt else "4/4")
        assert cells[-1] == ("2/4 verified" if spoilt else "4/4 verified")
    assert "10KiB-02.bin is not what was served (10240 of 10240 bytes)" in result.stdout
    assert "10KiB-03.bin is not what was served (10 of 10240 bytes)" in result.stdout


@pytest.mark.timeout(60)
def test_the_main_job_downloads_what_it_is_given(origin: Origin, tmp_path: Path) -> None:
    urls = [*origin.urls[-2:], f"{origin.url}/missing"]
    old = tmp_path / "downloads" / "missing"
    old.parent.mkdir()
    old.write_text("from an earlier run")
    result = program("run_downloads.py", *urls, cwd=tmp_path)
    assert result.returncode == 1
    assert rows(result.stdout)["aiohttp on rondel"][0] == "2/3"
    assert rows(result.stdout)["aiohttp on rondel"][-1] == "none known"
    assert f"failed: {urls[-1]}: " in result.stdout
    for entry in origin.manifest[-2:]:
        content = (old.parent / entry["name"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    assert sorted(os.listdir(old.parent)) == ["5MiB-01.bin", "5MiB-02.bin", "missing"]
    assert old.read_text() == "from an earlier run"

    result = program("run_downloads.py", *urls[:2], cwd=tmp_path)
    assert result.returncode == 0
    assert "not verified" in result.stdout


def test_the_origin_is_the_same_every_time(origin: Origin) -> None:
    """Its files depend on their names alone, so that figures can be compared between runs."""
    by_name = {entry["name"]: entry for entry in origin.manifest}
    empty = hashlib.sha256(b"").hexdigest()
    assert by_name["0B-01.bin"] == {"name": "0B-01.bin", "size": 0, "sha256": empty}
    assert by_name["0B-02.bin"]["sha256"] == empty
    sums = {entry["sha256"] for entry in origin.manifest}
    assert len(sums) == len(origin.manifest) - 1
    result = program("origin.py", "nonsense")
    assert result.returncode == 2
    assert "COUNTxSIZE" in result.stderr
    with contextlib.ExitStack() as stack:
        bodies: list[bytes] = []
        threads = [
            stack.enter_context(in_thread(lambda: bodies.append(fetch(origin.urls[-1]))))
            for _ in range(4)
        ]
        for thread in threads:
            thread.join(LIMIT)
    assert {hashlib.sha256(body).hexdigest() for body in bodies} == {origin.manifest[-1]["sha256"]}
    assert len(bodies) == 4


def fetch(url: str) -> bytes:
    with urlopen(url, timeout=LIMIT) as response:
        return bytes(response.read())
