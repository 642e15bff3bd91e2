"""Models and contexts over the C interface, as small as the tests need them."""

from __future__ import annotations

import ctypes as ct
import sys
import time

import numpy as np

import capi


class Model:
    def __init__(self, api: capi.Api, path: str, gpu_layers: int = 0):
        self.api = api
        params = api.model_default_params()
        params.n_gpu_layers = gpu_layers
        self.ptr = api.model_load_from_file(path.encode(), params)
        if not self.ptr:
            raise RuntimeError(f"the host cannot load {path}")
        self.vocab = api.model_get_vocab(self.ptr)
        self.n_vocab = api.vocab_n_tokens(self.vocab)

    def tokenize(self, text: str) -> list[int]:
        raw = text.encode()
        out = (ct.c_int32 * (len(raw) + 8))()
        n = self.api.tokenize(self.vocab, raw, len(raw), out, len(out), True, False)
        return list(out[:n])

    def free(self):
        self.api.model_free(self.ptr)
        self.ptr = None


class Context:
    """Rows in, greedy tokens out. A row is (token, position, sequences, wanted)."""

    def __init__(
        self,
        model: Model,
        n_ctx: int,
        *,
        n_seq=1,
        threads=1,
        flash=True,
        unified=True,
        kv="f16",
        n_batch=512,
        n_ubatch=None,
        ask=None,
        **more,
    ):
        self.model, self.api, self.n_batch = model, model.api, n_batch
        p = self.api.context_default_params()
        p.n_ctx, p.n_batch, p.n_ubatch, p.n_seq_max = n_ctx, n_batch, n_ubatch or n_batch, n_seq
        p.n_threads = p.n_threads_batch = threads
        p.flash_attn_type = capi.FLASH[flash]
        p.kv_unified = unified
        p.type_k = p.type_v = capi.TYPES[kv]
        p.no_perf = True
        for name, value in more.items():  # of llama_context_params
            setattr(p, name, value)
        if ask:
            self._callback = p.cb_eval = capi.EvalCallback(self._eval(ask))
        self.ptr = self.api.init_from_model(model.ptr, p)
        if not self.ptr:
            raise RuntimeError("the host cannot make a context with these parameters")
        self.memory = self.api.get_memory(self.ptr)
        n = n_batch
        self._arrays = ((ct.c_int32 * n)(), (ct.c_int32 * n)(), (ct.c_int32 * n)(), (ct.POINTER(ct.c_int32) * n)(), (ct.c_int8 * n)())
        self._seqs = [(ct.c_int32 * n_seq)() for _ in range(n)]
        for i, s in enumerate(self._seqs):
            self._arrays[3][i] = ct.cast(s, ct.POINTER(ct.c_int32))
        self.asked = 0

    def _eval(self, ask):
        def callback(tensor, asking, _):
            if not asking:
                self.asked += 1
                return True
            return ask == "all" or self.api.ggml_get_name(tensor).decode().startswith(tuple(ask))

        return callback

    def decode(self, rows, logits=False):
        """One llama_decode. Returns the best token (or the logits) of each wanted row."""
        token, pos, n_seq, seq, want = self._arrays
        for i, (t, p, seqs, wanted) in enumerate(rows):
            token[i], pos[i], n_seq[i], want[i] = t, p, len(seqs), bool(wanted)
            for j, s in enumerate(seqs):
                self._seqs[i][j] = s
        batch = capi.Batch(len(rows), token, None, pos, n_seq, seq, want)
        code = self.api.decode(self.ptr, batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code}")
        out = []
        for i, row in enumerate(rows):
            if row[3]:
                values = np.ctypeslib.as_array(self.api.get_logits_ith(self.ptr, i), (self.model.n_vocab,))
                out.append(values.copy() if logits else int(values.argmax()))
        return out

    def prompt(self, tokens, seq=0, start=0, last=True, logits=False):
        """Feeds tokens of one sequence in batches; the best next token after the last."""
        out = []
        for i in range(0, len(tokens), self.n_batch):
            part = tokens[i : i + self.n_batch]
            ends = last and i + len(part) == len(tokens)
            rows = [(t, start + i + j, [seq], ends and j == len(part) - 1) for j, t in enumerate(part)]
            out = self.decode(rows, logits)
        return out[0] if out else None

    def greedy(self, token, pos, n, seq=0, on_token=None):
        """n greedy tokens beginning with `token`, which goes to position pos."""
        out = [token]
        while len(out) < n:
            if on_token:
                on_token(out[-1])
            out += self.decode([(out[-1], pos + len(out) - 1, [seq], True)])
        if on_token:
            on_token(out[-1])
        return out

    def remove(self, seq, start=-1, end=-1):
        if not self.api.memory_seq_rm(self.memory, seq, start, end):
            raise RuntimeError(f"seq_rm({seq}, {start}, {end}) refused")

    def add(self, seq, delta, start=0, end=-1):
        self.api.memory_seq_add(self.memory, seq, start, end, delta)

    def copy(self, src, dst, start=-1, end=-1):
        self.api.memory_seq_cp(self.memory, src, dst, start, end)

    def save(self, seq=0) -> ct.Array:
        n = self.api.state_seq_get_size(self.ptr, seq)
        buf = (ct.c_uint8 * n)()
        if self.api.state_seq_get_data(self.ptr, buf, n, seq) != n:
            raise RuntimeError("the host cannot save this sequence")
        return buf

    def restore(self, buf: ct.Array, seq=0):
        if self.api.state_seq_set_data(self.ptr, buf, len(buf), seq) != len(buf):
            raise RuntimeError("the host cannot restore this sequence")

    def free(self):
        if self.ptr:
            self.api.free(self.ptr)
            self.ptr = None


