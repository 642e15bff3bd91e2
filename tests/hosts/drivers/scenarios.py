"""What a host is asked to do. Each scenario emits

    {"prompt": i, "tokens": [...]}      the greedy continuation of prompt i
    {"rows": [n, ...]}                  visible tokens of every one-token row decoded

and, where it streams, {"prompt": i, "token": id} for each token as it comes.
`prompts` are token lists, `lengths` how many tokens to decode after each.
"""

from __future__ import annotations

import random
import threading
import time

import numpy as np
from chaos import chaos  # noqa: F401 (a scenario)
from engine import Context, timed_batches
from protocol import emit


def _rows(*spans):
    """Rows of one-token decodes: spans of (visible tokens of the first, how many)."""
    emit(rows=[first + i for first, count in spans for i in range(count)])


def solve(model, prompts, lengths, context=2048, stream=False, **options):
    """One prompt after the other, each in a context of its own."""
    for i, (ids, n) in enumerate(zip(prompts, lengths)):
        ctx = Context(model, context, **options)
        first = ctx.prompt(ids)
        start = time.perf_counter()
        out = ctx.greedy(first, len(ids), n, on_token=(lambda t: emit(prompt=i, token=t)) if stream else None)
        emit(prompt=i, tokens=out, ms=(time.perf_counter() - start) * 1e3, graphs=ctx.asked)
        ctx.free()
    _rows(*((len(ids) + 1, n - 1) for ids, n in zip(prompts, lengths)))


def _together(ctx, state, on_row=None):
    """Decodes sequences in common batches. state: {seq: [next token, position, left, out]}."""
    visible = []
    while True:
        live = {s: v for s, v in state.items() if v[2] > 0}
        if not live:
            return visible
        best = ctx.decode([(v[0], v[1], [s], True) for s, v in live.items()])
        for v, b in zip(live.values(), best):
            visible.append(v[1] + 1)
            v[0], v[1], v[2] = b, v[1] + 1, v[2] - 1
            v[3].append(b)
        if on_row:
            on_row(live)


def together(model, prompts, lengths, context=8192, unified=True, **options):
    """Several sequences in each llama_decode."""
    ctx = Context(model, context, n_seq=len(prompts), unified=unified, **options)
    state = {}
    for s, (ids, n) in enumerate(zip(prompts, lengths)):
        first = ctx.prompt(ids, seq=s)
        state[s] = [first, len(ids), n - 1, [first]]
    rows = _together(ctx, state)
    for s, v in state.items():
        emit(prompt=s, tokens=v[3])
    emit(rows=rows)
    ctx.free()


def fork(model, prompts, lengths, copies=3, context=8192, unified=True, **options):
    """The prompt once, copied to further sequences that go on side by side."""
    ids, n = prompts[0], lengths[0]
    ctx = Context(model, context, n_seq=copies, unified=unified, **options)
    first = ctx.prompt(ids)
    for s in range(1, copies):
        ctx.copy(0, s)
    state = {s: [first, len(ids), n - 1, [first]] for s in range(copies)}
    rows = _together(ctx, state)
    for s, v in state.items():
        emit(prompt=s, tokens=v[3])
    emit(rows=rows)
    ctx.free()


def truncate(model, prompts, lengths, junk=150, times=2, context=2560, **options):
    """Junk decoded behind the text and taken back, as after rejected speculation."""
    rng = random.Random(5)
    for i, (ids, n) in enumerate(zip(prompts, lengths)):
        ctx = Context(model, context, **options)
        out = [ctx.prompt(ids)]
        for part in range(times + 1):
            until = n * (part + 1) // (times + 1)
            pos = len(ids) + len(out) - 1
            out += ctx.greedy(out[-1], pos, until - len(out) + 1)[1:]
            if part < times:
                end = len(ids) + len(out) - 1  # the newest token is not in the cache yet
                for j in range(junk):
                    ctx.decode([(rng.randrange(3, 40), end + j, [0], True)])
                ctx.remove(0, end)
        emit(prompt=i, tokens=out)
        ctx.free()


