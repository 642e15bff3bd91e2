#!/bin/sh
# The kernels' tests on aarch64 (NEON), cross-compiled and run under user-mode emulation, with a share of
# the random cases. Usage: tests/kernels/neon.sh [GoogleTest arguments]
set -eu
cd "$(dirname "$0")/../.."
out=build/neon

need() { command -v "$1" >/dev/null || missing="${missing:-} $2"; }
missing=
need aarch64-linux-gnu-g++ g++-aarch64-linux-gnu
need qemu-aarch64 qemu-user
[ -d /usr/src/googletest ] || missing="$missing googletest"
if [ -n "$missing" ]; then
    echo "installing$missing"
    apt-get update -qq
    # shellcheck disable=SC2086 # a list of words
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing libc6-dev-arm64-cross >/dev/null
fi

# Highway's headers alone: the rest of /usr/include is for this machine.
mkdir -p $out/include
ln -sfn /usr/include/hwy $out/include/hwy
cmake -S . -B $out -DCMAKE_BUILD_TYPE=Release -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
    -DHIGHWAY_INCLUDE_DIR="$PWD/$out/include" -DLESSISMORE_TESTS=ON >/dev/null
cmake --build $out -j "$(nproc)" --target kernel_tests
# Without the test that runs out of threads: the emulator does not survive that.
status=0
LIM_TEST_SHARE=${LIM_TEST_SHARE:-10} qemu-aarch64 -L /usr/aarch64-linux-gnu $out/tests/kernels/kernel_tests \
    --gtest_filter=-Pool.OutOfThreads "$@" >$out/log 2>&1 || status=$?
grep -q 'best target NEON' $out/log || status=1
[ $status = 0 ] || cat $out/log
tail -n 3 $out/log
exit $status
