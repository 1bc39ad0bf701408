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
    need postgresql "the server of tests/test_framework_postgres.py" has_postgres
    need nginx "the server of tests/test_get.py" has_nginx
    need redis-server "the server of tests/test_framework_redis.py" command -v redis-server
    need chromium "the browser of tests/test_browser.py" command -v chromium
}
has_nginx() { # where Debian has it, or on PATH
    ls /usr/sbin/nginx || command -v nginx
}
has_postgres() { # which is on PATH, or where Debian has it
    command -v initdb || ls /usr/lib/postgresql/*/bin/initdb
}
# The tests start servers of their own; those that the packages would start are in nobody's way.
keep_services_down() {
    local policy=/usr/sbin/policy-rc.d
    [[ -e $policy ]] && return
    trap "rm -f $policy" EXIT
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
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
    keep_services_down
    # One at a time: apt-get installs nothing at all when it does not know one of the names.
    for package in "${missing[@]}"; do
        apt-get -qq -y --no-install-recommends install "$package" >/dev/null ||
            echo "apt-get could not install $package."
    done
    survey
    ((${#missing[@]} == 0)) && exit 0
fi
printf 'Missing: %s\n' "${reasons[@]}"
if [[ ${CI:-} == true ]]; then
    echo "With CI=true nothing may be missing."
    exit 1
fi
