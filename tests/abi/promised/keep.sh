#!/bin/sh
# Keeps today's header as a promised one: tests/abi/promised/N/ gets a copy, the exported functions, and host.c compiled against
# it for x86-64 and, where there is a compiler for it, aarch64. Usage: keep.sh N
set -eu
cd "$(dirname "$0")"
folder=${1:?the number of the promise}
mkdir -p "$folder"
cp ../../../include/lessismore.h "$folder/"
cp ../symbols "$folder/"
echo 'DisableFormat: true # as it was' >"$folder/.clang-format"
for arch in x86_64 aarch64; do
    cc=$arch-linux-gnu-gcc
    command -v "$cc" >/dev/null || continue
    # Small: no section but what runs, one page for all.
    $cc -std=gnu11 -Os -Wall -Wextra -Werror -fno-asynchronous-unwind-tables -Wl,-z,norelro,-z,noseparate-code,--build-id=none,-z,max-page-size=4096 \
        -s -I"$folder" host.c -o "$folder/host.$arch" -lm
done
