"""rondel.watch: what blocks the loop is seen while it does."""

import asyncio
import contextlib
import gc
import hashlib
import logging
import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import rondel
from rondel import watchdog
from support import run_on

Loop = asyncio.AbstractEventLoop
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the watchdog is Linux's")


def sleep() -> None:
    time.sleep(0.2)


def compute() -> None:
    end = time.perf_counter() + 0.25
    while time.perf_counter() < end:
        sum(range(1000))


def hold() -> None:
    began = time.perf_counter()
    count = 1_000_000
    while True:
        # One call of C code that never lets go of the GIL, and takes long enough.
        sum(range(count))
        if time.perf_counter() - began > 0.25:
            return
        began = time.perf_counter()
        count *= 3


def digest() -> None:
    began = time.perf_counter()
    count = 100_000
    while True:
        hashlib.pbkdf2_hmac("sha256", b"password", b"salt", count)
        if time.perf_counter() - began > 0.25:
            return
        began = time.perf_counter()
        count *= 3


def receive() -> None:
    near, far = socket.socketpair()
    with near, far:
        timer = threading.Timer(0.25, far.send, [b"x"])
        timer.start()
        assert near.recv(1) == b"x"
        timer.join()


def wait_for_lock() -> None:
    lock = threading.Lock()
    lock.acquire()
    timer = threading.Timer(0.25, lock.release)
    timer.start()
    with lock:
        timer.join()


def wait_for_child() -> None:
    subprocess.run([sys.executable, "-c", "import time; time.sleep(0.3)"], check=True)


KINDS = [
    (sleep, {"sleeping"}),
    (compute, {"gil"}),
    (hold, {"held", "gil"}),
    (digest, {"native"}),
    (receive, {"socket"}),
    (wait_for_lock, {"lock"}),
    (wait_for_child, {"child", "polling", "pipe"}),
]


@pytest.mark.parametrize(("block", "kinds"), KINDS, ids=[block.__name__ for block, _ in KINDS])
def test_who_blocks_and_how(rondel_loop: Loop, block: Callable[[], None], kinds: set[str]) -> None:
    async def outer() -> float:
        await asyncio.sleep(0)
        return await inner()

    async def inner() -> float:
        began = time.perf_counter()
        block()
        return time.perf_counter() - began

    async def main() -> tuple[float, list[rondel.Blocked]]:
        with rondel.watch(threshold=0.1, log=False) as watch:
            taken = await asyncio.create_task(outer(), name="the culprit")
            await asyncio.sleep(0)
        return taken, watch.blocked

    taken, reports = run_on(rondel_loop, main)
    [blocked] = [report for report in reports if report.seconds > 0.9 * taken]
    # The very duration: the callback does little else.
    assert blocked.seconds == pytest.approx(taken, abs=0.05)
    assert blocked.doing in kinds
    names = [frame.name for frame in blocked.stack]
    # The coroutines that await each other are on the stack.
    assert block.__name__ in names
    assert names.index("inner") < names.index("outer")
    assert blocked.culprit is not None
    assert blocked.culprit.name == block.__name__
    assert blocked.culprit.file == __file__
    assert blocked.task is not None
    assert blocked.task.get_name() == "the culprit"


def test_what_is_short_is_not_reported(rondel_loop: Loop) -> None:
    async def main() -> list[rondel.Blocked]:
        with rondel.watch(threshold=5, log=False) as watch:
            time.sleep(0.05)
            for _ in range(100):
                await asyncio.sleep(0.001)
        return watch.blocked

    assert run_on(rondel_loop, main) == []


def test_waiting_in_the_loop_is_not_blocking_it(rondel_loop: Loop) -> None:
    async def main() -> list[rondel.Blocked]:
        with rondel.watch(threshold=0.2, log=False) as watch:
            await asyncio.sleep(0.5)
        return watch.blocked

    assert run_on(rondel_loop, main) == []


