"""What a thread can be found doing, in words, what to do instead, and whose code it is in.

For those who look at running programs: the watchdog (:mod:`rondel.watchdog`) and ``rondel advise``.
"""

import os
import sysconfig

#: What the native part tells of a thread, in words.
NAMES: dict[str, str] = {
    "gil": "running Python code",
    "held": "in C code that holds the GIL",
    "native": "computing without the GIL",
    "sleeping": "sleeping",
    "polling": "waiting for descriptors",
    "socket": "waiting for a socket",
    "file": "waiting for a file",
    "pipe": "waiting for a pipe",
    "lock": "waiting for a lock",
    "child": "waiting for a child process",
    "other": "in a system call",
    "unknown": "not seen",
}

#: What to do instead on an event loop, which it blocks.
CURES: dict[str, str] = {
    "gil": 'await rondel.offload(…, to="processes")',
    "held": 'await rondel.offload(…, to="processes")',
    "native": 'await rondel.offload(…, to="threads")',
    "sleeping": "await asyncio.sleep(…)",
    "polling": 'an async client, or await rondel.offload(…, to="threads")',
    "socket": 'an async client, or await rondel.offload(…, to="threads")',
    "file": 'rondel.files, or await rondel.offload(…, to="threads")',
    "pipe": 'await rondel.offload(…, to="threads")',
    "lock": "asyncio.Lock, or wait in a thread",
    "child": "await asyncio.create_subprocess_exec(…)",
}

_STDLIB = sysconfig.get_path("stdlib") + os.sep
_PACKAGES = os.path.join(_STDLIB, "site-packages") + os.sep

#: Where asyncio's own modules and rondel's are.
ASYNCIO = os.path.join(_STDLIB, "asyncio", "")
RONDEL = os.path.dirname(__file__) + os.sep


def is_standard(file: str) -> bool:
    """Whether a file is the standard library's."""
    if file.startswith("<frozen"):
        return True
    return file.startswith(_STDLIB) and not file.startswith(_PACKAGES)
