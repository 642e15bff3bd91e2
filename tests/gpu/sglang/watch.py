"""A plug-in of SGLang for these tests, where WATCH names a file: each layer's decode attention beside FlashAttention 3's on the same inputs, and
the last layer's beside float32 attention over the token set that the library names. For steps without graphs, since it looks into them."""

import json
import os
import pathlib

import numpy as np
import torch

EVERY = 8  # steps between two comparisons


class Watch:
    def __init__(self, path, backend, theirs):
        self.path, self.theirs, self.steps, self.found = pathlib.Path(path), theirs, {}, {}
        self.ours = backend.forward_decode

    def forward(self, backend, q, k, v, layer, forward_batch, save_kv_cache=True, *args, **kwargs):  # SGLang names its arguments
        out = self.ours(backend, q, k, v, layer, forward_batch, save_kv_cache, *args, **kwargs)
        shared = backend.shared
        number = shared.numbers.get(layer.layer_id)
        step = self.steps[number] = self.steps.get(number, -1) + 1
        if number is None or not shared.active or shared.choice.layers is None or step % EVERY:
            return out
        m, rows = backend.forward_metadata, q.view(-1, layer.tp_q_head_num, layer.head_dim)
        got = out.clone().view(rows.shape)
        want = self.theirs(backend, q, k, v, layer, forward_batch, False, *args, **kwargs).view(rows.shape)
        chosen = shared.choice.layers
        sees_all = number <= chosen[0] or number in chosen
        for row, length in enumerate(m.cache_seqlens_int32.tolist()):
            short = length <= shared.settings.budget
            self.note("full" if sees_all or short else "sparse, no measure of right", got[row], want[row], number, row, length)
        if number == len(shared.numbers) - 1:
            self.over_sets(backend, rows, got, layer, m, number, backend._pool(forward_batch))
            self.path.write_text(json.dumps(self.found))
        return got.view(out.shape)

    def over_sets(self, backend, rows, got, layer, m, number, pool):
        decoder = backend.shared.decoder
        keys, values = pool.get_kv_buffer(layer.layer_id)
        for row, length in enumerate(m.cache_seqlens_int32.tolist()):
            tokens = decoder.token_set(row)
            if not len(tokens):
                self.found.setdefault("no set", []).append([length])
                continue
            good = (
                tokens[-1] == length - 1
                and (np.diff(tokens) > 0).all()
                and tokens[0] == 0
                and len(tokens) == backend.shared.settings.budget
            )
            self.found.setdefault("sets in order", []).append([bool(good)])
            where = torch.from_numpy(tokens.copy()).to(rows.device).long()
            slots = m.page_table[row].long()[where // backend.page_size] * backend.page_size + where % backend.page_size
            q = rows[row].float().view(layer.tp_k_head_num, -1, layer.head_dim)
            weights = torch.einsum("hgd,thd->hgt", q, keys[slots].float()).mul(layer.scaling).softmax(-1)
            want = torch.einsum("hgt,thd->hgd", weights, values[slots].float()).view(got[row].shape)
            self.note("over the set", got[row], want, number, row, length)

    def note(self, kind, got, want, number, row, length):
        error = float((got.float() - want.float()).norm() / want.float().norm().clamp_min(1e-6))
        self.found.setdefault(kind, []).append([error, number, row, length])


def register():
    path = os.environ.get("WATCH")
    if not path:
        return
    from lessismore import sglang

    def create(runner):
        from sglang.srt.layers.attention.flashattention_backend import FlashAttentionBackend

        from lessismore.sglang import backend

        watch = Watch(path, backend.Backend, FlashAttentionBackend.forward_decode)
        backend.Backend.forward_decode = lambda *args, **kwargs: watch.forward(*args, **kwargs)
        return backend.Backend(runner)

    sglang.create = create
    from sglang.srt.layers.attention import attention_registry

    if sglang.NAME in attention_registry.ATTENTION_BACKENDS:
        attention_registry.ATTENTION_BACKENDS[sglang.NAME] = create
