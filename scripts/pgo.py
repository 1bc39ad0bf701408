"""Profile-guided optimisation: the compiler is told what the loop's hot paths do.

    python scripts/pgo.py [--python PATH|VERSION]      record the profile anew (`make pgo`)

pgo/ holds a profile that the benchmark's rows have left, and what it belongs to: the compiler's
version, and the dependencies, since both are in the names of the functions that it counts. Builds
(scripts/setup_env.py, scripts/wheels.py, benches/run.py) take it as long as it fits, and are
ordinary release builds when it does not: it changes how fast rondel is, never what it does.

To record it takes the llvm-profdata of the compiler's own LLVM: `rustup component add llvm-tools`,
or its path in LLVM_PROFDATA. Exit status: 0 recorded, 1 not, with a sentence that says why.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import interpreters

ROOT = Path(__file__).resolve().parent.parent
PROFILE = ROOT / "pgo" / "rondel.profdata"
BELONGS = ROOT / "pgo" / "belongs-to.json"

FAILURES = (LookupError, OSError, RuntimeError, subprocess.CalledProcessError)

#: How many seconds each server is loaded: enough for millions of calls.
LOAD = "1.0"


def compiler() -> dict[str, str]:
    """What `rustc -vV` says, by its own words (release, host, LLVM version …)."""
    told = subprocess.run(["rustc", "-vV"], capture_output=True, text=True, check=True).stdout
    return dict(line.split(": ", 1) for line in told.splitlines() if ": " in line)


def dependencies() -> str:
    """A digest of all that decides what is compiled together: the lock file and the manifests."""
    digest = hashlib.sha256()
    manifests = sorted((ROOT / "crates").glob("*/Cargo.toml"))
    for file in [ROOT / "Cargo.lock", ROOT / "Cargo.toml", *manifests]:
        digest.update(f"{file.relative_to(ROOT)}\0".encode())
        digest.update(file.read_bytes() if file.exists() else b"")
    return digest.hexdigest()


def current() -> dict[str, str]:
    """What a profile belongs to that is recorded now."""
    version = compiler()
    named = {key: version.get(key, "") for key in ("release", "commit-hash", "host")}
    return {**named, "dependencies": dependencies()}


def misfit() -> str | None:
    """Why the profile cannot be used here; None if it can."""
    try:
        belongs = json.loads(BELONGS.read_text())
        now = current()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return f"there is none ({error})"
    if not PROFILE.exists():
        return "there is none"
    if belongs.pop("dependencies", None) != now.pop("dependencies"):
        return "the dependencies have changed since; `make pgo` records it anew"
    if belongs != now:
        return f"it is of Rust {belongs.get('release')} on {belongs.get('host')}"
    return None


def arguments() -> list[str]:
    """What maturin is to be told in addition, for a build with the profile: cargo has the target in
    its functions' names if one is given, as it must be for a wheel that another linker makes.
    """
    return [] if misfit() else ["--target", compiler()["host"]]


def variables() -> dict[str, str]:
    """What the environment of a build with the profile has in addition."""
    if misfit():
        return {}
    # A function that has changed since is compiled as if there were no profile; that is no news.
    return flags(f"-Cprofile-use={PROFILE}", "-Cllvm-args=-no-pgo-warn-mismatch")


def flags(*added: str) -> dict[str, str]:
    """The compiler's flags of this environment and `added`, in the form that allows spaces."""
    if (encoded := os.environ.get("CARGO_ENCODED_RUSTFLAGS")) is not None:
        given = encoded.split("\x1f") if encoded else []
    else:
        given = os.environ.get("RUSTFLAGS", "").split()
    return {"CARGO_ENCODED_RUSTFLAGS": "\x1f".join([*given, *added])}


def profdata(version: dict[str, str]) -> str:
    """The path of llvm-profdata; LookupError with a sentence if there is none that fits."""
    sysroot = subprocess.run(
        ["rustc", "--print", "sysroot"], capture_output=True, text=True, check=True
    ).stdout.strip()
    own = Path(sysroot, "lib", "rustlib", version["host"], "bin", "llvm-profdata")
    for candidate in (os.environ.get("LLVM_PROFDATA"), str(own)):
        if candidate and shutil.which(candidate):
            return candidate
    raise LookupError(
        f"there is no llvm-profdata of LLVM {version['LLVM version']}: "
        "`rustup component add llvm-tools` brings it, or name one with LLVM_PROFDATA"
    )


def run(*command: str | Path, **variables: str) -> None:
    """Run a command in the checkout; CalledProcessError if it fails."""
    subprocess.run(list(command), cwd=ROOT, env={**os.environ, **variables}, check=True)


def record(python: Path) -> None:
    """Build an instrumented wheel, run the benchmark's rows on it, and merge what they left."""
    version = compiler()
    merge = profdata(version)
    environment = ROOT / ".venvs" / "pgo"
    setup = (sys.executable, "scripts/setup_env.py", environment, "--requirements", "run")
    run(*setup, "--python", python)
    with tempfile.TemporaryDirectory() as folder:
        maturin = (environment / "bin" / "maturin", "build", "--release")
        to = ("--interpreter", python, "--out", folder, "--target-dir", ROOT / "target" / "pgo")
        counted = flags(f"-Cprofile-generate={folder}")
        run(*maturin, *to, "--target", version["host"], **counted)
        [wheel] = Path(folder).glob("*.whl")
        bench = (sys.executable, "benches/run.py", "--python", python, "--wheel", wheel)
        rows = ("--loops", "rondel,bare", "--rounds", "1", "--duration", LOAD, "--no-docs")
        figures = ("--json", Path(folder, "figures.json"))
        run(*bench, *rows, *figures, LLVM_PROFILE_FILE=str(Path(folder, "%p.profraw")))
        PROFILE.parent.mkdir(exist_ok=True)
        run(merge, "merge", "--sparse", "-o", PROFILE, *sorted(Path(folder).glob("*.profraw")))
    BELONGS.write_text(json.dumps(current(), indent=1) + "\n")


def main() -> int:
    """Record the profile; see the module's text."""
    parser = argparse.ArgumentParser(description="Record the profile that builds are guided by.")
    parser.add_argument("--python", default=interpreters.SUPPORTED[-1], metavar="PATH|VERSION")
    chosen = parser.parse_args().python
    try:
        known = chosen in interpreters.SUPPORTED
        record(interpreters.find(chosen) if known else Path(chosen).absolute())
    except (interpreters.NotToBeHad, *FAILURES) as error:
        print(f"pgo: {error}", file=sys.stderr)
        return 1
    size = PROFILE.stat().st_size / 2**20
    print(
        f"pgo: {PROFILE.relative_to(ROOT)} is recorded, {size:.1f} MiB; builds use it from now on"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
