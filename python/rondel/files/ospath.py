"""Functions of ``os.path`` that ask the file system, in threads; as ``rondel.files.os.path``."""

from os import path

from .threads import wrap

__all__ = (
    "abspath",
    "exists",
    "getatime",
    "getctime",
    "getmtime",
    "getsize",
    "isdir",
    "isfile",
    "islink",
    "ismount",
    "lexists",
    "realpath",
    "samefile",
    "sameopenfile",
)

abspath = wrap(path.abspath)
exists = wrap(path.exists)
getatime = wrap(path.getatime)
getctime = wrap(path.getctime)
getmtime = wrap(path.getmtime)
getsize = wrap(path.getsize)
isdir = wrap(path.isdir)
isfile = wrap(path.isfile)
islink = wrap(path.islink)
ismount = wrap(path.ismount)
lexists = wrap(path.lexists)
realpath = wrap(path.realpath)
samefile = wrap(path.samefile)
sameopenfile = wrap(path.sameopenfile)
