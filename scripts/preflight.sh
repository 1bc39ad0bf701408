#!/bin/sh
# Says in one sentence what this machine lacks to build rondel; says nothing when all is there.
# usage: preflight.sh PYTHON
set -eu
python=${1:?usage: preflight.sh PYTHON}

lacks() {
    printf 'rondel: %s\n' "$1" >&2
    exit 1
}

# The one-liners are valid in every Python, so that an old one is told apart from a broken one.
"$python" -c '' 2>/dev/null ||
    lacks "no Python starts as '$python': install Python 3.11 to 3.14, or name one with PYTHON=/path/to/python3.13."
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' ||
    lacks "'$python' is Python $("$python" -c 'import sys; sys.stdout.write("%d.%d" % sys.version_info[:2])'), but rondel needs CPython 3.11 to 3.14: name one with PYTHON=/path/to/python3.13."
"$python" -c 'import sys; sys.exit(sys.implementation.name != "cpython")' ||
    lacks "'$python' is not CPython, and rondel's extension runs on CPython only: name one with PYTHON=/path/to/python3.13."
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    lacks "'$python' has no working venv module: install it (on Debian and Ubuntu the package python3-venv)."
cargo --version >/dev/null 2>&1 ||
    lacks "cargo does not start: install Rust, and have its bin directory on PATH."
command -v cc >/dev/null 2>&1 ||
    lacks "no C compiler named cc is on PATH, which Rust needs for linking: install one (on Debian and Ubuntu the package build-essential)."
