#!/bin/sh
# The hook against hosts that are not what it knows, and against one with a CUDA device that there is not.
# Usage: tests/ggml/run.sh [LIBRARY]
set -eu
cd "$(dirname "$0")"
root=$(cd ../.. && pwd)
library=${1:-$root/build/liblessismore.so}
out=$root/build/ggml-test
mkdir -p "$out"
for host in fake_host fake_layers fake_cuda; do
    ${CC:-cc} -std=c11 -O2 -Wall -Wextra -Werror -rdynamic -o "$out/$host" $host.c -ldl -lm
done
${CC:-cc} -std=c11 -O2 -Wall -Wextra -Werror -DWITHOUT_GRAPHS -rdynamic -o "$out/fake_host_without_graphs" fake_host.c -ldl -lm
${CC:-cc} -O1 -Wall -Wextra -shared -fPIC -o "$out/libcuda.so.1" ../gpu/standin/standin.c -lpthread

failed=0 passed=0
fail() { failed=$((failed + 1)); echo "FAILED $*"; }

# VARIANT, what the log must say once ("": nothing but that it is loaded, once)
host=fake_host
expect() {
    if ! text=$("$out/$host" "$library" "$1" 2>&1); then
        fail "$1: $text"
    elif [ -z "$2" ] && [ "$(echo "$text" | grep -vc ' loaded into ggml fake')$(echo "$text" | grep -c ' loaded into ')" != 01 ]; then
        fail "$1: $text"
    elif [ -n "$2" ] && [ "$(echo "$text" | grep -c "$2")" != 1 ]; then
        fail "$1: wants one line with '$2', got: $text"
    else
        passed=$((passed + 1))
    fi
}
expect sound ""
for api in 1 3 6 99; do expect api-$api ""; done # what is proven counts, not its number
expect no-cpu "waiting: this host has no CPU device so far"
expect no-flash-op "inert: .*no operation FLASH_ATTN_EXT"
expect types-moved "inert: .*q8_0"
expect small-tensors "inert: .*tensors are smaller"
expect dims-reversed "inert: .*tensors are laid out in an unknown way: ne$"
expect data-moved "inert: .*tensors are laid out in an unknown way: data$"
expect params-moved "inert: .*tensors are laid out in an unknown way: op_params of FLASH_ATTN_EXT"
expect sources-moved "inert: .*tensors are laid out in an unknown way: src of FLASH_ATTN_EXT"
expect device-foreign "inert: .*CPU device is laid out in an unknown way: word 5, init_backend"
expect device-no-registry "inert: .*CPU device is laid out in an unknown way: its registry"
expect device-type "inert: .*CPU device is laid out in an unknown way: its type is 2, not 0"
expect device-read-only "inert: .*CPU device is laid out in an unknown way: word 5, init_backend, cannot be written"
expect backend-v1 "" # until May 2026
expect backend-moved "inert: .*CPU backend is laid out in an unknown way: function 8 is none of the backend's module"
expect backend-no-device "inert: .*CPU backend is laid out in an unknown way: its device"
expect forked "inert: process [0-9]* was forked from process [0-9]* .* --preload"
if text=$(LESSISMORE_LOG=info "$out/fake_host" "$library" forked-0 2>&1) && [ "$(echo "$text" | grep -c inert)" = 0 ]; then
    passed=$((passed + 1))
else
    fail "forked-0: $text"
fi
if ! text=$(LESSISMORE_LOG=off "$out/fake_host" "$library" forked 2>&1) || [ -n "$text" ]; then
    fail "forked, LESSISMORE_LOG=off: $text"
else
    passed=$((passed + 1))
fi

# Each declared word of each tensor that the proof makes.
if text=$("$out/fake_host" "$library" fields 2>&1) && [ "$(echo "$text" | grep -o 'laid out in an unknown way: .*' | sort -u | wc -l)" = 11 ]; then
    passed=$((passed + 1))
else
    fail "fields: $text"
fi

# The layout is right, and yet something is not what it is taken for.
expect op-renumbered "inert: self-test, one token: layer 0, value 0: the host alone computes .*, with the library"
expect heads-swapped "inert: self-test, one token: layer 0, value 0: the host alone computes .*, with the library"
expect prompt-differs "inert: self-test, several tokens: layer 0, value 0: the host alone computes .*, with the library"
expect divided-differs "loaded into ggml fake, API 2, mixed batches are left to the host: self-test, tokens of two sequences: layer 0, value 0: the host alone computes"
expect no-threads "inert: .*no ggml_backend_set_n_threads"
expect endless-ops "inert: .*no operation FLASH_ATTN_EXT"
expect types-fewer "inert: .*numbers the element type bf16 otherwise"
expect sinks-moved "inert: .*tensors are laid out in an unknown way: src of FLASH_ATTN_EXT"
expect both-moved "inert: .*tensors are laid out in an unknown way: op_params of FLASH_ATTN_EXT" # the first is named
expect backend-data "inert: .*CPU backend is laid out in an unknown way: function 0 is none of the backend's module"
expect data-elsewhere "inert: .*tensors are laid out in an unknown way: data$"
expect device-name "inert: .*CPU device is laid out in an unknown way: word 0, get_name, does not tell the device's name"
expect device-data "inert: .*CPU device is laid out in an unknown way: word 0, get_name, is no function of the device's module"
expect no-registry "inert: this host's CPU device has no registry"
# The host has no memory, or fails, at each step of the proof; where only mixed batches are left, these stay with it.
for n in 1 2 3; do expect no-context-$n "inert: this host refused memory for "; done # the next time it is right
expect no-context-4 "loaded into ggml fake, API 2, mixed batches are left to the host: this host refused memory for the self-test"
for n in 1 4; do expect compute-fails-$n "inert: self-test, .*: the host cannot compute it\$"; done
for n in 2 3 5; do expect compute-fails-$n "inert: self-test, .*: the host cannot compute it with the library\$"; done
expect compute-fails-6 "mixed batches are left to the host: self-test, tokens of two sequences: the host cannot compute it"
expect computes-nan "inert: self-test, one token: the host computes no number for value 1"
expect no-backend-1 "inert: this host's CPU device makes no backend"
expect odd-backend-1 "inert: this host's CPU backend is laid out in an unknown way: function 1 is none of the backend's module"
expect no-backend-2 ""
expect odd-backend-2 "inert: this host's CPU backend is laid out in an unknown way: function 1 is none of the backend's module"
host=fake_host_without_graphs
expect without-graphs "inert: this host does not export ggml_graph_overhead, which the self-test needs"
# Loaded before the host's CPU backend, twice, and again: it waits, and is loaded.
host=fake_host
text=$("$out/$host" "$library" late-cpu 2>&1) || fail "late-cpu: $text"
if [ "$(echo "$text" | sed -e 's/^lessismore: //' -e 's/^waiting: .*/waits/' -e 's/.* loaded into .*/loaded/' | tr '\n' ' ')" = "waits loaded " ]; then
    passed=$((passed + 1))
