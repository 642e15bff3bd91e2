#!/bin/sh
# Everything of tests/gpu/sglang, each step in its own process and with its own limit; logs and figures in a folder (default build/sglang).
#   run.sh [FOLDER] [PART...]     parts: correct (reasoner and check side by side, those of most worth first), decode, reasoner-CASE, check-CASE
# SGLang has to be importable: pip install sglang, or a pack (pack.py) on PYTHONPATH. An engine's start takes 40 seconds of one core, and 3 GB.
set -u
here=$(cd "$(dirname "$0")" && pwd)
logs=${1:-$here/../../../build/sglang}
[ $# -gt 0 ] && shift
parts=${*:-correct decode}
python=${PYTHON:-python3}
limit_each=${LIMIT_EACH:-200} # seconds of a case
export JOBS="${JOBS:-4}"      # cases side by side
export UNTIL="${UNTIL:-}"     # when all of it has to be over, seconds since 1970
export XDG_CACHE_HOME="${XDG_CACHE_HOME:-$(mktemp -d)}" # profiles of this run only
mkdir -p "$logs"
RESULTS=$(cd "$logs" && pwd) && export RESULTS

# one NAME SECONDS COMMAND...
one() {
    name=$1 limit=$2 begin=$(date +%s)
    shift 2
    if [ -n "$UNTIL" ] && [ $((UNTIL - begin)) -lt "$limit" ]; then limit=$((UNTIL - begin)); fi
    if [ "$limit" -lt 30 ]; then
        result="FAILED (no time)" && touch "$logs/failed"
    elif timeout -k 5 "$limit" "$@" >"$logs/$name.log" 2>&1; then
        result=ok
    else
        result="FAILED ($?)" && touch "$logs/failed"
    fi
    {
        echo "$result $name, $(($(date +%s) - begin)) s"
        grep -a '^##' "$logs/$name.log" 2>/dev/null | cut -c 1-1200
    } >"$logs/$name.said"
    cat "$logs/$name.said"
}
[ -n "${INNER:-}" ] || rm -f "$logs/failed"
for part in $parts; do
    case $part in
    correct)
        # The first compiles what the others need, where nothing is compiled yet (QUICK: it is), and what fails at once is not tried ten times.
        first=reasoner-graphs
        if [ -z "${QUICK:-}" ]; then
            one "$first" "$limit_each" "$python" "$here/reasoner.py" graphs
            [ ! -e "$logs/failed" ] || exit 1
            first=
        fi
        # profile takes what auto has kept
        printf '%s\n' $first check-bf16-page16 'reasoner-auto reasoner-profile' reasoner-eager reasoner-decode-only reasoner-control check-f16 \
            reasoner-stock reasoner-graphs-page16 check-bf16 reasoner-eager-page1 check-f16-page16 |
            INNER=1 xargs -P "$JOBS" -I{} sh -c "sh '$here/run.sh' '$logs' {}"
        ;;
    reasoner-*) one "$part" "$limit_each" "$python" "$here/reasoner.py" "${part#reasoner-}" ;;
    check-*) one "$part" "$limit_each" "$python" "$here/check.py" "${part#check-}" ;;
    decode)
        # the second starts beside the first, and waits for it before it takes memory
        gate=$(mktemp -u)
        GATE=$gate one decode-off 300 "$python" "$here/decode.py" off "${ROWS:-1,8,16}" &
        one decode-on 250 "$python" "$here/decode.py" on "${ROWS:-1,8,16}"
        sleep 3 # its memory comes back
        touch "$gate"
        wait
        rm -f "$gate"
        ;;
    *) echo "no part $part" && exit 2 ;;
    esac
done
[ ! -e "$logs/failed" ]
