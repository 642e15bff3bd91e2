"""vLLM's FlashAttention backend, with the rows that decode given to lessismore. vLLM imports this when the backend is chosen.

One token of a row is decode; everything else stays vLLM's: prompts, layers and models that layers.py names, steps that rows.py
names. Keys and values are written by vLLM before an implementation's forward() is called.
"""

from __future__ import annotations

from typing import Any

from vllm.config import get_current_vllm_config
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.attention.backends.flash_attn import FlashAttentionBackend, FlashAttentionImpl, FlashAttentionMetadataBuilder

from .._errors import Error
from . import decoder, rows

NOTHING = rows.Plan()


class Builder(FlashAttentionMetadataBuilder):
    """vLLM's metadata of a step, and with it which rows are ours."""

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: Any) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.shared = decoder.of(vllm_config)
        self.shared.open(Impl, device)  # where no run has measured memory
        if self.shared.active and self.reorder_batch_threshold is None:
            self._init_reorder_batch_threshold(1)  # rows that decode come first

    @classmethod
    def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> AttentionCGSupport:
        support = super().get_cudagraph_support(vllm_config, kv_cache_spec)
        if not decoder.of(vllm_config).hopeful:
            return support
        # Prompts in a graph would need the rows that decode to be known when it is captured.
        single = AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE
        return single if support.value > single.value else support

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
            metadata = super().build(common_prefix_len, common, fast_build)
            metadata.lessismore = NOTHING
            return metadata
        found = rows.split(common, shared.max_rows, shared.capacity, shared.settings.split)
        if common_prefix_len > 0:
            found = rows.Split(0, False, "steps with a common prefix (cascade)")
        if counts:
            shared.count(self, found, common.num_reqs)
        rest = None
        if found.rows and not found.whole:
            # First, since vLLM keeps one place for what it schedules; the whole step's is what stays there.
            rest = super().build(0, rows.behind(common, found.rows), fast_build)
            rest.lessismore = NOTHING
            if rest.scheduler_metadata is not None:
                rest.scheduler_metadata = rest.scheduler_metadata.clone()
        metadata = super().build(common_prefix_len, common, fast_build)
        metadata.lessismore = rows.Plan(found.rows, rest, common.num_actual_tokens)
        return metadata

    def update_block_table(self, metadata: Any, blk_table: Any, slot_mapping: Any) -> Any:
        changed = super().update_block_table(metadata, blk_table, slot_mapping)
        plan = metadata.lessismore
        if plan.rest is not None:
            rest = super().update_block_table(plan.rest, blk_table[plan.rows :], slot_mapping[plan.rows :])
            changed.lessismore = rows.Plan(plan.rows, rest, plan.tokens)
        return changed


class Impl(FlashAttentionImpl):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shared = decoder.of(get_current_vllm_config())
        self.call: Any = None
        self.left = False  # to vLLM for good

    def process_weights_after_loading(self, act_dtype: Any) -> None:
        super().process_weights_after_loading(act_dtype)
        if self.call is not None:
            self.call.refresh_sinks()

    def forward(
        self, layer: Any, query: Any, key: Any, value: Any, kv_cache: Any, attn_metadata: Any, output: Any, output_scale: Any = None,
        output_block_scale: Any = None,
    ) -> Any:  # fmt: skip
        m = attn_metadata
        if m is None:
            self.shared.open(Impl, query.device)
        plan = NOTHING if m is None or self.left else getattr(m, "lessismore", NOTHING)
        plain = output_scale is None and output_block_scale is None
        if not plan.rows or not plain or not self._decode(layer, query, kv_cache, m, output, plan.rows):
            return super().forward(layer, query, key, value, kv_cache, m, output, output_scale, output_block_scale)
        if plan.rest is not None:
            n, end = plan.rows, plan.tokens
            some = (None if tensor is None else tensor[n:end] for tensor in (key, value))
            super().forward(layer, query[n:end], *some, kv_cache, plan.rest, output[n:end])
        return output

    def _decode(self, layer: Any, query: Any, kv_cache: Any, metadata: Any, output: Any, n: int) -> bool:
        """The rows that decode; False: vLLM has to."""
        call = self.call
        if call is None:
            number = self.shared.numbers.get(layer.layer_name)
            if number is None:
                self.left = True
                return False
            call = self.call = decoder.Call(self.shared, self, number)
        try:
            call.run(query, kv_cache, metadata, output, n)
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