else
    fail "late-cpu: $text"
fi

# ---- layers that are known by what graphs do ----

# VARIANT, how many outputs of 52 must have the host's bits, a line of the statistics, what the log must say once, VARIABLE=VALUE ...
layers() {
    variant=$1 equal=$2 count=$3 want=$4
    shift 4
    if ! text=$(env LESSISMORE_LAYERS=1 LESSISMORE_BUDGET=64 LESSISMORE_STATS="$out/stats.json" "$@" "$out/fake_layers" "$library" "$variant" 2>&1); then
        fail "layers $variant $*: $text"
    elif [ "$(echo "$text" | grep -c -e "$want")" != 1 ]; then
        fail "layers $variant $*: wants one line with '$want', got: $text"
    elif ! echo "$text" | grep -q " equal $equal of "; then
        fail "layers $variant $*: wants $equal outputs with the host's bits, got: $text"
    elif ! sed -n '/"total"/,$p' "$out/stats.json" | grep -q "$count"; then
        fail "layers $variant $*: no $count in the statistics"
    else
        passed=$((passed + 1))
    fi
    bits=$(echo "$text" | sed -n 's/^bits \([0-9a-f]*\) .*/\1/p') largest=$(echo "$text" | sed -n 's/.* largest \([^ ]*\) .*/\1/p')
}

layers named 4 '"rows_sparse": 12,' "engaged: 64 tokens of 200"
named=$bits
# Names help, no more: other ones, none, ggml's own for what has none; stores by heads, as other engines have them; parts.
for same in other-names no-names leaves by-heads parts parts-named; do
    layers $same 4 '"rows_sparse": 12,' "engaged: 64 tokens of 200"
    if [ "$bits" = "$named" ]; then passed=$((passed + 1)); else fail "layers $same: other bits than with llama.cpp's names"; fi
done
# Of a graph that comes node by node the first batch is not seen to be written: rows attend to everything until that does not matter.
layers by-node 4 '"rows_sparse": 1,' "engaged: 64 tokens of 211"
layers other-model 12 '"rows_sparse": 1[23],' "engaged: 64 tokens of 200"
# Below the budget nothing but who computes.
for same in named no-names by-heads parts by-node other-model; do
    layers $same '[0-9]*' '"rows_sparse": 0,' "loaded into ggml" LESSISMORE_BUDGET=512
    if [ "$(echo "$largest 0.001" | awk '{print ($1 < $2)}')" = 1 ]; then passed=$((passed + 1)); else fail "layers $same, all tokens: differs by $largest"; fi
done
# Left to the host, and said why.
layers offset 52 '"shape": 52' "nothing is offloaded in this context: shape: offset into the K store 2048"
layers by-heads-offset 52 '"shape": 52' "nothing is offloaded in this context: shape: offset into the K store 2048"
layers no-store 52 '"no_cache": 52' "nothing is offloaded in this context: no_cache: keys are not read from a K/V cache"
layers converted 52 '"no_cache": 52' "nothing is offloaded in this context: no_cache: .*or the host converts the cache first"
layers copies 52 '"unknown_rows": 48' "nothing was offloaded; attentions left to the host: unknown_rows 48"

# Where the statistics go: %p is the process, an open file is written to and stays what it is.
rm -f "$out"/pid-*.json
LESSISMORE_STATS="$out/pid-%p.json" "$out/fake_host" "$library" sound 2>"$out/text" &
wait $!
if grep -q '"state": "active"' "$out/pid-$!.json"; then passed=$((passed + 1)); else fail "%p: $(ls "$out"; cat "$out/text")"; fi
ln -sf /proc/self/fd/1 "$out/stdout"
LESSISMORE_STATS="$out/stdout" "$out/fake_host" "$library" sound 2>"$out/text" | grep -c '"state": "active"' > "$out/times" || true
if [ -L "$out/stdout" ] && [ "$(cat "$out/times")" -ge 1 ]; then passed=$((passed + 1)); else fail "a link to stdout: $(cat "$out/text")"; fi

# ---- a CUDA device ----

