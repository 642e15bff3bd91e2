#!/bin/sh
# Which branches of the shim nothing takes: clang's source-based coverage over the hosts of fuzz_graph.cc, the unit tests, the fake hosts against the
# whole library, and each of its calls that fails once. Needs clang, and what make library has built; takes some ten minutes.
#
#   tests/ggml/coverage.sh          runs them all, then the report
#   tests/ggml/coverage.sh report   the report of what ran last
#
# What is measured are conditions as they are written: what a compiler adds for exceptions is none of them. It fails if a branch is not taken that
# branches.txt does not name, or if that names one that is.
set -eu
cd "$(dirname "$0")/../.."
out=$PWD/build/coverage
mkdir -p "$out"
export LLVM_PROFILE_FILE="$out/raw/%m%c.profraw" # kept as it is counted: also by what ends without a word
profile="-fprofile-instr-generate -fcoverage-mapping"
runtime=$(clang --print-file-name="libclang_rt.profile-$(uname -m).a")
tests="extract recording repeat hook"

build() {
    mkdir -p "$out/shim"
    common="-O1 -g -fPIC -Ibindings/ggml -Ikernels/cpu -Itests/ggml"
    # shellcheck disable=SC2086,SC2016 # lists of words; what a shell of its own expands
    printf '%s\n' bindings/ggml/*.cc | xargs -P "$(nproc)" -I '{}' sh -c 'source=$1 out=$2; shift 2; "$@" -c -o "$out/$(basename "$source").o" "$source"' sh '{}' "$out/shim" \
        clang++ -std=c++17 $common -fvisibility=hidden $profile -mllvm -runtime-counter-relocation
    rm -f "$out/liblim_ggml.a"
    ar rcs "$out/liblim_ggml.a" "$out"/shim/*.o
    # shellcheck disable=SC2086 # a list of words
    {
        clang -std=c11 $common -c -o "$out/shim_host.o" tests/ggml/shim_host.c
        clang++ -std=c++17 $common $profile -rdynamic -Wl,--wrap=lim_cpu_attend -o "$out/fuzz_hosts" "$out/liblim_ggml.a" "$out/shim_host.o" kernels/cpu/prints.cc \
            tests/ggml/shim_go.cc tests/ggml/fuzz_graph.cc tests/ggml/fuzz_seeds.cc "$out/liblim_ggml.a" -ldl -lpthread
        for test in $tests; do
            stand_in=""
            [ "$test" != hook ] || stand_in="tests/ggml/shim_go.cc $out/shim_host.o -rdynamic -Wl,--wrap=lim_cpu_attend"
            clang++ -std=c++17 $common $profile -o "$out/${test}_tests" "tests/ggml/${test}_test.cc" $stand_in "$out/liblim_ggml.a" build/cmake/lib/liblim_cpu.a \
                -lgtest -lgtest_main -ldl -lpthread
        done
    }
    # The library, as make library builds it; what comes first is found before what its sources name.
    toolkit=$(scripts/cuda-toolchain.sh auto)
    tags=netgo,osusergo${toolkit:+,cuda}
    CGO_CFLAGS="-O2 -g '-I$PWD/plugin/internal/cudrv/include' '-I${toolkit:-.}/include'" CGO_LDFLAGS="'-L$out' '-L$PWD/build/cmake/lib' -Wl,-u,__llvm_profile_runtime" \
        go build -buildvcs=false -buildmode=c-shared -tags "$tags" -ldflags="-B none '-extldflags=\"-Wl,--version-script=$PWD/build/exports.map,--as-needed,-soname,liblessismore.so\" $runtime -static-libgcc'" \
        -o "$out/liblessismore.so" ./capi
}

if [ "${1:-}" != report ]; then
    build
    rm -rf "$out/raw"
    mkdir -p "$out/raw"
    "$out/fuzz_hosts" 20000 1 1 tests/ggml/seeds/* # the same hosts each time
    for test in $tests; do "$out/${test}_tests" --gtest_brief=1; done
    tests/ggml/run.sh "$out/liblessismore.so"
    BUILD=$out/faults LIM_SHIM=$out LIM_EXTRA=$runtime tests/ggml/faults.sh all
fi
llvm-profdata merge -o "$out/all.profdata" "$out"/raw/*.profraw
set -- "$out/fuzz_hosts" -object "$out/liblessismore.so" -object "$out/faults/liblessismore.so"
for test in $tests; do set -- "$@" -object "$out/${test}_tests"; done
llvm-cov export -format=text -instr-profile="$out/all.profdata" "$@" bindings/ggml >"$out/all.json"
exec python3 tests/ggml/coverage.py "$out/all.json"
