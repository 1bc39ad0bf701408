"""Make a virtual environment, fill it, build rondel into it: each only if something changed.

    python scripts/setup_env.py .venv --python PATH|VERSION --requirements run --build

What was done last time is kept, as digests of the files it depended on, in a file inside the
environment; an environment that is deleted forgets it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import interpreters
import pgo

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
PACKAGE = ROOT / "python" / "rondel"
STAMPS = "rondel-stamps.json"

# What an interpreter says of itself: equal for an environment and the interpreter it came from.
IDENTITY = 'import sys; print(*sys.version_info[:2], sys.base_prefix, sep="\\n")'
EXT_SUFFIX = 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))'


class SetupError(Exception):
    """Something that the user has to see to; the text is a sentence that says what."""


class Environment:
    """A virtual environment and the memory of what was last put into it."""

    def __init__(self, path: Path, python: Path) -> None:
        self.path = path
        self.base = python
        self.python = path / "bin" / "python"
        self._stamps = path / STAMPS

    def create(self) -> None:
        """Make the environment unless it is there, works, and belongs to the same interpreter."""
        wanted = answer(self.base, IDENTITY)
        if wanted is None:
            raise SetupError(f"The interpreter {self.base} does not start.")
        if self.path.exists():
            if answer(self.python, IDENTITY) == wanted:
                return
            if not (self.path / "pyvenv.cfg").exists():
                raise SetupError(f"{self.path} is in the way: it is no virtual environment.")
            say(f"{self.path} belongs to another interpreter or is broken: making it anew")
            shutil.rmtree(self.path)
        say(f"making {self.path} from {self.base}")
        run([self.base, "-m", "venv", self.path], f"{self.base} could not make {self.path}")

    def install(self, names: Iterable[str]) -> None:
        """Install the lists requirements/NAME.txt that are not installed as they now read."""
        for name in names:
            file = REQUIREMENTS / f"{name}.txt"
            digest = digest_of(sorted(included(file)))
            if self._recall(name) == digest:
                continue
            say(f"installing {file.relative_to(ROOT)} into {self.path}")
            pip = self.python.parent / "pip"
            run(
                [pip, "--disable-pip-version-check", "install", "--quiet", "--requirement", file],
                f"pip could not install {file.relative_to(ROOT)} (is its package index in reach?)",
            )
            self._remember(name, digest)

    def build(self) -> None:
        """Build the release extension and install rondel editable, unless no source changed."""
        suffix = answer(self.python, EXT_SUFFIX)
        extension = PACKAGE / f"_rondel{suffix}"
        if extension.exists() and self._recall("build") == digest_of(build_inputs()):
            return
        why_not = pgo.misfit()
        guided = f"without a profile: {why_not}" if why_not else "with the profile in pgo/"
        say(f"building rondel for {self.path} with maturin develop --release, {guided}")
        bin_folder = self.python.parent
        run(
            [bin_folder / "maturin", "develop", "--release", *pgo.arguments()],
            "rondel's extension did not build",
            env={
                **os.environ,
                **pgo.variables(),
                "VIRTUAL_ENV": str(self.path),
                "PATH": f"{bin_folder}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            },
        )
        # Taken afterwards: where there was no Cargo.lock, the build has written one.
        self._remember("build", digest_of(build_inputs()))

    def _recall(self, key: str) -> str | None:
        return self._read().get(key)

    def _remember(self, key: str, digest: str) -> None:
        self._stamps.write_text(json.dumps({**self._read(), key: digest}, indent=1) + "\n")

    def _read(self) -> dict[str, str]:
        try:
            stamps: dict[str, str] = json.loads(self._stamps.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return stamps


def build_inputs() -> list[Path]:
    """The files that the extension is built from; python/ is used in place and not among them."""
    top = [ROOT / name for name in ("Cargo.toml", "Cargo.lock", "pyproject.toml")]
    crates = [
        path
        for path in (ROOT / "crates").rglob("*")
        if path.suffix in {".rs", ".toml"} and path.is_file()
    ]
    return [path for path in (*top, pgo.PROFILE) if path.exists()] + sorted(crates)


def included(file: Path) -> Iterator[Path]:
    """Yield `file` and the lists that it takes in by `-r`."""
    yield file
    for line in file.read_text().splitlines():
        if match := re.match(r"-r\s+(\S+)", line):
            yield from included(file.parent / match[1])


def digest_of(files: Sequence[Path]) -> str:
    """A digest of the files' names and contents."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(ROOT)}\0{file.stat().st_size}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def answer(python: Path, code: str) -> str | None:
    """What `python` prints when it runs `code`; None when it does not start."""
    try:
        done = subprocess.run(
            [python, "-c", code], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def run(command: Sequence[str | Path], failure: str, env: dict[str, str] | None = None) -> None:
    """Run `command`, its output in sight; if it fails, SetupError with the sentence `failure`."""
    start = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=env, check=False)
    if done.returncode != 0:
        raise SetupError(f"{failure}; its message is above.")
    say(f"done in {time.monotonic() - start:.1f} s")


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def main() -> int:
    """Bring one environment up to date as the command line says; see the module's text."""
    parser = argparse.ArgumentParser(description="Bring a virtual environment up to date.")
    parser.add_argument("path", type=Path, metavar="ENVIRONMENT")
    parser.add_argument(
        "--python",
        default=sys.executable,
        metavar="PATH|VERSION",
        help="interpreter it is made from, or a version to find (default: the one running this)",
    )
    parser.add_argument(
        "--requirements",
        action="append",
        default=[],
        metavar="NAME",
        choices=sorted(path.stem for path in REQUIREMENTS.glob("*.txt")),
        help="install requirements/NAME.txt",
    )
    parser.add_argument("--build", action="store_true", help="build rondel into it")
    options = parser.parse_args()
    try:
        python = (
            interpreters.find(options.python)
            if options.python in interpreters.SUPPORTED
            else Path(options.python)
        )
        environment = Environment(Path(os.path.abspath(options.path)), python)
        environment.create()
        environment.install(options.requirements)
        if options.build:
            environment.build()
    except interpreters.NotToBeHad as error:
        say(str(error))
        return interpreters.NOT_TO_BE_HAD
    except (SetupError, RuntimeError) as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
