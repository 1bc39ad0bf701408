"""The benchmark's own environment: one per Python version, with every peer that has a wheel for it.

``.venvs/bench-3.X`` is made from the interpreter that is asked for, so that all loops run on the
same one. rondel goes into it as the release wheel that users would get.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import loops

ROOT = Path(__file__).resolve().parent.parent
HERE = Path(__file__).resolve().parent
sys.path.append(str(ROOT / "scripts"))

import pgo  # noqa: E402

REQUIREMENTS = HERE / "requirements.txt"
TOLD = 5

ABOUT = """
import json, platform, ssl, sys, sysconfig
print(json.dumps({
    "version": platform.python_version(),
    "short": "%d.%d" % sys.version_info[:2],
    "build": " ".join(platform.python_build()),
    "compiler": platform.python_compiler(),
    "flags": sysconfig.get_config_var("CONFIG_ARGS") or "",
    "libc": " ".join(platform.libc_ver()),
    "openssl": ssl.OPENSSL_VERSION,
    "prefix": sys.base_prefix,
}))
"""


class SetupError(Exception):
    """Something that the benchmark needs could not be made; the text says what."""


@dataclass
class Environment:
    """A ready environment: what runs, in which versions, and what is missing and why."""

    python: Path
    about: dict[str, str]
    versions: dict[str, str]
    missing: dict[str, str]
    #: Extra environment variables for a loop's processes.
    variables: dict[str, dict[str, str]] = field(default_factory=dict)


def run(command: Sequence[str | Path], what: str, **keywords: Any) -> str:
    """The command's output; SetupError with the end of what it said if it fails."""
    keywords.setdefault("timeout", 1800)
    try:
        done: subprocess.CompletedProcess[str] = subprocess.run(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            stdin=subprocess.DEVNULL,
            **keywords,
        )
    except FileNotFoundError as error:
        raise SetupError(f"{what}: {command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise SetupError(f"{what}: took longer than {error.timeout:.0f} s") from error
    if done.returncode:
        told = "\n".join(done.stdout.strip().splitlines()[-TOLD:])
        raise SetupError(f"{what} failed:\n{told}")
    return done.stdout


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def pip(python: Path, *arguments: str | Path, what: str) -> str:
    command: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check"]
    return run([*command, *arguments], what)


def prepare(
    interpreter: Path,
    wanted: list[str],
    *,
    refresh: bool = False,
    wheel: Path | None = None,
    baseline: Path | None = None,
) -> Environment:
    """Makes or completes the environment of ``interpreter`` for the wanted loops.

    ``refresh`` asks the registry for newer peers, ``wheel`` is a rondel to measure in place of the
    one that is built from this checkout, ``baseline`` a second one to compare it with.
    """
    about = json.loads(run([interpreter, "-c", ABOUT], f"asking {interpreter} what it is"))
    folder = ROOT / ".venvs" / f"bench-{about['short']}"
    python = folder / "bin" / "python"
    state = State.read(folder / "bench.json")
    if not python.exists() or state.prefix != about["prefix"]:
        tell(f"making {folder.relative_to(ROOT)} ({interpreter}, Python {about['version']})")
        run([interpreter, "-m", "venv", "--clear", folder], "making a virtual environment")
        state = State(folder / "bench.json", prefix=about["prefix"])
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if state.requirements != digest or refresh:
        tell("installing benches/requirements.txt")
        pip(python, "install", "--upgrade", "-r", REQUIREMENTS, what="installing requirements")
        state.requirements = digest
        state.write()
    for name in wanted:
        if name in (*loops.PEERS[1:], *loops.POOLS[1:]) and (
            refresh or name not in {*state.peers, *state.missing}
        ):
            install_peer(python, name, about, state)
            state.write()
    environment = Environment(python, about, {}, dict(state.missing))
    if loops.OURS in wanted:
        chosen = wheel or build_wheel(python, folder, about["short"])
        digest = hashlib.sha256(chosen.read_bytes()).hexdigest()
        if state.wheel != digest:
            options = ["--force-reinstall", "--no-deps", "--no-index"]
            pip(python, "install", *options, chosen, what="installing rondel")
            state.wheel = digest
            state.write()
    if baseline is not None:
        place = folder / "baseline"
        options = ["--upgrade", "--no-deps", "--no-index", "--target"]
        pip(python, "install", *options, place, baseline, what="unpacking the baseline")
        environment.variables[loops.BASELINE] = {"PYTHONPATH": str(place)}
        environment.versions[loops.BASELINE] = baseline.name
    listed = json.loads(pip(python, "list", "--format=json", what="listing packages"))
    interesting = {*loops.PEERS, *loops.POOLS, loops.OURS, *required()}
    for package in listed:
        name = package["name"]
        found = next((known for known in interesting if known.lower() == name.lower()), None)
        if found is not None:
            environment.versions[found] = package["version"]
    environment.versions["asyncio"] = about["version"]
    return environment


def required() -> list[str]:
    lines = [line.split("#")[0].strip() for line in REQUIREMENTS.read_text().splitlines()]
    return [re.split(r"[<>=~!\[ ]", line)[0] for line in lines if line]


@dataclass
class State:
    """What is in an environment, kept in it, so that a second run asks the registry nothing."""

    path: Path
    prefix: str = ""
    requirements: str = ""
    wheel: str = ""
    peers: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> State:
        try:
            return cls(path, **json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return cls(path)

    def write(self) -> None:
        kept = {name: value for name, value in vars(self).items() if name != "path"}
        self.path.write_text(json.dumps(kept, indent=1))


def install_peer(python: Path, name: str, about: dict[str, str], state: State) -> None:
    """From a wheel only: what a peer needs to build (Zig, libuv) is not our users' concern."""
    try:
        pip(python, "install", "--upgrade", "--only-binary=:all:", name, what=f"installing {name}")
    except SetupError as error:
        if "No matching distribution" not in str(error):
            raise
        why = f"no wheel for CPython {about['short']} with {about['libc']}"
        tell(f"skipping {name}: {why}")
        state.missing[name] = why
        return
    state.missing.pop(name, None)
    state.peers = sorted({*state.peers, name})
    tell(f"installed {name}")


def build_wheel(python: Path, folder: Path, short: str) -> Path:
    """The release wheel of this checkout. A target folder per Python: pyo3 is built for one."""
    out = folder / "wheels"
    for old in out.glob("rondel-*.whl"):
        old.unlink()
    tell("building rondel's release wheel")
    command: list[str | Path] = [
        python,
        "-m",
        "maturin",
        "build",
        "--release",
        "--interpreter",
        python,
    ]
    target: list[str | Path] = ["--out", out, "--target-dir", ROOT / "target" / f"bench-{short}"]
    environment = {**os.environ, **pgo.variables()}
    run([*command, *pgo.arguments(), *target], "building rondel", cwd=ROOT, env=environment)
    return next(out.glob("rondel-*.whl"))


def build_loadgen() -> Path:
    """The load generator's release binary."""
    manifest = HERE / "loadgen" / "Cargo.toml"
    binary = HERE / "loadgen" / "target" / "release" / "loadgen"
    command: list[str | Path] = ["cargo", "build", "--release", "--locked"]
    if not binary.exists():
        tell("building the load generator")
    environment = {k: v for k, v in os.environ.items() if k != "CARGO_TARGET_DIR"}
    what = "building the load generator"
    run([*command, "--manifest-path", manifest], what, env=environment)
    return binary
