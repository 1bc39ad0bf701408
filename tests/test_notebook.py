"""Cells of a stock Jupyter kernel, whose own asyncio loop runs in the same thread."""

from pathlib import Path

import nbformat
import pytest
from notebooks import run, run_cells

EXAMPLE = Path(__file__).parent.parent / "examples" / "notebook.ipynb"

PROGRAM = """
    import asyncio, os, signal, rondel

    kernel_loop = asyncio.get_event_loop()
    assert kernel_loop.is_running() and not isinstance(kernel_loop, rondel.Loop)

    def check_outside():
        assert asyncio._get_running_loop() is kernel_loop
        assert asyncio.get_running_loop() is kernel_loop
        assert asyncio.current_task() is not None
        assert asyncio.current_task() is asyncio.current_task(kernel_loop)
        assert asyncio.current_task().get_loop() is kernel_loop

    async def main(result=42):
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert isinstance(loop, rondel.Loop) and task.get_loop() is loop
        await asyncio.sleep(0.01)
        assert asyncio.current_task() is task
        return result

    async def count():
        try:
            for i in range(3):
                await asyncio.sleep(0)
                yield i
        finally:
            print("closed", end=" ")

    async def children():
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(main(i)) for i in range(3)]
        async with asyncio.timeout(30):
            numbers = [i async for i in count()]
        async for i in count():
            break
        await asyncio.sleep(0.01)
        return [task.result() for task in tasks], numbers
"""
RUN = """
    check_outside()
    print(rondel.run(main()))
    check_outside()
"""

# IPython runs a cell with `await` as a task of its own.
IN_TASK = """
    await asyncio.sleep(0)
    print(rondel.run(main(3)))
    check_outside()
    await asyncio.sleep(0)
"""

AGAIN = """
    loop = rondel.new_event_loop()
    assert loop.nesting
    task = loop.create_task(main(1))
    print(loop.run_until_complete(task), loop.run_until_complete(main(2)))
    check_outside()
    loop.close()
"""

CHILDREN = """
    print(rondel.run(children()))
    check_outside()
"""

RAISES = """
    async def fails():
        await asyncio.sleep(0)
        raise LookupError("mine")

    try:
        rondel.run(fails())
    except LookupError as exc:
        print(exc)
    check_outside()
"""

WITHIN = """
    async def inner():
        here = asyncio.get_running_loop()
        task = asyncio.current_task()
        value = rondel.run(main(7))
        assert asyncio.get_running_loop() is here and asyncio.current_task() is task
        await asyncio.sleep(0)
        return value

    print(rondel.run(inner()))
    check_outside()
"""

INTERRUPT = """
    async def forever():
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGINT)
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            print("cancelled", end=" ")
            raise

    handler = signal.getsignal(signal.SIGINT)
    try:
        rondel.run(forever())
    except KeyboardInterrupt:
        print("interrupted")
    assert signal.getsignal(signal.SIGINT) is handler
    check_outside()
"""

# IPython runs this cell as a task; its way with Ctrl-C needs the kernel's loop, which stands still.
INTERRUPT_IN_TASK = INTERRUPT + "    await asyncio.sleep(0)\n"

AFTERWARDS = """
    check_outside()
    await asyncio.sleep(0.01)
    background = asyncio.create_task(asyncio.sleep(0.01, "background"))
    rondel.run(main())
    print(await background)
    try:
        unused = asyncio.sleep(0)
        asyncio.run(unused)
    except RuntimeError as exc:
        print(exc)
        unused.close()
"""


@pytest.mark.timeout(180)
def test_a_stock_kernel() -> None:
    outputs = run_cells(
        PROGRAM,
        RUN,
        IN_TASK,
        AGAIN,
        CHILDREN,
        RAISES,
        WITHIN,
        INTERRUPT,
        INTERRUPT_IN_TASK,
        AFTERWARDS,
    )
    assert [text.strip() for text in outputs] == [
        "",
        "42",
        "3",
        "1 2",
        "closed closed ([0, 1, 2], [0, 1, 2])",
        "mine",
        "7",
        "cancelled interrupted",
        "cancelled interrupted",
        "background\nasyncio.run() cannot be called from a running event loop",
    ]


@pytest.mark.timeout(180)
def test_the_example() -> None:
    """examples/notebook.ipynb, cell by cell, on a stock kernel."""
    notebook = nbformat.read(EXAMPLE, as_version=4)
    kept = [len(cell.outputs) for cell in notebook.cells if cell.cell_type == "code"]
    outputs = run(notebook, "python3")
    assert outputs[-2].split("\n")[0] == "time is up" and "[0, 1, 2]" in outputs[-2]
    assert outputs[-1] == "waited inside a callback; the other task went on: True\n"
    plots = [
        output.data["image/svg+xml"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/svg+xml" in output.get("data", {})
    ]
    assert [plot.count("<rect") for plot in plots] == [16]
    # What a reader sees without running it has come from these cells.
    assert kept == [len(cell.outputs) for cell in notebook.cells if cell.cell_type == "code"]
