"""Request bodies: what `data=` and `json=` may be, and how each is sent."""

from __future__ import annotations

import asyncio
import io
import mimetypes
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from multidict import MultiDict, MultiDictProxy

_PIECE = 64 * 1024


class Payload:
    """A body: either `data`, or pieces that come from `open()` one after the other.

    `length` is None when it is not known; then the body is sent in HTTP chunks. `replayable` tells
    whether it can be sent again.
    """

    __slots__ = ("content_type", "data", "encoding", "length", "open", "replayable")

    #: How it is compressed.
    encoding: str | None

    def __init__(
        self,
        content_type: str | None,
        data: bytes | None = None,
        *,
        open: Callable[[], AsyncIterator[bytes]] | None = None,
        length: int | None = None,
        replayable: bool = True,
    ) -> None:
        self.content_type = content_type
        self.data = data
        self.open = open
        self.length = len(data) if data is not None else length
        self.replayable = replayable
        self.encoding = None

    def pieces(self) -> AsyncIterator[bytes]:
        """All of it, one after the other."""
        return self._whole() if self.open is None else self.open()

    async def _whole(self) -> AsyncIterator[bytes]:
        if self.data:
            yield self.data

    @property
    def size(self) -> int | None:
        """How many bytes it has; None when it is not known."""
        return self.length

    async def as_bytes(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        """The whole of it. One that cannot be sent twice is used up thereby.

        The arguments are those of aiohttp; a body is bytes already.
        """
        del encoding, errors
        return b"".join([bytes(piece) async for piece in self.pieces()])

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """What is in memory, as text; TypeError for a body that is not."""
        if self.data is None:
            raise TypeError("the body is not in memory")
        return self.data.decode(encoding, errors)


def payload_of(data: Any) -> Payload:
    """The body for the argument `data`; TypeError for what cannot be one."""
    if isinstance(data, Payload):
        return data
    if isinstance(data, (bytes, bytearray, memoryview)):
        return Payload("application/octet-stream", bytes(data))
    if isinstance(data, str):
        return Payload("text/plain; charset=utf-8", data.encode())
    if isinstance(data, io.IOBase):
        return _file(data)
    if hasattr(data, "__aiter__"):
        return _iterable(data)
    if isinstance(data, FormData):
        return data()
    if isinstance(data, (Mapping, list, tuple)):
        return FormData(data)()
    raise TypeError(f"data cannot be {type(data).__name__}: {data!r}")


def _iterable(data: Any) -> Payload:
    return Payload("application/octet-stream", open=data.__aiter__, replayable=False)


def _file(file: io.IOBase) -> Payload:
    if isinstance(file, io.StringIO):
        return Payload("text/plain; charset=utf-8", file.read().encode())
    if isinstance(file, io.BytesIO):
        return Payload("application/octet-stream", file.read())
    text = isinstance(file, io.TextIOBase)
    name = getattr(file, "name", None)
    guessed = mimetypes.guess_type(name)[0] if isinstance(name, str) else None
    length = start = None
    if file.seekable():
        start = file.tell()
        if not text:
            length = os.fstat(file.fileno()).st_size - start

    async def pieces() -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        if start is not None:
            file.seek(start)
        left = length
        while left is None or left > 0:
            size = _PIECE if left is None else min(_PIECE, left)
            piece = await loop.run_in_executor(None, file.read, size)
            if not piece:
                break
            if text:
                piece = piece.encode(getattr(file, "encoding", None) or "utf-8")
            elif left is not None:
                left -= len(piece)
            yield piece

    default = "text/plain; charset=utf-8" if text else "application/octet-stream"
    return Payload(guessed or default, open=pieces, length=length, replayable=start is not None)


class FormData:
    """A form: urlencoded, or multipart when a field is a file or says more than its value.

    `fields`: a mapping, or an iterable of pairs, files, or (name, value) pairs.
    """

    def __init__(
        self,
        fields: Any = (),
        quote_fields: bool = True,
        charset: str | None = None,
        *,
        default_to_multipart: bool = False,
    ) -> None:
        self._fields: list[tuple[str, Any, str | None, str | None]] = []
        self._multipart = default_to_multipart
        self._quote = quote_fields
        self._charset = charset
        if isinstance(fields, (MultiDict, MultiDictProxy, Mapping)):
            pairs: Iterable[Any] = list(fields.items())
        elif isinstance(fields, (list, tuple)):
            pairs = fields
        else:
            pairs = (fields,)
        self.add_fields(*pairs)

    @property
    def is_multipart(self) -> bool:
        """Whether it is sent as multipart/form-data."""
        return self._multipart

    def add_field(
        self,
        name: str,
        value: Any,
        *,
        content_type: str | None = None,
        filename: str | None = None,
    ) -> None:
        """Add a field: str, bytes or an open file."""
        if isinstance(value, (io.IOBase, bytes, bytearray, memoryview)):
            self._multipart = True
        if content_type is not None:
            if not isinstance(content_type, str):
                raise TypeError(f"content_type must be an instance of str. Got: {content_type}")
            if any(character in content_type for character in "\r\n\0"):
                raise ValueError("content_type contains a newline")
            self._multipart = True
        if filename is not None and not isinstance(filename, str):
            raise TypeError(f"filename must be an instance of str. Got: {filename}")
        if filename is None and isinstance(value, io.IOBase):
            source = getattr(value, "name", None)
            filename = Path(source).name if isinstance(source, str) else name
        if filename is not None:
            self._multipart = True
        self._fields.append((name, value, content_type, filename))

    def add_fields(self, *fields: Any) -> None:
        """Add files and (name, value) pairs."""
        for field in fields:
            if isinstance(field, io.IOBase):
                self.add_field(getattr(field, "name", "unknown"), field)
            elif isinstance(field, (MultiDict, MultiDictProxy)):
                self.add_fields(*field.items())
            elif isinstance(field, (list, tuple)) and len(field) == 2:
                self.add_field(field[0], field[1])
            else:
                raise TypeError(
                    "Only io.IOBase, multidict and (name, file) pairs allowed, use .add_field() "
                    f"for passing more complex parameters, got {field!r}"
                )

    def __call__(self) -> Payload:
        """The body, as it is sent."""
        if self._multipart:
            return self._as_multipart()
        charset = self._charset or "utf-8"
        for _, value, _, _ in self._fields:
            if not isinstance(value, (str, int, float)) or isinstance(value, bool):
                raise TypeError(f"expected str, got {value!r}")
        pairs = [(name, str(value)) for name, value, _, _ in self._fields]
        encoded = urlencode(pairs, doseq=True, encoding=charset).encode()
        kind = "application/x-www-form-urlencoded"
        return Payload(kind if charset == "utf-8" else f"{kind}; charset={charset}", encoded)

    def _escaped(self, text: str) -> str:
        if self._quote:
            return quote(text, "[]")
        if "\r" in text or "\n" in text or "\0" in text:
            raise ValueError("a form's names cannot contain line ends")
        return text.replace("\\", "\\\\").replace('"', '\\"')

    def _as_multipart(self) -> Payload:
        boundary = secrets.token_hex(16)
        parts: list[tuple[bytes, Payload]] = []
        for name, value, content_type, filename in self._fields:
            payload = payload_of(value)
            kind = content_type or payload.content_type
            lines = [f"--{boundary}", f"Content-Type: {kind}"]
            disposition = f'form-data; name="{self._escaped(name)}"'
            if filename is not None:
                disposition += f'; filename="{self._escaped(filename)}"'
            lines.append(f"Content-Disposition: {disposition}")
            if payload.length is not None:
                lines.append(f"Content-Length: {payload.length}")
            parts.append(("\r\n".join(lines).encode() + b"\r\n\r\n", payload))
        end = f"--{boundary}--\r\n".encode()

        async def pieces() -> AsyncIterator[bytes]:
            for head, payload in parts:
                if payload.open is None:
                    yield head + (payload.data or b"") + b"\r\n"
                    continue
                yield head
                async for piece in payload.open():
                    yield piece
                yield b"\r\n"
            yield end

        kind = f"multipart/form-data; boundary={boundary}"
        if all(payload.open is None for _, payload in parts):
            body = b"".join(head + (payload.data or b"") + b"\r\n" for head, payload in parts)
            return Payload(kind, body + end)
        length: int | None = len(end)
        for head, payload in parts:
            if length is None or payload.length is None:
                length = None
            else:
                length += len(head) + payload.length + 2
        replayable = all(payload.replayable for _, payload in parts)
        return Payload(kind, open=pieces, length=length, replayable=replayable)
