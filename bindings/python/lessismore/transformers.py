"""Hugging Face transformers: attn_implementation="lessismore".

    lessismore.transformers.register(budget=2048, layers=[2, 12])
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="lessismore")
    model.generate(...)
    print(lessismore.transformers.stats(model))

Decode steps (one query token per row) of full-attention layers are the library's: each row of a batch has a
token set of its own, padding is no part of it. Prompts, and layers with a sliding window or chunks, are computed as
stock transformers does: by torch's own attention, or by the model's eager function where logits are capped or
sinks take part, which torch's does not know. A prompt's token that is fed alone looks like a decode step and is taken for one:
prefill_chunk_size=1, or a chunk size that leaves one token over.

Where a model is on an NVIDIA GPU, so is all of this: in float16 or bfloat16, on torch's current stream and without
waiting, also inside a CUDA graph (with a static cache, after one step outside of it). A graph keeps the layers' roles of
its capture and measures nothing: name layers, or run the steps that find them outside of it.

Whatever cannot be offloaded raises UnsupportedError, naming the layer and the reason: when the model is first called, or
by check(model) as soon as it is loaded. Nothing is silently dense. Tested with transformers 5.23 and torch 2.15.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import sys
import threading
import weakref
from typing import Any, Callable, Optional

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from . import _torch
from ._cuda import LENGTHS, CudaDecoder
from ._errors import ArgumentError, Error, UnsupportedError
from ._profiles import profile_dir
from ._torch import CpuDecoder
from .engine import Engine
from .settings import Settings, changed

__all__ = ["check", "register", "report", "stats"]

NAME = "lessismore"
logger = logging.getLogger(NAME)
LEVELS = (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)
OFFLOADED = "full_attention"
PASSED = ("sliding_attention", "chunked_attention")
ELSEWHERE = ("linear_attention", "conv", "moe")  # layers that never ask for attention
KNOWN = frozenset(("position_ids", "cache_position", "position_embeddings"))  # tensors that have had their effect
MAX_LAYERS = 4096
PASSING = ("transformers_version", "dtype", "torch_dtype", "use_cache", "architectures")  # say nothing about the weights
HEAD_DIM = 64  # stands for a size that a layer does not state; the first call knows it
SHORT = 32  # query tokens at most of a call that may check a draft
SHORT_CALLS = 16  # of them, one after another, are no accident
EAGER_LOGITS = 1 << 26  # the eager function takes so many query tokens at once that its logits stay below this


@dataclasses.dataclass(frozen=True, eq=False)
class _Configuration:
    """What a name stands for."""

    settings: Settings
    n_threads: Optional[int]

    def engine(self, n_layers: int, about: Optional[str] = None) -> Engine:
        """For a model that `about` tells from others."""
        return Engine(
            n_layers,
            self.settings,
            model=about,
            profile_dir=profile_dir() if self.settings.profile is None and about is not None else None,
            n_threads=torch.get_num_threads() if self.n_threads is None else self.n_threads,
            logger=_log,
        )


def _log(level: int, text: str) -> None:
    logger.log(LEVELS[level], text)


def register(
    name: str = NAME,
    settings: Optional[Settings] = None,
    *,
    n_threads: Optional[int] = None,
    **changes: Any,
) -> None:
    """Makes attn_implementation=name mean this configuration, for every model that is called from now on.

    Args:
        name: several configurations may have several names; the same name again replaces what it meant.
        settings: see lessismore.Settings; any field of it may be given by its name instead, such as budget=1024. Layers are
            counted among the full-attention layers of the model. An interval is not for beams on a GPU, nor for texts that take turns there.
            A profile is in the user's cache by default, by the model's configuration and samples of its weights.
        n_threads: threads per layer; default: as many as torch uses when the model is first called.

    Raises:
        ArgumentError, TypeError: a value is out of range, or no number; the text names it.
        LibraryError: the shared library is missing or of another version.
    """
    if name in ALL_ATTENTION_FUNCTIONS and not isinstance(ALL_ATTENTION_FUNCTIONS[name], _Attention):
        raise ArgumentError(f"name = {name!r} is an attention function of transformers")
    configuration = _Configuration(changed(settings, changes), n_threads)
    configuration.engine(MAX_LAYERS).close()  # tells what is wrong with the values
    ALL_ATTENTION_FUNCTIONS.register(name, _Attention(configuration))
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, _mask)


def check(model: torch.nn.Module) -> None:
    """Says right after loading what the first call would.

    Raises:
        UnsupportedError: the model, or one of its layers, cannot be offloaded; the text names it and why.
        ArgumentError: the model has another attn_implementation, or lacks a layer that was to choose.
    """
    config: Any = model.config
    config = config.get_text_config()
    function = ALL_ATTENTION_FUNCTIONS.get(config._attn_implementation)
    if not isinstance(function, _Attention):
        raise ArgumentError(f"{type(model).__name__} has attn_implementation={config._attn_implementation!r}")
    _asks(type(config))
    _layer_types(config)
    met = 0
    for module in model.modules():
        if getattr(module, "config", None) is config and hasattr(module, "layer_idx") and hasattr(module, "is_causal"):
            layer = _meet(function.configuration, module)
            _last.model = layer.model.weak
            weight: torch.Tensor = next(module.parameters())
            dtype = weight.dtype  # of query and key, too, unless weights are quantised or autocast has its way
            if not dtype.is_floating_point or dtype.itemsize == 1 or torch.is_autocast_enabled("cuda"):
                dtype = torch.float16
            if layer.index >= 0:
                head_dim = int(getattr(module, "head_dim", HEAD_DIM))
                try:
                    for name in ("query", "key"):
                        _torch.check(name, weight.device, dtype, head_dim)
                except UnsupportedError as e:
                    raise UnsupportedError(f"{layer.name}: {e}") from None
            met += 1
        elif getattr(module, "is_causal", True) is False and _attends(module) is function:
            _meet(function.configuration, module)  # says why not
    if not met:
        raise UnsupportedError(f"{type(model).__name__} has no attention layer that could be offloaded")


def _attends(module: torch.nn.Module) -> Any:
    """The function that a module's configuration names."""
    return ALL_ATTENTION_FUNCTIONS.get(getattr(getattr(module, "config", None), "_attn_implementation", None))


