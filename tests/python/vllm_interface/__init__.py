"""A stand-in of those parts of vLLM that lessismore.vllm touches, with vLLM's names and parameters (record.py), on the CPU.

Its attention is exact and knows nothing of us, as vLLM's: so what a step with our rows leaves can be compared with a step without.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import json
import pathlib
import sys
import types
from typing import Any

import torch

HERE = pathlib.Path(__file__).resolve().parent
VERSIONS = sorted(path.stem for path in HERE.glob("*.json"))


def recorded(version):
    return json.loads((HERE / f"{version}.json").read_text())["modules"]


class AttentionCGSupport(enum.Enum):
    ALWAYS = 3
    UNIFORM_BATCH = 2
    UNIFORM_SINGLE_TOKEN_DECODE = 1
    NEVER = 0


@dataclasses.dataclass
class Metadata:
    num_actual_tokens: int
    max_query_len: int
    query_start_loc: torch.Tensor
    max_seq_len: int
    seq_lens: torch.Tensor
    block_table: torch.Tensor
    slot_mapping: torch.Tensor
    scheduler_metadata: Any = None
    causal: Any = True


def common_class(version):
    """CommonAttentionMetadata with that version's fields."""
    names = recorded(version)["vllm/v1/attention/backend.py"]["CommonAttentionMetadata"]["fields"]
    needed = names[: names.index("causal")]
    fields = [(n, Any) for n in needed] + [(n, Any, True if n == "causal" else None) for n in names[len(needed) :]]
    return dataclasses.make_dataclass("CommonAttentionMetadata", fields)


class FlashAttentionBackend:
    @staticmethod
    def get_name():
        return "FLASH_ATTN"


class FlashAttentionMetadataBuilder:
    _cudagraph_support = AttentionCGSupport.ALWAYS
    reorder_batch_threshold = None

    def __init__(self, kv_cache_spec, layer_names, vllm_config, device):
        self.layer_names, self.vllm_config, self.device = layer_names, vllm_config, device
        self.scheduler_metadata = torch.zeros(1, dtype=torch.int32)

    @classmethod
    def get_cudagraph_support(cls, vllm_config, kv_cache_spec):
        return cls._cudagraph_support

    def _init_reorder_batch_threshold(self, reorder_batch_threshold=1, supports_spec_as_decode=False, supports_dcp_with_varlen=False):
        self.reorder_batch_threshold = reorder_batch_threshold
        if supports_spec_as_decode:
            self.reorder_batch_threshold = 1 + self.vllm_config.speculative_config.num_speculative_tokens

    def build(self, common_prefix_len, common_attn_metadata, fast_build=False):
        c = common_attn_metadata
        self.scheduler_metadata[0] = c.num_reqs  # one place for all builds, as vLLM's
        return Metadata(c.num_actual_tokens, c.max_query_len, c.query_start_loc, c.max_seq_len, c.seq_lens, c.block_table_tensor,
                        c.slot_mapping, self.scheduler_metadata, c.causal)  # fmt: skip

    def build_for_cudagraph_capture(self, common_attn_metadata):
        return self.build(0, common_attn_metadata)

    def build_for_drafting(self, common_attn_metadata, draft_index):
        return self.build(0, common_attn_metadata, True)

    def update_block_table(self, metadata, blk_table, slot_mapping):
        changed = copy.copy(metadata)
        changed.block_table, changed.slot_mapping = blk_table, slot_mapping
        return changed


class FlashAttentionImpl:
    def __init__(self, num_heads, head_size, scale, num_kv_heads, alibi_slopes=None, sliding_window=None, kv_cache_dtype="auto",
                 logits_soft_cap=None, attn_type="decoder", kv_sharing_target_layer_name=None, sinks=None):  # fmt: skip
        self.num_heads, self.head_size, self.scale, self.num_kv_heads = num_heads, head_size, scale, num_kv_heads
        self.alibi_slopes, self.kv_cache_dtype, self.attn_type, self.sinks = alibi_slopes, kv_cache_dtype, attn_type, sinks
        self.sliding_window = (-1, -1) if sliding_window is None else (sliding_window - 1, 0)
        self.logits_soft_cap = logits_soft_cap or 0
        self.kv_sharing_target_layer_name = kv_sharing_target_layer_name
        self.batch_invariant_enabled = False
        self.supports_quant_query_input = True
        self.calls = 0

    def process_weights_after_loading(self, act_dtype):
        pass

    def forward(self, layer, query, key, value, kv_cache, attn_metadata, output, output_scale=None, output_block_scale=None):
        m = attn_metadata
        self.calls += 1
        if m is None:
            return output.fill_(0)
        assert int(m.scheduler_metadata[0]) == len(m.seq_lens)  # what was scheduled is for these rows
        k, v = kv_cache.transpose(1, 2).split(self.head_size, dim=-1)
        for row in range(len(m.seq_lens)):
            begin, end, n = int(m.query_start_loc[row]), int(m.query_start_loc[row + 1]), int(m.seq_lens[row])
            output[begin:end] = attention(query[begin:end], k, v, m.block_table[row], n, self.scale)
        return output


