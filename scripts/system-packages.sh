#!/usr/bin/env bash
# Installs what the tests need of the system and pip cannot bring, where the user may: root, and apt.
# Otherwise says what is missing, and the tests concerned say that they are skipped; with CI=true
# anything missing is a failure.
#
#   usage: system-packages.sh PYTHON      PYTHON: the interpreter that the tests run on
set -euo pipefail
python=${1:?usage: system-packages.sh PYTHON}
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')

# One line for each need: its Debian package, what it is for, and the command that finds it there.
missing=() reasons=()
need() {
    local package=$1 reason=$2
    shift 2
    "$@" >/dev/null 2>&1 && return
    missing+=("$package")
    reasons+=("$package ($reason)")
}
survey() {
    missing=() reasons=()
    need "libpython$version-testsuite" "CPython's own suites, run by conformance/" \
        "$python" -c 'import test.test_asyncio'
}

survey
if ((${#missing[@]} == 0)); then
    echo "All that the tests need is there."
    exit 0
fi
if ((EUID == 0)) && command -v apt-get >/dev/null; then
    echo "Installing ${missing[*]} with apt-get."
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update || echo "apt-get update failed; trying with the lists that are there."
    apt-get -qq -y --no-install-recommends install "${missing[@]}" >/dev/null ||
        echo "apt-get could not install all of it."
    survey
    ((${#missing[@]} == 0)) && exit 0
fi
printf 'Missing: %s\n' "${reasons[@]}"
if [[ ${CI:-} == true ]]; then
    echo "With CI=true nothing may be missing."
    exit 1
fi
