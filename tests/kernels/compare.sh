#!/bin/sh
# The wheels' kernels against this machine's compiler's: see compare.cc. Usage: tests/kernels/compare.sh [target]
# After `make kernels wheels`. Programs and libraries stay in build/compare, and run elsewhere too.
set -eu
cd "$(dirname "$0")/../.."
out=build/compare
mkdir -p $out
arch=$(uname -m)
build() { # NAME COMPILER LIBRARY
    "$2" -O2 -std=c++17 -fPIC -shared -Ikernels/cpu tests/kernels/compare_build.cc "$3" -lpthread -o "$out/$1.so"
}
build here "${CXX:-c++}" build/cmake/lib/liblim_cpu.a
build wheels "$(scripts/zig-toolchain.sh "$arch")/c++" "build/wheels/$arch/cmake/lib/liblim_cpu.a"
"${CXX:-c++}" -O2 -std=c++17 -Ikernels/cpu tests/kernels/compare.cc -ldl -o $out/compare
exec $out/compare $out/here.so $out/wheels.so "$@"
