"""Functions of ``os`` in threads: each is awaited, and otherwise as its namesake there.

Each takes ``executor`` besides.
"""

import os

from . import ospath as path
from .threads import wrap

__all__ = (
    "access",
    "chmod",
    "chown",
    "fsync",
    "getcwd",
    "link",
    "listdir",
    "lstat",
    "makedirs",
    "mkdir",
    "path",
    "readlink",
    "remove",
    "removedirs",
    "rename",
    "renames",
    "replace",
    "rmdir",
    "scandir",
    "sendfile",
    "stat",
    "statvfs",
    "symlink",
    "truncate",
    "unlink",
    "utime",
    "wrap",
)

access = wrap(os.access)
chmod = wrap(os.chmod)
chown = wrap(os.chown)
fsync = wrap(os.fsync)
getcwd = wrap(os.getcwd)
link = wrap(os.link)
listdir = wrap(os.listdir)
lstat = wrap(os.lstat)
makedirs = wrap(os.makedirs)
mkdir = wrap(os.mkdir)
readlink = wrap(os.readlink)
remove = wrap(os.remove)
removedirs = wrap(os.removedirs)
rename = wrap(os.rename)
renames = wrap(os.renames)
replace = wrap(os.replace)
rmdir = wrap(os.rmdir)
#: The entries are read from the directory as they are asked for, without awaiting; `walk()` of
#: `rondel.files` reads them in threads.
scandir = wrap(os.scandir)
sendfile = wrap(os.sendfile)
stat = wrap(os.stat)
statvfs = wrap(os.statvfs)
symlink = wrap(os.symlink)
truncate = wrap(os.truncate)
unlink = wrap(os.unlink)
utime = wrap(os.utime)
