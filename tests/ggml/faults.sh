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
