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
toolkit=$("$(dirname "$0")/from-pypi.sh" "cuda-$version" "cuda-toolkit[nvcc,nvvm,crt,cccl,cudart]==$version") ||
    sorry "its compiler could not be installed"
echo "$toolkit/nvidia/cu13"
