"""Find an interpreter of a given version that the whole of `make test` can run on.

    python scripts/interpreters.py 3.13      prints its path

Looked for on PATH, among pyenv's versions, and last in .pythons/, where scripts/get-python.sh puts
what Debian packages and this system does not. Exit status 3: this version cannot be had here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PRIVATE = ROOT / ".pythons"
GET_PYTHON = ROOT / "scripts" / "get-python.sh"

#: The versions that rondel supports, in order.
SUPPORTED = ("3.11", "3.12", "3.13", "3.14")

#: Exit status, here and of get-python.sh, for a version that this system cannot provide.
NOT_TO_BE_HAD = 3

# Run by a candidate. A shim of pyenv starts but refuses; Debian's own has no test.test_asyncio;
# the free-threaded build goes by the same name.
PROBE = """
import sys, sysconfig
import ensurepip, test.test_asyncio, venv
wanted = tuple(map(int, sys.argv[1].split(".")))
sys.exit(sys.version_info[:2] != wanted or bool(sysconfig.get_config_var("Py_GIL_DISABLED")))
"""


class NotToBeHad(Exception):
    """No interpreter of the version is here and none can be installed; the text says why."""


def find(version: str) -> Path:
    """Return the interpreter of `version` ("3.13"), installing it into .pythons/ if need be.

    Raises NotToBeHad where this system cannot provide it, and RuntimeError where installing failed.
    """
    for candidate in candidates(version):
        if suits(candidate, version):
            return candidate
    return install(version)


def candidates(version: str) -> Iterator[Path]:
    """Yield the places where an interpreter of `version` may be, the likeliest first."""
    name = f"python{version}"
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        if (path := Path(folder, name)).is_file():
            yield path
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    patches = [
        (int(match[1]), path)
        for path in pyenv.glob(f"versions/{version}.*/bin/{name}")
        if (match := re.fullmatch(r"\d+\.\d+\.(\d+)", path.parent.parent.name))
    ]
    for _, path in sorted(patches, reverse=True):
        yield path


def suits(candidate: Path, version: str) -> bool:
    """Whether `candidate` really runs, is that version, and has all that the tests need."""
    try:
        probe = subprocess.run(
            [candidate, "-c", PROBE, version], capture_output=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return probe.returncode == 0


def install(version: str) -> Path:
    """Have get-python.sh unpack `version`; a second call finds it there at once."""
    result = subprocess.run(
        [GET_PYTHON, version, PRIVATE / version],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode == 0:
        return Path(result.stdout.splitlines()[-1])
    said = (result.stderr.strip() or "it said nothing").splitlines()[-1]
    if result.returncode == NOT_TO_BE_HAD:
        raise NotToBeHad(said)
    raise RuntimeError(said)


def main(arguments: list[str]) -> int:
    """Print the path of the interpreter that the one argument names."""
    if len(arguments) != 1 or arguments[0] not in SUPPORTED:
        print(f"usage: interpreters.py VERSION, one of {', '.join(SUPPORTED)}", file=sys.stderr)
        return 2
    try:
        print(find(arguments[0]))
    except NotToBeHad as error:
        print(error, file=sys.stderr)
        return NOT_TO_BE_HAD
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
