"""Which of a model's attention layers take part, and their numbers."""

from __future__ import annotations

import re
from typing import Any, Optional

from . import options

HEAD_DIMS = (64, 128, 256)
MOST_GROUP = 16  # query heads for each KV head
DTYPES = {"torch.float16": "f16", "torch.bfloat16": "bf16"}
FP8 = ("fp8", "fp8_e4m3")  # of K/V
SPECULATIVE = ("ngram", "ngram_gpu", "suffix", "eagle", "eagle3", "mtp")
DRAFT = re.compile(r"(^|\.)(mtp|eagle|draft_model)(\.|$)")  # of layers' names
DECODER = "decoder"  # vLLM's AttentionType of a layer that attends to what is before a token
PLAIN = "Attention"  # vLLM's class of a layer that attends to its own sequence; what derives from it does something else


def whole(config: Any) -> Optional[str]:
    """Why nothing of an engine can be sparse; None: nothing speaks against it. config: vLLM's VllmConfig."""
    parallel = config.parallel_config
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            return f"{name} = {getattr(parallel, name)}"
    if getattr(parallel, "enable_dbo", False) or getattr(parallel, "use_ubatching", False):
        return "micro-batches (enable_dbo): two steps would be under way at once"
    speculative = getattr(config, "speculative_config", None)
    if speculative is not None:
        if speculative.method not in SPECULATIVE:
            return f"speculative decoding by {speculative.method}"
        if getattr(speculative, "parallel_drafting", False):
            return "speculative decoding with parallel_drafting"
    if str(config.model_config.dtype) not in DTYPES:
        return f"dtype = {config.model_config.dtype}"
    if getattr(config.model_config, "rswa_window", None) is not None:
        return "the model's attention has a reference window"
    for given, known in ((parallel, options.PARALLEL), (speculative, options.SPECULATIVE)):
        option = options.unknown(given, known)
        if option is not None:
            return f"{option}: an option that is not known"
    return None


def single(impl: Any, layer: Any) -> Optional[str]:
    """Why a layer does not take part. impl: vLLM's FlashAttentionImpl; layer: the module that it belongs to."""
    if type(layer).__name__ != PLAIN:
        return f"layers of class {type(layer).__name__}"
    if str(getattr(impl.attn_type, "value", impl.attn_type)) != DECODER:
        return f"attention of type {impl.attn_type}"
    if tuple(impl.sliding_window or (-1, -1)) != (-1, -1):
        return "sliding-window layers"
    if impl.alibi_slopes is not None:
        return "ALiBi"
    if impl.kv_sharing_target_layer_name is not None:
        return "layers that read another layer's K/V"
    if impl.kv_cache_dtype in FP8:
        if getattr(layer, "calculate_kv_scales", False):
            return "fp8 K/V whose scales are found while serving (calculate_kv_scales)"
        if any(getattr(layer, name).numel() != 1 for name in ("_q_scale", "_k_scale", "_v_scale")):
            return "fp8 K/V with a scale for each head"
    elif impl.kv_cache_dtype not in ("auto", "float16", "bfloat16"):
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


def total(config: Any) -> Optional[int]:
    """The layers of the whole model, a drafter's not counted; None: its configuration does not say."""
    found = getattr(getattr(config.model_config, "hf_text_config", None), "num_hidden_layers", None)
    return found if isinstance(found, int) else None


def most_tokens(config: Any) -> int:
    """The tokens that a request which decodes has in a step, at most."""
    speculative = getattr(config, "speculative_config", None)
    return 1 if speculative is None else 1 + int(speculative.num_speculative_tokens)


class Census:
    """The layers of an engine: those that take part, by number, and why the others do not."""

    def __init__(self, layers: dict[str, Any], ours: type, most: Optional[int] = None) -> None:
        """
        Args:
            layers: vLLM's static_forward_context.
            ours: the class of our implementation; others are not looked at.
            most: layers of the whole model; those with higher numbers are a drafter's. None: not looked at.
        """
        self.numbers: dict[str, int] = {}  # of those that take part, by name
        self.others: dict[str, str] = {}
        self.drafting = 0  # layers of a drafter
        self.first: Any = None  # the implementation of the first one
        taking: list[str] = []
        for name, layer in layers.items():
            impl = getattr(layer, "impl", None)
            if not isinstance(impl, ours):
                continue
            if DRAFT.search(name) or most is not None and _above(name, most):
                self.others[name] = "layers that draft"
                self.drafting += 1
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
        self.order = order

    @staticmethod
    def _shape(impl: Any) -> tuple[Any, ...]:
        return impl.num_heads, impl.num_kv_heads, impl.head_size, *(("fp8",) if impl.kv_cache_dtype in FP8 else ())

    def stage(self, most: int) -> int:
        """The number in the whole model of the first layer of a pipeline's stage, of so many layers in all. Raises ValueError where
        that cannot be told: only models of which every layer takes part have the same numbers here and there."""
        numbers = [index(name) for name in self.order]
        if len(self.others) > self.drafting or not numbers or numbers != list(range(numbers[0], numbers[-1] + 1)) or numbers[-1] >= most:
            raise ValueError("pipeline stages of a model of which some layers do not take part")
        return numbers[0]


def _above(name: str, most: int) -> bool:
    try:
        return index(name) >= most
    except ValueError:
        return False


def of_stage(layers: tuple[int, ...], first: int, n: int) -> tuple[int, ...]:
    """The selection layers of a pipeline's stage, numbered from its own first layer. The stage's first layer selects, too, where it
    would be sparse: token sets do not travel between stages. Empty: all of the stage comes before the model's first selection."""
    own = tuple(layer - first for layer in layers if first <= layer < first + n)
    return (0, *own) if first > layers[0] and own[:1] != (0,) else own
