#!/bin/sh
# The hook against hosts that are not what it knows. Usage: tests/ggml/run.sh [LIBRARY]
set -eu
cd "$(dirname "$0")"
root=$(cd ../.. && pwd)
library=${1:-$root/build/liblessismore.so}
out=$root/build/ggml-test
mkdir -p "$out"
${CC:-cc} -std=c11 -Wall -Wextra -Werror -rdynamic -o "$out/fake_host" fake_host.c -ldl

failed=0 passed=0
# VARIANT: what the log must say ("" : nothing about being inert)
expect() {
    if ! text=$("$out/fake_host" "$library" "$1" 2>&1); then
        failed=$((failed + 1)); echo "FAILED $1: $text"
    elif [ -z "$2" ] && echo "$text" | grep -q inert; then
        failed=$((failed + 1)); echo "FAILED $1: $text"
    elif [ -n "$2" ] && [ "$(echo "$text" | grep -c "inert: .*$2")" != 1 ]; then
        failed=$((failed + 1)); echo "FAILED $1: wants one line with '$2', got: $text"
    else
        passed=$((passed + 1))
    fi
}
expect sound ""
expect api-3 ""
expect api-1 "API version 1 "
expect api-99 "API version 99 "
expect no-cpu "no CPU device"
expect no-flash-op "no operation FLASH_ATTN_EXT"
expect types-moved "q8_0"
expect small-tensors "tensors are smaller"
expect dims-reversed "tensors are laid out"
expect params-moved "tensors are laid out"
expect sources-moved "tensors are laid out"
expect device-foreign "CPU device is laid out"
expect device-no-registry "CPU device is laid out"
expect backend-v1 "CPU backend is laid out"
expect backend-no-device "CPU backend is laid out"
echo "tests/ggml: $passed passed, $failed failed"
[ "$failed" = 0 ]
