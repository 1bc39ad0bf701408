"""How the programs of the tests, which run in processes of their own, choose their loop."""

import asyncio


def new_event_loop(name: str) -> asyncio.AbstractEventLoop:
    """A new loop: ``"asyncio"`` or ``"rondel"``; ValueError for anything else."""
    if name == "asyncio":
        return asyncio.SelectorEventLoop()
    if name == "rondel":
        import rondel

        return rondel.new_event_loop()
    raise ValueError(f"there is no loop named {name!r}")


def name_of(loop: asyncio.AbstractEventLoop) -> str:
    """The name of the package that a loop comes from."""
    return type(loop).__module__.partition(".")[0]