def test_plain_callbacks_timers_and_protocols(rondel_loop: Loop) -> None:
    class Blocking(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            sleep()

    async def main() -> list[rondel.Blocked]:
        loop = asyncio.get_running_loop()
        near, far = socket.socketpair()
        transport, _ = await loop.create_connection(Blocking, sock=near)
        with far, rondel.watch(threshold=0.1, log=False) as watch:
            loop.call_soon(sleep)
            loop.call_later(0.01, sleep)
            far.send(b"x")
            while len(watch.blocked) < 3:
                await asyncio.sleep(0.01)
        transport.close()
        return watch.blocked

    reports = run_on(rondel_loop, main)
    assert all(report.task is None for report in reports)
    assert [report.culprit.name for report in reports if report.culprit] == ["sleep"] * 3
    assert sum("SocketTransport" in report.callback for report in reports) == 1
    assert sum("Handle" in report.callback for report in reports) == 2


def test_log_callback_and_summary(rondel_loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    told: list[rondel.Blocked] = []

    async def main() -> list[watchdog.Culprit]:
        with rondel.watch(threshold=0.1, on_block=told.append) as watch:
            for _ in range(2):
                await asyncio.sleep(0)
                sleep()
            await asyncio.sleep(0)
        return watch.summary()

    with caplog.at_level(logging.WARNING, "rondel.watch"):
        [culprit] = run_on(rondel_loop, main)
    assert len(told) == 2
    assert culprit.times == 2
    assert culprit.total == pytest.approx(sum(blocked.seconds for blocked in told))
    assert culprit.longest == max(blocked.seconds for blocked in told)
    first, second, last = (record.getMessage() for record in caplog.records)
    assert first.startswith("The event loop was blocked for 0.")
    assert "sleeping, in sleep (" in first
    assert "instead: await asyncio.sleep(…)" in second
    assert last.startswith("What blocked the event loop:\n  2 times")


def test_exception_of_the_callback_is_kept(
    rondel_loop: Loop, reported: list[dict[str, Any]]
) -> None:
    def fail() -> None:
        sleep()
        raise LookupError("after a while")

    async def main() -> int:
        with rondel.watch(threshold=0.1, log=False) as watch:
            asyncio.get_running_loop().call_soon(fail)
            await asyncio.sleep(0.01)
        return len(watch.blocked)

    assert run_on(rondel_loop, main) == 1
    assert [str(context["exception"]) for context in reported] == ["after a while"]


def test_signal_handler_of_the_program_and_the_watch_together(rondel_loop: Loop) -> None:
    async def main() -> tuple[int, bool]:
        ticks = 0

        def tick() -> None:
            nonlocal ticks
            ticks += 1

        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, tick)
        with rondel.watch(threshold=0.05, log=False) as watch:
            timer = threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGUSR1])
            timer.start()
            # The callback that begins a watch is not under it yet.
            await asyncio.sleep(0)
            time.sleep(0.3)
            await asyncio.sleep(0.05)
            timer.join()
        asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR1)
        return ticks, bool(watch.blocked)

    assert run_on(rondel_loop, main) == (1, True)


def test_two_loops_in_two_threads() -> None:
    async def main(block: Callable[[], None]) -> list[str]:
        with rondel.watch(threshold=0.1, log=False) as watch:
            await asyncio.sleep(0)
            block()
            await asyncio.sleep(0)
        return [report.culprit.name for report in watch.blocked if report.culprit]

    found: dict[str, list[str]] = {}

    def body(block: Callable[[], None]) -> None:
        found[block.__name__] = rondel.run(main(block))

    threads = [threading.Thread(target=body, args=(block,)) for block in (sleep, receive)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"sleep": ["sleep"], "receive": ["receive"]}


def test_closing_the_loop_ends_the_watch() -> None:
    before = watchdogs()
    loop = rondel.new_event_loop()
    watch = rondel.watch(loop, threshold=0.1)
    named = time.monotonic() + 30  # a thread names itself, once it runs
    while watchdogs() == before and time.monotonic() < named:
        time.sleep(0.001)
    assert watchdogs() == before + 1
    loop.close()
    assert watchdogs() == before
    watch.stop()


def watchdogs() -> int:
    """How many threads of watchdogs there are, by the names that the kernel knows."""
    count = 0
    for task in pathlib.Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            count += (task / "comm").read_text().strip() == "rondel-watchdog"
    return count


FORKING = """
import os, rondel
loop = rondel.new_event_loop()
rondel.watch(loop, threshold=1)
if os.fork() == 0:
    raise SystemExit(0)
print(os.wait()[1])
loop.close()
"""


def test_a_forked_child_of_a_watched_process_ends() -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKING]
    told = subprocess.run(command, capture_output=True, text=True, timeout=25, check=False)
    assert (told.stdout, told.stderr) == ("0\n", "")


def test_a_watched_loop_can_be_collected() -> None:
    loop = rondel.new_event_loop()
    watch = rondel.watch(loop, threshold=0.1)
    loop.close()
    gone = weakref.ref(loop)
    del loop, watch
    gc.collect()
    assert gone() is None


def test_errors(loop: Loop) -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        rondel.watch()
    with contextlib.closing(rondel.new_event_loop()) as ours:
        for threshold in (0, -1, float("nan")):
            with pytest.raises(ValueError, match="threshold"):
                rondel.watch(ours, threshold=threshold)
    if not isinstance(loop, rondel.Loop):
        with pytest.raises(TypeError, match="only rondel's loops"):
            rondel.watch(loop)


@pytest.mark.parametrize(
    ("text", "seconds"), [("100ms", 0.1), ("0.5s", 0.5), ("2", 2.0), (" 250us ", 0.00025)]
)
def test_thresholds(text: str, seconds: float) -> None:
    assert watchdog.parse_threshold(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "ms", "-1s", "0", "nan", "inf", "1 hour"])
def test_bad_thresholds(text: str) -> None:
    with pytest.raises(ValueError, match="."):
        watchdog.parse_threshold(text)


SCRIPT = """
import asyncio, time

def load():
    time.sleep(0.3)

async def main():
    await asyncio.sleep(0)
    load()

asyncio.run(main())
print("done")
"""


@pytest.mark.parametrize("way", ["--watch", "RONDEL_WATCH"])
def test_command_line_and_environment(way: str, tmp_path: pathlib.Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    environment = dict(os.environ)
    options = ["--watch", "100ms"] if way == "--watch" else []
    if way == "RONDEL_WATCH":
        environment["RONDEL_WATCH"] = "100ms"
    command = [sys.executable, "-m", "rondel", "run", *options, str(script)]
    told = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout == "done\n"
    assert "sleeping, in load (" in told.stderr
    assert "What blocked the event loop:" in told.stderr


def test_command_line_with_a_bad_time(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-m", "rondel", "run", "--watch", "soon", "script.py"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert told.returncode == 2
    assert "--watch" in told.stderr
