#!/bin/sh
# Prints the folder of the pinned CUDA compiler and headers, installing them from PyPI, outside the tree, if
# they are not there. All parts are pinned together: newer ones make code that current drivers do not load.
# LESSISMORE_CUDA names a toolkit of one's own instead.
set -eu

if [ -n "${LESSISMORE_CUDA:-}" ]; then
    echo "$LESSISMORE_CUDA"
    exit 0
fi
version=13.0.2
base="${XDG_CACHE_HOME:-$HOME/.cache}/lessismore"
toolkit="$base/cuda-$version"
if [ ! -x "$toolkit/nvidia/cu13/bin/nvcc" ]; then
    echo "installing CUDA's compiler $version into $toolkit" >&2
    mkdir -p "$base"
    partial="$toolkit.partial.$$"
    trap 'rm -rf "$partial"' EXIT
    python3 -m pip install --quiet --no-compile --disable-pip-version-check --root-user-action=ignore --target "$partial" \
        "cuda-toolkit[nvcc,nvvm,crt,cccl,cudart]==$version" >&2
    rm -rf "$toolkit"
    mv "$partial" "$toolkit"
fi
echo "$toolkit/nvidia/cu13"