def stats(model: torch.nn.Module) -> dict[str, Any]:
    """What was done for a model: lim_stats in the C header, and

    layers, selection_layers: of the model's full-attention layers, how many there are and which ones choose now.
    layers_from: "given", "measured", "profile", "rule"; "unmeasured": all are dense so far.
    events: what the guard and measurements did, and when.
    prompt_calls: calls of such layers with several query tokens, left to torch.
    passed_calls: calls of layers that cannot take part (sliding windows, chunks), left to torch. These two may
        miss some where threads share a model.

    Waits for the GPU that the model is on, if it is on one; its steps are counted as they finish.
    Raises Error when the model has not been called with this attention.
    """
    of = _serves(model)
    found = of.engine.report()
    contexts = found["contexts"]
    latest = max(contexts, key=lambda c: c["steps"], default={"layers_from": "unmeasured", "selection_layers": []})
    choice = next((m["choice"] for m in found["models"]), latest["selection_layers"])
    return {
        **of.engine.stats(),
        "layers": len(of.offloaded),
        "selection_layers": choice,
        "layers_from": latest["layers_from"],
        "events": [event for c in contexts for event in c.get("events", [])],
        "prompt_calls": of.prompt_calls,
        "passed_calls": of.passed_calls,
    }


def report(model: torch.nn.Module) -> dict[str, Any]:
    """The whole of what was counted, learned and traced for a model, as `lessismore report` takes it. Raises Error."""
    return _serves(model).engine.report()


def _serves(model: torch.nn.Module) -> _Model:
    found = {id(m): m for m in (_layers[l].model for l in model.modules() if l in _layers)}
    if not found:
        raise Error(f"{type(model).__name__} has not been called with attn_implementation={NAME!r} yet")
    if len(found) > 1:
        raise Error(f"{type(model).__name__} holds {len(found)} language models: ask for the statistics of one")
    (of,) = found.values()
    of.read()
    return of


