"""rondel.choose, rondel.rule and `rondel advise`: the advice is the right one."""

import asyncio
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import pytest
import rondel
import workloads
from rondel.advice.script import ScriptReport, sample_script

HERE = pathlib.Path(__file__).parent


@contextlib.contextmanager
def slow_server(delay: float) -> Iterator[int]:
    command = [sys.executable, str(HERE / "programs" / "slow_http_server.py"), str(delay)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield int(server.stdout.readline())
        finally:
            server.kill()


@pytest.fixture
def second_core() -> None:
    """Skip where no second core is free: nothing computes faster side by side then."""
    compute = [sys.executable, "-c", "sum(number * number for number in range(6_000_000))"]

    def together(count: int) -> float:
        began = time.perf_counter()
        running = [subprocess.Popen(compute) for _ in range(count)]
        for process in running:
            assert process.wait(60) == 0
        return time.perf_counter() - began

    if together(2) > 1.5 * min(together(1), together(1)):
        pytest.skip("other programs keep the second core busy")


def throughput(advice: rondel.Recommendation, option: str) -> float:
    return max((trial.throughput for trial in advice.trials if trial.option == option), default=0.0)


def seconds_at_full_size(
    advice: rondel.Recommendation, option: str, fn: Callable[..., Any], *args: Any, calls: int
) -> float:
    """Run `calls` calls under the option, with as many workers as suited it best."""
    trials = [trial for trial in advice.trials if trial.option == option and not trial.untried]
    trial = max(trials, key=lambda trial: trial.throughput)
    if option == "direct":
        began = time.perf_counter()
        for _ in range(calls):
            fn(*args)
        return time.perf_counter() - began
    pool: Executor = (
        rondel.ThreadPool(trial.workers)
        if option == "threads"
        else rondel.ProcessPool(trial.workers)
    )
    with pool:
        for future in [pool.submit(fn, *args) for _ in range(trial.workers)]:
            future.result(60)
        began = time.perf_counter()
        for future in [pool.submit(fn, *args) for _ in range(calls)]:
            future.result(60)
        return time.perf_counter() - began


def measured(option: str, *call: Any) -> rondel.Recommendation:
    """Advice on a call, measured anew while it is not this option: others may take a core."""
    for _ in range(2):
        advice = rondel.choose(*call, budget=4)
        if advice.option == option:
            return advice
    return rondel.choose(*call, budget=4)


def best_of_two(*args: Any, calls: int) -> float:
    # Other programs may take a core for a while.
    return min(seconds_at_full_size(*args, calls=calls) for _ in range(2))


@pytest.mark.parametrize(
    ("io_bound", "io_very_slow", "option"),
    [
        (True, True, "asyncio"),
        (True, False, "threads"),
        (False, False, "processes"),
        (False, True, "processes"),
    ],
)
def test_rule(io_bound: bool, io_very_slow: bool, option: str) -> None:
    assert rondel.rule(io_bound=io_bound, io_very_slow=io_very_slow) == option


def test_sleeping() -> None:
    advice = rondel.choose(workloads.sleep, 0.05, budget=4)
    assert advice.option == "threads"
    assert advice.sentence == "I/O-bound: use threads"
    assert advice.io_bound
    assert advice.io_very_slow
    assert advice.workers >= 32
    assert 0.05 <= advice.wall < 0.1
    assert advice.gil is None or advice.gil < 0.3
    [loop] = [trial for trial in advice.trials if trial.option == "asyncio"]
    assert loop.untried == "not a coroutine function (async def)"


def test_sleeping_on_a_loop() -> None:
    advice = rondel.choose(workloads.sleep_on_a_loop, 0.05, budget=4)
    assert advice.option == "asyncio"
    assert advice.sentence == "I/O-bound and very slow: use asyncio"
    assert advice.workers >= 32


def test_slow_server() -> None:
    with slow_server(0.1) as port:
        on_a_loop = measured("asyncio", workloads.fetch_on_a_loop, port)
        in_threads = measured("threads", workloads.fetch, f"http://127.0.0.1:{port}/")
    assert on_a_loop.sentence == "I/O-bound and very slow: use asyncio"
    # 500 connections at once are what a loop is for.
    assert max(trial.workers for trial in on_a_loop.trials if trial.option == "asyncio") >= 500
    assert in_threads.sentence == "I/O-bound: use threads"


def test_pure_python_loop(second_core: None) -> None:
    advice = measured("processes", workloads.compute, 200_000)
    assert advice.sentence == "CPU-bound: use processes"
    assert advice.option == "processes"
    assert not advice.io_bound
    assert advice.gil is None or advice.gil > 0.7
    taken = {
        option: best_of_two(advice, option, workloads.compute, 200_000, calls=100)
        for option in ("direct", "threads", "processes")
    }
    assert min(taken, key=lambda option: taken[option]) == "processes"


def test_hashing_large_buffers(second_core: None) -> None:
    advice = measured("threads", workloads.hash_buffer)
    assert advice.option == "threads"
    assert advice.sentence == "CPU-bound, but mostly without the GIL: use threads"
    assert advice.gil is None or advice.gil < 0.3
    taken = {
        option: best_of_two(advice, option, workloads.hash_buffer, calls=200)
        for option in ("direct", "threads")
    }
    assert taken["threads"] < taken["direct"]


def test_computing_and_sleeping(second_core: None) -> None:
    advice = rondel.choose(workloads.compute_and_sleep, 200_000, 0.02, budget=4)
    # The GIL is what bounds threads here: processes gain more, the more cores there are.
    assert advice.option in ("threads", "processes")
    assert throughput(advice, advice.option) > 1.5 * throughput(advice, "direct")


def test_reading_a_cached_file(second_core: None, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(8 << 20))
    advice = rondel.choose(workloads.read_file, str(path), budget=4)
    # From the page cache it is a copy in memory, which may or may not gain from a second core, and
    # threads of one process wait for each other's page tables.
    assert not advice.io_bound
    fastest = max(trial.throughput for trial in advice.trials)
    assert throughput(advice, advice.option) >= 0.9 * fastest


def test_matrix_products(second_core: None) -> None:
    advice = rondel.choose(workloads.multiply, 400, budget=4)
    # The library computes without the GIL and, as it is built, on every core by itself.
    assert advice.option in ("direct", "threads")
    assert not advice.io_bound
    assert advice.gil is None or advice.gil < 0.5


def test_a_call_that_is_too_short() -> None:
    advice = rondel.choose(workloads.increment, 1, budget=2)
    assert advice.option == "direct"
    assert advice.sentence == "Too short to be worth its way elsewhere: call it directly"


def test_what_cannot_be_shipped_is_said() -> None:
    advice = rondel.choose(lambda: time.sleep(0.01), budget=2)
    assert advice.option == "threads"
    assert advice.ship_bytes is None
    [processes] = [trial for trial in advice.trials if trial.option == "processes"]
    assert processes.untried is not None
    assert processes.untried.startswith("cannot be pickled")


def test_what_it_says_can_be_read_and_written_as_json() -> None:
    advice = rondel.choose(workloads.sleep, 0.01, budget=2)
    told = json.loads(json.dumps(advice.to_dict()))
    assert told["option"] == advice.option
    assert told["trials"][0]["option"] == "direct"
    text = str(advice)
    assert text.startswith(advice.sentence)
    assert "<- this" in text


def test_inside_a_running_loop() -> None:
    async def main() -> str:
        return rondel.choose(workloads.sleep_on_a_loop, 0.02, budget=2).option

    assert asyncio.run(main()) == "asyncio"


def test_errors() -> None:
    with pytest.raises(LookupError, match="gone"):
        rondel.choose(workloads.fail, "gone")
    with pytest.raises(ValueError, match="budget"):
        rondel.choose(workloads.increment, 1, budget=0)
    with pytest.raises(TypeError, match="callable"):
        rondel.choose(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="coroutine function"):
        rondel.choose(lambda: workloads.sleep_on_a_loop(0.0))


def advise(*arguments: str, cwd: pathlib.Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rondel", "advise", *arguments]
    environment = os.environ | {"PYTHONPATH": str(HERE)}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_command_with_a_function(tmp_path: pathlib.Path) -> None:
    target = ("--budget", "2", "workloads:sleep", "--args", "[0.02]")
    told = advise(*target, cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("I/O-bound: use threads\n")
    told = advise("--json", *target, cwd=tmp_path)
    assert json.loads(told.stdout)["option"] == "threads"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("workloads:missing",), "no such function"),
        (("missing:function",), "no such function"),
        (("--args", "[", "workloads:sleep"), "--args is not JSON"),
        (("--args", "1", "workloads:sleep"), "--args must be a JSON array"),
        (("workloads:sleep", "--args", "1"), "--args must be a JSON array"),
        (("workloads:sleep", "1"), "a function gets its arguments by --args"),
    ],
)
def test_command_with_bad_input(
    arguments: tuple[str, ...], text: str, tmp_path: pathlib.Path
) -> None:
    told = advise(*arguments, cwd=tmp_path)
    assert told.returncode == 2
    assert text in told.stderr


