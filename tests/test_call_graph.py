"""Call graphs of tasks (Python 3.14): asyncio.capture_call_graph(), `python -m asyncio ps`."""

import asyncio
import contextlib
import functools
import io
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from servers import PROGRAMS
from support import turns, until

Run = Callable[..., Any]
Tree = tuple[str, list[str], list[Any]]  # a task's name, its functions, and who waits for it

if sys.version_info < (3, 14):
    pytest.skip("call graphs came with Python 3.14", allow_module_level=True)

pytestmark = pytest.mark.timeout(90)


# ---- in the process


def tree(graph: asyncio.FutureCallGraph | None) -> Tree:
    """The graph without what differs from run to run."""
    assert graph is not None
    assert isinstance(graph.future, asyncio.Task)
    functions = [entry.frame.f_code.co_name for entry in graph.call_stack]
    waiting = sorted(tree(one) for one in graph.awaited_by)
    return graph.future.get_name(), functions, waiting


async def deep(event: asyncio.Event) -> None:
    await event.wait()


async def middle(event: asyncio.Event) -> None:
    await deep(event)


async def awaiting(event: asyncio.Event, tasks: list[asyncio.Task[None]]) -> None:
    tasks += [asyncio.create_task(middle(event), name="left")]
    await tasks[0]


async def gathering(event: asyncio.Event, tasks: list[asyncio.Task[None]]) -> None:
    tasks += [asyncio.create_task(deep(event), name=name) for name in ("left", "right")]
    await asyncio.gather(*tasks)


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize(
    ("way", "functions"),
    [(awaiting, ["wait", "deep", "middle"]), (gathering, ["wait", "deep"])],
)
def test_capture(
    run: Run, loop: asyncio.AbstractEventLoop, way: Any, functions: list[str], eager: bool
) -> None:
    async def main() -> None:
        if eager:
            loop.set_task_factory(asyncio.eager_task_factory)
        event = asyncio.Event()
        tasks: list[asyncio.Task[None]] = []
        parent = asyncio.create_task(way(event, tasks), name="parent")

        async def outer() -> None:
            await parent

        waiting = asyncio.create_task(outer(), name="outer")
        await turns(3)
        assert [task.get_name() for task in tasks] == ["left", "right"][: len(tasks)]
        above: Tree = ("parent", [way.__name__], [("outer", ["outer"], [])])
        for task in tasks:
            graph = asyncio.capture_call_graph(task)
            assert tree(graph) == (task.get_name(), functions, [above])
        event.set()
        await waiting

    run(main)


def test_capture_of_the_running_task(run: Run) -> None:
    def function() -> Tree:
        return tree(asyncio.capture_call_graph())

    async def inside() -> Tree:
        await asyncio.sleep(0)  # until somebody waits for it
        return function()

    async def waiting(task: asyncio.Task[Tree]) -> Tree:
        return await task

    async def main() -> None:
        task = asyncio.create_task(inside(), name="inside")
        other = asyncio.create_task(waiting(task), name="waiting")
        await until(other.done)
        assert other.result() == (
            "inside",
            ["function", "inside"],
            [("waiting", ["waiting"], [])],
        )

    run(main)


def test_print(run: Run) -> None:
    async def main() -> None:
        event = asyncio.Event()
        tasks: list[asyncio.Task[None]] = []
        parent = asyncio.create_task(awaiting(event, tasks), name="parent")
        await turns(3)
        out = io.StringIO()
        asyncio.print_call_graph(tasks[0], file=out)
        printed = re.sub(r"0x[0-9a-f]+", "ID", out.getvalue())
        printed = re.sub(r"File '.*?', line \d+, in", "in", printed)
        assert printed.splitlines() == [
            "* Task(name='left', id=ID)",
            "  + Call stack:",
            "  |   in async Event.wait()",
            "  |   in async deep()",
            "  |   in async middle()",
            "  + Awaited by:",
            "    * Task(name='parent', id=ID)",
            "      + Call stack:",
            "      |   in async awaiting()",
        ]
        event.set()
        await parent

    run(main)


def test_a_task_inside_a_method_of_the_loop(run: Run, loop: asyncio.AbstractEventLoop) -> None:
    # Ours are native and have no frames; what has called them is shown on both.
    async def reading(sock: socket.socket) -> bytes:
        return await loop.sock_recv(sock, 100)

    async def main() -> None:
        near, far = socket.socketpair()
        with near, far:
            near.setblocking(False)
            task = asyncio.create_task(reading(near), name="reading")
            await turns(2)
            name, functions, waiting = tree(asyncio.capture_call_graph(task))
            assert (name, functions[-1], waiting) == ("reading", "reading", [])
            far.send(b"done")
            assert await task == b"done"

    run(main)


def test_print_of_a_native_wait(rondel: Any) -> None:
    async def main() -> None:
        queue = rondel.Queue()

        async def taking() -> None:
            await queue.get()

        task = asyncio.create_task(taking())
        await turns(2)
        out = io.StringIO()
        asyncio.print_call_graph(task, file=out)
        assert "async test_print_of_a_native_wait.<locals>.main.<locals>.taking()" in out.getvalue()
        task.cancel()

    rondel.run(main())


# ---- from outside of the process


@contextlib.contextmanager
def program(loop_name: str) -> Iterator[int]:
    """tests/programs/call_graph.py, running; its process's number."""
    with subprocess.Popen(
        [sys.executable, PROGRAMS / "call_graph.py", loop_name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process.pid
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(60) == 0
        finally:
            process.kill()


def inspect(tool: str, loop_name: str) -> tuple[int, list[str], str]:
    """The status of `python -m asyncio TOOL` on the program, its lines, and its complaints."""
    with program(loop_name) as pid:
        done = subprocess.run(
            [sys.executable, "-m", "asyncio", tool, str(pid)],
            capture_output=True,
            text=True,
            timeout=60,
        )
    # Numbers of tasks and threads, line numbers and the widths of columns are left out.
    shown = re.sub(r"0x[0-9a-f]+|\b\d+\b", "N", done.stdout)
    lines = [re.sub(r" {2,}| *$", "  ", line).rstrip() for line in shown.splitlines()]
    return done.returncode, lines, done.stderr


@functools.cache
def of_asyncio(tool: str) -> list[str]:
    """The lines of the tool for the program on asyncio's own loop, where it may look into it."""
    status, lines, complaint = inspect(tool, "asyncio")
    if status != 0:
        last = (complaint.strip() or "no output").splitlines()[-1]
        pytest.skip(f"python -m asyncio {tool} cannot look into a process here: {last}")
    return lines


@pytest.mark.usefixtures("rondel")
@pytest.mark.parametrize("tool", ["ps", "pstree"])
def test_tools(tool: str) -> None:
    expected = of_asyncio(tool)
    status, lines, complaint = inspect(tool, "rondel")
    assert (status, complaint) == (0, "")
    assert sorted(lines) == sorted(expected)
    text = "\n".join(lines)
    for name in ("left", "right", "group", "main", "Event.wait", "deep", "middle"):
        assert name in text
