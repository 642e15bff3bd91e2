"""vLLM's FlashAttention backend, with the rows that decode given to lessismore. vLLM imports this when the backend is chosen.

Requests with one token, or with the tokens that were speculated for them, decode; everything else stays vLLM's: prompts, layers and
models that layers.py names, steps that rows.py names. Keys and values are written by vLLM before an implementation's forward() is called.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Optional

from vllm.config import get_current_vllm_config
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.attention.backends.flash_attn import FlashAttentionBackend, FlashAttentionImpl, FlashAttentionMetadataBuilder

from .._errors import Error
from . import context, rows, tokens

NOTHING = rows.Plan()


class Builder(FlashAttentionMetadataBuilder):
    """vLLM's metadata of a step, and with it which rows are ours."""

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: Any) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.shared = context.of(vllm_config)
        self.shared.open(Impl, device)  # where no run has measured memory
        self.shared.fit(vllm_config.model_config.max_model_len)
        # Made by the first step: vLLM makes builders in the memory of its K/V store, which loses its contents when the server sleeps.
        self.tokens: Optional[tokens.Tokens] = None
        if self.shared.active and self.reorder_batch_threshold is None:  # requests that decode come first
            self._init_reorder_batch_threshold(1, supports_spec_as_decode=self.shared.most_tokens > 1)

    @classmethod
    def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> AttentionCGSupport:
        support = super().get_cudagraph_support(vllm_config, kv_cache_spec)
        shared = context.of(vllm_config)
        if not shared.hopeful:
            return support
        if shared.measures:  # a graph keeps the layers' roles: vLLM then takes graphs between the attention layers
            return AttentionCGSupport.NEVER
        # Prompts in a graph would need the rows that decode to be known when it is captured.
        most = AttentionCGSupport.UNIFORM_BATCH if shared.most_tokens > 1 else AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE
        return most if support.value > most.value else support

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
        return self._build(common_prefix_len, common_attn_metadata, fast_build, True)

    def build_for_cudagraph_capture(self, common_attn_metadata: Any) -> Any:
        return self._build(0, common_attn_metadata, False, False)

    def build_for_drafting(self, common_attn_metadata: Any, draft_index: int) -> Any:
        metadata = super().build(0, common_attn_metadata, True)
        metadata.lessismore = NOTHING
        return metadata

    def _build(self, common_prefix_len: int, common: Any, fast_build: bool, counts: bool) -> Any:
        shared = self.shared
        if not shared.active or not any(name in shared.numbers for name in self.layer_names):
            if counts and not shared.active:
                shared.tick()  # /metrics go on to say why
            metadata = super().build(common_prefix_len, common, fast_build)
            metadata.lessismore = NOTHING
            return metadata
        found = rows.split(common, shared.max_rows, shared.capacity, shared.settings.split, shared.most_tokens)
        if common_prefix_len > 0:
            found = rows.Split(reason="steps with a common prefix (cascade)")
        if counts:
            shared.count(self, found, common.num_reqs)
        rest = None
        if found.rows and not found.whole:
            # First, since vLLM keeps one place for what it schedules; the whole step's is what stays there.
            rest = super().build(0, rows.behind(common, found.requests, found.rows), fast_build)
            rest.lessismore = NOTHING
            if rest.scheduler_metadata is not None:
                rest.scheduler_metadata = rest.scheduler_metadata.clone()
        metadata = super().build(common_prefix_len, common, fast_build)
        metadata.lessismore = plan = rows.Plan(found.rows, rest, common.num_actual_tokens, found.requests)
        if found.rows and not found.single:
            plan.lengths, plan.owner = self._tokens().lengths(common, found.requests, found.rows)
            plan.table = self._tokens().table(plan.owner, common.block_table_tensor)
        return metadata

    def _tokens(self) -> tokens.Tokens:
        """Those of this group of layers, also where its first step is one that another group's builder has built."""
        if self.tokens is None:
            self.tokens = tokens.Tokens(self.shared.max_rows, self.device)
        return self.tokens

    def update_block_table(self, metadata: Any, blk_table: Any, slot_mapping: Any) -> Any:
        changed = super().update_block_table(metadata, blk_table, slot_mapping)
        plan = metadata.lessismore
        if plan.rest is not None:
            rest = super().update_block_table(plan.rest, blk_table[plan.requests :], slot_mapping[plan.rows :])
            changed.lessismore = plan = dataclasses.replace(plan, rest=rest)
        if plan.owner is not None:
            changed.lessismore = dataclasses.replace(plan, table=self._tokens().table(plan.owner, blk_table))
        return changed


class Impl(FlashAttentionImpl):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shared = context.of(get_current_vllm_config())
        self.call: Any = None
        self.left = False  # to vLLM for good

    def process_weights_after_loading(self, act_dtype: Any) -> None:
        super().process_weights_after_loading(act_dtype)
        if self.call is not None:
            self.call.refresh()

    def forward(
        self, layer: Any, query: Any, key: Any, value: Any, kv_cache: Any, attn_metadata: Any, output: Any, output_scale: Any = None,
        output_block_scale: Any = None,
    ) -> Any:  # fmt: skip
        m = attn_metadata
        if m is None:
            self.shared.open(Impl, query.device)
        plan = NOTHING if m is None or self.left else getattr(m, "lessismore", NOTHING)
        plain = output_scale is None and output_block_scale is None
        if not plan.rows or not plain or not self._decode(layer, query, kv_cache, m, output, plan):
            return super().forward(layer, query, key, value, kv_cache, m, output, output_scale, output_block_scale)
        if plan.rest is not None:
            n, end = plan.rows, plan.tokens
            some = (None if tensor is None else tensor[n:end] for tensor in (key, value))
            super().forward(layer, query[n:end], *some, kv_cache, plan.rest, output[n:end])
        return output

    def _decode(self, layer: Any, query: Any, kv_cache: Any, metadata: Any, output: Any, plan: rows.Plan) -> bool:
        """The rows that decode; False: vLLM has to."""
        call = self.call
        if call is None:
            number = self.shared.numbers.get(layer.layer_name)
            if number is None:
                self.left = True
                return False
            call = self.call = context.Call(self.shared, self, layer, number)
        lengths, table = (metadata.seq_lens, metadata.block_table) if plan.lengths is None else (plan.lengths, plan.table)
        try:
            call.run(query, kv_cache, lengths, table, output, plan.rows)
        except Error as e:
            self.left = True
            self.shared.fail(e)
            return False
        return True


class Backend(FlashAttentionBackend):
    @staticmethod
    def get_name() -> str:
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type:
        return Impl

    @staticmethod
    def get_builder_cls() -> type:
        return Builder
