#!/bin/sh
# The kernels, the shim and the C ABI under a sanitizer of the compiler's: what it finds ends the program that it is in.
#
#   scripts/sanitize.sh address|thread [short]
#
# address: bad addresses, leaks and undefined behaviour; thread: data races. short, for make test: a small part of the cases of chance; of
# threads the C ABI alone, whose calls run the kernels on several.
set -eu
cd "$(dirname "$0")/.."
kind=$1 short=${2:-}
# Kept out of both forms: a sanitizer needs more of what the first test takes away. Of the short one: what has no cases to leave out.
but=Pool.OutOfThreads
if [ -n "$short" ]; then
    export LIM_TEST_SHARE=3
    but="$but:Attention.LongRows:Probe.*:Select.LargeUnion"
fi
case "$kind" in
# Accesses are checked by calls: inline, the kernels would take minutes to compile. Without float-cast-overflow: Highway's tanh
# turns NaN into an integer that it does not use, on targets without vectors.
address)
    flags="-fsanitize=address,alignment,bounds,bool,enum,integer-divide-by-zero,shift,signed-integer-overflow,unreachable,return"
    flags="$flags -fno-sanitize-recover=all --param=asan-instrumentation-with-call-threshold=0" ;;
thread) flags="-fsanitize=thread" ;;
*) echo "$kind is neither address nor thread" >&2; exit 1 ;;
esac
kernels="kernel_tests extract_tests"
[ "$kind$short" != threadshort ] || kernels=""
build=$PWD/build/sanitized/$kind
mkdir -p "$build"
cmake -S . -B "$build/cmake" -DCMAKE_BUILD_TYPE=Release "-DLESSISMORE_SANITIZE=$flags" >"$build/cmake.log"
# shellcheck disable=SC2086 # a list of words
cmake --build "$build/cmake" -j "$(nproc)" --target lim_cpu lim_cuda lim_ggml $kernels >"$build/build.log" || { cat "$build/build.log" >&2; exit 1; }

# Reports are to name the library's functions, so it keeps its symbols. Linked each time: Go does not look at the archives.
rm -f "$build/liblessismore.so"
export CGO_CFLAGS="-O1 -g $flags" CGO_LDFLAGS="'-L$build/cmake/lib' $flags"
go build -buildmode=c-shared -tags netgo,osusergo -o "$build/liblessismore.so" ./capi
rm -f "$build/liblessismore.h"

export ASAN_OPTIONS=detect_leaks=1:detect_stack_use_after_return=1:handle_segv=0:allow_user_segv_handler=1
export UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS="halt_on_error=1:handle_segv=0:allow_user_segv_handler=1"
if [ -n "$kernels" ]; then
    echo "-- kernels, $kind"
    "$build/cmake/tests/kernels/kernel_tests" --gtest_brief=1 "--gtest_filter=-$but"
    "$build/cmake/tests/ggml/extract_tests" --gtest_brief=1
fi
echo "-- C ABI, $kind"
SANITIZED=$kind CC="${CC:-cc} $flags" CXX="${CXX:-c++} $flags" LESSISMORE_LIBRARY="$build/liblessismore.so" BUILD="$build/abi" tests/abi/run.sh
