"""Child processes through asyncio.create_subprocess_exec() and create_subprocess_shell()."""

import asyncio
import os
import pathlib
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from support import LoopFactory, children, in_thread, run_on, skip_if_asyncio_errs, turns, until

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]

PIPE = subprocess.PIPE
PYTHON = sys.executable

exec_ = asyncio.create_subprocess_exec
shell = asyncio.create_subprocess_shell

pytestmark = pytest.mark.usefixtures("no_descriptor_left", "no_child_left")


def py(code: str) -> tuple[str, ...]:
    """A program: Python code, started quickly."""
    return PYTHON, "-S", "-E", "-c", code


def test_output_input_and_status(run: Run) -> None:
    async def main() -> None:
        code = "import sys; d = sys.stdin.read(); print(d[::-1]); print(len(d), file=sys.stderr)"
        proc = await exec_(*py(code + "; sys.exit(7)"), stdin=PIPE, stdout=PIPE, stderr=PIPE)
        assert proc.returncode is None
        assert proc.pid in children()
        assert await proc.communicate(b"abc") == (b"cba\n", b"3\n")
        assert proc.returncode == 7
        assert await proc.wait() == 7

    run(main)


def test_shell(run: Run) -> None:
    async def main() -> None:
        proc = await shell("echo $((20 + 3)); exit 5", stdout=PIPE)
        assert await proc.communicate() == (b"23\n", None)
        assert proc.returncode == 5
        proc = await shell(b"exit 6")
        assert await proc.wait() == 6

    run(main)


def test_stderr_into_stdout(run: Run) -> None:
    async def main() -> None:
        proc = await shell("echo a; echo b >&2", stdout=PIPE, stderr=subprocess.STDOUT)
        assert await proc.communicate() == (b"a\nb\n", None)

    run(main)


def test_large_data_both_ways(run: Run) -> None:
    data = os.urandom(1 << 20) * 8

    async def main() -> None:
        proc = await exec_("cat", stdin=PIPE, stdout=PIPE)
        out, _ = await proc.communicate(data)
        assert out == data

    run(main)


def test_reading_pauses_when_nobody_takes_the_data(run: Run) -> None:
    async def main() -> None:
        size = 2_000_000
        proc = await exec_(*py(f"print('x' * {size}, end='')"), stdout=PIPE, limit=1000)
        assert proc.stdout is not None
        source: Any = proc._transport.get_pipe_transport(1)  # type: ignore[attr-defined]
        await until(lambda: not source.is_reading())
        out = await proc.stdout.read()
        assert len(out) == size
        assert await proc.wait() == 0

    run(main)


def test_drain_waits_until_the_child_reads(run: Run) -> None:
    async def main() -> None:
        proc = await exec_(*py("import sys; sys.stdin.readline(); sys.stdin.read()"), stdin=PIPE)
        assert proc.stdin is not None
        os.kill(proc.pid, signal.SIGSTOP)
        proc.stdin.write(b"x" * 1_000_000)
        drain = asyncio.ensure_future(proc.stdin.drain())
        await asyncio.sleep(0.02)
        assert not drain.done()
        os.kill(proc.pid, signal.SIGCONT)
        await drain
        proc.stdin.close()
        await proc.stdin.wait_closed()
        assert await proc.wait() == 0

    run(main)


def test_interactive_lines(run: Run) -> None:
    async def main() -> None:
        proc = await exec_("cat", stdin=PIPE, stdout=PIPE)
        assert proc.stdin is not None and proc.stdout is not None
        for number in range(100):
            line = b"%d\n" % number
            proc.stdin.write(line)
            assert await proc.stdout.readline() == line
        proc.stdin.write_eof()
        assert await proc.stdout.read() == b""
        assert await proc.wait() == 0

    run(main)


