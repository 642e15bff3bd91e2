"""A Llama or Qwen model in NumPy, float32: small enough to be read, and open where methods differ, in the attention."""

from __future__ import annotations

import pathlib
from typing import Optional, Protocol, Sequence

import numpy as np

from . import device, weights
from .weights import Array, Tensors

CHUNKS = {"cpu": 128, "cuda": 512}  # tokens that are best computed at once


class Attend(Protocol):
    """Attention of one layer: query [kv_heads, group, m, dim] at positions first...; key, value [kv_heads, first + m, dim].

    Returns [kv_heads, group, m, dim].
    """

    def __call__(self, layer: int, query: Array, key: Array, value: Array, first: int) -> Array: ...


class Cache:
    """Keys (rotated) and values of one sequence. Setting length back forgets what lies behind."""

    def __init__(self, layers: int, kv_heads: int, capacity: int, dim: int, like: Array) -> None:
        self.key = np.zeros((layers, kv_heads, capacity, dim), np.float32, like=like)
        self.value = np.zeros_like(self.key)
        self.length = 0


class Model:
    """Of a folder in the form of Hugging Face transformers, or a GGUF file; on a device of device.NAMES.

    Raises OSError, ImportError, and ValueError for a model that would be another one if it was computed here.
    """

    def __init__(self, path: pathlib.Path, where: str = "cpu") -> None:
        arrays = device.module(where)
        shape, tensors = weights.read(path)
        tensors = {name: arrays.asarray(tensor) for name, tensor in tensors.items()}
        self.chunk = CHUNKS[where]
        self.layers, self.heads, self.kv_heads, self.dim = shape.layers, shape.heads, shape.kv_heads, shape.dim
        self.positions, self.epsilon, self._rates = shape.positions, shape.epsilon, shape.rates
        self.embedding = _taken(tensors, "model.embed_tokens.weight")
        self.output = tensors.pop("lm_head.weight", self.embedding)
        self.norm = _taken(tensors, "model.norm.weight")
        self.blocks = [_Block(tensors, f"model.layers.{i}.") for i in range(self.layers)]
        if tensors:
            raise ValueError(f"{path} has weights that are not computed here: {', '.join(sorted(tensors)[:3])}")

    def cache(self, capacity: Optional[int] = None) -> Cache:
        return Cache(self.layers, self.kv_heads, capacity or self.positions, self.dim, self.embedding)

    def run(self, tokens: Sequence[int], cache: Cache, attend: Attend, last: Optional[int] = None) -> Array:
        """Appends the tokens to the cache; logits [tokens, vocabulary] behind each, or behind so many of the
        last, in the host's memory."""
        return device.host(self._run(tokens, cache, attend, last))

    def next(self, tokens: Sequence[int], cache: Cache, attend: Attend) -> Array:
        """Appends the tokens to the cache; the likeliest token behind each, in the host's memory."""
        return device.host(self._run(tokens, cache, attend, None).argmax(-1))

    def _run(self, tokens: Sequence[int], cache: Cache, attend: Attend, last: Optional[int]) -> Array:
        m, first = len(tokens), cache.length
        end = first + m
        x = self.embedding[np.asarray(tokens, like=self.embedding)]
        for i, block in enumerate(self.blocks):
            h = self._normed(x, block.input_norm)
            query, key = (h @ of + bias for of, bias in ((block.query, block.query_bias), (block.key, block.key_bias)))
            query = self._rotated(self._normed(query.reshape(m, self.heads, self.dim), block.query_norm), first)
            key = self._rotated(self._normed(key.reshape(m, self.kv_heads, self.dim), block.key_norm), first)
            value = (h @ block.value + block.value_bias).reshape(m, self.kv_heads, self.dim)
            cache.key[i, :, first:end] = key
            cache.value[i, :, first:end] = value.transpose(1, 0, 2)
            grouped = query.reshape(self.kv_heads, self.heads // self.kv_heads, m, self.dim)
            out = attend(i, grouped, cache.key[i, :, :end], cache.value[i, :, :end], first)
            x = x + out.reshape(self.heads, m, self.dim).transpose(1, 0, 2).reshape(m, -1) @ block.out
            h = self._normed(x, block.post_norm)
            gate = h @ block.gate
            x = x + (gate / (1 + np.exp(-gate)) * (h @ block.up)) @ block.down
        cache.length = end
        if last == 0:
            return np.zeros((0, len(self.output)), np.float32)
        logits: Array = self._normed(x[m - last :] if last is not None else x, self.norm) @ self.output.T
        return logits

    def _normed(self, x: Array, weight: Optional[Array]) -> Array:
        if weight is None:
            return x
        normed: Array = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + self.epsilon) * weight
        return normed

    def _rotated(self, x: Array, first: int) -> Array:
        """[m, heads, dim] to [heads, m, dim], each pair of halves turned by its position."""
        x = x.transpose(1, 0, 2)
        half = self.dim // 2
        a, b = x[..., :half], x[..., half:]
        angles = np.arange(first, first + x.shape[1])[:, None] * self._rates
        cos, sin = (np.asarray(of.astype(np.float32), like=x) for of in (np.cos(angles), np.sin(angles)))
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


class _Block:
    def __init__(self, tensors: Tensors, prefix: str) -> None:
        def matrix(name: str) -> Array:
            return _taken(tensors, f"{prefix}{name}.weight").T.copy()

        def bias(name: str) -> Array:
            return tensors.pop(f"{prefix}self_attn.{name}_proj.bias", np.zeros(1, np.float32, like=self.query))

        self.query, self.key, self.value = (matrix(f"self_attn.{n}_proj") for n in "qkv")
        self.query_bias, self.key_bias, self.value_bias = map(bias, "qkv")
        self.out = matrix("self_attn.o_proj")
        self.gate, self.up, self.down = (matrix(f"mlp.{n}_proj") for n in ("gate", "up", "down"))
        self.query_norm, self.key_norm = (tensors.pop(f"{prefix}self_attn.{n}_norm.weight", None) for n in "qk")
        self.input_norm = _taken(tensors, prefix + "input_layernorm.weight")
        self.post_norm = _taken(tensors, prefix + "post_attention_layernorm.weight")


def _taken(tensors: Tensors, name: str) -> Array:
    if name not in tensors:
        raise ValueError(f"the model has no weights {name}")
    return tensors.pop(name)
