"""HTTP on the loop: downloads, for now.

``await download(urls, to=folder)`` and ``async for done in downloads(urls, to=folder)`` run the
engine of ``rondel get`` on a thread of its own, beside any asyncio loop. docs/downloads.md tells
how it works.
"""

from .downloading import (
    ActiveDownload,
    Downloaded,
    DownloadError,
    DownloadProgress,
    File,
    download,
    downloads,
)

__all__ = (
    "ActiveDownload",
    "DownloadError",
    "DownloadProgress",
    "Downloaded",
    "File",
    "download",
    "downloads",
)
