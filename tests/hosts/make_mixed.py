"""Makes GGUF models whose layers differ, with random weights, and adapters: what make_model.py's shapes cannot say.

gemma4: every fourth layer attends fully, with larger heads than the sliding ones between them; the last four read the K/V
of earlier layers. lfm2: most layers have no attention. deci: layers without attention, and with other numbers of heads.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

VOCAB = 400


class _Writer:
    def __init__(self, path, arch: str, *, layers: int, width: int, ff: int, heads, kv_heads, head_dim: int):
        self.rng, self.width = np.random.default_rng(1), width
        self.w = w = gguf.GGUFWriter(str(path), arch)
        w.add_name(f"random {arch}")
        w.add_tokenizer_model("no_vocab")
        w.add_vocab_size(VOCAB)
        w.add_block_count(layers)
        w.add_context_length(40960)
        w.add_embedding_length(width)
        w.add_feed_forward_length(ff)
        w.add_head_count(heads)
        w.add_head_count_kv(kv_heads)
        w.add_file_type(1)
        w.add_layer_norm_rms_eps(1e-6)
        w.add_key_length(head_dim)
        w.add_value_length(head_dim)
        w.add_rope_freq_base(1e6)
        self.matrix("token_embd.weight", VOCAB, width, std=0.05)

    def matrix(self, name: str, *dims: int, std: float | None = None, dtype=np.float16):
        x = self.rng.standard_normal(dims, dtype=np.float32) * np.float32(dims[-1] ** -0.5 if std is None else std)
        self.w.add_tensor(name, x.astype(dtype))

    def vector(self, name: str, n: int, value: float = 1.0):
        self.w.add_tensor(name, np.full(n, value, np.float32))

    def feed_forward(self, b: str, ff: int):
        self.vector(b + "ffn_norm.weight", self.width)
        for name, rows, cols in (("gate", ff, self.width), ("up", ff, self.width), ("down", self.width, ff)):
            self.matrix(f"{b}ffn_{name}.weight", rows, cols)

    def close(self):
        self.w.write_header_to_file()
        self.w.write_kv_data_to_file()
        self.w.write_tensors_to_file()
        self.w.close()


def gemma4(path, *, full_dim: int = 512, sliding_dim: int = 256) -> Path:
    layers, shared, width, ff, heads, kv, per_layer = 16, 4, 128, 192, 2, 1, 32
    m = _Writer(path, "gemma4", layers=layers, width=width, ff=ff, heads=heads, kv_heads=kv, head_dim=full_dim)
    full = [i % 4 == 3 for i in range(layers)]
    m.w.add_array("gemma4.attention.sliding_window_pattern", [not f for f in full])
    m.w.add_sliding_window(256)
    for name, value in (
        ("attention.shared_kv_layers", shared),
        ("attention.key_length_swa", sliding_dim),
        ("attention.value_length_swa", sliding_dim),
        ("embedding_length_per_layer_input", per_layer),
        ("rope.dimension_count", full_dim),
        ("rope.dimension_count_swa", sliding_dim),
    ):
        m.w.add_uint32(f"gemma4.{name}", value)
    m.w.add_float32("gemma4.rope.freq_base_swa", 1e4)
    m.vector("output_norm.weight", width)
    m.vector("rope_freqs.weight", full_dim // 2)
    m.matrix("per_layer_token_embd.weight", VOCAB, per_layer * layers, std=0.05)
    m.matrix("per_layer_model_proj.weight", per_layer * layers, width)
    m.vector("per_layer_proj_norm.weight", per_layer)
    for i in range(layers):
        b, dim = f"blk.{i}.", full_dim if full[i] else sliding_dim
        m.vector(b + "attn_norm.weight", width)
        m.vector(b + "attn_q_norm.weight", dim, 0.3)
        m.matrix(b + "attn_q.weight", heads * dim, width)
        m.matrix(b + "attn_output.weight", width, heads * dim)
        if i < layers - shared:
            m.vector(b + "attn_k_norm.weight", dim, 0.3)
            m.matrix(b + "attn_k.weight", kv * dim, width)
            m.matrix(b + "attn_v.weight", kv * dim, width)
        m.vector(b + "post_attention_norm.weight", width)
        m.feed_forward(b, ff)
        m.vector(b + "post_ffw_norm.weight", width)
        m.matrix(b + "inp_gate.weight", per_layer, width)
        m.matrix(b + "proj.weight", width, per_layer)
        m.vector(b + "post_norm.weight", width)
    m.close()
    return Path(path)


def lfm2(path) -> Path:
    layers, width, ff, heads, kv, attends = 10, 256, 384, 4, 2, (2, 5, 7, 9)
    dim = width // heads
    kv_heads = [kv if i in attends else 0 for i in range(layers)]
    m = _Writer(path, "lfm2", layers=layers, width=width, ff=ff, heads=heads, kv_heads=kv_heads, head_dim=dim)
    m.w.add_uint32("lfm2.shortconv.l_cache", 3)
    m.vector("token_embd_norm.weight", width)
    for i in range(layers):
        b = f"blk.{i}."
        m.vector(b + "attn_norm.weight", width)
        if i in attends:
            for name, rows in (("q", width), ("k", kv * dim), ("v", kv * dim), ("output", width)):
                m.matrix(f"{b}attn_{name}.weight", rows, width)
            for name in ("q", "k"):
                m.vector(f"{b}attn_{name}_norm.weight", dim, 1.5)
        else:
            m.matrix(b + "shortconv.conv.weight", width, 3, dtype=np.float32)
            m.matrix(b + "shortconv.in_proj.weight", 3 * width, width)
            m.matrix(b + "shortconv.out_proj.weight", width, width)
        m.feed_forward(b, ff)
    m.close()
    return Path(path)


def deci(path) -> Path:
    heads, kv_heads, width, ff, dim = [4, 4, 0, 4, 8, 4, 0, 8, 4], [2, 2, 0, 0, 2, 4, 0, 2, 1], 256, 384, 64
    m = _Writer(path, "deci", layers=len(heads), width=width, ff=ff, heads=heads, kv_heads=kv_heads, head_dim=dim)
    m.w.add_rope_dimension_count(dim)
    m.matrix("output.weight", VOCAB, width)
    m.vector("output_norm.weight", width)
    for i, (h, kv) in enumerate(zip(heads, kv_heads)):
        b = f"blk.{i}."
        if h:
            m.vector(b + "attn_norm.weight", width)
            m.matrix(b + "attn_output.weight", width, dim * h if kv else width)
        if kv:
            m.matrix(b + "attn_q.weight", dim * h, width, std=2 * width**-0.5)
            m.matrix(b + "attn_k.weight", dim * kv, width, std=2 * width**-0.5)
            m.matrix(b + "attn_v.weight", dim * kv, width)
        m.feed_forward(b, ff)
    m.close()
    return Path(path)


def adapter(path, shape, *, seed: int, rank: int = 4) -> Path:
    """A LoRA adapter of a model of make_model.py: on the queries of all its layers."""
    w, rng = gguf.GGUFWriter(str(path), shape.arch), np.random.default_rng(seed)
    w.add_type("adapter")
    w.add_string("adapter.type", "lora")
    w.add_float32("adapter.lora.alpha", float(rank))
    for i in range(shape.layers):
        b = f"blk.{i}.attn_q.weight.lora_"
        w.add_tensor(b + "a", rng.standard_normal((rank, shape.width), dtype=np.float32) * np.float32(shape.width**-0.5))
        w.add_tensor(b + "b", rng.standard_normal((shape.heads * shape.head_dim, rank), dtype=np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return Path(path)
