#!/bin/sh
# Installs what the build and the tests need beyond a compiler, Go, CMake and Python, on Debian and its
# kin. Elsewhere it says what is missing. Does nothing where everything is there.
set -eu

missing=""
have_header() { echo "#include <$1>" | "${CXX:-c++}" -E -x c++ - >/dev/null 2>&1; }
have_header hwy/highway.h || missing="$missing libhwy-dev"
have_header gtest/gtest.h || missing="$missing libgtest-dev"
command -v cmake >/dev/null || missing="$missing cmake"
python3 -c 'import venv, ensurepip' 2>/dev/null || missing="$missing python3-venv"
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
    echo "please install (Debian's names):$missing" >&2
    exit 1
fi
echo "installing$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086 # a list of words
apt-get install -y -qq --no-install-recommends $missing >/dev/null
