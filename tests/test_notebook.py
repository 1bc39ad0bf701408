"""Cells of a stock Jupyter kernel, whose own asyncio loop runs in the same thread."""

from notebooks import run_cells

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


def test_a_stock_kernel():
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
