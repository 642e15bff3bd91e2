#!/bin/sh
# A library whose own calls can be made to fail (faults.cc): build/faults/liblessismore.so, from what make library has built.
set -eu
cd "$(dirname "$0")/../.."
out=$PWD/build/faults
mkdir -p "$out"
"${CXX:-c++}" -std=c++17 -O1 -g -fPIC -Wall -Wextra -c -o "$out/faults.o" tests/ggml/faults.cc
rm -f "$out/liblim_faults.a"
ar rcs "$out/liblim_faults.a" "$out/faults.o"
wrap=""
for function in _Znwm calloc dlopen pipe2 atexit; do wrap="$wrap -Wl,--wrap=$function"; done
CGO_LDFLAGS="'-L$out' $wrap -llim_faults" go build -buildvcs=false -buildmode=c-shared -tags netgo,osusergo \
    -ldflags="-B none '-extldflags=\"-Wl,--version-script=$PWD/build/exports.map,--as-needed,-soname,liblessismore.so\" -static-libgcc'" \
    -o "$out/liblessismore.so" ./capi

# Each call fails once, in a fake host that decodes: it lives, every output is right or the host's own bits, one line says what is wrong, and what
# failed while the library was loaded does not the second time.
export LESSISMORE_LAYERS=1 LESSISMORE_BUDGET=64 LIM_FAULT_COUNT="$out/count"
host=$PWD/build/ggml-test/fake_layers
decode() { LIM_FAULT=$1 "$host" "$out/liblessismore.so" named 2>&1; }
decode none:0 >/dev/null
cp "$out/count" "$out/calls"
passed=0 failed=0
while read -r kind calls; do
    [ "$kind" != failed ] || continue
    n=1
    while [ $n -le "$calls" ]; do
        if text=$(decode "$kind:$n") && grep -q "failed 1" "$out/count" && [ "$(echo "$text" | grep -c 'inert: ')" -le 1 ] &&
            echo "$text" | grep -q -e "largest 0.943648 equal [48] of 52" -e "largest 0 equal 52 of 52" -e "largest [0-9.]*e-0[67] equal [48] of 52"; then
            passed=$((passed + 1))
        else
            failed=$((failed + 1))
            echo "FAILED $kind:$n: $text"
        fi
        n=$((n + 1))
    done
done <"$out/calls"
echo "tests/ggml/faults: $passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" -gt 50 ]
