"""Whole files, and whole directories, in one call each."""

import contextlib
import io
import os
import secrets
import shutil
import stat as modes
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any

from .._rondel import Coroutine, call_in_thread, read_file
from .threads import run

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

Name = str | bytes | os.PathLike[str] | os.PathLike[bytes]


def read_bytes(path: Name, *, executor: Any = None) -> Coroutine[bytes]:
    """Read a whole file: at once if it is in the system's memory, in a thread otherwise.

    OSError as ``open()`` raises it.
    """
    name = os.fspath(path)
    return read_file(os.fsdecode(name), name, executor)


async def read_text(
    path: Name,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    *,
    executor: Any = None,
) -> str:
    """Read a whole file of text, decoded as ``open()`` would."""
    data = await read_bytes(path, executor=executor)
    if len(data) > _AT_ONCE:
        return await call_in_thread(executor, False, _decode, data, encoding, errors, newline)
    return _decode(data, encoding, errors, newline)


#: Decoding, or copying, more bytes than this is left to a thread.
_AT_ONCE = 256 * 1024


def _decode(data: bytes, encoding: str | None, errors: str | None, newline: str | None) -> str:
    with io.TextIOWrapper(io.BytesIO(data), encoding, errors, newline) as text:
        return text.read()


def _encode(text: str, encoding: str | None, errors: str | None, newline: str | None) -> bytes:
    held = io.BytesIO()
    with io.TextIOWrapper(held, encoding, errors, newline, write_through=True) as wrapper:
        wrapper.write(text)
        wrapper.flush()
        return held.getvalue()


def write_bytes(
    path: Name,
    data: "ReadableBuffer",
    *,
    atomic: bool = False,
    fsync: bool = False,
    executor: Any = None,
) -> Coroutine[int]:
    """Write a whole file, in place of what was there; return how many bytes.

    With ``atomic`` the name stands for either the old content or the new one, whole, at any moment:
    the bytes are written to another file of the same directory, which then takes the name (and the
    permissions of what was there; symbolic links are followed). A failure leaves the old file as it
    was and nothing else behind. With ``fsync`` the bytes (and with ``atomic`` the name) are on the
    disk when it returns. OSError as ``open()`` and ``write()`` raise it.
    """
    if not isinstance(data, bytes):
        data = bytes(data)
    return call_in_thread(executor, False, _write, os.fspath(path), data, atomic, fsync)


async def write_text(
    path: Name,
    text: str,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    *,
    atomic: bool = False,
    fsync: bool = False,
    executor: Any = None,
) -> int:
    """Write a whole file of text, encoded as ``open()`` would; return how many characters.

    ``atomic`` and ``fsync`` as for :func:`write_bytes`.
    """
    if not isinstance(text, str):
        raise TypeError(f"data must be str, not {type(text).__name__}")

    def work() -> None:
        # Before the file is opened: what cannot be encoded must not empty it.
        data = _encode(text, encoding, errors, newline)
        _write(os.fspath(path), data, atomic, fsync)

    await call_in_thread(executor, False, work)
    return len(text)


def _write(path: str | bytes, data: bytes, atomic: bool, fsync: bool) -> int:
    if not atomic:
        with open(path, "wb", buffering=0) as file:
            _write_all(file, data, fsync)
        return len(data)
    path = os.path.realpath(path)
    folder = os.path.dirname(path)
    suffix = f".{secrets.token_hex(8)}.part"
    part: str | bytes
    part = path + os.fsencode(suffix) if isinstance(path, bytes) else path + suffix
    try:
        permissions: int | None = modes.S_IMODE(os.stat(path).st_mode)
    except FileNotFoundError:
        permissions = None
    with _named(path):
        file = open(part, "xb", buffering=0)  # noqa: SIM115
    try:
        with file, _named(path):
            if permissions is not None:
                os.fchmod(file.fileno(), permissions)
            _write_all(file, data, fsync)
        with _named(path):
            os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise
    if fsync:
        directory = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    return len(data)


@contextlib.contextmanager
def _named(path: str | bytes) -> Iterator[None]:
    """Errors name the file that the program asked for."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = path, None
        raise


def _write_all(file: io.FileIO, data: bytes, fsync: bool) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
    if fsync:
        os.fsync(file.fileno())


def copy(
    source: Name, target: Name, *, follow_symlinks: bool = True, metadata: bool = False
) -> Coroutine[Any]:
    """Copy a file with its permissions; return the path of the copy.

    ``target`` may be a directory. With ``metadata`` its times and attributes too. As
    ``shutil.copy()`` and ``copy2()``, which do it.
    """
    function: Callable[..., Any] = shutil.copy2 if metadata else shutil.copy
    return run(function, source, target, follow_symlinks=follow_symlinks)


def stat(path: Name | int, *, follow_symlinks: bool = True) -> Coroutine[os.stat_result]:
    """What the system knows of a file; as ``os.stat()``."""
    return run(os.stat, path, follow_symlinks=follow_symlinks)


def remove_tree(
    path: Name, *, ignore_errors: bool = False, missing_ok: bool = False
) -> Awaitable[None]:
    """Remove a directory and all that is in it; as ``shutil.rmtree()``, which does it.

    With ``missing_ok`` it need not be there; with ``ignore_errors`` what cannot be removed stays.
    """

    def work() -> None:
        try:
            shutil.rmtree(path, ignore_errors)
        except FileNotFoundError:
            if not missing_ok or os.path.lexists(path):
                raise

    return run(work)


#: How many directories a thread reads at a time where the program cannot interfere.
_BATCH = 64


async def walk(
    top: Name,
    topdown: bool = True,
    onerror: Callable[[OSError], object] | None = None,
    followlinks: bool = False,
) -> AsyncIterator[tuple[Any, list[Any], list[Any]]]:
    """Walk through a directory and those in it: ``async for path, dirs, files in walk(top)``.

    As ``os.walk()``, which does it, in a thread. Top-down the program may change ``directories`` to
    choose where to go; one directory is read at a time. Bottom-up many are.
    """
    walking: Iterator[Any] = os.walk(top, topdown, onerror, followlinks)
    count = 1 if topdown else _BATCH
    while found := await run(_next, walking, count):
        for item in found:
            yield item


def _next(walking: Iterator[Any], count: int) -> list[Any]:
    # Not the other way round: zip() takes from its first argument first.
    return [item for _, item in zip(range(count), walking, strict=False)]
