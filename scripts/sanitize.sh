#!/bin/sh
# The kernels, the shim and the C ABI under a sanitizer of the compiler's: what it finds ends the program that it is in.
#
#   scripts/sanitize.sh address|thread [short]
#
# address: bad addresses, leaks and undefined behaviour; thread: data races. short: a part of the kernels' random cases.
set -eu
cd "$(dirname "$0")/.."
kind=$1 share=100
[ "${2:-}" != short ] || share=10
case "$kind" in
# Accesses are checked by calls: inline, the kernels would take minutes to compile. Without float-cast-overflow: Highway's tanh
# turns NaN into an integer that it does not use, on targets without vectors.
address)
    flags="-fsanitize=address,alignment,bounds,bool,enum,integer-divide-by-zero,shift,signed-integer-overflow,unreachable,return"
    flags="$flags -fno-sanitize-recover=all --param=asan-instrumentation-with-call-threshold=0" ;;
thread) flags="-fsanitize=thread" ;;
*) echo "$kind is neither address nor thread" >&2; exit 1 ;;
esac
build=$PWD/build/sanitized/$kind
mkdir -p "$build"
cmake -S . -B "$build/cmake" -DCMAKE_BUILD_TYPE=Release "-DLESSISMORE_SANITIZE=$flags" >"$build/cmake.log"
cmake --build "$build/cmake" -j "$(nproc)" --target lim_cpu lim_cuda lim_ggml kernel_tests extract_tests >"$build/build.log" || { cat "$build/build.log" >&2; exit 1; }

# Reports are to name the library's functions, so it keeps its symbols. Linked each time: Go does not look at the archives.
rm -f "$build/liblessismore.so"
export CGO_CFLAGS="-O1 -g $flags" CGO_LDFLAGS="'-L$build/cmake/lib' $flags"
go build -buildmode=c-shared -tags netgo,osusergo -o "$build/liblessismore.so" ./capi
rm -f "$build/liblessismore.h"

export ASAN_OPTIONS=detect_leaks=1:detect_stack_use_after_return=1:handle_segv=0:allow_user_segv_handler=1
export UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS="halt_on_error=1:handle_segv=0:allow_user_segv_handler=1"
echo "-- kernels, $kind"
# A sanitizer needs more of what that test takes away.
LIM_TEST_SHARE=$share "$build/cmake/tests/kernels/kernel_tests" --gtest_brief=1 --gtest_filter=-Pool.OutOfThreads
"$build/cmake/tests/ggml/extract_tests" --gtest_brief=1
echo "-- C ABI, $kind"
SANITIZED=$kind CC="${CC:-cc} $flags" CXX="${CXX:-c++} $flags" LESSISMORE_LIBRARY="$build/liblessismore.so" BUILD="$build/abi" tests/abi/run.sh