def attention(query, k, v, table, n, scale):
    """Causal attention of a row's last tokens, in float64; k, v: [pages, page_size, kv_heads, head_size]."""
    size, tokens = k.shape[1], torch.arange(n)
    keys, values = (x[table[tokens // size].long(), tokens % size].double() for x in (k, v))
    group = query.shape[1] // keys.shape[1]
    x = torch.einsum("qhgd,thd->hgqt", query.double().view(len(query), keys.shape[1], group, -1), keys) * scale
    hidden = tokens[None, :] > torch.arange(n - len(query), n)[:, None]
    p = x.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("hgqt,thd->qhgd", p, values).flatten(1, 2).to(query.dtype)


class Attention:
    """A layer as vLLM's static_forward_context holds it."""

    def __init__(self, name, impl):
        self.layer_name, self.impl = name, impl
        self._q_scale = self._k_scale = self._v_scale = torch.tensor(1.0)
        self._q_scale_float = self._k_scale_float = self._v_scale_float = 1.0
        self.calculate_kv_scales = False


class Mode(enum.Enum):
    NONE = False
    PIECEWISE = False, 1
    FULL_AND_PIECEWISE = True

    def has_full_cudagraphs(self):
        return self.value is True

    def has_piecewise_cudagraphs(self):
        return self in (Mode.PIECEWISE, Mode.FULL_AND_PIECEWISE)


class Object(types.SimpleNamespace):
    """A configuration."""


def config(settings=None, mode=Mode.FULL_AND_PIECEWISE, dtype=torch.float16, **parallel):
    hf = Object(to_dict=lambda: {"model_type": "qwen3", "num_hidden_layers": 4})
    return Object(
        additional_config={} if settings is None else {"lessismore": settings},
        model_config=Object(dtype=dtype, max_model_len=512, hf_config=hf, hf_text_config=Object(num_hidden_layers=4), model="some/model", revision=None, quantization=None, rswa_window=None),
        parallel_config=Object(**{**dict(pipeline_parallel_size=1, tensor_parallel_size=1, decode_context_parallel_size=1, prefill_context_parallel_size=1,
                                         data_parallel_size=1, data_parallel_rank=0, world_size=1, rank=0, enable_dbo=False, use_ubatching=False), **parallel}),
        scheduler_config=Object(max_num_seqs=8), speculative_config=None,
        compilation_config=Object(static_forward_context={}, cudagraph_mode=mode),
    )  # fmt: skip


class Registry:
    """vllm.v1.attention.backends.registry, in which new names may be registered or not."""

    def __init__(self, names):
        self.chosen = {}
        members = {"FLASH_ATTN": "vllm", "CUSTOM": None}
        chosen = self.chosen

        class Custom(str):
            def is_overridden(self):
                return self in chosen

            def get_path(self):
                return chosen[self]

        class AttentionBackendEnum:
            CUSTOM = Custom("CUSTOM")
            __members__ = members

        if names:
            AttentionBackendEnum.register = None

        def register_backend(backend, class_path=None, is_mamba=False):
            if backend != "CUSTOM" and (not names or backend in members):
                raise ValueError(backend)
            members[backend] = class_path
            self.chosen[backend] = class_path

        self.module = {"AttentionBackendEnum": AttentionBackendEnum, "register_backend": register_backend}


def install(monkeypatch, current, names=False):
    """Makes `import vllm...` find the stand-in. current: [config], what get_current_vllm_config() gives. Returns the registry."""
    registry = Registry(names)
    modules = {
        "vllm": {}, "vllm.config": {"get_current_vllm_config": lambda: current[0]}, "vllm.v1": {}, "vllm.v1.attention": {},
        "vllm.v1.attention.backend": {"AttentionCGSupport": AttentionCGSupport}, "vllm.v1.attention.backends": {},
        "vllm.v1.attention.backends.flash_attn": {
            "FlashAttentionBackend": FlashAttentionBackend, "FlashAttentionImpl": FlashAttentionImpl,
            "FlashAttentionMetadataBuilder": FlashAttentionMetadataBuilder,
        },
        "vllm.v1.attention.backends.registry": registry.module,
    }  # fmt: skip
    for name, content in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return registry
