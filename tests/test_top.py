"""rondel top: another process's loops, also while they are blocked."""

import asyncio
import contextlib
import json
import os
import pathlib
import pty
import select
import socket
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import rondel
from rondel.top import places, view
from support import run_on

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the watchdog is Linux's"),
    pytest.mark.timeout(120),
]
Loop = asyncio.AbstractEventLoop

PROGRAM = """
import asyncio, sys, time

async def outer(event):
    await inner(event)

async def inner(event):
    await event.wait()

def sleeps():
    time.sleep(1000)

def holds():
    # One call of C code, which does not let go of the GIL: a minute of it, and more.
    sum(range(10**11))

async def main():
    event = asyncio.Event()
    tasks = [asyncio.create_task(outer(event), name=f"waits \\x1b[2J {n}") for n in range(3)]
    await asyncio.sleep(0.01)
    time.sleep(0.15)
    await asyncio.sleep(0)
    print("ready", flush=True)
    line = await asyncio.to_thread(sys.stdin.readline)
    {"sleep": sleeps, "hold": holds}[line.strip()]()

asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def runtime_folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.fixture
def program(tmp_path: pathlib.Path) -> Iterator[subprocess.Popen[str]]:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(PROGRAM))
    command = [sys.executable, "-m", "rondel", "run", "--top", str(script)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def top(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "rondel", "top", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def until(found: Callable[[dict[str, Any]], bool], path: pathlib.Path) -> dict[str, Any]:
    """What the process says as soon as it is this."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        answer = view.ask(path)
        if found(answer):
            return answer
        time.sleep(0.02)
    pytest.fail(f"never: {answer}")


def test_tasks_and_where_they_wait(program: subprocess.Popen[str]) -> None:
    told = top(str(program.pid), "--json")
    assert told.returncode == 0, told.stderr
    answer = json.loads(told.stdout)
    assert answer["pid"] == program.pid
    [(key, native)] = answer["loops"].items()
    assert native["turns"] > 0
    assert native["blocked"] is None
    details = answer["python"]["loops"][key]
    assert details["metrics"]["callbacks"] > 0
    assert details["task_count"] == 4
    waiting = [task for task in details["tasks"] if task["name"].startswith("waits")]
    assert {task["state"] for task in waiting} == {"waiting"}
    assert {task["where"].split(":")[0].split("/")[0] for task in waiting} == {"inner ("}
    assert {task["on"] for task in waiting} == {"Event.wait"}
    [group] = [place for place in details["places"] if place["on"] == "Event.wait"]
    assert group["count"] == 3
    [slow] = details["slow"]
    assert slow["doing"] == "sleeping"
    assert slow["name"].startswith("main (")
    # For people; the only process there is need not be named.
    shown = top()
    assert shown.returncode == 0, shown.stderr
    assert "     3 waiting  inner (" in shown.stdout
    assert "slow callbacks (100.00 ms and longer):" in shown.stdout
    assert "\x1b" not in shown.stdout
    # Ended by a signal, it leaves its socket behind, which nobody answers on.
    program.terminate()
    program.wait()
    refused = top(str(program.pid))
    assert refused.returncode == 1
    assert places.of_process(program.pid).exists()
    assert places.processes() == []
    assert not places.of_process(program.pid).exists()
    assert "rondel top:" in refused.stderr


def test_while_the_loop_sleeps(program: subprocess.Popen[str]) -> None:
    assert program.stdin is not None
    print("sleep", file=program.stdin, flush=True)
    answer = until(is_blocked, places.of_process(program.pid))
    [(key, native)] = answer["loops"].items()
    assert native["blocked"]["doing"] == "sleeping"
    assert "in sleeps" in native["blocked"]["stack"]
    # Python code answers as well.
    states = {task["state"] for task in answer["python"]["loops"][key]["tasks"]}
    assert "running" in states
    shown = "\n".join(view.lines(answer, None))
    assert "BLOCKED for " in shown
    assert "in sleeps" in shown


def test_while_c_code_holds_the_gil(program: subprocess.Popen[str]) -> None:
    assert program.stdin is not None
    print("hold", file=program.stdin, flush=True)
    answer = until(
        lambda answer: is_blocked(answer) and answer["python"] is None,
        places.of_process(program.pid),
    )
    [native] = answer["loops"].values()
    assert native["blocked"]["doing"] == "held"
    assert "in holds" in native["blocked"]["stack"]
    assert native["turns"] > 0
    assert any("C code holds the GIL" in line for line in view.lines(answer, None))


def is_blocked(answer: dict[str, Any]) -> bool:
    return any((native["blocked"] or {}).get("stack") for native in answer["loops"].values())


def test_live_view(program: subprocess.Popen[str]) -> None:
    command = [sys.executable, "-m", "rondel", "top", str(program.pid), "--interval", "0.1"]
    terminal, other_end = pty.openpty()
    environment = {**os.environ, "COLUMNS": "300", "LINES": "50"}
    with subprocess.Popen(command, stdin=other_end, stdout=other_end, env=environment) as child:
        os.close(other_end)
        try:
            seen = read_until(terminal, lambda seen: seen.count("\x1b[H") >= 3)
            assert f"process {program.pid}:" in seen
            assert "callbacks/s" in seen
            assert "\x1b[2J" not in seen  # of a task's name
            os.write(terminal, b"q")
            read_until(terminal, lambda seen: "\x1b[?1049l" in seen)
            assert child.wait(60) == 0
        finally:
            child.kill()
            os.close(terminal)


def read_until(terminal: int, found: Callable[[str], bool]) -> str:
    seen = ""
    end = time.monotonic() + 60
    while not found(seen):
        ready, _, _ = select.select([terminal], [], [], end - time.monotonic())
        assert ready, seen
        seen += os.read(terminal, 65536).decode(errors="replace")
    return seen


def test_serving_a_loop_for_a_while(rondel_loop: Loop, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "socket"

    async def main() -> None:
        with rondel.serve_metrics(path=path) as serving:
            assert serving.path == path
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            answer = await asyncio.to_thread(view.ask, path)
            assert len(answer["loops"]) == len(answer["python"]["loops"]) == 1
            with pytest.raises(OSError, match="in use"):
                rondel.serve_metrics(path=path)
            with contextlib.closing(rondel.new_event_loop()) as second:
                serving.add(second)
                answer = await asyncio.to_thread(view.ask, path)
                assert len(answer["loops"]) == len(answer["python"]["loops"]) == 2
            answer = await asyncio.to_thread(view.ask, path)
            assert len(answer["loops"]) == len(answer["python"]["loops"]) == 1
        assert not path.exists()
        serving.stop()

    run_on(rondel_loop, main)


def test_a_socket_that_was_left_behind(rondel_loop: Loop, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with rondel.serve_metrics(rondel_loop, path):
        assert view.ask(path)["pid"] == os.getpid()


def test_the_folder_is_the_users_alone(tmp_path: pathlib.Path) -> None:
    folder = places.folder()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o755)
    with pytest.raises(PermissionError, match="alone"):
        places.folder()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(PermissionError, match="alone"):
        places.folder()


def test_errors(loop: Loop, tmp_path: pathlib.Path) -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        rondel.serve_metrics()
    if not isinstance(loop, rondel.Loop):
        with pytest.raises(TypeError, match="only rondel's loops"):
            rondel.serve_metrics(loop)
    for arguments in ([], ["1"], [str(tmp_path / "nothing")]):
        options = view.argparse.Namespace(
            target=arguments[0] if arguments else None, json=False, once=True, interval=1
        )
        assert view.main(options) == 1
