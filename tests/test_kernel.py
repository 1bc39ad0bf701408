"""`rondel kernel`: cells on IPython's kernel whose own loop is rondel's."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from notebooks import run_cells


def kernel_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rondel", "kernel", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share" / "jupyter"))
    done = kernel_command("install", "--prefix", str(tmp_path), "--name", "rondel-test")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "share" / "jupyter" / "kernels" / "rondel-test" / "kernel.json"
    spec = json.loads(path.read_text())
    assert spec["argv"][0] == sys.executable and "{connection_file}" in spec["argv"]
    yield "rondel-test"
    assert kernel_command("uninstall", "--name", "rondel-test").returncode == 0
    assert os.listdir(tmp_path / "share" / "jupyter" / "kernels") == []
    again = kernel_command("uninstall", "--name", "rondel-test")
    assert again.returncode == 1 and "no kernel" in again.stderr


SET_UP = """
    import asyncio, contextvars, os, signal, rondel
    loop = asyncio.get_running_loop()
    here = asyncio.current_task()
    variable = contextvars.ContextVar("variable", default="unset")
    ticks = []
    async def tick():
        while True:
            ticks.append(asyncio.current_task())
            await asyncio.sleep(0.001)
    ticker = asyncio.create_task(tick())
    assert loop.nesting
    print(type(loop) is rondel.Loop, type(here) is asyncio.Task)
"""

NESTED = """
    task = asyncio.current_task()
    async def nested(depth):
        await asyncio.sleep(0.01)
        return depth and 1 + loop.run_until_complete(nested(depth - 1))
    before = len(ticks)
    print(loop.run_until_complete(nested(3)), len(ticks) > before)
    assert asyncio.current_task() is task and asyncio.get_running_loop() is loop
    assert set(ticks) == {ticker}
"""

NESTED_IN_TASK = NESTED + "    await asyncio.sleep(0)\n"

# ipykernel's tasks share one context: what a nested run's task sets there is set for the cell.
CONTEXT = """
    async def sets():
        await asyncio.sleep(0)
        variable.set("set")
    context = asyncio.current_task().get_context() if hasattr(task, "get_context") else None
    if context is not None:
        loop.run_until_complete(loop.create_task(sets(), context=context))
        print(variable.get())
    else:
        print("set")
"""

GUEST = """
    async def main():
        assert asyncio.get_running_loop() is not loop
        return await asyncio.sleep(0.01, "guest")
    print(rondel.run(main()))
"""

INTERRUPT = """
    loop.call_later(0.01, os.kill, os.getpid(), signal.SIGINT)
    try:
        loop.run_until_complete(asyncio.sleep(3600))
    except KeyboardInterrupt:
        print("interrupted")
"""

INTERRUPT_IN_TASK = INTERRUPT + "    await asyncio.sleep(0)\n"

ITSELF = """
    await asyncio.sleep(0)
    me = asyncio.current_task()
    async def waits():
        await me
    try:
        loop.run_until_complete(asyncio.ensure_future(waits()))
    except RuntimeError as exc:
        print("suspended" in str(exc))
"""

LAST = """
    ticker.cancel()
    await asyncio.sleep(0)
    print(ticker.cancelled(), len(asyncio.all_tasks()) < 20)
"""


@pytest.mark.timeout(180)
def test_a_kernel_of_ours(kernel: str) -> None:
    cells = (SET_UP, NESTED, NESTED_IN_TASK, CONTEXT, GUEST, INTERRUPT, INTERRUPT_IN_TASK)
    outputs = run_cells(*cells, ITSELF, LAST, kernel=kernel)
    assert [text.strip() for text in outputs] == [
        "True True",
        "3 True",
        "3 True",
        "set",
        "guest",
        "interrupted",
        "interrupted",
        "True",
        "True True",
    ]