def fill_context(ctx: Context, n: int, *, seed=0, block=512, in_place=None, progress=None) -> int:
    """Puts about n tokens into sequence 0 in seconds; returns the next free position.

    One block is computed, its state saved, and then restored into sequence 1, moved
    behind what is there and copied to sequence 0, again and again. The last `in_place` tokens
    (default: a block) are computed where they stand: a host shows no order of copied tokens, and
    a row is sparse only where its newest ones are known. The context needs a unified cache, two
    sequences, and n + block cells. The text is the same block over and over: right for
    timing, meaningless otherwise.
    """
    tokens = _block(ctx, block, seed)
    ctx.prompt(tokens, seq=1, last=False)
    ctx.api.synchronize(ctx.ptr)
    state = ctx.save(1)
    ctx.remove(1)
    end = block * max(1, n // block)
    start = end - min(in_place or block, block)
    for i in range(-(-start // block)):
        ctx.restore(state, 1)
        if i:
            ctx.add(1, block * i)
        ctx.copy(1, 0)
        ctx.remove(1)
        if progress:
            progress((i + 1) * block)
    ctx.remove(0, start)
    ctx.prompt(tokens[start - end :], start=start)
    if (last := ctx.api.memory_seq_pos_max(ctx.memory, 0)) != end - 1:
        raise RuntimeError(f"filled up to position {last}, expected {end - 1}")
    return end


def shorten_context(ctx: Context, n: int, *, seed=0, block=512, in_place=None) -> int:
    """What fill_context put there, cut to about n tokens; the last ones are computed again, for the same reason as there."""
    end = block * max(1, n // block)
    start = end - min(in_place or block, block)
    ctx.remove(0, start)
    ctx.prompt(_block(ctx, block, seed)[start - end :], start=start)
    return end


def _block(ctx: Context, block: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, min(ctx.model.n_vocab, 50_000) - 3, block).tolist()


def timed_steps(ctx: Context, pos: int, steps: int, token=3) -> tuple[list[float], list[int]]:
    """Milliseconds of each of `steps` one-token decodes of sequence 0 from position pos."""
    ms, out = [], []
    for i in range(steps):
        start = time.perf_counter()
        best = ctx.decode([(token, pos + i, [0], True)])[0]
        ms.append((time.perf_counter() - start) * 1e3)
        out.append(best)
        token = best
    return ms, out


def timed_batches(ctx: Context, pos: int, rows: int, prompt: int) -> dict[str, float]:
    """Milliseconds of three calls of one llama_decode each, behind sequence 0, which ends before pos: a prompt of another
    sequence; one token each of `rows` sequences like it; both together, as a server with continuous batching has them."""
    decoding = range(2, 2 + rows)
    for s in decoding:
        ctx.copy(0, s)
    beside = [(3 + i % 40, i, [1], i == prompt - 1) for i in range(prompt)]
    out, turn = {}, 0
    for name, text, tokens in (("prompt", beside, 0), ("decode", [], 3), ("mixed", beside, 1)):
        times = []
        for _ in range(max(tokens, 1)):
            batch = [(3, pos + turn, [s], True) for s in decoding] if tokens else []
            start = time.perf_counter()
            ctx.decode(batch + text)
            times.append((time.perf_counter() - start) * 1e3)
            turn += bool(tokens)
        out[name] = min(times)
        ctx.remove(1)
    for s in decoding:
        ctx.remove(s)
    return out


def quiet(api: capi.Api, level=None):
    """Sends the host's log to stderr from `level` up (2 info, 3 warn, 4 error); none: all."""
    last = [0]

    def log(lvl, text, _):
        if lvl != 5:  # 5: continuation of the line before
            last[0] = lvl
        if level is None or last[0] >= level:
            sys.stderr.write(text.decode(errors="replace"))

    callback = capi.LogCallback(log)
    api.log_set(callback, None)
    return callback
