#!/bin/sh
# Everything of tests/gpu/vllm, each step in its own process and with its own limit; logs in a folder (default build/vllm).
#   run.sh [FOLDER]        vLLM has to be importable: pip install vllm, or a pack (pack.py) on PYTHONPATH
set -u
here=$(cd "$(dirname "$0")" && pwd)
logs=${1:-$here/../../../build/vllm}
python=${PYTHON:-python3}
export XDG_CACHE_HOME=${XDG_CACHE_HOME:-$(mktemp -d)} # profiles of this run only
mkdir -p "$logs"
failed=

# one NAME SECONDS COMMAND...
one() {
    name=$1 limit=$2
    shift 2
    if timeout -k 5 "$limit" "$@" >"$logs/$name.log" 2>&1; then echo "ok     $name"; else echo "FAILED $name ($?)"; touch "$logs/failed"; fi
    grep '^##' "$logs/$name.log" | tail -n 6
}
rm -f "$logs/failed"

# Small engines, side by side: auto comes before auto-again, which takes its profile.
side_by_side() {
    for case in "$@"; do one "reasoner-$case" 200 "$python" "$here/reasoner.py" "$case" & done
    wait
}
side_by_side stock rows1 rows4 rows16 auto
side_by_side rows6 eager4 eager6-nocache piecewise6 auto-again
side_by_side nosplit6 maxrows preempt control unknown
one check 200 "$python" "$here/check.py" 1024
one check-dense 200 "$python" "$here/check.py" 32768
one decode 400 "$python" "$here/decode.py" --json "$logs/decode.json"
[ ! -e "$logs/failed" ]
