"""What the download programs share beside what they are about: their command line, file names and
the report at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Coroutine, Iterable
from typing import Any
from urllib.parse import unquote, urlsplit

URLS: list[str] = []


def read_command_line(*loops: str) -> str:
    """Take in the URLs, go to the folder that the files are to be in, and return the loop's name.

    `loops` are the names that ``--loop`` takes, the first for when it is not there.
    """
    parser = argparse.ArgumentParser(description="Download every URL, all at once.")
    parser.add_argument("urls", nargs="+", metavar="URL")
    parser.add_argument("-o", metavar="DIR", default=".", help="where the files go (default: here)")
    parser.add_argument("--loop", choices=loops, default=loops[0])
    arguments = parser.parse_args()

    URLS.extend(dict.fromkeys(arguments.urls))
    if len({file_name(url) for url in URLS}) < len(URLS):
        parser.error("two of these URLs would be written to the same file")
    os.makedirs(arguments.o, exist_ok=True)
    os.chdir(arguments.o)
    return str(arguments.loop)


def file_name(url: str) -> str:
    """The last part of the URL's path, or the host where the path is empty."""
    parts = urlsplit(url)
    last = unquote(parts.path.rstrip("/").rsplit("/", 1)[-1]).replace("/", "_")
    return last if last not in ("", ".", "..") else parts.netloc


async def gather(coroutines: Iterable[Coroutine[Any, Any, object]]) -> int:
    """Await a coroutine per URL, all at the same time; tell which failed, and return how many."""
    loop = type(asyncio.get_running_loop())
    print(f"{len(URLS)} URLs on {loop.__module__}.{loop.__qualname__}", flush=True)
    results = await asyncio.gather(*coroutines, return_exceptions=True)
    failed = 0
    for url, result in zip(URLS, results, strict=True):
        if isinstance(result, BaseException):
            failed += 1
            print(f"failed: {url}: {type(result).__name__}: {result}", file=sys.stderr)
    return failed