class _Model:
    """The language model that a group of attention layers forms: its engine, and its threads' decoders."""

    def __init__(self, configuration: _Configuration, config: Any, first: torch.nn.Module) -> None:
        self.configuration, self.config = configuration, config
        self.types = _layer_types(config)
        offloaded = [i for i, kind in enumerate(self.types) if kind == OFFLOADED]
        if not offloaded:
            kinds = ", ".join(sorted(set(self.types)))
            raise UnsupportedError(f"{_named(config)} has no full-attention layer: {kinds}")
        self.offloaded = {layer: index for index, layer in enumerate(offloaded)}
        self.members: dict[int, weakref.ref[torch.nn.Module]] = {}
        self.engine = configuration.engine(len(offloaded), _about(config, first))
        self.prompt_calls = self.passed_calls = 0
        self.short_calls = 0  # of several query tokens behind others, one after another
        self.short_said = False
        self.weak = weakref.ref(self)
        self.engine.decoder().close()  # an engine tells where its layers come from through its decoders
        self._threads = threading.local()
        self._on_gpus: weakref.WeakSet[CudaDecoder] = weakref.WeakSet()

    def decoder(self, query: torch.Tensor) -> "CpuDecoder | CudaDecoder":
        """This thread's, for where the query is."""
        try:
            mine: CpuDecoder | CudaDecoder = self._threads.on_gpu if query.is_cuda else self._threads.decoder
        except AttributeError:
            if query.is_cuda:
                mine = self._threads.on_gpu = CudaDecoder(self.engine)
                with _lock:
                    self._on_gpus.add(mine)
            else:
                mine = self._threads.decoder = CpuDecoder(self.engine, lasts=(self.configuration.settings.interval or 1) > 1)
        return mine

    def short(self, layer: _Layer) -> None:
        """Says once that nothing is decoded sparsely where each call checks a draft."""
        self.short_calls += 1
        if self.short_calls == SHORT_CALLS and not self.short_said:
            self.short_said = True
            logger.warning(
                f"{layer.name}: nothing is decoded sparsely: {SHORT_CALLS} calls one after another had several query tokens, "
                "which torch attends to. Assisted generation does that (assistant_model, prompt_lookup_num_tokens), and so "
                "does a prompt in small pieces"
            )

    def read(self) -> None:
        """Brings what was counted on GPUs."""
        with _lock:
            decoders = list(self._on_gpus)
        for decoder in decoders:
            decoder.read()


