"""download.py with its imports changed: rondel.http for aiohttp, rondel.files for open().

    python examples/download_native.py [-o DIR] URL...

It is the same program otherwise, but that rondel.http runs on rondel's loop alone.
"""

from __future__ import annotations

import sys

import async_timeout
import rondel
from asked import URLS, file_name, gather, read_command_line
from rondel import files
from rondel import http as aiohttp


async def download_coroutine(session: aiohttp.ClientSession, url: str) -> object:
    """Write the body of `url` to a file in the current directory, named after the URL."""
    async with async_timeout.timeout(10), session.get(url) as response:
        async with files.open(file_name(url), "wb") as file:
            while chunk := await response.content.read(1024):
                await file.write(chunk)
        return await response.release()


async def main() -> int:
    """Download all URLs at the same time; return how many of them failed."""
    async with aiohttp.ClientSession(raise_for_status=True) as session:
        return await gather(download_coroutine(session, url) for url in URLS)


if __name__ == "__main__":
    read_command_line("rondel")
    sys.exit(1 if rondel.run(main()) else 0)
