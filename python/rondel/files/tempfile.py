"""Temporary files and directories: ``tempfile`` in threads, with files that are awaited."""

import io
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import Any, Self

from .._rondel import File, call_in_thread
from .kinds import Kind
from .opening import _is_ordinary, wrap_raw
from .threads import Opening

__all__ = ("NamedTemporaryFile", "SpooledTemporaryFile", "TemporaryDirectory", "TemporaryFile")


def TemporaryFile(
    mode: str = "w+b",
    buffering: int = -1,
    encoding: str | None = None,
    newline: str | None = None,
    suffix: str | None = None,
    prefix: str | None = None,
    dir: Any = None,
    *,
    errors: str | None = None,
    loop: Any = None,
    executor: Executor | None = None,
) -> Opening[Any]:
    """Open a file without a name, which is gone when it is closed.

    As ``tempfile.TemporaryFile()``.
    """
    names = {"suffix": suffix, "prefix": prefix, "dir": dir}
    return _open(
        tempfile.TemporaryFile, mode, buffering, encoding, newline, errors, executor, names
    )


def NamedTemporaryFile(
    mode: str = "w+b",
    buffering: int = -1,
    encoding: str | None = None,
    newline: str | None = None,
    suffix: str | None = None,
    prefix: str | None = None,
    dir: Any = None,
    delete: bool = True,
    *,
    errors: str | None = None,
    loop: Any = None,
    executor: Executor | None = None,
    **more: Any,
) -> Opening[Any]:
    """Open a file with a name, which is removed with it; as ``tempfile.NamedTemporaryFile()``.

    Takes ``delete_on_close`` from Python 3.12 on.
    """
    names = {"suffix": suffix, "prefix": prefix, "dir": dir, "delete": delete, **more}
    return _open(
        tempfile.NamedTemporaryFile, mode, buffering, encoding, newline, errors, executor, names
    )


def _open(
    make: Callable[..., Any],
    mode: str,
    buffering: int,
    encoding: str | None,
    newline: str | None,
    errors: str | None,
    executor: Executor | None,
    names: dict[str, Any],
) -> Opening[Any]:
    def build() -> Kind:
        if (buffering == 0 and "b" not in mode) or not _is_ordinary(
            "", mode, buffering, encoding, errors, newline
        ):
            # Refused in its own words.
            make(mode, buffering, encoding, newline, errors=errors, **names).close()
            raise ValueError("invalid arguments")
        # The unbuffered file; what is above it is ours.
        binary = "".join(sorted(set(mode) - set("tb"), reverse=True)) + "b"
        raw = make(binary, 0, **names)
        try:
            keeper = None if isinstance(raw, io.FileIO) else raw
            file = raw if keeper is None else raw.file
            made = wrap_raw(
                file, mode, buffering, encoding, errors, newline, executor=executor, closer=keeper
            )
        except BaseException:
            raw.close()
            raise
        return made

    return Opening(call_in_thread(executor, True, build))


