#!/bin/sh
# libFuzzer on the ABI's structures (fuzz.c), guided by what is reached in Go. Goes on from what it has found before, in
# build/fuzz/abi. Needs clang and the built kernels. Usage: fuzz.sh SECONDS
set -eu
cd "$(dirname "$0")/../.."
out=$PWD/build/fuzz
mkdir -p "$out/abi"
export CC=clang CGO_CFLAGS="-O1 -g -fsanitize=fuzzer-no-link"
go build -buildmode=c-archive -tags netgo,osusergo,libfuzzer -gcflags='lessismore/...=-d=libfuzzer' -o "$out/abi.a" ./capi
clang -std=gnu11 -g -O1 -DLIBFUZZER -fsanitize=fuzzer,bounds,shift,signed-integer-overflow -fno-sanitize-recover=all -Iinclude -o "$out/abi-fuzzer" \
    tests/abi/fuzz.c "$out/abi.a" -Lbuild/cmake/lib -llim_ggml -llim_cpu -llim_cuda -l:libstdc++.a -lm -lpthread -ldl
exec "$out/abi-fuzzer" "$out/abi" -max_len=2048 -len_control=0 -rss_limit_mb=4000 -max_total_time="${1:-600}" -artifact_prefix="$out/abi-" -print_final_stats=1