# VARIANT, what the log must say once, whether anything is launched (yes, no), VARIABLE=VALUE ...
gpu() {
    variant=$1 want=$2 launched=$3
    shift 3
    rm -f "$out/log" "$out/stats.json"
    if ! text=$(env LESSISMORE_CUDA=on LESSISMORE_LAYERS=1 LESSISMORE_BUDGET=64 LESSISMORE_LIBCUDA="$out/libcuda.so.1" \
        LIM_STANDIN_LOG="$out/log" LIM_STANDIN_ATTEND=1 LESSISMORE_STATS="$out/stats.json" "$@" "$out/fake_cuda" "$library" "$variant" 2>&1); then
        fail "gpu $variant $*: $text"
        return
    fi
    touch "$out/log"
    did=no
    sed -n '/^prompts*$/,$p;/^step$/,$p' "$out/log" | grep -q '^cuLaunchKernel' && did=yes # behind the self-test
    if [ "$(echo "$text" | grep -c -e "$want")" != 1 ]; then
        fail "gpu $variant $*: wants one line with '$want', got: $text"
    elif [ "$did" != "$launched" ]; then
        fail "gpu $variant $*: launched: $did"
    else
        passed=$((passed + 1))
    fi
}

# What happened from one mark to the next, without what concerns the thread's context.
# Which kernel attends, and how it is launched, is for the kernels' own tests.
between() {
    sed -n "/^$1\$/,/^$2\$/p" "$out/log" | sed -e '1d;$d' -e '/^cuCtx[GS]et/d' -e '/^cuPointerGetAttribute/d' -e 's/ context .* params 1//' \
        -e 's/ grid .* stream/ stream/' -e 's/ flags 0$//' \
        -e 's/^cuLaunchKernelEx/cuLaunchKernel/' -e 's/lim_short/lim_attend/' -e 's/ cluster [0-9]* pdl [01]//'
}

# NAME, FROM, TO: what happened must be standard input.
happened() {
    between "$2" "$3" > "$out/happened"
    if diff -u - "$out/happened"; then passed=$((passed + 1)); else fail "gpu $1"; fi
}

# NAME, a line of the statistics (their total)
counted() {
    if sed -n '/"total"/,$p' "$out/stats.json" | grep -q "$2"; then
        passed=$((passed + 1))
    else
        fail "gpu $1: no $2 in the statistics"
    fi
}

if grep -q "this build of the library has no CUDA" <<EOF
$(env LESSISMORE_CUDA=on LESSISMORE_LAYERS=1 LIM_STANDIN_LOG="$out/log" "$out/fake_cuda" "$library" sound 2>&1)
EOF
then
    gpu sound "LESSISMORE_CUDA=\"on\": this build of the library has no CUDA" no
    echo "tests/ggml: no CUDA in this build; $passed passed, $failed failed"
    [ "$failed" = 0 ]
    exit
fi

# A step: the host computes up to an attention and records an event, ours waits for it, looks at the masks once, attends
# and records what the host waits for, before a set is chosen. A row that sees the first slots of its stream needs no table. No copy,
# no allocation, no waiting (what would be has an exclamation mark).
gpu sound "engaged on stand-in: at most 64 tokens of up to 256 attended outside layers \[1\]" yes
happened "order" "second step" "more of the prompt" <<'EOF'
host computes qkv0 to write0
host records 0xe3
cuStreamWaitEvent stream 0x52 event 0xe3
cuLaunchKernel lim_visible stream 0x52
row 0 sees 201 slots from 0 to 200
cuLaunchKernel lim_attend_f16_64_8_direct stream 0x52 mode 0 rows 1 capacity 256 no table sees what was looked at
cuEventRecord 0xe4 stream 0x52
host waits for 0xe4
host computes mlp0 to write1
host records 0xe3
cuStreamWaitEvent stream 0x52 event 0xe3
cuLaunchKernel lim_attend_f16_64_8_direct stream 0x52 mode 1 rows 1 capacity 256 no table sees what was looked at
cuEventRecord 0xe4 stream 0x52
cuLaunchKernel lim_select_union stream 0x52
host waits for 0xe4
host computes mlp1 to write2
host records 0xe3
cuStreamWaitEvent stream 0x52 event 0xe3
cuLaunchKernel lim_attend_f16_64_8_indexed stream 0x52 mode 2 rows 1 capacity 256 no table sees what was looked at
cuEventRecord 0xe4 stream 0x52
host waits for 0xe4
host computes mlp2 to write3
host records 0xe3
cuStreamWaitEvent stream 0x52 event 0xe3
cuLaunchKernel lim_attend_f16_64_8_indexed stream 0x52 mode 2 rows 1 capacity 256 no table sees what was looked at
cuEventRecord 0xe4 stream 0x52
cuLaunchKernel lim_tally stream 0x52
host waits for 0xe4
host computes mlp3 to logits0
EOF
happened "the first pass is the host's" "prompt" "first step" <<'EOF'
host computes qkv0 to logits0
EOF
happened "a prompt is the host's" "another prompt" "end" <<'EOF'
host computes qkv0 to logits0
EOF
counted "steps" '"steps": 3,'
counted "tokens seen: 3 steps of 4 layers" '"tokens_visible": 2804,'
counted "tokens attended: the two sparse layers hold the budget" '"tokens_attended": 1786,'
counted "rows whose newest tokens are known" '"position_order": 3,'
counted "the others" '"cell_order": 0,'
counted "the first pass" '"discovery": 4,'
counted "prompts" '"prompt": 8'

