#!/bin/sh
# Everything of tests/gpu/vllm, each step in its own process and with its own limit; logs in a folder (default build/vllm).
#   run.sh [FOLDER] [PART...]     parts: reasoner check load server sanitize auto room decode decode-auto decode-128k serving ranks ranks-auto ranks-ray ranks-decode server-data2; default: all that one GPU can do
# vLLM has to be importable: pip install vllm, or a pack (pack.py) on PYTHONPATH. ranks, ranks-auto, ranks-ray (with Ray), ranks-decode and server-data2 want two GPUs, ranks-decode RANKS of them.
set -u
here=$(cd "$(dirname "$0")" && pwd)
logs=${1:-$here/../../../build/vllm}
[ $# -gt 0 ] && shift
parts=${*:-reasoner check load server sanitize auto room decode decode-128k serving}
python=${PYTHON:-python3}
export XDG_CACHE_HOME="${XDG_CACHE_HOME:-$(mktemp -d)}" # profiles of this run only
mkdir -p "$logs"
RESULTS=$(cd "$logs" && pwd) && export RESULTS # each part's figures as JSON

# one NAME SECONDS COMMAND...
one() {
    name=$1 limit=${LIMIT_EACH:-$2} begin=$(date +%s) # LIMIT_EACH: a busy machine starts engines slowly
    shift 2
    if timeout -k 5 "$limit" "$@" >"$logs/$name.log" 2>&1; then result=ok; else result="FAILED ($?)" && touch "$logs/failed"; fi
    echo "$result $name, $(($(date +%s) - begin)) s"
    grep -a '^##' "$logs/$name.log" | cut -c 1-1200 | tail -n "${LINES_SHOWN:-5}"
}
rm -f "$logs/failed"

# Small engines, side by side. The first one alone: what fails at once is not tried 16 times.
reasoner() {
    for case in "$@"; do one "reasoner-$case" 200 "$python" "$here/reasoner.py" "$case" & done
}
check() {
    for case in "$@"; do one "check-$case" 200 "$python" "$here/check.py" 1024 "$case" & done
}
for part in $parts; do
    case $part in
    reasoner)
        one reasoner-rows4 120 "$python" "$here/reasoner.py" rows4
        [ ! -e "$logs/failed" ] || exit 1
        reasoner stock rows1 rows16 rows6 auto eager4 eager6-nocache piecewise6
        wait
        reasoner nosplit6 maxrows preempt control unknown auto-piecewise
        one reasoner-auto-again 200 "$python" "$here/reasoner.py" auto-again & # which takes auto's profile
        wait
        reasoner stock-drafts drafts4 drafts16-eager drafts-control
        wait
        reasoner stock-eagle eagle4 eagle16 eagle6-eager eagle-control
        wait
        ;;
    check)
        check bf16 f16 fp8 drafts
        wait
        check sinks softcap dim64 dim256
        wait
        check sinks-dim64 softcap-dim256 gqa16 mha
        one check-dense 200 "$python" "$here/check.py" 32768 &
        wait
        ;;
    reasoner-*) one "$part" 200 "$python" "$here/reasoner.py" "${part#reasoner-}" ;;
    check-*) one "$part" 200 "$python" "$here/check.py" 1024 "${part#check-}" ;;
    load) # the model alone beside it, on another GPU where there is one
        seed=${SEED:-$(od -An -N3 -tu4 /dev/urandom | tr -d ' ')}
        one load 300 "$python" "$here/load.py" 4 "$seed" &
        CUDA_VISIBLE_DEVICES=${OTHER_GPU:-${CUDA_VISIBLE_DEVICES:-0}} one load-stock 300 "$python" "$here/load.py" 4 "$seed" stock &
        wait
        one load-compared 60 "$python" "$here/load.py" compare "$logs/load.json" "$logs/load-stock.json"
        ;;
    server-data2) one server-data2 240 "$python" "$here/server.py" "$logs" 2 ;; # two GPUs
    server) one server 240 "$python" "$here/server.py" "$logs" ;;
    auto) one auto 200 "$python" "$here/auto.py" ;;
    room)
        one room-stock 150 "$python" "$here/room.py" 131072 stock
        for longest in 131072 40960; do one "room-$longest" 150 "$python" "$here/room.py" "$longest"; done
        ;;
    decode-auto) # with the layers that vLLM finds while it serves
        rm -f "$logs/chosen.json"
        one auto 200 "$python" "$here/auto.py" 8 32768 "$logs/chosen.json"
        one decode-auto 300 "$python" "$here/decode.py" --profile "$logs/chosen.json" --cases 8x32768,fitx32768 --graphs 1,8,16,24,32 --name decode-auto
        ;;
    decode) one decode 400 "$python" "$here/decode.py" ;;
    decode-128k)
        one decode-128k 300 "$python" "$here/decode.py" --max-model-len 135168 --max-num-seqs 1024 --graphs 1,4,5,6 --cases 1x131072,fitx131072 --name decode-128k
        ;;
    serving) one serving 560 "$python" "$here/serving.py" ;;
    sanitize) # of the library's kernels only: vLLM's take minutes
        # Plain allocations, so that the checker sees every array's end. Errors of driver calls are no finding: see the Makefile. Not
        # racecheck: it fails in a kernel of vLLM's, before any of ours; make gpu-sanitize has it for each kernel.
        LENGTHS=100,1500,2500,600 PYTORCH_NO_CUDA_MEMORY_CACHING=1 one sanitize-memcheck 300 compute-sanitizer --error-exitcode 1 \
            --kernel-name kns=lim_ --tool memcheck --report-api-errors no "$python" "$here/check.py" 1024 bf16
        ;;
    ranks) # one after the other: two engines on the same GPUs wait for each other's turns in every sum over the ranks
        one ranks-tensor2 200 "$python" "$here/ranks.py" reasoner 2 1
        one ranks-control 200 "$python" "$here/ranks.py" reasoner 2 1 wrong
        one ranks-pipeline2 200 "$python" "$here/ranks.py" reasoner 1 2
        ;;
    ranks-auto) # nothing known, and then what that kept
        cache=$(mktemp -d)
        export VLLM_CACHE_ROOT="${VLLM_CACHE_ROOT:-$XDG_CACHE_HOME/vllm}" # what is compiled is everybody's
        one ranks-auto 200 env XDG_CACHE_HOME="$cache" "$python" "$here/ranks.py" reasoner 2 1 auto
        one ranks-again 200 env XDG_CACHE_HOME="$cache" "$python" "$here/ranks.py" reasoner 2 1 again
        rm -rf "$cache"
        ;;
    ranks-ray) one ranks-ray 240 "$python" "$here/ranks.py" reasoner 2 1 ray ;;
    ranks-decode) one ranks-decode 300 "$python" "$here/ranks.py" decode "${RANKS:-2}" ;;
    *) echo "no part $part" && exit 2 ;;
    esac
done
[ ! -e "$logs/failed" ]