def holes(model, prompts, lengths, context=4096, move=0, **options):
    """Prompts 0 and 1 laid down token by token in turn in one unified cache; 1 is
    removed, so the solution of 0 fills the holes between its own prompt's tokens.
    All positions of 0 are moved first, if that is asked for."""
    a, b = prompts[:2]
    ctx = Context(model, context, n_seq=2, unified=True, **options)
    rows = []
    for i in range(max(len(a), len(b))):
        if i < len(a):
            rows.append((a[i], i, [0], i == len(a) - 1))
        if i < len(b):
            rows.append((b[i], i, [1], False))
    first = None
    for i in range(0, len(rows), ctx.n_batch):
        if best := ctx.decode(rows[i : i + ctx.n_batch]):
            first = best[0]
    ctx.remove(1)
    if move:
        ctx.add(0, move)
    emit(prompt=0, tokens=ctx.greedy(first, len(a) + move, lengths[0]))
    _rows((len(a) + 1, lengths[0] - 1))
    ctx.free()


def shift(model, prompts, lengths, deltas=(37, -20), context=2560, **options):
    """All positions of the sequence moved by each delta on the way: the host rotates
    its keys, and since only distances count the solution stays the same."""
    for i, (ids, n) in enumerate(zip(prompts, lengths)):
        ctx = Context(model, context, n_seq=2, **options)
        out = [ctx.prompt(ids)]
        moved = 0
        for part in range(len(deltas) + 1):
            until = n * (part + 1) // (len(deltas) + 1)
            out += ctx.greedy(out[-1], len(ids) + moved + len(out) - 1, until - len(out) + 1)[1:]
            if part < len(deltas):
                ctx.add(0, deltas[part])
                moved += deltas[part]
        emit(prompt=i, tokens=out)
        ctx.free()


def restore(model, prompts, lengths, beside=False, fresh=False, ends=False, context=6144, **options):
    """State saved half way and restored: into the emptied cache (fresh: a context that
    never saw it), or (beside) into another sequence of a cache that holds the second
    prompt. If that one then ends, new tokens fill the cells before the restored ones."""
    ids, n = prompts[0], lengths[0]
    ctx = Context(model, context, n_seq=2, unified=True, **options)
    first = ctx.prompt(ids)
    half = n // 2
    out = ctx.greedy(first, len(ids), half)
    state = ctx.save(0)
    if fresh:
        ctx.free()
        ctx = Context(model, context, n_seq=2, unified=True, **options)
    else:
        ctx.api.memory_clear(ctx.memory, True)
    seq = 0
    if beside:
        ctx.prompt(prompts[1], seq=0, last=False)
        seq = 1
    ctx.restore(state, seq)
    if ends:
        ctx.remove(0)
    out += ctx.greedy(out[-1], len(ids) + half - 1, n - half + 1, seq=seq)[1:]
    emit(prompt=0, tokens=out)
    ctx.free()


def threads(model, prompts, lengths, context=2048, **options):
    """Two and more contexts, each decoding on a thread of its own at the same time."""
    errors = []

    def work(i):
        try:
            ctx = Context(model, context, **options)
            out = ctx.greedy(ctx.prompt(prompts[i]), len(prompts[i]), lengths[i])
            emit(prompt=i, tokens=out)
            ctx.free()
        except Exception as error:  # noqa: BLE001 (reported below, on the main thread)
            errors.append(error)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    if errors:
        raise errors[0]
    _rows(*((len(ids) + 1, n - 1) for ids, n in zip(prompts, lengths)))


def repeat(model, prompts, lengths, times=20, context=2048, **options):
    """Contexts made and freed over and over, the decode short; all must agree."""
    for k in range(times):
        ctx = Context(model, context + 256 * (k % 3), **options)
        emit(prompt=k, tokens=ctx.greedy(ctx.prompt(prompts[0]), len(prompts[0]), lengths[0]))
        ctx.free()
    _rows(*((len(prompts[0]) + 1, lengths[0] - 1),) * times)


