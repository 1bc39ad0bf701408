"""Downloads from a program: the engine of ``rondel get`` beside an asyncio loop.

The engine runs on a thread that never holds the GIL. A descriptor that the loop watches becomes
readable when something has happened; what happened is then taken in one go.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

from .._rondel import Downloads

#: What went wrong, in one word: see DownloadError.kind.
Kind = Literal[
    "input",
    "name",
    "connection",
    "tls",
    "timeout",
    "protocol",
    "status",
    "checksum",
    "disk",
    "exists",
    "cancelled",
]

#: Seconds between two calls of on_progress.
PROGRESS_PERIOD = 0.1


class DownloadError(OSError):
    """A file could not be downloaded.

    ``kind`` is one word: ``input`` (the URL is none), ``name`` (the host has no address),
    ``connection``, ``tls``, ``timeout``, ``protocol`` (what came was not HTTP), ``status`` (the
    server answered with ``status``), ``checksum``, ``disk`` (``errno`` says what), ``exists`` (the
    file is there, with ``existing="fail"``), ``cancelled``.
    """

    def __init__(
        self, url: str, kind: Kind, text: str, status: int | None = None, errno: int | None = None
    ) -> None:
        super().__init__(f"{url}: {text}")
        self.url = url
        self.kind = kind
        self.text = text
        self.status = status
        self.errno = errno

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.url, self.kind, self.text, self.status, self.errno)


@dataclass(frozen=True, slots=True)
class File:
    """One file to download, where its URL alone does not say all.

    ``mirrors`` are further URLs of the same file, ``name`` its path below the folder, ``checksum``
    what it must sum up to, as ``"sha256:HEX"`` (sha512, blake3 and md5 are known too), ``size`` its
    size in bytes, ``headers`` those of its requests alone.
    """

    url: str
    mirrors: tuple[str, ...] = ()
    name: str | None = None
    checksum: str | None = None
    size: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Downloaded:
    """How a file ended: downloaded, unchanged, or failed with ``error``.

    ``index`` is its place among the files asked for. ``path`` is where it is (None if it failed),
    ``size`` its size, and ``received`` the bytes that came for it in this run; ``unchanged`` that
    it was there already, and ``verified`` that a checksum was compared.
    """

    index: int
    url: str
    path: Path | None = None
    size: int = 0
    received: int = 0
    unchanged: bool = False
    verified: bool = False
    error: DownloadError | None = None


@dataclass(frozen=True, slots=True)
class ActiveDownload:
    """A file that is coming: bytes that are there, with those of earlier runs, and its size."""

    index: int
    url: str
    present: int
    size: int | None


@dataclass(frozen=True, slots=True)
class DownloadProgress:
    """How far a run is: files in all, done and failed, bytes received, and the files that are
    coming.
    """

    files: int
    done: int
    failed: int
    received: int
    active: tuple[ActiveDownload, ...]


class Options(TypedDict, total=False):
    """What `download` and `downloads` take by keyword; the options of ``rondel get``."""

    #: Files at a time; 16.
    concurrency: int
    #: Connections at a time to one host; 8.
    per_host: int
    #: Connections for one large file; without, up to four while they help.
    segments: int
    #: Bytes per second for all together.
    rate: int
    #: Further attempts per file; 5.
    retries: int
    #: Seconds for a connection; 15.
    connect_timeout: float
    #: Seconds without a byte; 30.
    idle_timeout: float
    #: Seconds for one file with all its attempts.
    total_timeout: float
    #: Whether to go on with what an earlier run left; True.
    resume: bool
    #: What to do with a file that is there: ask whether it has changed is the default.
    existing: Literal["update", "skip", "replace", "rename", "fail"]
    #: Names by a template, as ``"{host}/{path}"``.
    name: str
    #: Whether servers may name files; True.
    content_disposition: bool
    #: Whether files get the server's time; True.
    keep_time: bool
    #: Force every file to the disk before it gets its name; False.
    fsync: bool
    #: For every request.
    headers: Mapping[str, str]
    #: Name and password.
    user: tuple[str, str]
    #: A proxy's URL; None for no proxy, whatever the environment says.
    proxy: str | None
    #: Read ~/.netrc; True.
    netrc: bool
    #: Verify certificates: False for any, or a PEM file with roots to trust.
    verify: bool | str | os.PathLike[str]
    #: Offer HTTP/2 to TLS servers; True.
    http2: bool


_WITH_VALUE = {
    "concurrency": "--jobs",
    "per_host": "--per-host",
    "segments": "--segments",
    "rate": "--rate",
    "retries": "--retries",
    "connect_timeout": "--connect-timeout",
    "idle_timeout": "--timeout",
    "total_timeout": "--max-time",
    "existing": "--existing",
    "name": "--name",
}
#: The flag, and the value that it stands for.
_FLAGS = {
    "resume": ("--no-resume", False),
    "content_disposition": ("--no-content-disposition", False),
    "keep_time": ("--no-mtime", False),
    "fsync": ("--fsync", True),
    "netrc": ("--no-netrc", False),
    "http2": ("--http1", False),
}


def _arguments(to: str | os.PathLike[str], options: Mapping[str, Any]) -> list[str]:
    """The options as ``rondel get`` reads them, so that one parser checks both."""
    arguments = [f"--output={os.fspath(to)}"]
    for key, value in options.items():
        if key in _WITH_VALUE:
            if value is not None:
                arguments.append(f"{_WITH_VALUE[key]}={value}")
        elif key in _FLAGS:
            flag, meaning = _FLAGS[key]
            if bool(value) is meaning:
                arguments.append(flag)
        elif key == "headers":
            arguments += [f"--header={name}: {content}" for name, content in value.items()]
        elif key == "user":
            arguments.append(f"--user={value[0]}:{value[1]}")
        elif key == "proxy":
            arguments.append("--no-proxy" if value is None else f"--proxy={value}")
        elif key == "verify":
            if value is False:
                arguments.append("--insecure")
            elif value is not True:
                arguments.append(f"--ca-file={os.fspath(value)}")
        else:
            raise TypeError(f"unknown option {key!r}")
    return arguments


def _native(file: str | File) -> tuple[Any, ...]:
    if isinstance(file, str):
        return [file], None, None, None, []
    urls = [file.url, *file.mirrors]
    return urls, file.name, file.checksum, file.size, list(file.headers.items())


def _url(file: str | File) -> str:
    return file if isinstance(file, str) else file.url


class _Run:
    """A run of the engine and the loop that hears of it."""

    def __init__(
        self,
        files: list[str | File],
        to: str | os.PathLike[str],
        on_progress: Callable[[DownloadProgress], object] | None,
        options: Mapping[str, Any],
    ) -> None:
        self.urls = [_url(file) for file in files]
        self.on_progress = on_progress
        self.ended = False
        self.failure: BaseException | None = None
        self.results: deque[Downloaded] = deque()
        self.done = self.failed = 0
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._native = Downloads([_native(file) for file in files], _arguments(to, options))
        self._loop.add_reader(self._native.fileno(), self._take)
        self._timer: asyncio.TimerHandle | None = None
        if on_progress is not None:
            self._timer = self._loop.call_later(PROGRESS_PERIOD, self._tick)

    def _take(self) -> None:
        for what, *news in self._native.take():
            if what == "done":
                index, path, (size, received, unchanged, verified) = news
                result = Downloaded(
                    index, self.urls[index], Path(path), size, received, unchanged, verified
                )
                self.results.append(result)
                self.done += 1
            elif what == "error":
                index, failure = news
                error = self._error(self.urls[index], failure)
                self.results.append(Downloaded(index, self.urls[index], error=error))
                self.failed += 1
            elif what == "end":
                self.ended = True
                if news[0] is not None:
                    self.failure = self._error("downloads", news[0])
                self._loop.remove_reader(self._native.fileno())
        self._news.set()

    @staticmethod
    def _error(url: str, failure: tuple[Any, ...]) -> DownloadError:
        return DownloadError(url, *failure)

    def _tick(self) -> None:
        self._timer = self._loop.call_later(PROGRESS_PERIOD, self._tick)
        try:
            self.tell()
        except BaseException as exc:
            self._timer.cancel()
            self.failure = exc
            self._news.set()

    def tell(self) -> None:
        """Call on_progress."""
        if self.on_progress is None:
            return
        received, active = self._native.progress()
        files = tuple(
            ActiveDownload(index, self.urls[index], present, size)
            for index, present, size in active
        )
        self.on_progress(DownloadProgress(len(self.urls), self.done, self.failed, received, files))

    async def next(self) -> Downloaded | None:
        """The next file that ended; None after the last."""
        while not self.results:
            if self.failure is not None:
                raise self.failure
            if self.ended:
                return None
            self._news.clear()
            await self._news.wait()
        return self.results.popleft()

    async def close(self) -> None:
        """Stop what still runs, and wait until the engine has let go of the files."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._native.stop()
        try:
            while not self.ended:
                self._news.clear()
                await self._news.wait()
        finally:
            self._loop.remove_reader(self._native.fileno())


