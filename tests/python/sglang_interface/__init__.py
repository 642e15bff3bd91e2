"""A stand-in of those parts of SGLang that lessismore.sglang touches, with SGLang's names and parameters (record.py), on the CPU.

Its attention is exact and knows nothing of us, as SGLang's: so what a step with our rows leaves can be compared with a step without.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
import types
from typing import Any

import torch

HERE = pathlib.Path(__file__).resolve().parent
VERSIONS = sorted(path.stem for path in HERE.glob("*.json"))
CONTEXT = 256  # tokens of a request, at most
FIRST = "0.5.11"  # keys and values go where forward_batch says, and a replayed graph is told so by a method of its own


def recorded(version):
    return json.loads((HERE / f"{version}.json").read_text())


class Object(types.SimpleNamespace):
    """A configuration."""


class RadixAttention(torch.nn.Module):
    def __init__(self, layer_id, num_heads=4, num_kv_heads=2, head_dim=64, **more):
        super().__init__()
        self.layer_id, self.tp_q_head_num, self.tp_k_head_num, self.head_dim, self.v_head_dim = (
            layer_id,
            num_heads,
            num_kv_heads,
            head_dim,
            head_dim,
        )
        self.scaling, self.logit_cap, self.sliding_window_size, self.is_cross_attention = head_dim**-0.5, 0.0, -1, False
        self.use_irope, self.k_scale, self.v_scale, self.xai_temperature_len = False, None, None, -1
        self.pos_encoding_mode, self.logit_capping_method, self.attn_type = "NONE", "tanh", Object(value="decoder")
        self.__dict__.update(more)


class Pool:
    """MHATokenToKVPool: a buffer of keys and one of values for each layer."""

    def __init__(self, slots, layers, heads=2, dim=64):
        self.size = slots
        self.buffers = [torch.randn(2, slots, heads, dim, dtype=torch.float16) for _ in range(layers)]
        self.writes = 0

    def get_kv_buffer(self, layer_id):
        return self.buffers[layer_id][0], self.buffers[layer_id][1]

    def set_kv_buffer(self, layer, where, k, v, k_scale=None, v_scale=None):
        loc = where.loc if isinstance(where, KVWriteLoc) else where
        self.writes += 1
        self.buffers[layer.layer_id][0][loc.long()] = k
        self.buffers[layer.layer_id][1][loc.long()] = v


class KVWriteLoc:
    def __init__(self, loc, swa_loc=None):
        self.loc, self.swa_loc = loc, swa_loc


class LaterKVWriteLoc(KVWriteLoc):
    @classmethod
    def for_layer(cls, forward_batch, layer, swa_loc=None):
        return cls(forward_batch.out_cache_loc, swa_loc)


@dataclasses.dataclass
class FlashAttentionMetadata:
    cache_seqlens_int32: Any = None
    page_table: Any = None
    max_seq_len_q: int = 1
    swa_out_cache_loc: Any = None


class FlashAttentionBackend:
    is_encoder_decoder = False

    def __init__(self, model_runner, skip_prefill=False):
        self.page_size, self.prepared, self.calls = model_runner.page_size, 0, 0
        self.max_context_len = model_runner.model_config.context_len
        self.forward_metadata = None
        if model_runner.version != FIRST:
            self.token_to_kv_pool = model_runner.token_to_kv_pool

    def init_forward_metadata(self, forward_batch):
        self.prepared += 1

    def forward(self, q, k, v, layer, forward_batch, save_kv_cache=True, **kwargs):
        """As a layer calls it: SGLang's goes on with names."""
        return self.forward_decode(q, k, v, layer, forward_batch, save_kv_cache=save_kv_cache, **kwargs)

    def forward_decode(self, q, k, v, layer, forward_batch, save_kv_cache=True, q_rope=None, k_rope=None, sinks=None, score_mod=None):
        pool = forward_batch.pool
        if k is not None and save_kv_cache:
            pool.set_kv_buffer(layer, forward_batch.out_cache_loc, k, v)
        self.calls += 1
        m, (keys, values) = self.forward_metadata, pool.get_kv_buffer(layer.layer_id)
        query, rows = q.reshape(-1, layer.tp_q_head_num, layer.head_dim), []
        for row, n in enumerate(m.cache_seqlens_int32.tolist()):
            tokens = torch.arange(n)
            slots = m.page_table[row][tokens // self.page_size].long() * self.page_size + tokens % self.page_size
            group = layer.tp_q_head_num // layer.tp_k_head_num
            ks, vs = (x[slots].double().repeat_interleave(group, 1) for x in (keys, values))
            logits = torch.einsum("hd,thd->ht", query[row].double(), ks) * layer.scaling
            if sinks is not None:
                logits = torch.cat([logits, sinks.double()[:, None]], 1)
            p = logits.softmax(-1)[:, :n]
            rows.append(torch.einsum("ht,thd->hd", p, vs))
        return torch.stack(rows).to(q.dtype).flatten(1)


def runner(version, layers, page_size=1, slots=2048, tp_rank=0, dp_rank=None, **arguments):
    """A ModelRunner as lessismore.sglang reads it. Its ranks are where this version keeps them; of the process, see rank_process."""
    given = dict(speculative_algorithm=None, pp_size=1, attn_cp_size=1, enable_dp_attention=False, enable_two_batch_overlap=False, tp_size=1,
                 enable_deterministic_inference=False, enable_pdmux=False, enable_hisparse=False, dllm_algorithm=None, disable_cuda_graph=False)  # fmt: skip
    if version != FIRST:
        given["dcp_size"] = 1
    sets, ranks = (
        recorded(version)["modules"]["model_executor/model_runner.py"]["ModelRunner"]["sets"],
        dict(tp_rank=tp_rank, dp_rank=dp_rank),
    )
    kept = {name: rank for name, rank in ranks.items() if name in sets} | ({"ps": Object(**ranks)} if "ps" in sets else {})
    hf = Object(to_dict=lambda: {"model_type": "qwen3", "num_hidden_layers": len(layers)})
    return Object(
        version=version, server_args=Object(**{**given, **arguments}), page_size=page_size, model=torch.nn.ModuleList(layers), is_draft_worker=False,
        use_mla_backend=False, kv_cache_dtype=torch.float16, **kept, token_to_kv_pool=Pool(slots, len(layers)),
        req_to_token_pool=Object(req_to_token=torch.zeros(8, CONTEXT + 4, dtype=torch.int32), size=8),  # SGLang has some to spare
        model_config=Object(context_len=CONTEXT, hf_config=hf, model_path="some/model", revision=None, quantization=None),
    )  # fmt: skip


def rank_process(monkeypatch, version, tp_rank, dp_rank):
    """What a process itself tells of its ranks: its title and, later, its context."""
    title = "sglang::scheduler" + ("" if dp_rank is None else f"_DP{dp_rank}") + f"_TP{tp_rank}"
    monkeypatch.setitem(sys.modules, "setproctitle", Object(getproctitle=lambda: title))
    context = Object(tp_rank=tp_rank, dp_rank=dp_rank) if recorded(version)["ranks"]["context"] else Object()
    monkeypatch.setitem(sys.modules, "sglang.srt.runtime_context", Object(get_parallel=lambda: context))


def install(monkeypatch, version):
    """Makes `import sglang...` find the stand-in. Returns the registry's and the arguments' modules."""
    registry, arguments = types.ModuleType("attention_registry"), types.ModuleType("server_args")
    registry.ATTENTION_BACKENDS = {}
    registry.register_attention_backend = lambda name: lambda f: registry.ATTENTION_BACKENDS.setdefault(name, f)
    arguments.ATTENTION_BACKEND_CHOICES = ["fa3"]
    arguments.add_attention_backend_choices = arguments.ATTENTION_BACKEND_CHOICES.extend
    flash = types.ModuleType("flashattention_backend")

    class Base(FlashAttentionBackend):
        pass

    def prepare(self, forward_batch, in_capture=False):
        self.prepared += 1

    setattr(Base, "init_forward_metadata_replay_cuda_graph" if version == FIRST else "init_forward_metadata_out_graph", prepare)
    flash.FlashAttentionBackend = Base
    if version != FIRST:
        flash.KVWriteLoc = LaterKVWriteLoc if recorded(version)["for_layer"] else KVWriteLoc
    attention = types.ModuleType("sglang.srt.layers.attention")
    attention.attention_registry, attention.flashattention_backend = registry, flash
    modules = {
        "sglang": types.ModuleType("sglang"), "sglang.srt": types.ModuleType("sglang.srt"), "sglang.srt.layers": types.ModuleType("sglang.srt.layers"),
        "sglang.srt.layers.attention": attention, "sglang.srt.layers.attention.attention_registry": registry,
        "sglang.srt.layers.attention.flashattention_backend": flash, "sglang.srt.server_args": arguments,
    }  # fmt: skip
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return registry, arguments
