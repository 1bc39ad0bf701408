"""Download every URL given, all at once, with aiohttp: a program that any asyncio user could
have written.

    python examples/download.py [--loop rondel|asyncio] [-o DIR] URL...

Nothing in it depends on rondel except `select_loop`.
"""

from __future__ import annotations

import asyncio
import sys

import aiohttp
import async_timeout
from asked import URLS, file_name, gather, read_command_line


def select_loop(name: str) -> None:
    """Make asyncio's current event loop a new one of that kind."""
    if name == "rondel":
        import rondel

        rondel.install()
    # Python 3.14 no longer creates a loop in get_event_loop(), so there has to be one.
    asyncio.set_event_loop(asyncio.new_event_loop())


async def download_coroutine(session: aiohttp.ClientSession, url: str) -> object:
    """Write the body of `url` to a file in the current directory, named after the URL."""
    async with async_timeout.timeout(10), session.get(url) as response:
        with open(file_name(url), "wb") as file:
            while chunk := await response.content.read(1024):
                file.write(chunk)
        return await response.release()


async def main() -> int:
    """Download all URLs at the same time; return how many of them failed."""
    async with aiohttp.ClientSession(raise_for_status=True) as session:
        return await gather(download_coroutine(session, url) for url in URLS)


if __name__ == "__main__":
    select_loop(read_command_line("rondel", "asyncio"))
    loop = asyncio.get_event_loop()
    failed = loop.run_until_complete(main())
    loop.close()
    sys.exit(1 if failed else 0)
