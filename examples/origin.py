"""An HTTP origin for the download example: generated files on loopback, checksums known.

    python examples/origin.py [COUNTxSIZE ...]

prints its address as its first line and serves until its standard input ends (so it cannot
outlive the program that started it) or until Ctrl-C. ``GET /manifest.json`` lists the files.

It runs in a process of its own and hands bodies to the kernel with ``sendfile``, so that what
is measured beside it is the downloading program and not its server.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import random
import re
import socket
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import BinaryIO

DEFAULT_FILES = ("40x10KiB", "20x1MiB", "4x16MiB", "1x64MiB")
UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20}
BLOCK = 1 << 20


@dataclass(frozen=True)
class Entry:
    """One served file: its name, its size in bytes and the SHA-256 of its content, in hex."""

    name: str
    size: int
    sha256: str


def parse_spec(spec: str) -> tuple[int, str, int]:
    """Read ``"20x1MiB"`` as (20 files, label ``"1MiB"``, 1048576 bytes each).

    Raises ValueError for anything that is not COUNTxNUMBER followed by B, KiB or MiB.
    """
    match = re.fullmatch(r"(\d+)x(\d+)(B|KiB|MiB)", spec)
    if match is None:
        raise ValueError(f"{spec!r} is not COUNTxSIZE, such as 20x1MiB")
    count, number, unit = match.groups()
    return int(count), number + unit, int(number) * UNITS[unit]


class Store:
    """Files with content made from their names, held as unlinked temporary files."""

    def __init__(self, specs: Sequence[str]) -> None:
        self.entries: list[Entry] = []
        self._files: dict[str, BinaryIO] = {}
        with contextlib.ExitStack() as stack:
            for spec in specs:
                count, label, size = parse_spec(spec)
                for number in range(1, count + 1):
                    name = f"{label}-{number:02}.bin"
                    if name not in self._files:
                        file = stack.enter_context(tempfile.TemporaryFile())
                        self.entries.append(Entry(name, size, _fill(file, name, size)))
                        self._files[name] = file
            self._open = stack.pop_all()

    def close(self) -> None:
        """Close the files, which frees their space."""
        self._open.close()

    def find(self, name: str) -> BinaryIO | None:
        """The open file of that name, or None; its position is shared by all requests."""
        return self._files.get(name)


def _fill(file: BinaryIO, name: str, size: int) -> str:
    """Write `size` bytes that depend on nothing but `name`; return their SHA-256."""
    generator = random.Random(name)
    digest = hashlib.sha256()
    left = size
    while left:
        # No block repeats: one that is lost, doubled or out of place changes the sum.
        block = generator.randbytes(min(left, BLOCK))
        digest.update(block)
        file.write(block)
        left -= len(block)
    file.flush()
    return digest.hexdigest()


class Origin(ThreadingHTTPServer):
    """A thread per connection, HTTP/1.1 with keep-alive, on an OS-chosen port of 127.0.0.1."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, specs: Sequence[str]) -> None:
        self.store = Store(specs)
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        """The address of the root, without a trailing slash."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def server_close(self) -> None:
        """Close the listening socket and the files."""
        super().server_close()
        self.store.close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Report what is this server's fault; a client that goes away is not."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body leave in two calls; Nagle would hold a short body back until the head is
    # acknowledged, which on loopback is a delayed acknowledgement of 40 ms.
    disable_nagle_algorithm = True
    server: Origin
    connection: socket.socket

    def do_GET(self) -> None:
        """Send the manifest or a file."""
        name = self.path.lstrip("/")
        if name == "manifest.json":
            body = json.dumps([asdict(entry) for entry in self.server.store.entries]).encode()
            self._head("application/json", len(body))
            self.wfile.write(body)
            return
        file = self.server.store.find(name)
        if file is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        size = next(entry.size for entry in self.server.store.entries if entry.name == name)
        self._head("application/octet-stream", size)
        # sendfile(2) gets an offset of its own, so that threads may share one open file.
        self.connection.sendfile(file, 0, size)

    def _head(self, content_type: str, length: int) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent: whoever started this shows the progress."""


def main() -> int:
    """Serve until standard input ends; 2 for a file list that cannot be read."""
    parser = argparse.ArgumentParser(
        description="Serve generated files on loopback until standard input ends."
    )
    parser.add_argument(
        "files",
        nargs="*",
        metavar="COUNTxSIZE",
        help="what to serve (default: {})".format(" ".join(DEFAULT_FILES)),
    )
    arguments = parser.parse_args()
    try:
        origin = Origin(arguments.files or DEFAULT_FILES)
    except ValueError as error:
        parser.error(str(error))
    with origin:
        print(origin.url, flush=True)
        thread = threading.Thread(target=origin.serve_forever, name="origin")
        thread.start()
        with contextlib.suppress(KeyboardInterrupt):
            sys.stdin.buffer.read()
        origin.shutdown()
        thread.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
