"""Where the sockets are: one per process, in a folder that only its user can enter."""

import os
import pathlib
import stat
import tempfile


def folder() -> pathlib.Path:
    """Return the user's folder of sockets, which is made if need be.

    It is in ``XDG_RUNTIME_DIR`` or, without one, among the temporary files. Raises PermissionError
    for one that is somebody else's, or open to others.
    """
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        path = pathlib.Path(runtime, "rondel")
    else:
        path = pathlib.Path(tempfile.gettempdir(), f"rondel-{os.geteuid()}")
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    private = stat.S_ISDIR(found.st_mode) and not stat.S_IMODE(found.st_mode) & 0o077
    if not private or found.st_uid != os.geteuid():
        raise PermissionError(f"{path} is not a folder of this user alone")
    return path


def of_process(pid: int) -> pathlib.Path:
    """Return the path of a process's socket, which need not be there."""
    return folder() / f"{pid}.sock"


def processes() -> list[int]:
    """Return the processes that have a socket, and remove sockets of those that are gone."""
    found = []
    for path in folder().glob("*.sock"):
        if not path.stem.isdecimal():
            continue
        try:
            os.kill(int(path.stem), 0)
        except (ProcessLookupError, OverflowError):
            path.unlink(missing_ok=True)
        else:
            found.append(int(path.stem))
    return sorted(found)
