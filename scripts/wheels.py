"""Build a wheel for each Python at hand, and try each in a clean environment.

    python scripts/wheels.py          every supported Python that can be had here
    python scripts/wheels.py 3.13     these only

The wheels go to dist/. They are manylinux wheels: zig links them against the C library of
PLATFORM, older than this system's, so that they run wherever pip takes them. Exit status: 0 all
were built and work, 1 one was not or does not, 2 wrong usage.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import interpreters
import pgo

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
TOOLS = ROOT / ".venvs" / "wheels"
SMOKE = ROOT / "scripts" / "smoke.py"

#: The C library's version that the wheels need at least (PEP 600): Debian 10, RHEL 8, Ubuntu 18.10.
PLATFORM = "manylinux_2_28"


def call(*command: str | Path, cwd: Path = ROOT, clean: bool = False) -> None:
    """Run a command; CalledProcessError if it fails. `clean`: no environment of ours leaks in."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not (clean and name.startswith(("PYTHON", "VIRTUAL_ENV")))
    }
    if not clean:
        # maturin finds zig through the first python3 on the path.
        environment["PATH"] = f"{TOOLS / 'bin'}{os.pathsep}{environment['PATH']}"
        environment |= pgo.variables()
    subprocess.run(list(command), cwd=cwd, env=environment, check=True)


def tools() -> Path:
    """Return the interpreter of the environment that has the build tools."""
    python = TOOLS / "bin" / "python"
    if not python.exists():
        venv.create(TOOLS, with_pip=True, clear=True)
    call(python, "-m", "pip", "install", "--quiet", "-r", ROOT / "requirements" / "wheels.txt")
    return python


def build(builder: Path, python: Path, folder: Path) -> Path:
    """Build the wheel for one interpreter into `folder`; return its path."""
    # Apart from other builds: zig is another linker, with objects of its own.
    target = ROOT / "target" / "wheels"
    command: list[str | Path] = [builder, "-m", "maturin", "build", "--release", "--zig"]
    command += ["--compatibility", PLATFORM, "--interpreter", python, "--out", folder]
    call(*command, *pgo.arguments(), "--target-dir", target)
    [wheel] = folder.glob("*.whl")
    return wheel


def smoke(python: Path, wheel: Path) -> None:
    """Install the wheel alone into a new environment, and run a small program from elsewhere."""
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder, "environment")
        call(python, "-m", "venv", environment)
        installed = environment / "bin" / "python"
        call(installed, "-m", "pip", "install", "--quiet", "--no-deps", wheel, clean=True)
        call(installed, "-I", SMOKE, cwd=Path(folder), clean=True)


def main(arguments: list[str]) -> int:
    """Build and try the wheels for the versions named, or for all."""
    if unknown := [version for version in arguments if version not in interpreters.SUPPORTED]:
        print(f"wheels: not a supported version: {', '.join(unknown)}", file=sys.stderr)
        return 2
    builder = tools()
    DIST.mkdir(exist_ok=True)
    built: list[Path] = []
    for version in arguments or interpreters.SUPPORTED:
        try:
            python = interpreters.find(version)
        except interpreters.NotToBeHad as error:
            print(f"wheels: no wheel for Python {version}: {error}")
            if arguments:
                return 1
            continue
        with tempfile.TemporaryDirectory() as folder:
            wheel = build(builder, python, Path(folder))
            smoke(python, wheel)
            built.append(wheel.replace(DIST / wheel.name))
    for wheel in built:
        print(f"{wheel.relative_to(ROOT)}  {wheel.stat().st_size / 2**20:.1f} MiB, works")
    return 0 if built else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except subprocess.CalledProcessError as error:
        print(f"wheels: failed: {error}", file=sys.stderr)
        sys.exit(1)