# A host that keeps its graph, and makes graphs of the driver's only of what it computes again: a step that is like the one before is
# captured, the host's parts with ours, and then replayed. The first layer, which attends to everything, is the host's.
gpu graphs "engaged on stand-in" yes
happened "a step is captured and replayed" "step 309" "step 310" <<'EOF'
host computes qkv0 to write1
cuStreamBeginCapture_v2 stream 0x52 mode 2
cuLaunchKernel lim_attend_f16_64_8_direct stream 0x52 mode 1 rows 1 capacity 512 no table sees what was looked at
cuEventRecord 0xe4 stream 0x52
cuLaunchKernel lim_select_union stream 0x52
host waits for 0xe4
host records 0xe3
cuStreamWaitEvent stream 0x52 event 0xe3
cuLaunchKernel lim_attend_f16_64_8_indexed stream 0x52 mode 2 rows 1 capacity 512 no table sees what was looked at
cuEventRecord 0xe4 stream 0x52
host waits for 0xe4
host records 0xe3
cuStreamWaitEvent stream 0x52 event 0xe3
cuLaunchKernel lim_attend_f16_64_8_indexed stream 0x52 mode 2 rows 1 capacity 512 no table sees what was looked at
cuEventRecord 0xe4 stream 0x52
cuLaunchKernel lim_tally stream 0x52
host waits for 0xe4
host records 0xe3
cuStreamWaitEvent stream 0x52 event 0xe3
cuStreamEndCapture stream 0x52
cuGraphInstantiateWithFlags 0
host records 0xe3
cuStreamWaitEvent stream 0x52 event 0xe3
cuLaunchKernel lim_visible stream 0x52
row 0 sees 310 slots from 0 to 309
cuGraphLaunch of 8 stream 0x52
host's mlp1 to write2 run
host's mlp2 to write3 run
host's mlp3 to logits0 run
cuEventRecord 0xe4 stream 0x52
host waits for 0xe4
EOF
happened "the next one is replayed" "step 310" "step 311" <<'EOF'
host computes qkv0 to write1
host records 0xe3
cuStreamWaitEvent stream 0x52 event 0xe3
cuLaunchKernel lim_visible stream 0x52
row 0 sees 311 slots from 0 to 310
cuGraphLaunch of 8 stream 0x52
host's mlp1 to write2 run
host's mlp2 to write3 run
host's mlp3 to logits0 run
cuEventRecord 0xe4 stream 0x52
host waits for 0xe4
EOF
if [ "$(between 'step 313' 'step 314' | grep -c -e Capture -e GraphLaunch)$(between 'step 314' 'step 315' | grep -c -e BeginCapture -e GraphLaunch)" = 02 ]; then
    passed=$((passed + 1)) # the host's graph has changed: once in parts, then captured again
else
    fail "gpu graphs, changed: $(between 'step 313' 'step 315')"
fi
counted "replayed" '"replayed_steps": 6,'
counted "replayed steps are counted as any" '"rows_sparse": 11,'
gpu graphs-sum "engaged on stand-in" yes
counted "operations that may wait" '"rows_sparse": 11,'
counted "operations that may wait: none is replayed" '"replayed_steps": 0,'
# A host that computes node by node: nothing of a graph shows that it can be divided, or it needs not be.
gpu by-node "context freed" no
gpu forked "was forked from process" no
# An input that is not seen to be put there whole, or slots that are the last step's: the step is the host's.
for input in mask slots positions stale; do
    gpu graphs-$input "engaged on stand-in" yes
    if [ "$(between 'step 311' 'step 312' | grep -c '^cuGraphLaunch')$(sed -n '/^step 312$/,/^\(step 313\|end\)$/p' "$out/log" | grep -c -e '^cuLaunch' -e '^cuGraphLaunch')" = 10 ]; then
        passed=$((passed + 1))
    else
        fail "gpu graphs-$input: $(between 'step 311' 'step 313')"
    fi
done
# Where a part cannot be captured, or the driver refuses, steps go on in parts, and nothing is lost.
gpu graphs-parts "engaged on stand-in" yes
counted "parts that cannot be captured" '"rows_sparse": 11,'
counted "none is replayed" '"replayed_steps": 0,'
for call in cuStreamBeginCapture_v2:900:1 cuStreamEndCapture:900:1 cuGraphInstantiateWithFlags:900:1; do # behind the self-test's
    gpu graphs "engaged on stand-in" yes LIM_STANDIN_FAIL=$call
    counted "$call fails" '"rows_sparse": 11,'
    counted "$call fails: none is replayed" '"replayed_steps": 0,'
