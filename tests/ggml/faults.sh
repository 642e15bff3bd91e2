#!/bin/sh
# A library whose own calls can be made to fail (faults.cc), from what make library has built, and what becomes of each call that fails.
#
#   tests/ggml/faults.sh [GPU FAULTS]   how many of a host's on a GPU are tried, drawn by chance: 100; all: each
#   tests/ggml/faults.sh build          the library alone
#
# BUILD, LIM_SHIM, LIM_EXTRA (coverage.sh): where the library goes, the folder of another shim to link, a library that it needs
set -eu
cd "$(dirname "$0")/../.."
out=${BUILD:-$PWD/build/faults} hosts=$PWD/build/ggml-test

# Each call fails once, in a fake host that decodes: it lives, every output is right or the host's own bits, one line says what is wrong, and what
# failed while the library was loaded does not the second time.
on_cpu() {
    LIM_FAULT=$1 "$hosts/fake_layers" "$out/liblessismore.so" named 2>&1
}
right_on_cpu() {
    [ "$(echo "$1" | grep -c 'inert: ')" -le 1 ] &&
        echo "$1" | grep -q -e "largest 0.943648 equal [48] of 52" -e "largest 0 equal 52 of 52" -e "largest [0-9.]*e-0[67] equal [48] of 52"
}
# The same with a CUDA device; such a host sees to it itself that each node is computed, and with mixed batches by whom each row.
cuda() {
    LIM_FAULT=$1 LESSISMORE_CUDA=on LESSISMORE_LIBCUDA=$hosts/libcuda.so.1 LIM_STANDIN_LOG=$out/log.$2.$1 LIM_STANDIN_ATTEND=1 \
        "$hosts/fake_cuda" "$out/liblessismore.so" "$2" 2>&1
}
on_gpu() { cuda "$1" graphs; }
on_mixed() { LESSISMORE_SPECULATION=on cuda "$1" mixed; }
right_on_gpu() {
    [ "$(echo "$1" | grep -c -e 'inert: ' -e 'inert in this context: ' -e 'left alone: ')" -le 1 ]
}
right_on_mixed() { right_on_gpu "$1"; }

if [ "${1:-}" = one ]; then # HOST KIND:N
    export LIM_FAULT_COUNT="$out/count.$2.$3"
    if text=$("on_$2" "$3") && "right_on_$2" "$text" && grep -q "failed 1" "$LIM_FAULT_COUNT"; then echo "passed $2 $3"; else echo "FAILED $2 $3: $text"; fi
    rm -f "$LIM_FAULT_COUNT" "$out"/log.*."$3"
    exit
fi

mkdir -p "$out"
"${CXX:-c++}" -std=c++17 -O1 -g -fPIC -Wall -Wextra -c -o "$out/faults.o" tests/ggml/faults.cc
rm -f "$out/liblim_faults.a"
ar rcs "$out/liblim_faults.a" "$out/faults.o"
wrap=""
for function in _Znwm calloc dlopen dlsym pipe2 atexit; do wrap="$wrap -Wl,--wrap=$function"; done
tags=netgo,osusergo toolkit=$(scripts/cuda-toolchain.sh auto)
if [ -n "$toolkit" ]; then
    tags=$tags,cuda
    export CGO_CFLAGS="-O2 -g '-I$PWD/plugin/internal/cudrv/include' '-I$toolkit/include'"
fi
CGO_LDFLAGS="'-L${LIM_SHIM:-$PWD/build/cmake/lib}' '-L$PWD/build/cmake/lib' '-L$out' $wrap -llim_faults ${LIM_EXTRA:+-Wl,-u,__llvm_profile_runtime}" go build -buildvcs=false -buildmode=c-shared -tags "$tags" \
    -ldflags="-B none '-extldflags=\"-Wl,--version-script=$PWD/build/exports.map,--as-needed,-soname,liblessismore.so\" ${LIM_EXTRA:-} -static-libgcc'" \
    -o "$out/liblessismore.so" ./capi
[ "${1:-}" != build ] || exit 0

# KIND:N of each call that a host makes.
calls() {
    LIM_FAULT_COUNT=$out/count "on_$1" none:0 >/dev/null
    awk -v host="$1" '$1 != "failed" { for (n = 1; n <= $2; n++) print host, $1 ":" n }' "$out/count"
}
export LESSISMORE_LAYERS=1 LESSISMORE_BUDGET=64
calls cpu >"$out/calls"
[ "$(wc -l <"$out/calls")" -gt 150 ] || { echo "tests/ggml/faults: no calls: $(cat "$out/calls")" >&2; exit 1; }
if [ -n "$toolkit" ]; then
    calls gpu >"$out/gpu"
    calls mixed >>"$out/gpu"
    seed=$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')
    if [ "${1:-100}" = all ]; then
        cat "$out/gpu" >>"$out/calls"
    else
        echo "tests/ggml/faults: ${1:-100} of $(wc -l <"$out/gpu") on a GPU, seed $seed"
        awk -v seed="$seed" 'BEGIN { srand(seed) } { print rand(), $0 }' "$out/gpu" | sort -g | head -n "${1:-100}" | cut -d' ' -f2- >>"$out/calls"
    fi
fi
xargs -P "$(nproc)" -L 1 "$0" one <"$out/calls" >"$out/results"
grep -v '^passed' "$out/results" || true
failed=$(grep -c '^FAILED' "$out/results") || true
passed=$(grep -c '^passed' "$out/results") || true
echo "tests/ggml/faults: $passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" = "$(wc -l <"$out/calls")" ]
