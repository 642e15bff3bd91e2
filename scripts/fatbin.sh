#!/bin/sh
# Compiles the CUDA kernels. Usage: scripts/fatbin.sh OUT NVCC-OPTION ...; nvcc's report goes to standard error.
# nvcc puts a hash of the source's absolute path into the names of internal functions. Under a path that follows from the
# source alone the image has the same bytes wherever the tree lies.
set -eu
out=$(realpath -m "$1")
shift
cd "$(dirname "$0")/../kernels/cuda"
nvcc=$(../../scripts/cuda-toolchain.sh)/bin/nvcc
at=/tmp/lessismore-kernels-$(cat ./*.cu ./*.cuh ./*.h | sha256sum | cut -c1-16)
if mkdir -m 700 "$at" 2>/dev/null; then
    trap 'rm -rf "$at"' EXIT
    trap 'exit 1' INT TERM
    cp ./*.cu ./*.cuh ./*.h "$at"
    cd "$at"
else
    echo "$at is there already (another build, or the rest of one): this image will have other bytes elsewhere" >&2
fi
"$nvcc" "$@" -fatbin -o "$out" kernels.cu
