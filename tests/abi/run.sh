#!/bin/sh
# Compiles the C ABI's tests against the public header alone, and runs them on the built library.
# LESSISMORE_LIBRARY: the library; CC, CXX: the compilers; BUILD: where the programs go.
# shellcheck disable=SC2086 # $flags is a list of words
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
library=${LESSISMORE_LIBRARY:-$root/build/liblessismore.so}
build=${BUILD:-$root/build/abi}
flags="-O1 -g -Wall -Wextra -Wpedantic -Werror"
include="-I$root/include"
mkdir -p "$build"
LD_LIBRARY_PATH=$(cd "$(dirname "$library")" && pwd)
export LD_LIBRARY_PATH

${CXX:-c++} -std=c++11 $flags "$include" "$here/header.cc" "$library" -o "$build/header"
"$build/header"
for test in lifecycle sizes arguments numerics paged misuse; do
    ${CC:-cc} -std=c11 $flags -D_POSIX_C_SOURCE=200809L -D_DEFAULT_SOURCE "$include" "$here/$test.c" "$here/reference.c" "$library" -pthread -lm -o "$build/$test"
    "$build/$test" "$@"
done

# The structures at the hands of chance, for some seconds; for longer: fuzz.sh.
${CC:-cc} -std=gnu11 $flags -Wno-pedantic "$include" "$here/fuzz.c" "$library" -lm -o "$build/fuzz"
"$build/fuzz" 4

# Decoders on a GPU, without a driver and with the stand-in.
flags="$flags -D_POSIX_C_SOURCE=200809L"
${CC:-cc} -std=c11 $flags "$include" "$here/device.c" "$library" -pthread -o "$build/device"
${CC:-cc} -O1 -shared -fPIC -o "$build/libcuda.so.1" "$root/tests/gpu/standin/standin.c" -lpthread
LESSISMORE_LIBCUDA="$build/nothing.so" "$build/device"
rm -f "$build/driver.log"
LESSISMORE_LIBCUDA="$build/libcuda.so.1" LIM_STANDIN_LOG="$build/driver.log" "$build/device" standin "$build/driver.log"

# Not under a sanitizer, without which the executables of then were made.
[ -n "${SANITIZED:-}" ] || "$here/promised/run.sh"