def mixed(model, prompts, lengths, chunk=64, context=8192, unified=True, **options):
    """Sequence 0 decodes while the prompt of sequence 1 comes in, in common batches;
    then both decode together. Then 4 tokens of one sequence at once, which must give
    what one by one gave."""
    (a, b), (na, nb) = prompts[:2], lengths[:2]
    ctx = Context(model, context, n_seq=2, unified=unified, **options)
    first = ctx.prompt(a)
    out, pos, batches, best_b = [first], len(a), 0, None
    for i in range(0, len(b), chunk):
        part = b[i : i + chunk]
        ends = i + chunk >= len(b)
        rows = [(out[-1], pos, [0], True)]
        rows += [(t, i + j, [1], ends and j == len(part) - 1) for j, t in enumerate(part)]
        best = ctx.decode(rows)
        out.append(best[0])
        pos += 1
        batches += 1
        if ends:
            best_b = best[1]
    state = {0: [out[-1], pos, na - len(out), out], 1: [best_b, len(b), nb - 1, [best_b]]}
    rows = _together(ctx, state)
    for s, v in state.items():
        emit(prompt=s, tokens=v[3])
    emit(rows=rows, mixed_batches=batches)
    tail = out[-5:-1]
    start = len(a) + len(out) - 1 - len(tail)
    ctx.remove(0, start)
    verified = ctx.decode([(t, start + i, [0], True) for i, t in enumerate(tail)])
    emit(verified=verified, expected=out[-4:])
    ctx.free()


def verify(model, depth, rows, steps, beside=0, context=None, **options):
    """Milliseconds of calls with so many tokens each behind a text, as of a draft that is verified, all but the first of which are taken
    back: {"ms": {rows: [...]}}. Beside a prompt of another sequence, if that is wanted: {"beside": {...}}, see engine.timed_batches."""
    ctx = Context(model, context or depth + 2048, n_seq=6, unified=True, **options)
    rng = random.Random(depth)
    ctx.prompt([rng.randrange(3, min(model.n_vocab, 40_000) - 10) for _ in range(depth)])
    pos, out = depth, {}
    for n in rows:
        out[n] = []
        for _ in range(steps):
            start = time.perf_counter()
            ctx.decode([(3 + pos % 40, pos + i, [0], True) for i in range(n)])
            out[n].append((time.perf_counter() - start) * 1e3)
            pos += 1
            ctx.remove(0, pos)
    emit(ms=out, beside=timed_batches(ctx, pos, 4, beside) if beside else None)
    ctx.free()


def evaluate(model, prompts, lengths, tokens, chunk, context=4096, **options):
    """All logits of a text, in batches of `chunk` tokens."""
    ctx = Context(model, context, **options)
    for i in range(0, len(tokens), chunk):
        ctx.decode([(t, i + j, [0], True) for j, t in enumerate(tokens[i : i + chunk])])
    emit(tokens=len(tokens))
    ctx.free()


def forced(model, tokens, prompt, output, context=4096, **options):
    """Given tokens one by one; the logits of every step as an array in `output`."""
    ctx = Context(model, context, **options)
    logits = [ctx.prompt(tokens[:prompt], logits=True)]
    for i in range(prompt, len(tokens)):
        logits += ctx.decode([(tokens[i], i, [0], True)], logits=True)
    np.save(output, np.stack(logits))
    emit(steps=len(logits))
    _rows((prompt + 1, len(tokens) - prompt))
    ctx.free()


def adapters(model, turns, prompt, steps, context=2048, **options):
    """One context, whose LoRA adapters change: turns of [[path, scale] …], each with a prompt and a number of steps."""
    import ctypes as ct

    api = model.api
    load = api.function("llama_adapter_lora_init", ct.c_void_p, [ct.c_void_p, ct.c_char_p])
    apply = api.function("llama_set_adapters_lora", ct.c_int32, [ct.c_void_p, ct.POINTER(ct.c_void_p), ct.c_size_t, ct.POINTER(ct.c_float)])
    loaded = {path: load(model.ptr, path.encode()) for path in {p for turn in turns for p, _ in turn}}
    assert all(loaded.values()), loaded
    ctx = Context(model, context, **options)
    rng = random.Random(5)
    for turn in turns:
        n = len(turn)
        code = apply(ctx.ptr, (ct.c_void_p * n)(*(loaded[p] for p, _ in turn)), n, (ct.c_float * n)(*(s for _, s in turn)))
        assert code == 0, code
        ctx.remove(0)
        first = ctx.prompt([rng.randrange(3, model.n_vocab - 10) for _ in range(prompt)])
        emit(tokens=ctx.greedy(first, prompt, steps))
    ctx.free()


def tokenize(model, text):
    emit(tokens=model.tokenize(text))
