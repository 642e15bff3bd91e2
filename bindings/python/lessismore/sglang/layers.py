"""Which of a model's attention layers take part, and why the others, or all of them, do not."""

from __future__ import annotations

from typing import Any, Optional

from ..vllm.layers import DECODER, DTYPES, HEAD_DIMS, MOST_GROUP

# Fields of SGLang's ServerArgs that speak against all of it, with the values that do not.
AGAINST: dict[str, tuple[Any, ...]] = {
    "speculative_algorithm": (None,),
    "pp_size": (1,),
    "attn_cp_size": (1,),
    "dcp_size": (1,),
    "enable_dp_attention": (False,),
    "enable_two_batch_overlap": (False,),
    "enable_hisparse": (False,),
    "enable_deterministic_inference": (False,),
    "enable_pdmux": (False,),
    "dllm_algorithm": (None,),
}
LATER = frozenset({"dcp_size"})  # not in the first versions with plug-ins


def whole(runner: Any, backend: Any) -> Optional[str]:
    """Why nothing of a runner can be sparse; None: nothing speaks against it. backend: its FlashAttentionBackend."""
    arguments = runner.server_args
    for name, fine in AGAINST.items():
        value = getattr(arguments, name, fine[0]) if name in LATER else getattr(arguments, name)
        if value not in fine:
            return f"{name} = {value}"
    if runner.is_draft_worker:
        return "the model drafts"
    if runner.use_mla_backend:
        return "multi-head latent attention"
    if backend.is_encoder_decoder:
        return "an encoder"
    if getattr(backend, "is_prefill_aware_swa", False):
        return "sliding windows that keep the prompt"
    if getattr(backend, "_kv_shard_pool", None) is not None:
        return "K/V that is spread over ranks"
    if str(runner.kv_cache_dtype) not in DTYPES:
        return f"K/V of type {runner.kv_cache_dtype}"
    if backend.page_size & (backend.page_size - 1):
        return f"pages of {backend.page_size} tokens"
    return None


def without_graphs(arguments: Any) -> bool:
    """Whether decode steps run without CUDA graphs. arguments: SGLang's ServerArgs; later versions say so for each phase."""
    decode = getattr(getattr(arguments, "cuda_graph_config", None), "decode", None)
    return bool(arguments.disable_cuda_graph) or getattr(decode, "backend", None) == "disabled"


def single(layer: Any) -> Optional[str]:
    """Why a layer does not take part. layer: SGLang's RadixAttention."""
    if layer.is_cross_attention or str(getattr(layer.attn_type, "value", layer.attn_type)) != DECODER:
        return f"attention of type {'cross' if layer.is_cross_attention else layer.attn_type}"
    if layer.sliding_window_size is not None and layer.sliding_window_size > -1:
        return "sliding-window layers"
    if layer.use_irope:
        return "chunked layers"
    if layer.pos_encoding_mode != "NONE":
        return f"positions by {layer.pos_encoding_mode}"
    if layer.logit_cap and layer.logit_capping_method != "tanh":
        return f"logits capped by {layer.logit_capping_method}"
    if getattr(layer, "xai_temperature_len", -1) > 0:
        return "logits that are scaled by position"
    if layer.head_dim != layer.v_head_dim or layer.head_dim not in HEAD_DIMS:
        return f"heads of {layer.head_dim} and {layer.v_head_dim}"
    if layer.tp_q_head_num % layer.tp_k_head_num or layer.tp_q_head_num // layer.tp_k_head_num > MOST_GROUP:
        return f"{layer.tp_q_head_num} query heads for {layer.tp_k_head_num} KV heads"
    return None


class Census:
    """The layers of a model: those that take part, by SGLang's layer_id, and why the others do not."""

    def __init__(self, layers: list[Any]) -> None:
        self.numbers: dict[int, int] = {}
        self.others: dict[int, str] = {}
        self.first: Any = None
        for layer in sorted(layers, key=lambda layer: layer.layer_id):
            reason = single(layer)
            if reason is None and self.first is not None and self._shape(layer) != self._shape(self.first):
                reason = f"heads other than the first layer's: {self._shape(layer)}, not {self._shape(self.first)}"
            if reason is not None:
                self.others[layer.layer_id] = reason
            elif layer.layer_id in self.numbers:
                self.numbers, self.others, self.first = {}, {layer.layer_id: "two layers have the same number"}, None
                return
            else:
                self.first = self.first or layer
                self.numbers[layer.layer_id] = len(self.numbers)

    @staticmethod
    def _shape(layer: Any) -> tuple[int, int, int]:
        return layer.tp_q_head_num, layer.tp_k_head_num, layer.head_dim