done
gpu graphs "inert in this context: a recording: CUDA_ERROR (900)" yes LIM_STANDIN_FAIL=cuGraphLaunch:900:3
if [ "$(between 'step 309' 'step 310' | sed -n '/cuGraphLaunch/,$p' | tail -n +2)" = "!cuStreamSynchronize 0x52
host computes attention1 to logits0" ] && [ "$(between 'step 310' 'step 311')" = "host computes qkv0 to logits0" ]; then
    passed=$((passed + 1))
else
    fail "gpu graphs, a replay fails: $(between 'step 309' 'step 311')"
fi
# What is queued is not computed once more, though nothing can be recorded behind it: it is waited for instead.
gpu graphs "inert in this context: a stream bridge's end: CUDA_ERROR (700)" yes LIM_STANDIN_FAIL=cuEventRecord:700:24
if [ "$(between 'step 309' 'step 310' | sed -n '/cuGraphLaunch/,$p' | grep -c -e '^host computes')$(between 'step 309' 'step 310' | grep -c StreamSynchronize)" = 01 ] &&
    [ "$(between 'step 310' 'step 311' | grep -c '^host computes')$(between 'step 311' 'step 312')" = "2host computes qkv0 to logits0" ]; then
    passed=$((passed + 1))
else
    fail "gpu graphs, a replay's end fails: $(between 'step 309' 'step 312')"
fi
for call in cuStreamBeginCapture_v2 cuStreamEndCapture cuGraphInstantiateWithFlags; do # in the self-test
    gpu graphs "engaged on stand-in" yes LIM_STANDIN_FAIL=$call:900
    counted "$call fails in the self-test" '"replayed_steps": 0,'
done

# How many attentions over token sets there were from one mark of a pattern to the next.
taken() {
    awk -v marks="$1" '$0 ~ marks || /^end/ { if (name != "") print name ":", n + 0; name = $0; n = 0 } /^cuLaunchKernel.* mode 2/ { n++ }' "$out/log" |
        uniq -c | sed 's/^ *//' > "$out/happened"
}

# A host's other ways to move something: a step is taken where all is known, and left whole where it is not.
gpu moves "engaged on stand-in" yes
taken '^(at once|on the|by |before|rows|steps|another store|many|after)'
if diff -u - "$out/happened" <<'EOF'
1 at once: 2
1 on the stream: 2
1 by rows: 0
1 by rows on the stream: 0
1 by a copy: 0
1 by a copy on the stream: 0
1 by a refused copy on the stream: 0
10 steps: 0
10 steps: 2
1 before a copy: 2
1 rows copied: 0
10 steps: 0
10 steps: 2
1 before another copy: 2
1 another store's rows: 0
10 steps: 0
10 steps: 2
1 before many changes: 2
1 many changes: 0
10 steps: 0
10 steps: 2
1 after all: 2
1 by a refused copy: 2
EOF
then
    passed=$((passed + 1))
else
    fail "gpu moves"
fi

for variant in weights-before weights-split; do gpu $variant "engaged on stand-in" yes; done
gpu two-contexts "engaged on stand-in" yes
taken '^(alone|the |known)'
if diff -u - "$out/happened" <<'EOF'
1 alone: 2
3 the second's: 0
11 the first's: 0
9 the first's: 2
1 known again: 2
EOF
then
    passed=$((passed + 1))
else
    fail "gpu two-contexts"
fi

# Two streams of a store: one row each, which sees the first slots of its own.
gpu streams "engaged on stand-in" yes
if [ "$(between 'second step' 'more of the prompt' | grep -e ^row -e lim_attend | head -3)" = "row 0 sees 201 slots from 0 to 200
row 1 sees 201 slots from 1024 to 1224
cuLaunchKernel lim_attend_f16_64_8_direct stream 0x52 mode 0 rows 2 capacity 256 no table sees what was looked at" ]; then
    passed=$((passed + 1))
else
    fail "gpu streams: $(between 'second step' 'more of the prompt')"
fi

# A host that calls back between layers: what the rows see is looked at once, the set lives on.
gpu parts "engaged on stand-in" yes
if [ "$(between parts end | grep -c lim_visible)" = 1 ] && [ "$(between parts end | grep -c 'lim_attend.* mode 2')" = 2 ]; then
    passed=$((passed + 1))
else
    fail "gpu parts: $(between parts end)"
fi

# Sequences in one stream, one row each. Where their tokens are not in the order of slots, it is put on the device.
gpu slots "engaged on stand-in" yes
counted "slots: every row is sparse" '"rows_sparse": 84,'
counted "slots: none by the order of slots" '"cell_order": 0,'
counted "slots: a prompt beside them" '"mixed": 4,'
if [ "$(between 'last slots' 'one ends' | grep -c -e '^row [0-3] sees' -e 'rows 4 ')" = 8 ] && ! between 'last slots' 'one ends' | grep -q '^cuMemcpyHtoD'; then
    passed=$((passed + 1))
else
    fail "gpu slots: $(between 'last slots' 'one ends')"
fi
if [ "$(between 'last holes' 'prompts and steps' | grep '^cuMemcpyHtoD' | tr '\n' ' ')" = \
    "cuMemcpyHtoDAsync_v2 824 stream 0x53 cuMemcpyHtoDAsync_v2 584 stream 0x53 cuMemcpyHtoDAsync_v2 464 stream 0x53 " ]; then
    passed=$((passed + 1))
else
    fail "gpu holes: $(between 'last holes' 'prompts and steps')"
fi
# The device has not got the last ones yet: the step is the host's.
gpu slots "engaged on stand-in" yes LIM_STANDIN_PENDING=5
counted "slots: order under way" '"dense_rows": 20'

# A server's batches: decode rows before a prompt's, and behind it. The host computes all rows, and ours come behind: the fake host holds each row
# against both. Its first layer is the host's alone.
gpu mixed "engaged on stand-in" yes
counted "mixed batches" '"mixed_steps": 6,'
counted "mixed batches: drafts are the host's" '"draft": 4,'
gpu mixed "engaged on stand-in" yes LESSISMORE_SPECULATION=on
happened "a mixed batch" few many <<'EOF'
host computes qkv0 to attention1
host records 0xe3
cuStreamWaitEvent stream 0x53 event 0xe3
cuLaunchKernel lim_visible stream 0x53
row 0 sees 103 slots from 0 to 184
row 1 sees 83 slots from 100 to 185
cuLaunchKernel lim_attend_f16_64_8_indexed stream 0x53 mode 1 rows 2 capacity 512 page 1 sees what was looked at
cuEventRecord 0xe4 stream 0x53
cuLaunchKernel lim_select_union stream 0x53
host waits for 0xe4
host computes mlp1 to attention2
host records 0xe3
cuStreamWaitEvent stream 0x53 event 0xe3
cuLaunchKernel lim_attend_f16_64_8_indexed stream 0x53 mode 2 rows 2 capacity 512 page 1 sees what was looked at
cuEventRecord 0xe4 stream 0x53
host waits for 0xe4
host computes mlp2 to attention3
host records 0xe3
cuStreamWaitEvent stream 0x53 event 0xe3
cuLaunchKernel lim_attend_f16_64_8_indexed stream 0x53 mode 2 rows 2 capacity 512 page 1 sees what was looked at
cuEventRecord 0xe4 stream 0x53
cuLaunchKernel lim_tally stream 0x53
host waits for 0xe4
host computes mlp3 to logits0
EOF
counted "mixed batches beside drafts" '"mixed_steps": 5,'
counted "rows of drafts" '"draft_rows": 9,'
counted "all rows but a prompt's last are sparse" '"rows_sparse": 23,'
# Where it does not pay the host is left alone: masks of large batches are not looked at.
gpu mixed "CUDA0: hooked where it pays" no LESSISMORE_CUDA=auto LESSISMORE_SPECULATION=on LIM_STANDIN_FAIL=none
counted "mixed batches that gain nothing" '"mixed_steps": 0,'
counted "large ones are prompts" '"prompt": 16'
# A call of the driver fails: the host computes the node once more.
for call in cuLaunchKernel:700:9 cuLaunchKernelEx:700:9 cuLaunchKernelEx:700:12 cuStreamWaitEvent:700:16 cuEventRecord:700:16; do
    gpu mixed "inert in this context: .*CUDA_ERROR (700)" yes LESSISMORE_SPECULATION=on LIM_STANDIN_FAIL=$call
done

# What the host does to its cells behind the graphs.
gpu behind "engaged on stand-in" yes
counted "behind the graphs: three rows' newest tokens are not known" '"cell_order": 3,'
counted "behind the graphs: their steps are the host's" '"dense_rows": 12,'
counted "behind the graphs: all others are sparse" '"rows_sparse": 19,'
for state in wiped 'another row' cleared; do
    if between "$state" '[a-z ]*' | grep -q cuLaunch; then fail "gpu $state"; else passed=$((passed + 1)); fi
done
gpu buffers-old "engaged on stand-in" yes
counted "buffers without two-dimensional copies" '"rows_sparse": 3,'
gpu buffers-moved "CUDA devices are left alone: what this host moves to its GPU is not seen: .*word 4 is not set_tensor" no
for variant in unseen unseen-again; do gpu $variant "context freed: nothing was offloaded; .*unknown_rows 24" no; done

gpu other-names "nothing is offloaded in this context: no_cache: on a GPU, a K store of another name than llama.cpp's (cache_k_l0), of slots 1024" no
gpu bf16 "engaged on stand-in" yes
gpu other-model "engaged on stand-in" yes
counted "both models, but for the graph that shows the second one" '"steps": 4,'
gpu not-freed "engaged on stand-in" yes
counted "a context that was not freed" '"steps": 3,'
gpu sound "engaged on stand-in" yes LESSISMORE_POLICY=mass
gpu host-fails "hooked" yes

# What is refused, and how it is said.
gpu sound "CUDA0: hooked where it pays (LESSISMORE_CUDA=off leaves it alone)" no LESSISMORE_CUDA=
gpu sound "CUDA0: left alone, .*(LESSISMORE_CUDA=off)" no LESSISMORE_CUDA=off
gpu sound "inert: LESSISMORE_CUDA=\"yes\": must be auto, on or off" no LESSISMORE_CUDA=yes
gpu sound "CUDA0: hooked where it pays" no LESSISMORE_CUDA=auto
counted "steps that gain nothing" '"no_gain": 12'
gpu sound "CUDA0: left alone, .*: LESSISMORE_INTERVAL=2" no LESSISMORE_CUDA= LESSISMORE_INTERVAL=2
# A step like one that was left to the host is computed by it before it is planned: the first one beyond the budget is, too.
gpu sound "engaged on stand-in" yes LESSISMORE_BUDGET=200
counted "within the budget" '"within_budget": 4'
counted "the step after it" '"no_gain": 4,'
counted "and the next" '"rows_sparse": 1,'
# The library does not compute on this card what the host does, or cannot.
gpu sound "CUDA devices are left alone: self-test: layer 0, value 0: the host alone computes .*, with the library" no LIM_STANDIN_ATTEND=
gpu sound "CUDA devices are left alone: self-test: 0 attentions are offloaded instead of 2 (inert in this context: no usable CUDA driver" no \
    LESSISMORE_LIBCUDA=/nonexistent/libcuda.so.1
gpu sound "inert: LESSISMORE_CUDA=\"on\": LESSISMORE_INTERVAL=2" no LESSISMORE_INTERVAL=2
gpu sound "switched off by LESSISMORE" no LESSISMORE=off
gpu sound "left alone: GGML_CUDA_GRAPH_OPT=1" no GGML_CUDA_GRAPH_OPT=1
gpu sound "inert in this context: LESSISMORE_LAYERS: layers names layer 7.* (0 .. 3)\$" no LESSISMORE_LAYERS=7
gpu no-gpu "this host has no CUDA device" no
gpu no-gpu "loaded into ggml fake" no LESSISMORE_CUDA= LESSISMORE_LIBCUDA=/nonexistent/libcuda.so.1
case $text in *CUDA*) fail "gpu no-gpu: a GPU is spoken of: $text" ;; esac
gpu device-foreign "CUDA devices are left alone: .*CUDA0 is laid out" no
gpu no-event-functions "CUDA devices are left alone: this host's CUDA backend is laid out" no
gpu no-events "CUDA devices are left alone: this host's CUDA backend has no events" no
for variant in view-wrong view-short view-others; do
    gpu $variant "CUDA devices are left alone: this host's graphs cannot be computed in parts" no
done
# The self-test's backend is right, and then the host's own is not; or the other way round.
for variant in no-event-1 no-event-2 no-event-3 no-event-4 event-moved event-empty; do
    gpu $variant "CUDA devices are left alone: this host's CUDA backend has no events" no
done
for n in 1 2; do gpu odd-gpu-backend-$n "CUDA devices are left alone: this host's CUDA backend is laid out in an unknown way: function 14" no; done
gpu async-foreign "CUDA devices are left alone: this host's CUDA backend is laid out in an unknown way: function 4" no
for variant in function-foreign no-device; do gpu $variant "laid out in an unknown way: its device does not follow its functions" no; done
for variant in device-null no-registry; do gpu $variant "this host has no CUDA device" no; done
gpu gpu-api "this host's device CUDA0 is laid out in an unknown way: its registry is of another API version" no
gpu no-gpu-backend-1 "loaded into ggml fake" no # the host's own affair
gpu no-gpu-backend-2 "CUDA devices are left alone: the device makes no backend" no
gpu no-context-6 "CUDA devices are left alone: this host refused memory for the self-test" no
gpu no-buffer-3 "CUDA devices are left alone: this host refused memory for the self-test" no
for n in 1 2 3 4; do gpu gpu-compute-fails-$n "CUDA devices are left alone: self-test: the host cannot compute a " no; done
for n in 5 6; do # while it is found out what can be captured: nothing is
    gpu gpu-compute-fails-$n "engaged on stand-in" yes
    counted "gpu-compute-fails-$n: none is replayed" '"replayed_steps": 0,'
done
gpu no-2d-async "engaged on stand-in" yes
gpu sound "engaged on stand-in" yes GGML_CUDA_GRAPH_OPT=0

# Buffers whose functions are not what they are taken for. VARIANTS, what the log must say
buffers() {
    for variant in $1; do gpu "$variant" "CUDA devices are left alone: what this host moves to its GPU is not seen: $2" no; done
}
buffers "no-buffers" "the device has no buffers"
buffers "no-buffer-1" "the device makes no buffer"
buffers "no-buffer-2 buffers-differ" "its buffers are made in an unknown way"
buffers "no-context-5" "its buffers are laid out in an unknown way: this host refused memory for a trial"
buffers "buffer-no-type buffer-few-functions" "its buffers are laid out in an unknown way: its type does not follow its functions"
buffers "no-base tensor-refused-1 tensor-refused-2 tensor-no-buffer-1 tensor-no-buffer-2 tensor-elsewhere-1 tensor-elsewhere-2" \
    "its buffers are laid out in an unknown way: a tensor in it does not tell its buffer"
buffers "odd-set-0 odd-set-1 odd-set-2 odd-set-3 odd-set-4 calls-set-5" "its buffers are laid out in an unknown way: word 4 is not set_tensor"
buffers "odd-get-0 odd-get-1 odd-get-2 odd-get-3 odd-get-4 calls-get-4" "its buffers are laid out in an unknown way: word 5 is not get_tensor"
buffers "odd-memset-0 odd-memset-1 odd-memset-3 odd-memset-4 calls-memset-4" "its buffers are laid out in an unknown way: word 3 is not memset_tensor"
buffers "odd-copy-0 odd-copy-1 odd-copy-2 calls-copy-4 calls-nothing" "its buffers are laid out in an unknown way: its cpy_tensor is not found"
buffers "odd-clear-0 calls-clear-4 calls-clear-8" "its buffers are laid out in an unknown way: its clear is not found"
buffers "odd-set_2d-0 odd-set_2d-1 odd-set_2d-2 odd-set_2d-3 odd-set_2d-4 calls-set_2d-3 calls-set_2d-8 calls-set_2d-9" \
    "its buffers are laid out in an unknown way: its set_tensor_2d is not found"
for variant in buffer-empty-word calls-set_2d-4; do gpu $variant "engaged on stand-in" yes; done # a place that is empty, and a host without uploads by rows
# A model that is spread over devices: each chooses for its own layers, the later ones by their first.
gpu spread "this device computes layers 5 to 8 of the model, the others are on another device: token sets are chosen on each" yes
counted "a later part: its first layer chooses, three follow" '"tokens_attended": 1277,'
gpu spread "this device computes layers 5 to 8" yes LESSISMORE_LAYERS=2,7
counted "a later part: its first layer, and the one that is given" '"tokens_attended": 1786,'
gpu spread "this device computes layers 5 to 8" yes LESSISMORE_LAYERS=6
counted "a later part: the layer that is given, which is above its first" '"tokens_attended": 1786,'
gpu spread "inert in this context: LESSISMORE_LAYERS: layers names layer 11, but the model's last one is 8: this device computes layers 5 to 8" no LESSISMORE_LAYERS=2,11
gpu first-part "this device computes layers 0 to 3 of the model, the others are on another device" no LESSISMORE_LAYERS=7
counted "a first part, whose layers none is given of" '"dense_rows": 12,'
gpu hybrid "engaged on stand-in" yes # its first layers have no attention
gpu heads-spread "inert in this context: its heads are spread over several GPUs (-sm tensor)" no
counted "heads spread" '"steps": 0,'
gpu one-type "inert in this context: its heads are spread over several GPUs (-sm tensor)" no
gpu layers-spread "this device computes layers 2 to 3 of the model, the others are on another device" yes
# Where a copy between the devices has shown that they are of one context, the layers of both have one set of roles, and token sets go from the
# one to the other: a copy that waits for the one device and that the other one waits for, before what was recorded is replayed. Nobody waits on the host.
two() { # VARIANT, what the log must say once, VARIABLE=VALUE ...
    of=$1 says=$2
    shift 2
    gpu "$of" "$says" yes LESSISMORE_LAYERS=0 LIM_STANDIN_DEVICES=2 "$@"
}
two handed "layers 2 to 3 of the model, the others are on another device: layers \[0\] of all 4 choose token sets, which go from device to device"
counted "each step is handed over" '"handed_steps": 9,'
counted "none is not" '"unhanded_steps": 0,'
counted "tokens attended: one layer of four chooses" '"tokens_attended": 3564,'
if sed -n '/"total"/,$p' "$out/stats.json" | tr -d ' \n' | grep -q '"layers":4,"selection_layers":\[0\],"layers_offloaded":\[0,1,2,3\]'; then
    passed=$((passed + 1))
else
    fail "gpu handed: $(sed -n '/"total"/,/steps/p' "$out/stats.json")"
fi
two graphs-handed "layers 2 to 3 of the model, the others are on another device: layers \[0\] of all 4 choose"
counted "each step is handed over" '"handed_steps": 9,'
counted "and replayed on both devices" '"replayed_steps": 16,'
happened "a step that is replayed, handed over" "step 8" "step 9" <<'EOF'
host computes qkv0 to write0
host records 0xe3
cuStreamWaitEvent stream 0x53 event 0xe3
cuLaunchKernel lim_visible stream 0x53
row 0 sees 207 slots from 0 to 206
cuGraphLaunch of 6 stream 0x53
host's mlp0 to write1 run
host's mlp1 to mlp1 run
cuEventRecord 0xe4 stream 0x53
host waits for 0xe4
host computes qkv2 to write2
host records 0xe7
cuEventRecord 0x3000 stream 0x53
cuStreamWaitEvent stream 0x54 event 0x3000
cuMemcpyPeerAsync 256 from device 0 to 1 stream 0x54
cuEventRecord 0x3001 stream 0x54
cuStreamWaitEvent stream 0x53 event 0x3001
cuStreamWaitEvent stream 0x54 event 0xe7
cuLaunchKernel lim_visible stream 0x54
row 0 sees 207 slots from 0 to 206
cuGraphLaunch of 5 stream 0x54
host's mlp2 to write3 run
host's mlp3 to logits0 run
cuEventRecord 0xe8 stream 0x54
host waits for 0xe8
EOF
two handed "layers 2 to 3 of the model, the others are on another device: layers \[0\] of all 4 choose" LESSISMORE_CUDA=auto LIM_STANDIN_CLOCK=1
counted "each step is handed over where each device takes what pays, as in a slow memory all does" '"handed_steps": 9,'
gpu handed "hooked where it pays" no LIM_STANDIN_DEVICES=2 LESSISMORE_CUDA=auto LIM_STANDIN_CLOCK=1 LESSISMORE_LAYERS=auto
counted "none where layers are measured" '"handed_steps": 0,'
# A call of the driver's that this takes fails, in step 5: the later device's layers are the host's from there on.
for call in cuMemcpyPeerAsync:700:4 cuEventRecord:700:30 cuEventRecord:700:31 cuStreamWaitEvent:700:30 cuStreamWaitEvent:700:31; do
    two handed "inert in this context: handing token sets over: CUDA_ERROR (700)" LIM_STANDIN_FAIL=$call
    counted "$call: until then" '"handed_steps": 5,'
    if between "step 5" "step 6" | grep -q "^host computes attention2 to logits0$" && between "step 6" "step 7" | grep -q "^host computes qkv2 to logits0$"; then
        passed=$((passed + 1))
    else
        fail "gpu handed, $call: $(between 'step 5' 'step 7')"
    fi
done
# Or in getting it ready: an event of the one device, of the other one, and memory for what the CPU would hand over.
for call in cuEventCreate:2:10 cuEventCreate:2:11 cuEventCreate:2:8 cuMemHostAlloc:2:12; do
    two handed "inert in this context: .*CUDA_ERROR_OUT_OF_MEMORY" LIM_STANDIN_FAIL=$call
    counted "$call: none" '"handed_steps": 0,'
done
# Layers on the CPU whose part of a prompt the host computes on the GPU: the CPU's part knows the positions of the keys that it keeps from there,
# also where each device chooses for itself. Of 6 steps the first one is the first pass of the CPU's layers, which the GPU is in by itself.
for cuda in on auto; do
    launches=no # where it pays, which it does not here
    [ $cuda = auto ] || launches=yes
    gpu elsewhere "engaged: 64 tokens of 201 attended outside layers \[0\]" $launches LESSISMORE_LAYERS=0 LESSISMORE_CUDA=$cuda
    counted "elsewhere: the rows of all steps are in position order" '"cell_order": 0,'
done
gpu elsewhere "layers 2 to 3 of the model, the others are on another device: layers \[0\] of all 4 choose token sets, which go from device to device" yes LESSISMORE_LAYERS=0
counted "elsewhere: handed over as soon as both parts are known" '"handed_steps": 5,'
gpu elsewhere-unseen "engaged on stand-in" yes LESSISMORE_LAYERS=0
counted "elsewhere, unseen: the CPU's rows attend to everything" '"cell_order": 5,'
gpu dim-96 "engaged on stand-in" yes
gpu q4_0 "engaged on stand-in" yes
gpu alibi "layer 0 is left to the host: a bias by distance" no
counted "ALiBi" '"shape": 20'
gpu biased "inert in this context: a mask holds other values" yes

# The driver fails: the host computes the node and what follows itself, and goes on alone.
for call in cuLaunchKernel:700:3 cuStreamWaitEvent:700:2 cuEventRecord:700:2; do # behind the self-test's
    launched=yes # tried, at least
    [ $call != cuStreamWaitEvent:700:2 ] || launched=no
    gpu sound "inert in this context: .*CUDA_ERROR (700)" $launched LIM_STANDIN_FAIL=$call
    happened "$call fails" "second step" "more of the prompt" <<'EOF'
host computes qkv0 to logits0
EOF
done
for call in cuMemAlloc_v2:2:2 cuMemHostAlloc:2:3 cuStreamCreate:2:1; do
    gpu sound "inert in this context: " no LIM_STANDIN_FAIL=$call
done
# It fails in the self-test: the device is left alone.
for call in cuLaunchKernel cuStreamWaitEvent cuEventRecord cuMemAlloc_v2 cuMemHostAlloc cuStreamCreate cuModuleGetFunction; do
    gpu sound "CUDA devices are left alone: self-test: [01] attentions are offloaded instead of 2 (inert in this context: " no LIM_STANDIN_FAIL=$call:2
done

echo "tests/ggml: $passed passed, $failed failed"
[ "$failed" = 0 ]
