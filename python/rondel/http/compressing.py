"""Request bodies that are compressed on their way: the argument `compress`."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import AsyncIterator
from typing import Any

from .formdata import Payload

# Bytes from which on compressing is left to a thread.
_MUCH = 16 * 1024
_WINDOWS = {"deflate": zlib.MAX_WBITS, "gzip": zlib.MAX_WBITS | 16}


def compressed(payload: Payload, compress: str | bool) -> Payload:
    """A body, compressed by "deflate" (also for True) or "gzip"; an empty one stays as it is.

    ValueError for another encoding.
    """
    encoding = compress if isinstance(compress, str) else "deflate"
    window = _WINDOWS.get(encoding)
    if window is None:
        raise ValueError(f"compress can be True, 'deflate' or 'gzip', not {compress!r}")
    if payload.data == b"":
        return payload
    if payload.data is not None and len(payload.data) < _MUCH:
        data = zlib.compress(payload.data, wbits=window)
        result = Payload(payload.content_type, data)
    else:
        result = Payload(
            payload.content_type,
            open=lambda: _pieces(payload, window),
            replayable=payload.replayable,
        )
    result.encoding = encoding
    return result


async def _pieces(payload: Payload, window: int) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    compressor = zlib.compressobj(wbits=window)
    source: Any = payload.pieces()
    async with contextlib.AsyncExitStack() as stack:
        if hasattr(source, "aclose"):
            await stack.enter_async_context(contextlib.aclosing(source))
        async for piece in source:
            if len(piece) < _MUCH:
                data = compressor.compress(piece)
            else:
                data = await loop.run_in_executor(None, compressor.compress, piece)
            if data:
                yield data
    yield compressor.flush()
