#!/bin/sh
# Everything of tests/gpu/vllm, each step in its own process and with its own limit; logs in a folder (default build/vllm).
#   run.sh [FOLDER]        vLLM has to be importable: pip install vllm, or a pack (pack.py) on PYTHONPATH
set -u
here=$(cd "$(dirname "$0")" && pwd)
logs=${1:-$here/../../../build/vllm}
python=${PYTHON:-python3}
export XDG_CACHE_HOME="${XDG_CACHE_HOME:-$(mktemp -d)}" # profiles of this run only
mkdir -p "$logs"

# one NAME SECONDS COMMAND...
one() {
    name=$1 limit=$2
    shift 2
    if timeout -k 5 "$limit" "$@" >"$logs/$name.log" 2>&1; then echo "ok     $name"; else echo "FAILED $name ($?)"; touch "$logs/failed"; fi
    grep '^##' "$logs/$name.log" | tail -n 6
}
rm -f "$logs/failed"

# Small engines, side by side. The first one alone: what fails at once is not tried 16 times.
reasoner() {
    for case in "$@"; do one "reasoner-$case" 240 "$python" "$here/reasoner.py" "$case" & done
}
one reasoner-rows4 120 "$python" "$here/reasoner.py" rows4
[ ! -e "$logs/failed" ] || exit 1
reasoner stock rows1 rows16 rows6 auto eager4 eager6-nocache
one check 240 "$python" "$here/check.py" 1024 &
wait
reasoner piecewise6 nosplit6 maxrows preempt control unknown auto-again # which takes auto's profile
one check-dense 240 "$python" "$here/check.py" 32768 &
wait
one decode 400 "$python" "$here/decode.py" --json "$logs/decode.json"
[ ! -e "$logs/failed" ]
