"""Putting a file together: what ``io.open()`` decides, with the native buffer in the middle."""

import codecs
import io
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

from .._rondel import Coroutine, FileBuffer, FileWouldBlock, call_in_thread, open_cached
from .kinds import AsyncBufferedIOBase, AsyncBufferedReader, AsyncFileIO, AsyncTextIOWrapper, Kind

Opener = Callable[[str, int], int]
Path = int | str | bytes | os.PathLike[str] | os.PathLike[bytes]

#: What waits in memory, at most, before a thread begins to write it; in bytes.
GATHERED = 128 * 1024
#: From 3.14 on a buffer has at least, and at most, so many bytes.
_LEAST, _MOST = (128 * 1024, 8 * 1024 * 1024) if sys.version_info >= (3, 14) else (0, 1 << 62)

#: Encodings whose decoders can begin anywhere that tell() names, and do so fast.
_QUICK = frozenset(
    codecs.lookup(name).name
    for name in ("ascii", "utf-8", "latin-1", *(f"iso8859-{n}" for n in (2, 5, 7, 9, 15)))
) | {f"cp125{n}" for n in range(9)}


def may_try(file: Path, mode: str, opener: Opener | None) -> bool:
    """Whether opening may be tried on the loop's thread: a path, to read what exists."""
    if opener is not None or not isinstance(mode, str) or set(mode) & set("wax+"):
        return False
    return isinstance(file, str | os.PathLike) and isinstance(os.fspath(file), str)


def build(
    file: Path,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Opener | None = None,
    *,
    executor: Any = None,
    closer: Any = None,
) -> Kind:
    """Open a file as ``io.open()`` would, in the calling thread."""
    if not _is_ordinary(file, mode, buffering, encoding, errors, newline):
        # What is wrong with them is for Python to say. What it takes nevertheless is done in
        # threads.
        other = open(  # noqa: SIM115
            file, mode, buffering, encoding, errors, newline, closefd, opener
        )
        kind = AsyncTextIOWrapper if isinstance(other, io.TextIOBase) else AsyncBufferedReader
        return kind(other, executor=executor, closer=closer)
    if not isinstance(file, int):
        file = os.fspath(file)
    raw = io.FileIO(file, mode.replace("b", "").replace("t", ""), closefd, opener)
    try:
        return wrap_raw(raw, mode, buffering, encoding, errors, newline, executor, closer)
    except BaseException:
        raw.close()
        raise


def wrap_raw(
    raw: io.FileIO,
    mode: str,
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    executor: Any = None,
    closer: Any = None,
) -> Kind:
    """The file over an ``io.FileIO`` that is open already."""
    binary = "b" in mode
    if binary and buffering == 1:
        warnings.warn(
            "line buffering (buffering=1) isn't supported in binary mode, "
            "the default buffer size will be used",
            RuntimeWarning,
            stacklevel=2,
        )
    by_line = False
    gathered = buffering
    if buffering == 1 or (buffering < 0 and raw.isatty()):
        by_line = buffering == 1 or not binary
        buffering = -1
    if buffering < 0:
        # What is read ahead is what Python would read ahead.
        block = getattr(raw, "_blksize", io.DEFAULT_BUFFER_SIZE)
        if block <= 1:
            block = io.DEFAULT_BUFFER_SIZE
        buffering = max(min(block, _MOST), _LEAST)
        gathered = max(GATHERED, buffering)
    if buffering == 0:
        if binary:
            return AsyncFileIO(raw, raw=True, executor=executor, closer=closer)
        raise ValueError("can't have unbuffered text I/O")
    buffer = FileBuffer(raw, buffering, not binary, gathered)
    if binary:
        kind = AsyncBufferedReader if raw.readable() else AsyncBufferedIOBase
        return kind(buffer, buffer, executor=executor, closer=closer)
    text = io.TextIOWrapper(buffer, encoding, errors, newline, by_line)
    text.mode = mode  # type: ignore[misc]
    quick = raw.readable() and raw.seekable() and _name(text.encoding) in _QUICK
    return AsyncTextIOWrapper(text, buffer, quick=quick, executor=executor, closer=closer)


def build_cached(
    file: Path,
    mode: str,
    buffering: int,
    encoding: str | None,
    errors: str | None,
    newline: str | None,
    closefd: bool,
    *,
    executor: Any,
) -> Kind | None:
    """Open a file for reading if that waits for nothing; None if it would."""
    try:
        return build(
            file,
            mode,
            buffering,
            encoding,
            errors,
            newline,
            closefd,
            opener=open_cached,
            executor=executor,
        )
    except FileWouldBlock:
        return None


def build_in_thread(*args: Any, executor: Any) -> Coroutine[Kind]:
    """Open a file in a thread; it is closed if nobody waits for it any more."""
    return call_in_thread(executor, True, build, *args, executor=executor)


def _name(encoding: str) -> str:
    try:
        return codecs.lookup(encoding).name
    except LookupError:
        return ""


def _is_ordinary(
    file: object,
    mode: object,
    buffering: object,
    encoding: object,
    errors: object,
    newline: object,
) -> bool:
    """Whether io.open() would not object to the arguments."""
    if not isinstance(mode, str) or not isinstance(buffering, int):
        return False
    if not isinstance(file, int | str | bytes | os.PathLike):
        return False
    letters = set(mode)
    if letters - set("axrwb+t") or len(letters) != len(mode) or len(letters & set("axrw")) != 1:
        return False
    if "b" in letters:
        return "t" not in letters and encoding is None and errors is None and newline is None
    return (
        buffering != 0
        and isinstance(encoding, str | None)
        and isinstance(errors, str | None)
        and newline in (None, "", "\n", "\r", "\r\n")
    )
