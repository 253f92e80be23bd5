#!/usr/bin/env bash
# Prepare this machine: Debian packages, the Python environment, the build.  Both demo.sh and
# tests/run.sh begin with it.  What is done already is skipped, so a second run takes seconds.
#
#   setup.sh            what running winnow needs
#   setup.sh --tests    and what its tests need: clang, the linters, the sanitized build
#   setup.sh --packages only the Debian packages: nothing is built
#
# Packages are installed as root or through sudo; the Python environment is .venv/ and the build
# is build/ (and build-asan/) inside the repository; nothing else is changed.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
tests='' packages_only=''
case ${1:-} in
    --tests) tests=1 ;;
    --packages) packages_only=1 ;;
    '') ;;
    *) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac

packages=(build-essential cmake ninja-build pkg-config libgrpc-dev libprotobuf-c-dev
    protobuf-c-compiler protobuf-compiler libdnnl-dev libgloo-dev libcjson-dev libpcre2-dev libssl-dev
    libmicrohttpd-dev libcmocka-dev python3 python3-venv ca-certificates openssl iproute2)
if [ -n "$tests" ]; then
    packages+=(clang clang-format clang-tidy libclang-rt-14-dev libomp-14-dev git
        nftables valgrind)
fi

say() { echo "setup: $*" >&2; }
fail() { say "$*"; exit 1; }

# Runs a command quietly: its output is shown only if it fails.
quietly() {
    local log code=0
    log=$(mktemp)
    "$@" >"$log" 2>&1 || code=$?
    if [ "$code" != 0 ]; then tail -n 40 "$log" >&2; fi
    rm -f "$log"
    return "$code"
}

missing_packages() {
    local package
    for package in "${packages[@]}"; do
        if [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then
            echo "$package"
        fi
    done
}

install_packages() {
    local missing admin=()
    command -v dpkg-query >/dev/null ||
        { say "not a Debian system: packages with these contents are needed: ${packages[*]}"; return; }
    mapfile -t missing < <(missing_packages)
    [ "${#missing[@]}" -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null ||
            fail "run this as root, or install these packages: ${missing[*]}"
        admin=(sudo)
    fi
    say "installing ${#missing[@]} Debian packages: ${missing[*]}"
    local apt=("${admin[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q
        -o Acquire::Retries=2 -o DPkg::Lock::Timeout=300)
    quietly "${apt[@]}" update || say "apt-get update failed (is there a network?); trying on"
    quietly "${apt[@]}" install -y --no-install-recommends "${missing[@]}" ||
        fail "cannot install ${missing[*]}: is there a network?"
}

# The stamp holds the list that the environment was made from.
make_venv() {
    local venv=$root/.venv list=$root/tests/requirements.txt
    if cmp -s "$list" "$venv/requirements.stamp" && [ -x "$venv/bin/python" ]; then return 0; fi
    say "making the Python environment .venv"
    rm -rf "$venv"
    quietly python3 -m venv "$venv" || return 1
    quietly "$venv/bin/pip" install -q --disable-pip-version-check --retries 2 -r "$list" || return 1
    cp "$list" "$venv/requirements.stamp"
}

# More packages in .venv, for the tests of one folder: skipped, with the reason, where these are missing.
get_packages_of() {
    local venv=$root/.venv list=$root/tests/$1/requirements.txt
    if cmp -s "$list" "$venv/$1.stamp"; then return 0; fi
    say "installing the packages of tests/$1/requirements.txt"
    quietly "$venv/bin/pip" install -q --disable-pip-version-check --retries 2 -r "$list" || return 1
    cp "$list" "$venv/$1.stamp"
}

# Tools that check deploy/: packages, and kubectl in .cache.
get_deploy_tools() {
    get_packages_of deploy && quietly "$root/.venv/bin/python" "$root/tests/deploy/kubectl.py"
}

# build_preset NAME FOLDER: configures once (CMake itself looks for new files later) and builds.
build_preset() {
    cd "$root"
    [ -f "$2/build.ninja" ] || quietly cmake --preset "$1" || fail "cmake --preset $1 failed"
    say "building $2/"
    quietly cmake --build --preset "$1" || fail "cmake --build --preset $1 failed"
}

install_packages
if [ -n "$packages_only" ]; then exit 0; fi
if ! make_venv; then
    rm -rf "$root/.venv"
    [ -z "$tests" ] || fail "cannot make .venv from tests/requirements.txt: is there a network?"
    say "no Python packages could be fetched (is there a network?): going on without .venv"
fi
if [ -n "$tests" ]; then
    get_deploy_tools || say "the tools that check deploy/ cannot be fetched: going on without"
    get_packages_of cuda_build || say "nvdisasm cannot be fetched: what nvcc builds is not looked at"
    get_packages_of evals || say "the packages of the evaluations cannot be fetched: going on without"
fi
build_preset release build
if [ -n "$tests" ]; then build_preset asan build-asan; fi
