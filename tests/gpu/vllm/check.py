#!/usr/bin/env python3
"""Each layer's attention beside FlashAttention's on the same inputs, and the last layer's beside float32 attention over the token set
that the library names: computed prompts, prefix cache on, decode rows alone and beside prompts. Eager, since it looks into steps.

    check.py [BUDGET]     1024; one above the context makes every layer dense
"""

import copy
import os
import statistics
import sys

import numpy as np
import random_model
import torch
from engine import Served, say, short

LAYERS = 6
CHOOSE = [1, 3]
LENGTHS = [100, 3000, 9000, 1500]
SHARED = 512  # tokens that all prompts begin with
CLOSE = 4e-3  # relative: bf16 rounds by 2 ** -9 at each of two engines


class Watch:
    """Stands in for Impl.forward and compares what it leaves."""

    def __init__(self, served):
        from lessismore.vllm import backend

        self.differences, self.context, self.base = {}, served.context, backend.FlashAttentionImpl
        self.ours = backend.Impl.forward
        watch = self

        def forward(impl, layer, query, key, value, kv_cache, m, output, **more):
            result = watch.ours(impl, layer, query, key, value, kv_cache, m, output, **more)
            if m is not None and m.lessismore.rows:
                watch.compare(impl, layer, query, key, value, kv_cache, m, output)
            return result

        backend.Impl.forward = forward

    def compare(self, impl, layer, query, key, value, kv_cache, m, output):
        number, plan = self.context.numbers[layer.layer_name], m.lessismore
        want = torch.zeros_like(output)
        whole = copy.copy(m)
        whole.scheduler_metadata = None
        self.base.forward(impl, layer, query, key, value, kv_cache, whole, want)
        n = plan.rows
        got, ref = output[:n].flatten(1).float(), want[:n].flatten(1).float()
        kind = "decode" if plan.rest is None else "mixed"
        self.note((kind, number), ((got - ref).norm(dim=1) / ref.norm(dim=1)).max())
        if plan.rest is not None:  # prompts beside them: vLLM's own, to the bit or to its own rounding
            got, ref = output[n : plan.tokens].flatten(1).float(), want[n : plan.tokens].flatten(1).float()
            self.note(("prompts", number), ((got - ref).norm(dim=1) / ref.norm(dim=1).clamp_min(1e-6)).max())
        if number == len(self.context.numbers) - 1:
            self.over_sets(impl, query, kv_cache, m, output, n)

    def over_sets(self, impl, query, kv_cache, m, output, n):
        k, v = kv_cache.transpose(1, 2).split(impl.head_size, dim=-1)
        for row in range(n):
            chosen = self.context.decoder.token_set(row)
            if not len(chosen):
                continue
            length = int(m.seq_lens[row])
            assert chosen[-1] == length - 1 and (np.diff(chosen) > 0).all() and chosen[0] == 0, chosen
            where = torch.from_numpy(chosen.copy()).to(query.device).long()
            page, place = m.block_table[row].long()[where // k.shape[1]], where % k.shape[1]
            q = query[row].float().view(impl.num_kv_heads, -1, impl.head_size)
            p = torch.einsum("hgd,thd->hgt", q, k[page, place].float()).mul(impl.scale).softmax(-1)
            want = torch.einsum("hgt,thd->hgd", p, v[page, place].float()).flatten()
            self.note(("set", row), (output[row].float().flatten() - want).norm() / want.norm())

    def note(self, key, error):
        self.differences.setdefault(key, []).append(error)


def spread(values):
    return f"most {max(values):.2e}, median {statistics.median(values):.2e}, {len(values)} rows or layers" if values else "none"


def main(budget):
    served = Served(
        random_model.folder(LAYERS), {"budget": budget, "layers": CHOOSE}, load_format="dummy", max_model_len=16384, max_num_seqs=8,
        max_num_batched_tokens=2048, gpu_memory_utilization=0.1, kv_cache_memory_bytes=2 << 30, enable_prefix_caching=True, enforce_eager=True,
    )  # fmt: skip
    random_model.randomize(served.runner.model)
    watch = Watch(served)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(10, 150000, n).tolist() for n in LENGTHS]
    for i, prompt in enumerate(prompts):
        prompt[:SHARED] = prompts[2][: min(SHARED, len(prompt))]
    for i, prompt in enumerate(prompts):
        served.add(str(i), prompt, 24)
    steps = 0
    while served.engine.has_unfinished_requests():
        served.engine.step()
        steps += 1
        if steps == 12:  # a prompt between decode steps
            served.add("late", rng.integers(10, 150000, 3000).tolist(), 8)
    torch.cuda.synchronize()
    report = served.report()
    found = {}
    for (kind, number), errors in watch.differences.items():
        sees_all = kind in ("prompts", "set") or number <= min(CHOOSE) or number in CHOOSE or budget > max(LENGTHS) + 64
        found.setdefault((kind, sees_all), []).extend(float(e) for e in errors)
    for (kind, sees_all), errors in sorted(found.items()):
        what = (
            "beside attention over the set"
            if kind == "set"
            else "that see everything"
            if sees_all
            else "that are sparse: no measure of right"
        )
        say(f"check, budget {budget}: {kind}, layers {what}: {spread(errors)}")
    say(f"    steps {served.kinds()}, {short(report)}")
    close = all(max(errors) < CLOSE for (kind, sees_all), errors in found.items() if sees_all)
    seen = ("decode", True) in found and ("mixed", True) in found and ("prompts", True) in found
    sets = (("set", True) in found) == (budget < max(LENGTHS))
    counted = report["counts"]["split_steps"] > 0 and report["library"]["no_set_calls"] == 0
    return close and seen and sets and counted


if __name__ == "__main__":
    good = main(int(sys.argv[1]) if len(sys.argv) > 1 else 1024)
    say(f"check: {'ok' if good else 'FAILED'}")
    sys.stdout.flush()
    os._exit(0 if good else 1)
