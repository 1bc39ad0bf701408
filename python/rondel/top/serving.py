"""The side of the process that is looked at: threads of its own answer on a Unix socket."""

import asyncio
import atexit
import contextlib
import json
import os
import pathlib
import socket
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Self

from .. import watchdog
from .._rondel import StatusServer
from . import places, snapshot

if TYPE_CHECKING:
    from ..loop import Loop

#: Seconds after which a callback counts as slow where no watch says otherwise.
THRESHOLD = 0.1


class Serving:
    """A socket that tells of this process's loops; :func:`serve_metrics` makes it.

    As a context manager it stops at the end.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        #: The socket's path.
        self.path = pathlib.Path(path) if path is not None else places.of_process(os.getpid())
        self._owner = os.getpid()
        self._loops: weakref.WeakValueDictionary[int, Loop] = weakref.WeakValueDictionary()
        self._next = 1
        # Loops are added from any thread, and described in another one.
        self._lock = threading.Lock()
        self._server = StatusServer(self._describe)
        self._socket = _listen(self.path)
        try:
            self._server.start(os.dup(self._socket.fileno()))
        except BaseException:
            self.stop()
            raise
        _servings.append(self)

    def add(self, loop: "Loop") -> None:
        """Tell of this loop, too, until it is closed; watch it, unless it is watched already."""
        with self._lock:
            if loop in self._loops.values():
                return
            number = self._next
            self._next += 1
            self._loops[number] = loop
        self._server.add(number, loop)
        loop._watch_ended_by_close(_Added(self, number))
        if sys.platform == "linux" and _watch_of(loop) is None:
            watchdog.watch(loop, threshold=THRESHOLD, log=False)

    def _remove(self, number: int) -> None:
        with self._lock:
            self._loops.pop(number, None)
        self._server.remove(number)

    def _describe(self) -> str:
        with self._lock:
            loops = [*self._loops.items()]
        told = {key: snapshot.of_loop(loop, _watch_of(loop)) for key, loop in loops}
        return json.dumps({"program": sys.argv, "loops": told})

    def stop(self) -> None:
        """Remove the socket, and answer no more. A second call does nothing."""
        if self in _servings:
            _servings.remove(self)
        if self._socket.fileno() < 0:
            return
        if self._owner == os.getpid():
            # The thread that waits for connections wakes up by this.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._server.stop()
            self.path.unlink(missing_ok=True)
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()


class _Added:
    """What a loop that is told of ends when it is closed."""

    def __init__(self, serving: Serving, number: int) -> None:
        self._serving = serving
        self._number = number

    def stop(self) -> None:
        self._serving._remove(self._number)


def _watch_of(loop: "Loop") -> "watchdog.Watch | None":
    ours = [watch for watch in loop._watches if isinstance(watch, watchdog.Watch)]
    return next((watch for watch in reversed(ours) if watch in watchdog._watches), None)


def _listen(path: pathlib.Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        with contextlib.suppress(FileNotFoundError):
            # Of a process that was killed, whose number this one has got.
            if path.is_socket() and not _answers(path):
                path.unlink()
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen()
    except BaseException:
        listener.close()
        raise
    return listener


def _answers(path: pathlib.Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        return True


#: Those that answer.
_servings: list[Serving] = []

#: The one of this process, which RONDEL_TOP asks for.
_own: Serving | None = None
_own_lock = threading.Lock()


def serve_own(loop: "Loop") -> None:
    """Tell of a loop on this process's own socket."""
    global _own
    with _own_lock:
        if _own is None or _own._owner != os.getpid():
            _own = Serving(None)
    _own.add(loop)


def serve_metrics(
    loop: asyncio.AbstractEventLoop | None = None, path: str | os.PathLike[str] | None = None
) -> Serving:
    """Let ``rondel top`` and other programs of this user look at a loop; without one, the running.

    Listens on the Unix socket `path`; by default ``rondel/PID.sock`` in ``XDG_RUNTIME_DIR``, where
    ``rondel top PID`` looks for it. Who connects gets one JSON document; also while the loop is
    blocked, since threads of their own answer. The loop is watched for callbacks of 0.1 s and
    longer, unless it is watched already. Only the user of this process can connect.

    Raises OSError where the socket cannot be made, PermissionError if its folder is not private,
    TypeError for a loop that is not rondel's, RuntimeError without a loop.
    """
    from ..loop import Loop

    loop = asyncio.get_running_loop() if loop is None else loop
    if not isinstance(loop, Loop):
        raise TypeError(f"only rondel's loops can be served, not {loop!r}")
    serving = Serving(path)
    serving.add(loop)
    return serving


@atexit.register
def _stop_all() -> None:
    # Their threads must not ask for the GIL of an interpreter that is gone.
    for serving in list(_servings):
        serving.stop()
