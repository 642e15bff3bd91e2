#!/bin/sh
# The shim under sanitizers, without Go: fuzz_graph.cc's hosts.
#
#   tests/ggml/sanitize.sh                  what once found something, then some thousand hosts of chance: addresses and undefined
#                                           behaviour, then threads
#   tests/ggml/sanitize.sh fuzz SECONDS     libFuzzer, from what it has found before in build/fuzz/graph; needs clang
set -eu
cd "$(dirname "$0")/../.."
out=$PWD/build/sanitize
mkdir -p "$out"

# NAME, COMPILER, C++ COMPILER, FLAGS ...: builds NAME of the shim, the fake host and a file of tests/ggml.
shim() {
    name=$1 file=$2 cc=$3 cxx=$4
    shift 4
    mkdir -p "$out/$name.o"
    common="-g -O1 -Wall -Wextra -Ibindings/ggml -Ikernels/cpu -Itests/ggml"
    # shellcheck disable=SC2086,SC2016 # lists of words; what a shell of its own expands
    {
        $cc -std=c11 $common "$@" -c -o "$out/$name.o/shim_host.o" tests/ggml/shim_host.c
        printf '%s\n' bindings/ggml/*.cc kernels/cpu/prints.cc tests/ggml/shim_go.cc tests/ggml/fuzz_graph.cc $file |
            xargs -P "$(nproc)" -I '{}' sh -c 'source=$1 out=$2; shift 2; "$@" -c -o "$out/$(basename "$source").o" "$source"' sh '{}' "$out/$name.o" \
                $cxx -std=c++17 $common "$@"
        $cxx "$@" -rdynamic -Wl,--wrap=lim_cpu_attend -o "$out/$name" "$out/$name.o"/*.o -ldl -lpthread
    }
}

case "${1:-}" in
fuzz)
    shim fuzz_graph '' clang clang++ -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize=function -fno-sanitize-recover=undefined -fsanitize=fuzzer
    mkdir -p build/fuzz/graph
    exec "$out/fuzz_graph" build/fuzz/graph tests/ggml/seeds -max_len=2048 -len_control=0 -rss_limit_mb=8000 -max_total_time="${2:-600}" \
        -artifact_prefix=build/fuzz/graph- -print_final_stats=1
    ;;
esac
shim address tests/ggml/fuzz_seeds.cc "${CC:-cc}" "${CXX:-c++}" -fsanitize=address,undefined -fno-sanitize-recover=undefined
"$out/address" 2000 1 0 tests/ggml/seeds/*
shim threads tests/ggml/fuzz_seeds.cc "${CC:-cc}" "${CXX:-c++}" -fsanitize=thread
"$out/threads" 300 4 0 tests/ggml/seeds/*