def _about(config: Any, first: torch.nn.Module) -> str:
    """What tells a model from others of its shape: its configuration, and samples of a layer's weights."""
    settings = {k: v for k, v in config.to_dict().items() if not k.startswith("_") and k not in PASSING}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, weight in sorted(first.named_parameters()):
        if weight.is_meta:  # refused by whoever looks at the tensors
            continue
        some = weight.detach().reshape(-1)
        some = some[:: max(1, some.numel() // 256)].to(torch.float32).cpu()
        digest.update(f"{name} {tuple(weight.shape)}".encode() + some.numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class _Layer:
    model: _Model
    index: int  # among those that take part; -1: passed on
    name: str


_layers: weakref.WeakKeyDictionary[torch.nn.Module, _Layer] = weakref.WeakKeyDictionary()
_lock = threading.Lock()
_last = threading.local()  # .model: whose layer was last called on this thread, weakly


class _Attention:
    """The function that models call, once per layer."""

    def __init__(self, configuration: _Configuration) -> None:
        self.configuration = configuration

    # Traced, it would compute something else.
    @torch.compiler.disable(reason="lessismore calls C")  # type: ignore[untyped-decorator]
    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Optional[torch.Tensor],
        scaling: Optional[float] = None,
        softcap: Optional[float] = None,
        s_aux: Optional[torch.Tensor] = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        layer = _layers.get(module)
        if layer is None or layer.model.configuration is not self.configuration:
            layer = _meet(self.configuration, module)
            _check(layer, query=query, key=key, value=value)
        model = layer.model
        _last.model = model.weak
        _refuse(layer, module, query, key, value, kwargs)
        sliding = kwargs.get("sliding_window") is not None
        if layer.index >= 0 and sliding:
            raise UnsupportedError(f"{layer.name} has a sliding window, which its layer type does not say")

        if layer.index >= 0 and query.shape[2] == 1:
            model.short_calls = 0
            _check(layer, query=query, key=key, value=value)  # it may have moved, or have another type now
            sinks = None if s_aux is None else s_aux.detach().reshape(-1).to(torch.float32).contiguous()
            try:
                output = model.decoder(query).attend(layer.index, query, key, value, attention_mask, scaling or 0.0, softcap or 0.0, sinks)
            except (ArgumentError, UnsupportedError) as e:
                raise type(e)(f"{layer.name}: {e}") from None
            return output, None

        if layer.index >= 0:
            model.prompt_calls += 1
            if layer.index == 0:  # another text may begin
                model.decoder(query).forget()
                if 1 < query.shape[2] <= SHORT and query.shape[2] < key.shape[2]:
                    model.short(layer)
        else:
            model.passed_calls += 1
        if softcap is None and s_aux is None:
            out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
            return out, None
        return _eager(layer, module, query, key, value, attention_mask, scaling, softcap, s_aux), None


def _mask(*, config: Any = None, **kwargs: Any) -> Optional[torch.Tensor]:
    """The mask as torch's attention takes it. Models ask for it even if they attend by themselves: not those."""
    if config is not None:
        kind = type(config)
        if kind not in _asking:
            _asks(kind)
            _asking.add(kind)
    lengths = _lengths(**kwargs)
    if lengths is not None:  # torch's own would skip the mask of a static cache, which is not full yet
        kwargs["allow_is_causal_skip"] = False
    mask: Optional[torch.Tensor] = sdpa_mask(config=config, **kwargs)
    if mask is not None and lengths is not None:
        setattr(mask, LENGTHS, lengths)
    return mask


def _lengths(
    *,
    batch_size: int = 0,
    q_length: int = 0,
    kv_length: int = 0,
    q_offset: "int | torch.Tensor" = 0,
    kv_offset: int = 0,
    mask_function: Any = None,
    attention_mask: Optional[torch.Tensor] = None,
    device: Any = None,
    **kwargs: Any,
) -> Optional[torch.Tensor]:
    """What the rows of a decode step on a GPU see where nothing is hidden but a static cache's empty end; else None."""
    plain = attention_mask is None and mask_function is causal_mask_function and q_length == 1 and kv_offset == 0
    if not plain or device is None or torch.device(device).type != "cuda":
        return None
    if isinstance(q_offset, torch.Tensor):
        return (q_offset.reshape(-1)[:1] + 1).to(device, torch.int32).expand(batch_size).contiguous()
    if q_offset + 1 == kv_length:
        return None
    return torch.full((batch_size,), q_offset + 1, dtype=torch.int32, device=device)


_asking: set[type] = set()  # configurations whose models have been seen to


def _asks(config: type) -> None:
    """Raises UnsupportedError for models that do not ask transformers' interface for their attention."""
    module = sys.modules.get(config.__module__.replace("configuration_", "modeling_"))
    if module is not None and module.__name__ != config.__module__ and not hasattr(module, "ALL_ATTENTION_FUNCTIONS"):
        raise UnsupportedError(f"{config.__name__}: this model's attention cannot be replaced")


def _named(config: Any) -> str:
    return getattr(config, "model_type", None) or type(config).__name__


def _layer_types(config: Any) -> list[str]:
    """Each layer's kind of attention. Raises UnsupportedError for a model with kinds that are not known."""
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedError(f"{_named(config)} is an encoder-decoder model")
    types = getattr(config, "layer_types", None)
    if types is None:
        kind = OFFLOADED
        if getattr(config, "sliding_window", None) is not None:
            kind = "sliding_attention"
        elif getattr(config, "attention_chunk_size", None) is not None:
            kind = "chunked_attention"
        types = [kind] * config.num_hidden_layers
    for i, kind in enumerate(types):
        if kind != OFFLOADED and kind not in PASSED and kind not in ELSEWHERE:
            raise UnsupportedError(f"{_named(config)}: layer {i} is of type {kind}, which is not known")
    return list(types)


def _meet(configuration: _Configuration, module: torch.nn.Module) -> _Layer:
    """A layer that is called for the first time: of the model that this thread is in, or the first of a new one."""
    config, number = getattr(module, "config", None), getattr(module, "layer_idx", None)
    kind = type(module).__name__
    if config is None or not isinstance(number, int):
        raise UnsupportedError(f"{kind} does not say which layer of which model it is{_text_alone(configuration)}")
    if not getattr(module, "is_causal", True) or getattr(module, "is_cross_attention", False):
        raise UnsupportedError(f"{kind}, layer {number}: only causal self-attention can be offloaded{_text_alone(configuration)}")
    with _lock:
        known = _layers.get(module)
        if known is not None and known.model.configuration is configuration:  # another thread was first
            return known
        model: Optional[_Model] = getattr(_last, "model", lambda: None)()
        if model is None or not _fits(model, configuration, config, number, module):
            model = _Model(configuration, config, module)
        if number >= len(model.types):
            raise UnsupportedError(f"{kind}, layer {number}: {_named(config)} states {len(model.types)} layers")
        if model.types[number] in ELSEWHERE:
            raise UnsupportedError(f"{kind}, layer {number}: type {model.types[number]} should not ask for attention")
        model.members[number] = weakref.ref(module)
        layer = _Layer(model, model.offloaded.get(number, -1), f"{kind}, layer {number}")
        _layers[module] = layer
    return layer


def _text_alone(configuration: _Configuration) -> str:
    """What to do about parts of a model that see or hear."""
    functions = ALL_ATTENTION_FUNCTIONS
    name = next((n for n in functions if getattr(functions[n], "configuration", None) is configuration), NAME)
    return f'; for the language model alone: attn_implementation={{"text_config": "{name}"}}'


def _fits(model: _Model, configuration: _Configuration, config: Any, number: int, module: torch.nn.Module) -> bool:
    """Whether a layer can be of this model: not when another one has its number already."""
    member = model.members.get(number)
    return model.config is config and model.configuration is configuration and (member is None or member() in (None, module))


def _check(layer: _Layer, **tensors: torch.Tensor) -> None:
    for name, tensor in tensors.items():
        try:
            _torch.check(name, tensor.device, tensor.dtype, tensor.shape[-1])
        except UnsupportedError as e:
            raise UnsupportedError(f"{layer.name}: {e}") from None


def _refuse(
    layer: _Layer,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kwargs: dict[str, Any],
) -> None:
    """Raises UnsupportedError for what would be lost."""
    what = ""
    if module.training:
        what = "training: call model.eval()"
    elif query.requires_grad or key.requires_grad or value.requires_grad:
        what = "gradients: use torch.inference_mode() or torch.no_grad()"
    else:
        for name, given in kwargs.items():
            if given is None or name in KNOWN:
                continue
            if name == "output_attentions" and given:
                what = 'output_attentions: use attn_implementation="eager"'
            elif name == "is_causal" and not given:
                what = "is_causal=False: only causal self-attention can be offloaded"
            elif name == "cache":
                what = f"{type(given).__name__}: K/V in pages"
            elif isinstance(given, torch.Tensor):
                what = f"{name}, whose meaning is not known"
    if what:
        raise UnsupportedError(f"{layer.name}: {what}")


def _eager(
    layer: _Layer,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: Optional[torch.Tensor],
    scaling: Optional[float],
    softcap: Optional[float],
    s_aux: Optional[torch.Tensor],
) -> torch.Tensor:
    """The model's own eager function, some query tokens at a time."""
    eager: Optional[Callable[..., Any]] = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None:
        raise UnsupportedError(f"{layer.name}: capped logits or sinks, and no eager function for the prompt")
    batch, heads, tokens, _ = query.shape
    if mask is None and tokens > 1:  # causal, and whatever lies behind the prompt is unused
        key, value = key[:, :, :tokens], value[:, :, :tokens]
    slots = key.shape[2]
    more: dict[str, Any] = {} if softcap is None else {"softcap": softcap}
    if s_aux is not None:
        more["s_aux"] = s_aux
    width = max(1, EAGER_LOGITS // (batch * heads * slots))
    parts = []
    for start in range(0, tokens, width):
        end = min(start + width, tokens)
        if mask is not None:
            visible = mask[:, :, start:end, :slots]
        elif tokens > 1:
            row = torch.arange(start, end, device=query.device)
            visible = (torch.arange(slots, device=query.device) <= row[:, None])[None, None]
        else:
            visible = None
        if visible is not None and visible.dtype == torch.bool:
            lowest = torch.finfo(query.dtype).min
            visible = torch.where(visible, torch.zeros((), dtype=query.dtype), lowest)
        out, _ = eager(module, query[:, :, start:end], key, value, visible, scaling=scaling, dropout=0.0, **more)
        parts.append(out)
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
