"""Attention and selection in NumPy and float64, from the text of the method."""

import math

import numpy as np


def logits(query, key, scale=None, softcap=0.0, bias=None):
    """[heads, n] for query [heads, dim] and key [n, kv_heads, dim]; bias [heads, n]."""
    heads, dim = query.shape
    key = np.repeat(key, heads // key.shape[1], axis=1)
    x = np.einsum("hd,nhd->hn", query, key) * (dim**-0.5 if scale is None else scale)
    if softcap:
        x = softcap * np.tanh(x / softcap)
    return x if bias is None else x + bias


def attend(x, value, sinks=None):
    """[heads, dim] for logits [heads, n] and value [n, kv_heads, dim]."""
    heads = x.shape[0]
    value = np.repeat(value, heads // value.shape[1], axis=1)
    top = x.max(axis=1, keepdims=True)
    if sinks is not None:
        top = np.maximum(top, sinks[:, None])
    p = np.exp(x - top)
    total = p.sum(axis=1, keepdims=True)
    if sinks is not None:
        total += np.exp(sinks[:, None] - top)
    return np.einsum("hn,nhd->hd", p / total, value)


def select(x, budget, recency, sinks):
    """The token set's indices, ascending."""
    heads, n = x.shape
    k = min(n, budget)
    recent = math.ceil(k * recency - 1e-9)
    mid = k - recent
    if recent <= sinks:
        sinks = 0
    else:
        recent -= sinks
    candidates = range(sinks, n - recent)
    rankings = [sorted(candidates, key=lambda t: (-x[h, t], t)) for h in range(heads)]
    kept = {}
    for rank in range(mid):
        for ranking in rankings:
            if len(kept) < mid:
                kept.setdefault(ranking[rank])
    return sorted(set(range(sinks)) | set(kept) | set(range(n - recent, n)))


def quantise(x, dtype):
    """Whole numbers in -8 .. 7 times 1/4, [..., dim], as blocks of q8_0 or q4_0."""
    q = np.round(x * 4).astype(np.int64).reshape(*x.shape[:-1], -1, 32)
    scale = np.broadcast_to(np.array([0.25], np.float16).view(np.uint8), (*q.shape[:-1], 2))
    if dtype == "q8_0":
        payload = q.astype(np.int8).view(np.uint8)
    else:
        payload = ((q[..., :16] + 8) | (q[..., 16:] + 8) << 4).astype(np.uint8)
    return np.concatenate([scale, payload], axis=-1).reshape(*x.shape[:-1], -1)
