"""A Qwen3 model in NumPy, float32: small enough to be read, and open where methods differ, in the attention."""

from __future__ import annotations

import json
import pathlib
from typing import Any, Protocol, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

TYPES = {"F16": np.float16, "F32": np.float32}
HEADER = 1 << 24  # bytes that a header may have


class Attend(Protocol):
    """Attention of one layer: query [kv_heads, group, m, dim] at positions first...; key, value [kv_heads, first + m, dim].

    Returns [kv_heads, group, m, dim].
    """

    def __call__(self, layer: int, query: Array, key: Array, value: Array, first: int) -> Array: ...


class Cache:
    """Keys (rotated) and values of one sequence. Setting length back forgets what lies behind."""

    def __init__(self, layers: int, kv_heads: int, capacity: int, dim: int) -> None:
        self.key = np.zeros((layers, kv_heads, capacity, dim), np.float32)
        self.value = np.zeros_like(self.key)
        self.length = 0


class Model:
    """Weights of a folder in the form of Hugging Face transformers. Raises OSError, ValueError."""

    def __init__(self, folder: pathlib.Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        if config.get("architectures") != ["Qwen3ForCausalLM"] or config.get("attention_bias"):
            raise ValueError(f"{folder}: this model is no Qwen3 without biases")
        self.layers: int = config["num_hidden_layers"]
        self.heads: int = config["num_attention_heads"]
        self.kv_heads: int = config["num_key_value_heads"]
        self.dim: int = config["head_dim"]
        self.positions: int = config["max_position_embeddings"]
        self.epsilon: float = config["rms_norm_eps"]
        tensors = _tensors(folder / "model.safetensors")
        self.embedding = tensors["model.embed_tokens.weight"]
        self.output = self.embedding if config["tie_word_embeddings"] else tensors["lm_head.weight"]
        self.norm = tensors["model.norm.weight"]
        self.blocks = [_Block(tensors, f"model.layers.{i}.") for i in range(self.layers)]
        rates = float(config["rope_theta"]) ** (-np.arange(0, self.dim, 2) / self.dim)
        angles = np.arange(self.positions)[:, None] * rates
        self.cos, self.sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def cache(self) -> Cache:
        return Cache(self.layers, self.kv_heads, self.positions, self.dim)

    def run(self, tokens: Sequence[int], cache: Cache, attend: Attend) -> Array:
        """Appends the tokens to the cache; logits [tokens, vocabulary] behind each."""
        m, first = len(tokens), cache.length
        end = first + m
        x = self.embedding[np.asarray(tokens)]
        for i, block in enumerate(self.blocks):
            h = self._normed(x, block.input_norm)
            query = self._rotated(self._normed((h @ block.query).reshape(m, self.heads, self.dim), block.query_norm), first)
            key = self._rotated(self._normed((h @ block.key).reshape(m, self.kv_heads, self.dim), block.key_norm), first)
            cache.key[i, :, first:end] = key
            cache.value[i, :, first:end] = (h @ block.value).reshape(m, self.kv_heads, self.dim).transpose(1, 0, 2)
            grouped = query.reshape(self.kv_heads, self.heads // self.kv_heads, m, self.dim)
            out = attend(i, grouped, cache.key[i, :, :end], cache.value[i, :, :end], first)
            x = x + out.reshape(self.heads, m, self.dim).transpose(1, 0, 2).reshape(m, -1) @ block.out
            h = self._normed(x, block.post_norm)
            gate = h @ block.gate
            x = x + (gate / (1 + np.exp(-gate)) * (h @ block.up)) @ block.down
        cache.length = end
        logits: Array = self._normed(x, self.norm) @ self.output.T
        return logits

    def _normed(self, x: Array, weight: Array) -> Array:
        normed: Array = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + self.epsilon) * weight
        return normed

    def _rotated(self, x: Array, first: int) -> Array:
        """[m, heads, dim] to [heads, m, dim], each pair of halves turned by its position."""
        x = x.transpose(1, 0, 2)
        half = self.dim // 2
        a, b = x[..., :half], x[..., half:]
        cos, sin = self.cos[first : first + x.shape[1]], self.sin[first : first + x.shape[1]]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


class _Block:
    def __init__(self, tensors: dict[str, Array], prefix: str) -> None:
        def matrix(name: str) -> Array:
            return np.ascontiguousarray(tensors[prefix + name + ".weight"].T)

        self.query, self.key, self.value = (matrix(f"self_attn.{n}_proj") for n in "qkv")
        self.out = matrix("self_attn.o_proj")
        self.gate, self.up, self.down = (matrix(f"mlp.{n}_proj") for n in ("gate", "up", "down"))
        self.query_norm, self.key_norm = (tensors[f"{prefix}self_attn.{n}_norm.weight"] for n in "qk")
        self.input_norm = tensors[prefix + "input_layernorm.weight"]
        self.post_norm = tensors[prefix + "post_attention_layernorm.weight"]


def _tensors(path: pathlib.Path) -> dict[str, Array]:
    """All tensors of a safetensors file, as float32."""
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
        found[name] = np.frombuffer(data[start:end], TYPES[of["dtype"]]).reshape(of["shape"]).astype(np.float32)
    return found
