#!/usr/bin/env python3
"""Each layer's attention beside FlashAttention's on the same inputs, and the last layer's beside float32 attention over the token set
that the library names: computed prompts, prefix cache on, decode rows alone and beside prompts. Eager, since it looks into steps.

    check.py [BUDGET] [VARIANT]     1024; one above the context makes every layer dense. VARIANTS: types, sinks, soft-cap, shapes, drafts
"""

import copy
import inspect
import os
import statistics
import sys

import numpy as np
import random_model
import torch
from engine import Served, keep, say, short

LAYERS = 6
CHOOSE = [1, 3]
SHARED = 512  # tokens that all prompts begin with
LENGTHS = [int(n) for n in os.environ.get("LENGTHS", "100,3000,9000,1500").split(",")]
CLOSE = 4e-3  # relative: bf16 rounds by 2 ** -9 at each of two engines
QUANTIZED = 6e-2  # FlashAttention 3 has the softmax's weights in fp8, too
DRAFTS = 3

# vLLM's arguments, changes of the model's configuration, what each attention layer is made with
VARIANTS = {
    "bf16": ({}, {}, {}),
    "f16": ({"dtype": "float16"}, {}, {}),
    "fp8": ({"kv_cache_dtype": "fp8"}, {}, {}),
    "sinks": ({}, {}, {"sinks": (4.0, 2.0)}),  # mean and deviation
    "softcap": ({}, {}, {"logits_soft_cap": 20.0}),
    "softcap-dim256": ({}, {"head_dim": 256, "num_attention_heads": 16, "num_key_value_heads": 4}, {"logits_soft_cap": 5.0}),
    "sinks-dim64": ({}, {"head_dim": 64, "num_attention_heads": 64, "num_key_value_heads": 8}, {"sinks": (2.0, 2.0)}),
    "dim64": ({}, {"head_dim": 64}, {}),
    "dim256": ({}, {"head_dim": 256, "num_attention_heads": 16, "num_key_value_heads": 4}, {}),
    "gqa16": ({}, {"num_attention_heads": 32, "num_key_value_heads": 2}, {}),
    "mha": ({}, {"num_attention_heads": 16, "num_key_value_heads": 16}, {}),
    "drafts": (
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": DRAFTS, "prompt_lookup_max": 2, "prompt_lookup_min": 1}},
        {},
        {},
    ),
}


