#!/bin/sh
# Prints the folder of the pinned CUDA compiler and headers, installing them from PyPI, outside the tree, if
# they are not there. All parts are pinned together: newer ones make code that current drivers do not load.
# LESSISMORE_CUDA_TOOLKIT names a toolkit of one's own instead.
#
# With the argument auto it prints nothing where they are not to be had, and says so; with 0 nothing at all.
set -eu

case "${1:-1}" in
0) exit 0 ;;
auto) sorry() { echo "building without the CUDA engine: $1" >&2; exit 0; } ;;
1) sorry() { echo "no CUDA compiler: $1" >&2; exit 1; } ;;
*) echo "CUDA=$1 is none of 0, 1, auto" >&2; exit 1 ;;
esac
if [ -n "${LESSISMORE_CUDA_TOOLKIT:-}" ]; then
    [ -x "$LESSISMORE_CUDA_TOOLKIT/bin/nvcc" ] || sorry "LESSISMORE_CUDA_TOOLKIT=$LESSISMORE_CUDA_TOOLKIT has no bin/nvcc"
    echo "$LESSISMORE_CUDA_TOOLKIT"
    exit 0
fi
case "$(uname -m)" in
x86_64) ;;
*) [ "${1:-1}" = 1 ] || sorry "this machine is a $(uname -m), where it is not tested (CUDA=1 tries)" ;;
esac
version=13.0.2
base="${XDG_CACHE_HOME:-$HOME/.cache}/lessismore"
toolkit="$base/cuda-$version"
if [ ! -x "$toolkit/nvidia/cu13/bin/nvcc" ]; then
    echo "installing CUDA's compiler $version into $toolkit" >&2
    mkdir -p "$base"
    partial="$toolkit.partial.$$"
    trap 'rm -rf "$partial" "$partial.venv"' EXIT
    python=python3
    if ! python3 -m pip --version >/dev/null 2>&1; then
        python3 -m venv "$partial.venv" >&2 || sorry "python3 has neither pip nor venv"
        python="$partial.venv/bin/python"
    fi
    "$python" -m pip install --quiet --no-compile --disable-pip-version-check --root-user-action=ignore --target "$partial" \
        "cuda-toolkit[nvcc,nvvm,crt,cccl,cudart]==$version" >&2 || sorry "its compiler could not be installed"
    rm -rf "$toolkit"
    mv "$partial" "$toolkit"
fi
echo "$toolkit/nvidia/cu13"