SCRIPT = """
import hashlib, socket, threading, time

def wait_for_a_server():
    for _ in range(10):
        near, far = socket.socketpair()
        with near, far:
            timer = threading.Timer(0.04, far.send, [b"x"])
            timer.start()
            near.recv(1)
            timer.join()

def compute():
    end = time.perf_counter() + 0.4
    while time.perf_counter() < end:
        sum(number * number for number in range(10_000))

def digest():
    end = time.perf_counter() + 0.4
    while time.perf_counter() < end:
        hashlib.sha256(bytes(4 << 20)).digest()

def nap():
    time.sleep(0.4)

def work():
    wait_for_a_server()
    compute()
    digest()
    nap()

work()
print("done")
"""

BLOCKING = """
import asyncio, time

def load():
    time.sleep(0.3)

async def job():
    await asyncio.sleep(0.1)
    load()

asyncio.run(job())
"""

CLEAN = """
import asyncio

async def job():
    await asyncio.sleep(0.3)

asyncio.run(job())
raise SystemExit(3)
"""


def script_report(path: pathlib.Path, text: str, tmp_path: pathlib.Path) -> tuple[Any, int, str]:
    path.write_text(textwrap.dedent(text))
    told = advise("--json", "--output", "report.json", path.name, cwd=tmp_path)
    report = tmp_path / "report.json"
    assert report.exists(), told.stderr
    return json.loads(report.read_text()), told.returncode, told.stdout