@pytest.mark.parametrize(
    ("method", "status"), [("terminate", -signal.SIGTERM), ("kill", -signal.SIGKILL)]
)
def test_ending_a_child(run: Run, method: str, status: int) -> None:
    async def main() -> None:
        proc = await exec_("sleep", "100")
        getattr(proc, method)()
        assert await proc.wait() == status
        await turns(3)
        with pytest.raises(ProcessLookupError):
            getattr(proc, method)()
        with pytest.raises(ProcessLookupError):
            proc.send_signal(signal.SIGHUP)

    run(main)


def test_send_signal(run: Run) -> None:
    async def main() -> None:
        proc = await shell("trap 'echo got; exit 3' HUP; echo ready; cat", stdin=PIPE, stdout=PIPE)
        assert proc.stdout is not None and proc.stdin is not None
        assert await proc.stdout.readline() == b"ready\n"
        proc.send_signal(signal.SIGHUP)
        proc.stdin.close()
        assert await proc.stdout.read() == b"got\n"
        assert await proc.wait() == 3

    run(main)


def test_kill_during_write(run: Run) -> None:
    async def main() -> None:
        proc = await exec_("sleep", "100", stdin=PIPE)
        assert proc.stdin is not None
        proc.stdin.write(b"x" * 1_000_000)
        await asyncio.sleep(0.01)
        proc.kill()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            await proc.stdin.drain()
        assert await proc.wait() == -signal.SIGKILL

    run(main)


def test_communicate_ignores_that_the_child_does_not_read(run: Run) -> None:
    async def main() -> None:
        proc = await exec_("true", stdin=PIPE)
        await proc.communicate(b"x" * 1_000_000)
        assert proc.returncode == 0

    run(main)


def test_exit_while_a_grandchild_keeps_the_pipe(loop: Loop, run: Run) -> None:
    skip_if_asyncio_errs(loop, "wait() waits for the pipes too", until=(3, 13, 1))

    async def main() -> None:
        # The grandchild ends when its standard input does, which is ours to close.
        reader, writer = os.pipe()
        command = "exec 3<&0; cat <&3 & echo started; exit 4"
        proc = await shell(command, stdin=reader, stdout=PIPE)
        os.close(reader)
        assert proc.stdout is not None
        assert await asyncio.wait_for(proc.wait(), 5) == 4
        assert await proc.stdout.readline() == b"started\n"
        os.write(writer, b"later\n")
        assert await proc.stdout.readline() == b"later\n"
        os.close(writer)
        assert await proc.stdout.read() == b""

    run(main)


def test_data_after_the_exit_is_read(run: Run) -> None:
    async def main() -> None:
        proc = await exec_(*py("print('y' * 50000, end='')"), stdout=PIPE)
        await until(lambda: proc.returncode is not None)
        assert proc.stdout is not None
        assert len(await proc.stdout.read()) == 50000

    run(main)


def test_unknown_program(run: Run) -> None:
    async def main() -> None:
        for options in ({}, {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE}):
            with pytest.raises(FileNotFoundError) as caught:
                await exec_("/nowhere/no-program", **options)
            assert caught.value.filename == "/nowhere/no-program"

    run(main)