async def downloads(
    files: Iterable[str | File],
    to: str | os.PathLike[str] = ".",
    *,
    on_progress: Callable[[DownloadProgress], object] | None = None,
    **options: Unpack[Options],
) -> AsyncGenerator[Downloaded, None]:
    """Download files into the folder ``to``; give each as it ends, well or not.

    ``on_progress`` is called with a `DownloadProgress` about ten times a second, in the loop's
    thread; what it raises ends the run. The keywords are `Options`. Raises ValueError for an option
    or a file that cannot be used. Leaving the loop early (``aclose()``, or cancellation) stops the
    rest; what can be resumed leaves its part.
    """
    run = _Run(list(files), to, on_progress, options)
    try:
        while (result := await run.next()) is not None:
            yield result
        run.tell()
    finally:
        await run.close()


@overload
async def download(  # type: ignore[overload-overlap]  # a str is an iterable too
    files: str | File,
    to: str | os.PathLike[str] = ".",
    *,
    on_progress: Callable[[DownloadProgress], object] | None = None,
    **options: Unpack[Options],
) -> Downloaded: ...


@overload
async def download(
    files: Iterable[str | File],
    to: str | os.PathLike[str] = ".",
    *,
    on_progress: Callable[[DownloadProgress], object] | None = None,
    **options: Unpack[Options],
) -> list[Downloaded]: ...


async def download(
    files: str | File | Iterable[str | File],
    to: str | os.PathLike[str] = ".",
    *,
    on_progress: Callable[[DownloadProgress], object] | None = None,
    **options: Unpack[Options],
) -> Downloaded | list[Downloaded]:
    """Download a file, or files, into the folder ``to``; return how they ended, in their order.

    All are tried. If some fail an ExceptionGroup of their `DownloadError` is raised after the last,
    or the error itself for a single URL. For the rest see `downloads`.
    """
    single = isinstance(files, str | File)
    wanted: list[str | File] = [files] if isinstance(files, str | File) else list(files)
    results = [result async for result in downloads(wanted, to, on_progress=on_progress, **options)]
    results.sort(key=lambda result: result.index)
    errors = [result.error for result in results if result.error is not None]
    if errors and single:
        raise errors[0]
    if errors:
        raise ExceptionGroup(f"{len(errors)} of {len(wanted)} downloads failed", errors)
    return results[0] if single else results