def test_command_with_a_script(tmp_path: pathlib.Path) -> None:
    report, status, output = script_report(tmp_path / "script.py", SCRIPT, tmp_path)
    assert status == 0
    assert output == "done\n"
    found: dict[str, dict[str, Any]] = {}
    for function in report["functions"]:
        found.setdefault(function["name"], function)
    assert found["wait_for_a_server"]["doing"] == "socket"
    assert found["wait_for_a_server"]["advice"] == "I/O-bound and very slow: use asyncio"
    assert found["compute"]["doing"] == "gil"
    assert found["compute"]["advice"].startswith("CPU-bound: use processes")
    assert found["digest"]["doing"] == "native"
    assert found["digest"]["advice"].startswith("CPU-bound without the GIL: use threads")
    assert found["nap"]["doing"] == "sleeping"
    for name in ("wait_for_a_server", "compute", "digest", "nap"):
        assert 0.2 < found[name]["seconds"] < 1.5
        assert not found[name]["blocks"]
    assert report["wall"] >= sum(report["doing"].values()) * 0.9


def test_script_that_blocks_its_loop(tmp_path: pathlib.Path) -> None:
    report, _, _ = script_report(tmp_path / "script.py", BLOCKING, tmp_path)
    assert report["sentence"] == "The event loop is blocked, most of all by load, sleeping"
    [load] = [function for function in report["functions"] if function["name"] == "load"]
    assert load["blocks"]
    assert "asyncio.sleep" in load["advice"]
    assert report["doing"]["loop"] > 0.05


def test_script_that_does_not_block_its_loop(tmp_path: pathlib.Path) -> None:
    report, status, _ = script_report(tmp_path / "script.py", CLEAN, tmp_path)
    assert status == 3
    assert report["sentence"] == "I/O-bound, and on an event loop already: nothing blocks it"


def test_missing_script(tmp_path: pathlib.Path) -> None:
    told = advise("missing.py", cwd=tmp_path)
    assert told.returncode == 2
    assert "can't open file" in told.stderr


def test_report_as_text() -> None:
    report = sample_script(lambda: time.sleep(0.2), str(HERE))
    assert isinstance(report, ScriptReport)
    assert "sleeping" in str(report)
    assert str(report).startswith("I/O-bound and very slow: use asyncio")


@pytest.mark.parametrize("kind", [ThreadPoolExecutor, rondel.ThreadPool])
def test_pools_that_are_left_are_waited_for_until_they_are_idle(
    kind: Callable[[int], ThreadPoolExecutor],
) -> None:
    other, own = kind(1), kind(1)
    try:
        other.submit(threading.get_ident).result()
        done: list[Future[None]] = []
        report = sample_script(lambda: done.append(own.submit(time.sleep, 0.3)), str(HERE))
        assert done[0].done()
        assert report.wall >= 0.3
    finally:
        own.shutdown()
        other.shutdown()


def test_what_a_script_raises_is_raised() -> None:
    with pytest.raises(LookupError, match="gone"):
        sample_script(lambda: workloads.fail("gone"), str(HERE))
