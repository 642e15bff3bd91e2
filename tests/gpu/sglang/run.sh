#!/bin/sh
# Everything of tests/gpu/sglang, each step in its own process and with its own limit; logs and figures in a folder (default build/sglang).
#   run.sh [FOLDER] [PART...]     parts: reasoner decode, or reasoner-CASE
# SGLang has to be importable: pip install sglang, or a pack (pack.py) on PYTHONPATH.
set -u
here=$(cd "$(dirname "$0")" && pwd)
logs=${1:-$here/../../../build/sglang}
[ $# -gt 0 ] && shift
parts=${*:-reasoner decode}
python=${PYTHON:-python3}
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
        one reasoner-rows6 200 "$python" "$here/reasoner.py" rows6 # alone: it compiles what the others need, and what fails at once is not tried nine times
        [ ! -e "$logs/failed" ] || exit 1
        for case in stock rows1 rows6-page16 rows16-nocache eager6 decode-only auto control; do one "reasoner-$case" 200 "$python" "$here/reasoner.py" "$case" & done
        wait
        ;;
    reasoner-*) one "$part" 200 "$python" "$here/reasoner.py" "${part#reasoner-}" ;;
    decode) for mode in on off; do one "decode-$mode" 250 "$python" "$here/decode.py" $mode "${ROWS:-1,8,16}"; done ;;
    *) echo "no part $part" && exit 2 ;;
    esac
done
[ ! -e "$logs/failed" ]
