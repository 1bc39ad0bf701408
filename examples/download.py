"""Download every URL given, all at once, with aiohttp: a program that any asyncio user could
have written.

    python examples/download.py [--loop rondel|asyncio] [-o DIR] URL...

Nothing in it depends on rondel except `select_loop`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from urllib.parse import unquote, urlsplit

import aiohttp
import async_timeout

URLS: list[str] = []


def select_loop(name: str) -> None:
    """Make asyncio's current event loop a new one of that kind."""
    if name == "rondel":
        import rondel

        rondel.install()
    # Python 3.14 no longer creates a loop in get_event_loop(), so there has to be one.
    asyncio.set_event_loop(asyncio.new_event_loop())


def file_name(url: str) -> str:
    """The last part of the URL's path, or the host where the path is empty."""
    parts = urlsplit(url)
    last = unquote(parts.path.rstrip("/").rsplit("/", 1)[-1]).replace("/", "_")
    return last if last not in ("", ".", "..") else parts.netloc


async def download_coroutine(session: aiohttp.ClientSession, url: str) -> object:
    """Write the body of `url` to a file in the current directory, named after the URL."""
    async with async_timeout.timeout(10), session.get(url) as response:
        with open(file_name(url), "wb") as file:
            while chunk := await response.content.read(1024):
                file.write(chunk)
        return await response.release()


async def main(loop: asyncio.AbstractEventLoop) -> int:
    """Download all URLs at the same time; return how many of them failed."""
    print(f"{len(URLS)} URLs on {type(loop).__module__}.{type(loop).__qualname__}", flush=True)
    async with aiohttp.ClientSession(raise_for_status=True) as session:
        coroutines = [download_coroutine(session, url) for url in URLS]
        results = await asyncio.gather(*coroutines, return_exceptions=True)
    failed = 0
    for url, result in zip(URLS, results, strict=True):
        if isinstance(result, BaseException):
            failed += 1
            print(f"failed: {url}: {type(result).__name__}: {result}", file=sys.stderr)
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Download every URL, all at once.")
    parser.add_argument("urls", nargs="+", metavar="URL")
    parser.add_argument("-o", metavar="DIR", default=".", help="where the files go (default: here)")
    parser.add_argument("--loop", choices=("rondel", "asyncio"), default="rondel")
    arguments = parser.parse_args()

    URLS += dict.fromkeys(arguments.urls)
    if len({file_name(url) for url in URLS}) < len(URLS):
        parser.error("two of these URLs would be written to the same file")
    os.makedirs(arguments.o, exist_ok=True)
    os.chdir(arguments.o)

    select_loop(arguments.loop)
    loop = asyncio.get_event_loop()
    failed = loop.run_until_complete(main(loop))
    loop.close()
    sys.exit(1 if failed else 0)
