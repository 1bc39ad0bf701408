"""Starting a worker process so that the system's reason is known when it cannot be.

:mod:`multiprocessing` executes the interpreter with the environment of the C library, and drops
what the child says of a failed start. While it does so, Python's other threads run, and one that
sets a variable can move that environment away from under the system call, which then fails (EFAULT)
or passes on what is no environment any more. Here the child gets a copy of ``os.environ``, and
:mod:`subprocess` brings back the error of what failed.
"""

import functools
import io
import os
import subprocess
from collections.abc import Iterable
from multiprocessing import connection, popen_spawn_posix, reduction, resource_tracker, spawn
from multiprocessing.context import SpawnProcess, set_spawning_popen
from multiprocessing.process import BaseProcess
from typing import Any


class WorkerProcess(SpawnProcess):
    """A process of the start method "spawn"; ``start()`` raises what prevents it.

    Raises:
        OSError: From ``start()``: the interpreter could not be executed (its name is the error's
            ``filename``), or what comes before that failed in the child (there is none).

    """

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> "_Spawned":
        return _Spawned(process_obj)

    def __reduce__(self) -> Any:
        # In the new process it is multiprocessing's own: that imports nothing of this package.
        return object.__new__, (SpawnProcess,), self.__dict__


class _Spawned(popen_spawn_posix.Popen):
    """The parent's side of a started process."""

    _fds: list[int]
    finalizer: Any

    def _launch(self, process_obj: BaseProcess) -> None:
        tracker: Any = resource_tracker.getfd()
        job = io.BytesIO()
        set_spawning_popen(self)
        try:
            # The second one adds the descriptors that it names to `_fds`.
            reduction.dump(spawn.get_preparation_data(process_obj.name), job)
            reduction.dump(process_obj, job)
        finally:
            set_spawning_popen(None)
        # Each side sees by its reading end that the other one has gone.
        sentinel, alive = connection.Pipe(duplex=False)
        source, sink = connection.Pipe(duplex=False)
        self.finalizer = functools.partial(_close, (sentinel, sink))
        try:
            with alive, source:
                child = self._execute(tracker, alive.fileno(), source.fileno())
        except BaseException:
            self.finalizer()
            raise
        # multiprocessing waits for it.
        child.returncode = 0
        self.pid = child.pid
        self.sentinel = sentinel.fileno()
        try:
            with open(sink.fileno(), "wb", closefd=False) as stream:
                stream.write(job.getbuffer())
        except BrokenPipeError:
            pass  # It has ended already, and how tells more than this does.

    def _execute(self, tracker: int, alive: int, source: int) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            spawn.get_command_line(tracker_fd=tracker, pipe_handle=source),
            executable=spawn.get_executable(),
            pass_fds=(*self._fds, tracker, alive, source),
            env=environment(),
            restore_signals=False,
        )


def _close(ends: "Iterable[connection.Connection[Any, Any]]") -> None:
    for end in ends:
        end.close()


def environment() -> dict[str, str]:
    """The environment, while other threads may be changing it."""
    return {name: value for name in list(os.environ) if (value := os.environ.get(name)) is not None}