class Watch:
    """Stands in for Impl.forward and compares what it leaves."""

    def __init__(self, served, quantized):
        self.quantized = quantized
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
        if plan.lengths is not None:
            kind += ", drafts"
            self.note((kind, number), ((got - ref).norm(dim=1) / ref.norm(dim=1)).max())
        if plan.rest is not None:  # prompts beside them: vLLM's own, to the bit or to its own rounding
            got, ref = output[n : plan.tokens].flatten(1).float(), want[n : plan.tokens].flatten(1).float()
            self.note(("prompts", number), ((got - ref).norm(dim=1) / ref.norm(dim=1).clamp_min(1e-6)).max())
        if number == len(self.context.numbers) - 1:
            self.over_sets(impl, query, kv_cache, m, output, n)

    def over_sets(self, impl, query, kv_cache, m, output, n):
        lengths, table = (m.seq_lens, m.block_table) if m.lessismore.lengths is None else (m.lessismore.lengths, m.lessismore.table)
        if self.quantized:
            kv_cache = kv_cache.view(torch.float8_e4m3fn)
        k, v = kv_cache.transpose(1, 2).split(impl.head_size, dim=-1)
        for row in range(n):
            chosen = self.context.decoder.token_set(row)
            if not len(chosen):
                continue
            length = int(lengths[row])
            assert chosen[-1] == length - 1 and (np.diff(chosen) > 0).all() and chosen[0] == 0, chosen
            where = torch.from_numpy(chosen.copy()).to(query.device).long()
            page, place = table[row].long()[where // k.shape[1]], where % k.shape[1]
            q = query[row].float().view(impl.num_kv_heads, -1, impl.head_size)
            logits = torch.einsum("hgd,thd->hgt", q, k[page, place].float()).mul(impl.scale)  # fp8: all scales are 1
            if impl.logits_soft_cap:
                logits = impl.logits_soft_cap * (logits / impl.logits_soft_cap).tanh()
            if impl.sinks is not None:
                sinks = impl.sinks.float().view(impl.num_kv_heads, -1, 1)
                p = torch.cat([logits, sinks.expand(*logits.shape[:2], 1)], -1).softmax(-1)[..., :-1]
            else:
                p = logits.softmax(-1)
            want = torch.einsum("hgt,thd->hgd", p, v[page, place].float()).flatten()
            self.note(("set", row), (output[row].float().flatten() - want).norm() / want.norm())

    def note(self, key, error):
        self.differences.setdefault(key, []).append(error)


def make_with(changes):
    """Has vLLM make its attention layers with sinks or a soft-cap, where a model that has them would say so."""
    import vllm  # noqa: F401  first, as in a server

    from lessismore.vllm import backend

    made, parameters = backend.Impl.__init__, inspect.signature(backend.FlashAttentionImpl.__init__)

    def init(impl, *args, **kwargs):
        given = parameters.bind(impl, *args, **kwargs)
        given.arguments.update(changes)
        if "sinks" in changes:
            mean, deviation = changes["sinks"]
            given.arguments["sinks"] = torch.randn(given.arguments["num_heads"], device="cuda", dtype=torch.bfloat16) * deviation + mean
        made(*given.args, **given.kwargs)

    backend.Impl.__init__ = init


def spread(values):
    return f"most {max(values):.2e}, median {statistics.median(values):.2e}, {len(values)} rows or layers" if values else "none"


def draft(runner, seed=5):
    """Drafts for every request, whatever was generated: most are wrong, as drafts are, and each is a row."""
    rng = np.random.default_rng(seed)

    def propose(most, sampled, *_, **__):
        return [rng.integers(10, 150000, rng.integers(0, DRAFTS + 1)).tolist() if tokens else [] for tokens in sampled]

    runner.drafter.propose = propose


def main(budget, variant):
    arguments, shape, changes = VARIANTS[variant]
    torch.manual_seed(2)
    if changes:
        make_with(changes)
    served = Served(
        random_model.folder(LAYERS, **shape), {"budget": budget, "layers": CHOOSE}, load_format="dummy", max_model_len=16384, max_num_seqs=8,
        max_num_batched_tokens=2048, gpu_memory_utilization=0.1, kv_cache_memory_bytes=2 << 30, enable_prefix_caching=True, enforce_eager=True,
        **arguments,
    )  # fmt: skip
    random_model.randomize(served.runner.model)
    for layer in served.config.compilation_config.static_forward_context.values():
        assert (layer.impl.sinks is not None) == ("sinks" in changes) and layer.impl.logits_soft_cap == changes.get("logits_soft_cap", 0)
    if variant == "drafts":
        draft(served.runner)
    watch = Watch(served, variant == "fp8")
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
            served.add("late", rng.integers(10, 150000, max(LENGTHS) // 3).tolist(), 8)
    torch.cuda.synchronize()
    report = served.report()
    if report["library"] is None:
        say(f"check {variant}: {report['reason']}, {report['others']}")
        return False
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
        say(f"check {variant}, budget {budget}: {kind}, layers {what}: {spread(errors)}")
    say(f"    steps {served.kinds()}, {short(report)}")
    keep(f"check-{variant}-{budget}", differences=[
        dict(kind=kind, sees_all=sees_all, most=max(errors), median=statistics.median(errors), n=len(errors))
        for (kind, sees_all), errors in sorted(found.items())
    ])  # fmt: skip
    most = {kind: QUANTIZED if variant == "fp8" and kind != "set" else CLOSE for kind, _ in found}
    checks = {
        "close": all(max(errors) < most[kind] for (kind, sees_all), errors in found.items() if sees_all),
        "seen": all((kind, True) in found for kind in ("decode", "mixed", "prompts"))
        or variant == "drafts"
        and ("decode, drafts", True) in found,
        "sets": (("set", True) in found) == (budget < max(LENGTHS)),
        "counted": report["counts"]["split_steps"] > 0 and report["library"]["no_set_calls"] == 0,
        "all layers": report["taking_part"] == LAYERS,
    }
    bad = [what for what, right in checks.items() if not right]
    say(f"check {variant}: {'FAILED: ' + ', '.join(bad) if bad else 'ok'}")
    return not bad


if __name__ == "__main__":
    good = main(int(sys.argv[1]) if len(sys.argv) > 1 else 1024, sys.argv[2] if len(sys.argv) > 2 else "bf16")
    sys.stdout.flush()
    os._exit(0 if good else 1)