def test_directory_is_missing(run: Run, tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        missing = str(tmp_path / "missing")
        with pytest.raises(FileNotFoundError) as caught:
            await exec_("true", cwd=missing, stdout=PIPE)
        assert caught.value.filename == missing

    run(main)


def test_program_may_not_be_run(run: Run, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "text"
    path.write_text("no program")

    async def main() -> None:
        with pytest.raises(PermissionError):
            await exec_(str(path))

    run(main)


def test_preexec_fn(run: Run) -> None:
    def failing() -> None:
        raise ZeroDivisionError

    async def main() -> None:
        proc = await exec_("sh", "-c", "umask", preexec_fn=lambda: os.umask(0o37), stdout=PIPE)
        assert (await proc.communicate())[0] == b"0037\n"
        with pytest.raises(subprocess.SubprocessError, match="preexec_fn"):
            await exec_("true", preexec_fn=failing, stdin=PIPE)

    run(main)


def test_popen_options(run: Run, tmp_path: pathlib.Path) -> None:
    async def output(*args: str, **options: Any) -> str:
        proc = await exec_(*args, stdout=PIPE, **options)
        return (await proc.communicate())[0].decode().strip()

    async def main() -> None:
        pid = "import os; print(os.getpid()"
        assert await output("pwd", cwd=tmp_path) == str(tmp_path)
        assert await output("env", env={"NAME": "value"}) == "NAME=value"
        assert await output("sh", "-c", "umask", umask=0o27) == "0027"
        same = await output(*py(pid + " == os.getsid(0))"), start_new_session=True)
        assert same == "True"
        assert await output(*py(pid + " == os.getpgrp())"), process_group=0) == "True"
        assert await output("sh", "-c", "echo $0", executable="/bin/sh") == "sh"
        reader, writer = os.pipe()
        os.write(writer, b"passed")
        os.close(writer)
        fds = {"pass_fds": [reader]}
        assert await output(*py(f"import os; print(os.read({reader}, 9).decode())"), **fds) == (
            "passed"
        )
        os.set_inheritable(reader, True)
        there = f"import os; print(os.path.exists('/proc/self/fd/{reader}'))"
        assert await output(*py(there)) == "False"
        assert await output(*py(there), close_fds=False) == "True"
        os.close(reader)
        # Python ignores SIGPIPE at its own start, so ask the kernel.
        status = "grep SigIgn /proc/self/status"
        default = int((await output("sh", "-c", status)).split()[1], 16)
        kept = int((await output("sh", "-c", status, restore_signals=False)).split()[1], 16)
        bit = 1 << (signal.SIGPIPE - 1)
        assert not default & bit and kept & bit

    run(main)


@pytest.mark.skipif(os.getuid() != 0, reason="changing the user needs root")
def test_user_and_groups(run: Run) -> None:
    async def main() -> None:
        options: dict[str, Any] = {"user": 12, "group": 34, "extra_groups": [56]}
        proc = await exec_("sh", "-c", "id -u; id -g; id -G", stdout=PIPE, **options)
        assert (await proc.communicate())[0].split() == [b"12", b"34", b"34", b"56"]

    run(main)


def test_files_and_sockets_as_streams(run: Run, tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        source, target = tmp_path / "source", tmp_path / "target"
        source.write_bytes(b"from a file")
        with source.open("rb") as stdin, target.open("wb") as stdout:
            proc = await exec_("cat", stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL)
            assert (proc.stdin, proc.stdout, proc.stderr) == (None, None, None)
            assert await proc.wait() == 0
        assert target.read_bytes() == b"from a file"

    run(main)


def test_cancelled_wait_leaves_the_child_alone(run: Run) -> None:
    async def main() -> None:
        proc = await exec_("cat", stdin=PIPE)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(proc.wait(), 0.02)
        assert proc.returncode is None
        first, second = asyncio.ensure_future(proc.wait()), asyncio.ensure_future(proc.wait())
        await asyncio.sleep(0)
        first.cancel()
        assert proc.stdin is not None
        proc.stdin.close()
        assert await second == 0
        assert first.cancelled()

    run(main)


def test_cancelled_communicate(run: Run) -> None:
    async def main() -> None:
        proc = await exec_("sleep", "100", stdin=PIPE, stdout=PIPE)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(proc.communicate(b"x" * 1_000_000), 0.02)
        proc.kill()
        assert await proc.wait() == -signal.SIGKILL

    run(main)


@pytest.mark.parametrize("turns_before", range(6))
def test_cancelled_creation_kills_the_child(run: Run, turns_before: int) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(exec_("sleep", "100", stdin=PIPE, stdout=PIPE, stderr=PIPE))
        for _ in range(turns_before):
            await asyncio.sleep(0)
        task.cancel()
        try:
            proc = await asyncio.wait_for(task, 5)
        except asyncio.CancelledError:
            return
        proc.kill()
        await proc.wait()

    run(main)
    # no_child_left and no_descriptor_left check the rest.


@pytest.mark.timeout(120)
def test_many_short_children(run: Run) -> None:
    """No zombie, no descriptor left, each status reported."""
    number, at_once = 1000, 20

    async def main() -> None:
        gate = asyncio.Semaphore(at_once)

        async def one(index: int) -> None:
            async with gate:
                proc = await exec_("sh", "-c", f"echo {index}; exit {index % 50}", stdout=PIPE)
                out, _ = await proc.communicate()
                assert (int(out), proc.returncode) == (index, index % 50)

        before = threading.active_count()
        # multiprocessing's resource tracker, say, from an earlier test.
        others = set(children())
        await asyncio.gather(*map(one, range(number)))
        assert set(children()) == others
        assert threading.active_count() <= before + at_once

    run(main, limit=100)


def test_no_thread_is_needed(rondel_loop: Loop) -> None:
    async def main() -> None:
        before = threading.active_count()
        procs = [await exec_("cat", stdin=PIPE) for _ in range(10)]
        assert threading.active_count() == before
        for proc in procs:
            await proc.communicate(b"")

    run_on(rondel_loop, main)


def test_without_process_descriptors_a_thread_waits(
    rondel_loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoWatch:
        def __init__(self, *args: object) -> None:
            pass

        def start(self, pid: int) -> None:
            raise OSError(38, "Function not implemented")

    monkeypatch.setattr("rondel._rondel.ChildWatch", NoWatch)

    async def main() -> None:
        proc = await shell("cat; exit 3", stdin=PIPE, stdout=PIPE)
        assert await proc.communicate(b"data") == (b"data", None)
        assert proc.returncode == 3
        proc = await exec_("sleep", "100")
        proc.terminate()
        assert await proc.wait() == -signal.SIGTERM
        await asyncio.gather(*[_status_of(index) for index in range(20)])

    run_on(rondel_loop, main)


async def _status_of(index: int) -> None:
    proc = await shell(f"exit {index}")
    assert await proc.wait() == index


def test_out_of_descriptors(run: Run) -> None:
    async def main() -> None:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(map(int, os.listdir("/proc/self/fd")))
        # The limit is on numbers: those that are free between others are taken first.
        taken = [os.dup(0)]
        while taken[-1] < highest:
            taken.append(os.dup(0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1] + 3, limits[1]))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                await exec_("true", stdin=PIPE, stdout=PIPE, stderr=PIPE)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for fd in taken:
                os.close(fd)
        proc = await exec_("true")
        assert await proc.wait() == 0

    run(main)


def test_loops_in_two_threads_have_children_of_their_own(loop_factory: LoopFactory) -> None:
    def work() -> None:
        async def main() -> None:
            for index in range(10):
                proc = await shell(f"cat; exit {index}", stdin=PIPE, stdout=PIPE)
                assert await proc.communicate(b"x") == (b"x", None)
                assert proc.returncode == index

        loop = loop_factory()
        try:
            run_on(loop, main, limit=20)
        finally:
            loop.close()

    if loop_factory is asyncio.SelectorEventLoop and sys.version_info < (3, 12):
        asyncio.get_child_watcher()  # made lazily, which two threads must not do at once
    with in_thread(work), in_thread(work):
        pass


def test_signal_handler_for_children_works_beside(loop: Loop, run: Run) -> None:
    async def main() -> None:
        called = asyncio.Event()
        loop.add_signal_handler(signal.SIGCHLD, called.set)
        proc = await shell("exit 9")
        assert await proc.wait() == 9
        await asyncio.wait_for(called.wait(), 5)
        assert loop.remove_signal_handler(signal.SIGCHLD)

    run(main)


def test_children_of_subprocess_run_are_left_alone(run: Run) -> None:
    async def main() -> None:
        proc = await exec_("cat", stdin=PIPE)
        other = subprocess.Popen(["sh", "-c", "exit 8"])
        await asyncio.sleep(0.05)
        assert other.wait() == 8
        assert subprocess.run(["sh", "-c", "exit 9"], check=False).returncode == 9
        await proc.communicate(b"")
        assert proc.returncode == 0

    run(main)