class AsyncSpooledTemporaryFile:
    """What ``SpooledTemporaryFile()`` opens."""

    def __init__(self, file: Any, executor: Executor | None) -> None:
        self._file = file
        #: The same, in threads; all goes there from the first time on.
        self._thread = File(file, executor=executor)
        self._on_disk = False

    async def _do(self, name: str, *args: Any) -> Any:
        if self._on_disk or self._leaves_memory(name, args):
            self._on_disk = True
            return await self._thread._call(name, *args)
        return getattr(self._file, name)(*args)

    def _leaves_memory(self, name: str, args: tuple[Any, ...]) -> bool:
        if name in ("rollover", "fileno"):
            return True
        most = self._file._max_size
        if not most or self._file.closed:
            return False
        if name == "write" and args and isinstance(args[0], str | bytes | bytearray):
            # A character takes up to four bytes.
            width = 4 if isinstance(args[0], str) else 1
            return bool(self._file.tell() + width * len(args[0]) > most)
        return name in ("write", "writelines", "truncate")

    async def read(self, size: int | None = -1, /) -> Any:
        """Read up to ``size`` bytes or characters; all that follow without."""
        return await self._do("read", size)

    async def readline(self, size: int = -1, /) -> Any:
        """Read a line, with its end."""
        return await self._do("readline", size)

    async def readlines(self, hint: int = -1, /) -> list[Any]:
        """Read the lines that follow."""
        lines: list[Any] = await self._do("readlines", hint)
        return lines

    async def write(self, data: Any, /) -> int:
        """Write bytes or text; return how much."""
        return int(await self._do("write", data))

    async def writelines(self, lines: Iterable[Any], /) -> None:
        """Write each of them."""
        await self._do("writelines", lines)

    async def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move the position; return where it is then."""
        return int(await self._do("seek", offset, whence))

    async def tell(self) -> int:
        """Return the position."""
        return int(await self._do("tell"))

    async def truncate(self, size: int | None = None, /) -> Any:
        """Make it ``size`` bytes long, or as long as the position says."""
        return await self._do("truncate", size)

    async def flush(self) -> None:
        """Write what waits, if there is a file on the disk."""
        await self._do("flush")

    async def isatty(self) -> bool:
        """Whether it is a terminal: never."""
        return bool(await self._do("isatty"))

    async def fileno(self) -> int:
        """The descriptor; what was in memory goes to the disk."""
        return int(await self._do("fileno"))

    async def rollover(self) -> None:
        """Move what is in memory to the disk."""
        await self._do("rollover")

    async def close(self) -> None:
        """Close it; what it held is gone."""
        await self._do("close")

    def __getattr__(self, name: str) -> Any:
        if name in ("closed", "encoding", "errors", "mode", "name", "newlines"):
            return getattr(self._file, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if line := await self.readline():
            return line
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()


def SpooledTemporaryFile(
    max_size: int = 0,
    mode: str = "w+b",
    buffering: int = -1,
    encoding: str | None = None,
    newline: str | None = None,
    suffix: str | None = None,
    prefix: str | None = None,
    dir: Any = None,
    *,
    errors: str | None = None,
    loop: Any = None,
    executor: Executor | None = None,
) -> Opening[Any]:
    """Open a file that stays in memory until it has ``max_size`` bytes; 0 for no limit.

    As ``tempfile.SpooledTemporaryFile()``. Operations in memory do not go to a thread.
    """

    async def make() -> AsyncSpooledTemporaryFile:
        file = tempfile.SpooledTemporaryFile(  # noqa: SIM115
            max_size, mode, buffering, encoding, newline, suffix, prefix, dir, errors=errors
        )
        return AsyncSpooledTemporaryFile(file, executor)

    return Opening(make())


class AsyncTemporaryDirectory:
    """What ``await TemporaryDirectory()`` gives."""

    def __init__(self, directory: tempfile.TemporaryDirectory[Any], executor: Any) -> None:
        self._directory = directory
        self._executor = executor

    @property
    def name(self) -> Any:
        """The path."""
        return self._directory.name

    async def cleanup(self) -> None:
        """Remove the directory and all that is in it."""
        await call_in_thread(self._executor, False, self._directory.cleanup)

    async def close(self) -> None:
        """As :meth:`cleanup`."""
        await self.cleanup()


class _OpeningDirectory(Opening[AsyncTemporaryDirectory]):
    __slots__ = ()

    async def __aenter__(self) -> Any:
        # The name, as from the synchronous one.
        return (await super().__aenter__()).name


def TemporaryDirectory(
    suffix: str | None = None,
    prefix: str | None = None,
    dir: Any = None,
    *,
    loop: Any = None,
    executor: Executor | None = None,
) -> Opening[AsyncTemporaryDirectory]:
    """Make a directory that is removed at the end; as ``tempfile.TemporaryDirectory()``.

    ``async with`` gives its name, ``await`` an object with ``name`` and ``cleanup()``.
    """

    async def make() -> AsyncTemporaryDirectory:
        directory = await call_in_thread(executor, True, _Directory, suffix, prefix, dir)
        return AsyncTemporaryDirectory(directory, executor)

    return _OpeningDirectory(make())


class _Directory(tempfile.TemporaryDirectory[Any]):
    def close(self) -> None:
        """What is called if nobody waits for it any more."""
        self.cleanup()
