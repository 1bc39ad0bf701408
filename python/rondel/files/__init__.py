"""Files that are read and written without blocking the loop: aiofiles' interface, natively.

::

    async with rondel.files.open("a.txt") as f:
        async for line in f:
            ...

    data = await rondel.files.read_bytes("b.bin")
    await rondel.files.write_bytes("b.bin", data, atomic=True, fsync=True)

What is in memory (the file's own buffer, the system's page cache) is read at once, without a
thread and without a turn of the loop. What would have to wait for a disk is done by the loop's
default executor. What is written goes to memory first; a thread writes it to the file while the
program goes on, and what goes wrong there is raised by the next operation, ``flush()`` or
``close()``.

It works on any asyncio loop. The functions take ``executor`` (a ``concurrent.futures.Executor``)
instead of the loop's default one, and ``loop``, which is only there for programs that pass it to
aiofiles: the running loop is always the one that is used.
"""

import asyncio
import sys
from typing import Any

from . import opening, os, tempfile
from .kinds import (
    AsyncBufferedIOBase,
    AsyncBufferedReader,
    AsyncFileIO,
    AsyncIndirectBufferedIOBase,
    AsyncIndirectBufferedReader,
    AsyncIndirectTextIOWrapper,
    AsyncTextIOWrapper,
    Kind,
)
from .opening import Opener, Path
from .threads import Opening
from .whole import (
    copy,
    read_bytes,
    read_text,
    remove_tree,
    stat,
    walk,
    write_bytes,
    write_text,
)

__all__ = (
    "AsyncBufferedIOBase",
    "AsyncBufferedReader",
    "AsyncFileIO",
    "AsyncTextIOWrapper",
    "Opening",
    "copy",
    "open",
    "os",
    "read_bytes",
    "read_text",
    "remove_tree",
    "stat",
    "stderr",
    "stderr_bytes",
    "stdin",
    "stdin_bytes",
    "stdout",
    "stdout_bytes",
    "tempfile",
    "walk",
    "write_bytes",
    "write_text",
)


async def _open(file: Path, mode: str, *args: Any, opener: Opener | None, executor: Any) -> Kind:
    if opening.may_try(file, mode, opener):
        found = opening.build_cached(file, mode, *args, executor=executor)
        if found is not None:
            return found
    return await opening.build_in_thread(file, mode, *args, opener, executor=executor)


def open(  # noqa: A001
    file: Path,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Opener | None = None,
    *,
    loop: asyncio.AbstractEventLoop | None = None,
    executor: Any = None,
) -> "Opening[Any]":
    """Open a file: ``f = await open(...)``, or ``async with open(...) as f``.

    The arguments are those of the built-in ``open()``, and so are the errors. ``buffering`` is in
    bytes; 0 for none (binary files), 1 for line by line (text files). Without it, what is read
    ahead is what Python reads ahead, and up to 128 KiB of what is written wait in memory before a
    thread writes them.
    """
    return Opening(
        _open(
            file,
            mode,
            buffering,
            encoding,
            errors,
            newline,
            closefd,
            opener=opener,
            executor=executor,
        )
    )


stdin = AsyncIndirectTextIOWrapper(lambda: sys.stdin)
stdout = AsyncIndirectTextIOWrapper(lambda: sys.stdout)
stderr = AsyncIndirectTextIOWrapper(lambda: sys.stderr)
stdin_bytes = AsyncIndirectBufferedReader(lambda: sys.stdin.buffer)
stdout_bytes = AsyncIndirectBufferedIOBase(lambda: sys.stdout.buffer)
stderr_bytes = AsyncIndirectBufferedIOBase(lambda: sys.stderr.buffer)
