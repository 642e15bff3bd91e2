#!/bin/sh
# Everything of tests/gpu/sglang, each step in its own process and with its own limit; logs and figures in a folder (default build/sglang).
#   run.sh [FOLDER] [PART...]     parts: reasoner check decode, or reasoner-CASE, check-CASE
# SGLang has to be importable: pip install sglang, or a pack (pack.py) on PYTHONPATH.
set -u
here=$(cd "$(dirname "$0")" && pwd)
logs=${1:-$here/../../../build/sglang}
[ $# -gt 0 ] && shift
parts=${*:-reasoner check decode}
python=${PYTHON:-python3}
limit_each=${LIMIT_EACH:-200} # seconds of a case
export XDG_CACHE_HOME="${XDG_CACHE_HOME:-$(mktemp -d)}" # profiles of this run only
mkdir -p "$logs"
RESULTS=$(cd "$logs" && pwd) && export RESULTS

# one NAME SECONDS COMMAND...
one() {
    name=$1 limit=$2 begin=$(date +%s)
    shift 2
    if timeout -k 5 "$limit" "$@" >"$logs/$name.log" 2>&1; then result=ok; else result="FAILED ($?)" && touch "$logs/failed"; fi
    echo "$result $name, $(($(date +%s) - begin)) s"
    grep -a '^##' "$logs/$name.log" | cut -c 1-1200
}
rm -f "$logs/failed"
for part in $parts; do
    case $part in
    reasoner)
        # Alone: it compiles what the others need, and what fails at once is not tried ten times. QUICK: kernels are compiled already.
        if [ -z "${QUICK:-}" ]; then
            one reasoner-rows4 "$limit_each" "$python" "$here/reasoner.py" rows4
            [ ! -e "$logs/failed" ] || exit 1
        else
            one reasoner-rows4 "$limit_each" "$python" "$here/reasoner.py" rows4 &
        fi
        for case in stock rows1 rows4-page16 rows16 rows16-nocache eager4-page16 eager16 decode-only auto control; do
            one "reasoner-$case" "$limit_each" "$python" "$here/reasoner.py" "$case" &
        done
        wait
        ;;
    reasoner-*) one "$part" "$limit_each" "$python" "$here/reasoner.py" "${part#reasoner-}" ;;
    check)
        for case in bf16 bf16-page16 f16 f16-page16; do one "check-$case" "$limit_each" "$python" "$here/check.py" "$case" & done
        wait
        ;;
    check-*) one "$part" "$limit_each" "$python" "$here/check.py" "${part#check-}" ;;
    decode) for mode in on off; do one "decode-$mode" 250 "$python" "$here/decode.py" $mode "${ROWS:-1,8,16}"; done ;;
    *) echo "no part $part" && exit 2 ;;
    esac
done
[ ! -e "$logs/failed" ]
