#!/bin/sh
# Runs targets of make one after the other and says how long each took, and all of them. Ends at the first that fails.
# Usage: MAKE=make scripts/suites.sh TARGET ...
set -u
times='' total=0
tell() { printf '\n%s%-16s %5d s\n' "$times" "$1" $total; }
for suite in "$@"; do
    start=$(date +%s)
    "${MAKE:-make}" --no-print-directory "$suite" || { tell "$suite FAILED"; exit 1; }
    seconds=$(($(date +%s) - start)) total=$((total + $(date +%s) - start))
    times="$times$(printf '%-16s %5d s' "$suite" $seconds)
"
    printf -- '-- %s: %d s\n' "$suite" $seconds
done
tell "in all"
