"""The kinds of open files, named as in aiofiles.

The operations are native (``rondel._rondel.File``) and are awaited. Each does what the method of
the same name does of the file that ``open()`` would have returned, with the same results and
errors.
"""

import io
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Self

from .._rondel import Coroutine, File

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


class _Common(File):
    """What all kinds have."""

    def isatty(self) -> Coroutine[bool]:
        """Whether the file is a terminal."""
        return self._call("isatty")

    def seekable(self) -> Coroutine[bool]:
        """Whether the file has positions."""
        return self._call("seekable")

    def truncate(self, size: int | None = None, /) -> Coroutine[int]:
        """Make the file ``size`` bytes long (up to the position without); return its length."""
        return self._call("truncate", size)

    def writable(self) -> Coroutine[bool]:
        """Whether the file was opened for writing."""
        return self._call("writable")

    def __repr__(self) -> str:
        kind = type(self)
        return f"<{kind.__module__}.{kind.__qualname__} of {self._file!r}>"


class _Binary(_Common):
    """What files of bytes have."""

    if TYPE_CHECKING:

        def read(self, size: int | None = -1, /) -> Coroutine[bytes]:
            """Read up to ``size`` bytes; all that follow without."""

        def readline(self, size: int | None = -1, /) -> Coroutine[bytes]:
            """Read a line, with its end; at most ``size`` bytes of it."""

        def readinto(self, buffer: WriteableBuffer, /) -> Coroutine[int]:
            """Read into memory of the program's; return how many bytes came."""

        def write(self, data: ReadableBuffer, /) -> Coroutine[int]:
            """Write bytes; return how many."""

        def __anext__(self) -> Coroutine[bytes]: ...

    def readable(self) -> bool:
        """Whether the file was opened for reading. Not awaited, as in aiofiles."""
        return bool(self._file.readable())

    def readlines(self, hint: int | None = -1, /) -> Coroutine[list[bytes]]:
        """Read lines: all that follow, or until they have ``hint`` bytes together."""
        return self._call("readlines", hint)

    def writelines(self, lines: "Iterable[ReadableBuffer]", /) -> Coroutine[None]:
        """Write each of them; nothing is added between."""
        return self._call("writelines", lines)


class AsyncFileIO(_Binary):
    """An unbuffered file of bytes (``buffering=0``); as ``io.FileIO``."""

    def readall(self) -> Coroutine[bytes]:
        """Read all that follows."""
        return self._call("readall")


class AsyncBufferedIOBase(_Binary):
    """A buffered file of bytes that is only written; as ``io.BufferedWriter``."""

    @property
    def raw(self) -> io.FileIO:
        """The unbuffered file below; it knows nothing of what waits in the buffer."""
        raw: io.FileIO = self._file.raw
        return raw

    def detach(self) -> io.FileIO:
        """Write what waits, without awaiting, and give the file below away."""
        raw: io.FileIO = self._file.detach()
        return raw

    def read1(self, size: int = -1, /) -> Coroutine[bytes]:
        """Read up to ``size`` bytes, with one call of the system at most."""
        return self._call("read1", size)

    def readinto1(self, buffer: "WriteableBuffer", /) -> Coroutine[int]:
        """Read into memory of the program's, with one call of the system at most."""
        return self._call("readinto1", buffer)


class AsyncBufferedReader(AsyncBufferedIOBase):
    """A buffered file of bytes that is read, or read and written.

    As ``io.BufferedReader`` and ``io.BufferedRandom``.
    """

    def peek(self, size: int = 0, /) -> Coroutine[bytes]:
        """What follows, as far as it has been read ahead, without moving the position."""
        return self._call("peek", size)


class AsyncTextIOWrapper(_Common):
    """A file of text; as ``io.TextIOWrapper``."""

    if TYPE_CHECKING:

        def read(self, size: int | None = -1, /) -> Coroutine[str]:
            """Read up to ``size`` characters; all that follow without."""

        def readline(self, size: int = -1, /) -> Coroutine[str]:
            """Read a line, with its end; at most ``size`` characters of it."""

        def write(self, text: str, /) -> Coroutine[int]:
            """Write text; return how many characters."""

        def __anext__(self) -> Coroutine[str]: ...

    def readable(self) -> Coroutine[bool]:
        """Whether the file was opened for reading. Awaited, as in aiofiles."""
        return self._call("readable")

    def readlines(self, hint: int | None = -1, /) -> Coroutine[list[str]]:
        """Read lines: all that follow, or until they have ``hint`` characters together."""
        return self._call("readlines", hint)

    def writelines(self, lines: Iterable[str], /) -> Coroutine[None]:
        """Write each of them; nothing is added between."""
        return self._call("writelines", lines)

    def detach(self) -> Any:
        """Write what waits, without awaiting, and give the buffer below away."""
        return self._file.detach()

    @property
    def buffer(self) -> Any:
        """The buffer below; it knows nothing of what waits above it."""
        return self._file.buffer

    @property
    def encoding(self) -> str:
        """The name of the encoding."""
        return str(self._file.encoding)

    @property
    def errors(self) -> str | None:
        """What is done about bytes or characters that the encoding does not have."""
        errors: str | None = self._file.errors
        return errors

    @property
    def line_buffering(self) -> bool:
        """Whether each line is written to the file at its end."""
        return bool(self._file.line_buffering)

    @property
    def newlines(self) -> str | tuple[str, ...] | None:
        """The line ends seen so far."""
        newlines: str | tuple[str, ...] | None = self._file.newlines
        return newlines


class AsyncIndirectTextIOWrapper(AsyncTextIOWrapper):
    """The text file that a name stands for at the moment, such as ``sys.stdout``."""

    def __new__(cls, find: Callable[[], Any]) -> Self:  # noqa: D102
        return super().__new__(cls, Indirect(find))


class AsyncIndirectBufferedIOBase(AsyncBufferedIOBase):
    """The file of bytes that a name stands for at the moment, such as ``sys.stdout.buffer``."""

    def __new__(cls, find: Callable[[], Any]) -> Self:  # noqa: D102
        return super().__new__(cls, Indirect(find))


class AsyncIndirectBufferedReader(AsyncBufferedReader):
    """As before, for reading: ``sys.stdin.buffer``."""

    def __new__(cls, find: Callable[[], Any]) -> Self:  # noqa: D102
        return super().__new__(cls, Indirect(find))


class Indirect:
    """Passes every attribute on to what the name stands for at the moment."""

    def __init__(self, find: Callable[[], Any]) -> None:
        self._find = find

    def __getattr__(self, name: str) -> Any:
        return getattr(self._find(), name)

    def __repr__(self) -> str:
        return repr(self._find())


Kind = AsyncFileIO | AsyncBufferedIOBase | AsyncTextIOWrapper
