"""Tasks that wait for each other until standard input ends; for `python -m asyncio ps`.

usage: call_graph.py asyncio|rondel
"""

import asyncio
import sys


async def deep(event: asyncio.Event) -> None:
    await event.wait()


async def middle(event: asyncio.Event) -> None:
    await deep(event)


async def group(event: asyncio.Event) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(middle(event), name="left")
        tasks.create_task(middle(event), name="right")


async def main() -> None:
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    grouped = asyncio.create_task(group(event), name="group")
    for _ in range(3):
        await asyncio.sleep(0)
    loop.add_reader(0, event.set)
    print("ready", flush=True)
    await grouped


if __name__ == "__main__":
    if sys.argv[1] == "rondel":
        import rondel

        factory = rondel.new_event_loop
    else:
        factory = asyncio.SelectorEventLoop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
