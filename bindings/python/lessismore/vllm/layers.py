"""Which of a model's attention layers take part, and their numbers."""

from __future__ import annotations

import re
from typing import Any, Optional

HEAD_DIMS = (64, 128, 256)
MOST_GROUP = 16  # query heads for each KV head
DTYPES = {"torch.float16": "f16", "torch.bfloat16": "bf16"}
PLAIN = "Attention"  # vLLM's class of a layer that attends to its own sequence; what derives from it does something else


def whole(config: Any) -> Optional[str]:
    """Why nothing of an engine can be sparse; None: nothing speaks against it. config: vLLM's VllmConfig."""
    parallel = config.parallel_config
    for name, most in (("pipeline_parallel_size", 1), ("decode_context_parallel_size", 1), ("prefill_context_parallel_size", 1)):
        if getattr(parallel, name, 1) > most:
            return f"{name} = {getattr(parallel, name)}"
    if getattr(parallel, "enable_dbo", False) or getattr(parallel, "use_ubatching", False):
        return "micro-batches (enable_dbo): two steps would be under way at once"
    if getattr(config, "speculative_config", None) is not None:
        return "speculative decoding: rows have several tokens"
    if str(config.model_config.dtype) not in DTYPES:
        return f"dtype = {config.model_config.dtype}"
    if getattr(config.model_config, "rswa_window", None) is not None:
        return "the model's attention has a reference window"
    return None


def single(impl: Any, layer: Any) -> Optional[str]:
    """Why a layer does not take part. impl: vLLM's FlashAttentionImpl; layer: the module that it belongs to."""
    if type(layer).__name__ != PLAIN:
        return f"layers of class {type(layer).__name__}"
    if str(getattr(impl.attn_type, "value", impl.attn_type)) != "decoder":
        return f"attention of type {impl.attn_type}"
    if tuple(impl.sliding_window or (-1, -1)) != (-1, -1):
        return "sliding-window layers"
    if impl.alibi_slopes is not None:
        return "ALiBi"
    if impl.kv_sharing_target_layer_name is not None:
        return "layers that read another layer's K/V"
    if impl.kv_cache_dtype not in ("auto", "float16", "bfloat16"):
        return f"K/V of type {impl.kv_cache_dtype}"
    if impl.head_size not in HEAD_DIMS:
        return f"heads of {impl.head_size}"
    if impl.num_heads % impl.num_kv_heads or impl.num_heads // impl.num_kv_heads > MOST_GROUP:
        return f"{impl.num_heads} query heads for {impl.num_kv_heads} KV heads"
    if getattr(impl, "batch_invariant_enabled", False):
        return "VLLM_BATCH_INVARIANT: how a row is summed depends on the others"
    return None


def index(name: str) -> int:
    """A layer's number in the model, by its name: the last number among its parts, which is the only one in vLLM's own
    extract_layer_index() where that can tell."""
    numbers = [part for part in name.split(".") if re.fullmatch(r"\d+", part)]
    if len(numbers) != 1:
        raise ValueError(f"layer {name!r} has {len(numbers)} numbers in its name, not one")
    return int(numbers[0])


class Census:
    """The layers of an engine: those that take part, by number, and why the others do not."""

    def __init__(self, layers: dict[str, Any], ours: type) -> None:
        """layers: vLLM's static_forward_context; ours: the class of our implementation, others are not looked at."""
        self.numbers: dict[str, int] = {}  # of those that take part, by name
        self.others: dict[str, str] = {}
        self.first: Any = None  # the implementation of the first one
        taking: list[str] = []
        for name, layer in layers.items():
            impl = getattr(layer, "impl", None)
            if not isinstance(impl, ours):
                continue
            reason = single(impl, layer)
            if reason is None and self.first is not None and self._shape(impl) != self._shape(self.first):
                reason = f"heads other than the first layer's: {self._shape(impl)}, not {self._shape(self.first)}"
            if reason is None:
                self.first = self.first or impl
                taking.append(name)
            else:
                self.others[name] = reason
        try:
            order = sorted(taking, key=index)
            if len({index(name) for name in order}) < len(order):
                raise ValueError("two layers have the same number")
        except ValueError as e:
            self.others.update(dict.fromkeys(taking, str(e)))
            order, self.first = [], None
        self.numbers = {name: number for number, name in enumerate(order)}
        self.last = order[-1] if order else None

    @staticmethod
    def _shape(impl: Any) -> tuple[int, int, int]:
        return impl.num_heads, impl.num_kv_heads, impl.head_size
