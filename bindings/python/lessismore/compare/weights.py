"""What a model's files say: its shape, and its weights as float32, under the names that transformers gives them.

A folder of a transformers model (config.json, *.safetensors), or a GGUF file, dequantised by the package gguf.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from typing import Any, Optional

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Tensors = dict[str, Array]

ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
FILES = ("llama", "qwen2", "qwen3")  # the same in GGUF
TYPES = {"F16": np.float16, "F32": np.float32, "BF16": np.uint16}
HEADER = 1 << 24  # bytes that a header may have
PLAIN = ("default", "linear", "llama3")  # ways to stretch positions


@dataclasses.dataclass(frozen=True)
class Shape:
    """A Llama or Qwen model: RMS norms, rotated keys, grouped heads, a gated MLP."""

    layers: int
    heads: int
    kv_heads: int
    dim: int  # of a head
    positions: int  # that it was trained for
    epsilon: float
    rates: Array  # radians for each position, of each pair of channels


def read(path: pathlib.Path) -> tuple[Shape, Tensors]:
    """Raises OSError, ImportError, and ValueError for what this is no implementation of."""
    if not path.is_dir():
        return _gguf(path)
    config = json.loads((path / "config.json").read_text())
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{path} has no weights: no .safetensors file")
    tensors: Tensors = {}
    for weights in files:
        tensors.update(_safetensors(weights))
    if config.get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)
    elif "lm_head.weight" not in tensors:
        raise ValueError(f"{path} has no weights lm_head.weight")
    return _shape(path, config), tensors


def _shape(path: pathlib.Path, config: dict[str, Any]) -> Shape:
    (architecture,) = config.get("architectures") or [None]
    if architecture not in ARCHITECTURES:
        raise ValueError(f"{path}: {architecture} is none of {', '.join(ARCHITECTURES)}")
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"{path}: the activation {config['hidden_act']} is not computed here, only silu")
    if config.get("use_sliding_window") or "sliding_attention" in (config.get("layer_types") or []):
        raise ValueError(f"{path}: layers with a sliding window are not computed here")
    heads = config["num_attention_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // heads
    return Shape(
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        dim=dim,
        positions=config["max_position_embeddings"],
        epsilon=config["rms_norm_eps"],
        rates=_rates(path, config, dim),
    )


def _rates(path: pathlib.Path, config: dict[str, Any], dim: int) -> Array:
    said = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(said.get("rope_theta") or config.get("rope_theta") or 10000.0)
    rates = theta ** (-np.arange(0, dim, 2) / dim)
    kind = said.get("rope_type") or said.get("type") or "default"
    if kind not in PLAIN or config.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"{path}: positions are rotated in a way that is not computed here ({kind})")
    if kind == "linear":
        return np.asarray(rates / said["factor"])
    if kind == "llama3":  # long waves are stretched, short ones are not, and between them in part
        trained, low, high = said["original_max_position_embeddings"], said["low_freq_factor"], said["high_freq_factor"]
        kept = np.clip((trained * rates / (2 * math.pi) - low) / (high - low), 0, 1)
        return np.asarray(rates * (kept + (1 - kept) / said["factor"]))
    return np.asarray(rates)


def _safetensors(path: pathlib.Path) -> Tensors:
    """All tensors of a file, as float32."""
    with path.open("rb") as f:
        size = int.from_bytes(f.read(8), "little")
        if size > HEADER:
            raise ValueError(f"{path} is no safetensors file")
        header = json.loads(f.read(size))
        data = f.read()
    found = {}
    for name, of in header.items():
        if name == "__metadata__":
            continue
        if of["dtype"] not in TYPES:
            raise ValueError(f"{path}: {name} has type {of['dtype']}")
        start, end = of["data_offsets"]
        tensor: Array = np.frombuffer(data[start:end], TYPES[of["dtype"]]).reshape(of["shape"])
        if of["dtype"] == "BF16":  # the upper half of a float32
            tensor = (tensor.astype(np.uint32) << 16).view(np.float32)
        found[name] = tensor.astype(np.float32)
    return found


# ---- GGUF ----

OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
INNER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _gguf(path: pathlib.Path) -> tuple[Shape, Tensors]:
    with path.open("rb") as f:
        if f.read(4) != b"GGUF":
            raise ValueError(f"{path} is no GGUF file, and no folder of a transformers model")
    try:
        import gguf
    except ImportError as e:
        raise ImportError(f"the package gguf is needed to read the weights of a GGUF file: {e}") from e
    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    if architecture not in FILES:
        raise ValueError(f"{path}: a model of the kind {architecture} is not computed here; {', '.join(FILES)} are")

    def says(key: str, otherwise: Optional[Any] = None) -> Any:
        field = reader.fields.get(f"{architecture}.{key}")
        if field is None and otherwise is None:
            raise ValueError(f"{path} does not say {architecture}.{key}")
        return otherwise if field is None else field.contents()

    heads = says("attention.head_count")
    dim = says("attention.key_length", says("embedding_length") // heads)
    if says("expert_count", 0) or says("rope.scaling.type", "none") not in ("none", "linear") or says("rope.dimension_count", dim) != dim:
        raise ValueError(f"{path}: experts, stretched positions and heads that are rotated in part are not computed here")
    tensors = {t.name: gguf.dequantize(t.data, t.tensor_type).astype(np.float32) for t in reader.tensors}
    rates = float(says("rope.freq_base", 10000.0)) ** (-np.arange(0, dim, 2) / dim) / float(says("rope.scaling.factor", 1.0))
    rates = rates / tensors.pop("rope_freqs.weight", 1.0)
    kv_heads = says("attention.head_count_kv", heads)
    shape = Shape(
        layers=says("block_count"),
        heads=heads,
        kv_heads=kv_heads,
        dim=dim,
        positions=says("context_length"),
        epsilon=says("attention.layer_norm_rms_epsilon"),
        rates=np.asarray(rates),
    )
    turned = {"attn_q": heads, "attn_k": kv_heads} if architecture == "llama" else {}
    return shape, {_name(name): _halves(name, tensor, turned) for name, tensor in tensors.items()}


def _name(name: str) -> str:
    """Of a tensor, in transformers; an unknown one keeps its own, for Model to refuse."""
    stem, _, kind = name.rpartition(".")
    if stem in OUTER:
        return f"{OUTER[stem]}.{kind}"
    block, _, part = stem.removeprefix("blk.").partition(".")
    return f"model.layers.{block}.{INNER[part]}.{kind}" if part in INNER else name


def _halves(name: str, tensor: Array, turned: dict[str, int]) -> Array:
    """llama.cpp rotates neighbours in a Llama model, transformers the halves of a head: rows change their places."""
    part = name.split(".")[-2]
    if part not in turned:
        return tensor
    return np.ascontiguousarray(tensor.reshape(turned[part], -1, 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape))
