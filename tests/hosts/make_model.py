#!/usr/bin/env python3
"""Makes GGUF models with random weights: any shape, several architectures, quickly.

    make_model.py out.gguf --preset qwen3-0.6b
    make_model.py out.gguf --arch gemma2 --layers 4 --heads 6 --kv-heads 3 --head-dim 80 --type f16

They say nothing sensible; they are for timing and for comparing one attention with
another. There is no tokenizer inside (the host works on token ids). Q4_0 weights are
drawn as finished blocks, random codes under one scale, not quantised from floats:
the shape of Qwen3-0.6B, 151,936 tokens of vocabulary included, takes seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

# Bytes whose two 4-bit codes are both in 1…15, so that weights average to zero.
_CODES = np.array([a << 4 | b for a in range(1, 16) for b in range(1, 16)], np.uint8)
_CODE_STD = float(np.sqrt(np.mean(np.arange(-7, 8) ** 2)))


@dataclass(frozen=True)
class Shape:
    arch: str = "qwen3"  # qwen3, gemma2 (soft-cap), gemma3 (sliding windows), gpt-oss (sinks), bloom (ALiBi)
    layers: int = 4
    heads: int = 8
    kv_heads: int = 2
    head_dim: int = 64
    width: int = 256
    ff: int = 512
    vocab: int = 512
    context: int = 40960
    window: int = 128  # sliding window where the architecture has one
    type: str = "f16"  # of the matrices: f16 or q4_0
    gain: float = 1.5  # of query and key norms: how sharp attention is
    seed: int = 1

    def kv_bytes(self, per_value: float = 2.0) -> int:
        """Bytes of K and V of one token in one layer."""
        return int(2 * self.kv_heads * self.head_dim * per_value)


PRESETS = {
    "qwen3-0.6b": Shape(layers=28, heads=16, kv_heads=8, head_dim=128, width=1024, ff=3072, vocab=151_936, type="q4_0"),
    "qwen3-8b": Shape(layers=36, heads=32, kv_heads=8, head_dim=128, width=4096, ff=12288, vocab=151_936, type="q4_0"),
    "odd": Shape(layers=5, heads=6, kv_heads=2, head_dim=80, width=160, ff=352, vocab=333),
    "wide": Shape(layers=4, heads=10, kv_heads=1, head_dim=256, width=192, ff=320, vocab=400),
    "gemma2": Shape(arch="gemma2", layers=6, heads=4, kv_heads=2, head_dim=64, window=96),
    "gemma3": Shape(arch="gemma3", layers=12, heads=4, kv_heads=1, head_dim=64, window=96),
    "gpt-oss": Shape(arch="gpt-oss", layers=6, heads=8, kv_heads=2, head_dim=64, window=96),
    "bloom": Shape(arch="bloom", layers=4, heads=8, kv_heads=8, head_dim=32, width=256),
}


class _Maker:
    def __init__(self, path: Path, shape: Shape):
        self.s, self.rng = shape, np.random.default_rng(shape.seed)
        self.w = gguf.GGUFWriter(str(path), shape.arch)

    def metadata(self):
        s, w = self.s, self.w
        w.add_name(f"random {s.arch}")
        w.add_tokenizer_model("no_vocab")
        w.add_vocab_size(s.vocab)
        w.add_block_count(s.layers)
        w.add_context_length(s.context)
        w.add_embedding_length(s.width)
        w.add_feed_forward_length(s.ff)
        w.add_head_count(s.heads)
        w.add_head_count_kv(s.kv_heads)
        w.add_file_type({"f16": 1, "q4_0": 2}[s.type])
        if s.arch == "bloom":
            w.add_layer_norm_eps(1e-5)
            return
        w.add_layer_norm_rms_eps(1e-6)
        w.add_key_length(s.head_dim)
        w.add_value_length(s.head_dim)
        w.add_rope_freq_base(1e6)
        if s.arch in ("gemma2", "gemma3", "gpt-oss"):
            w.add_sliding_window(s.window)
        if s.arch == "gemma2":
            w.add_attn_logit_softcapping(8.0)  # low enough to bite
            w.add_final_logit_softcapping(30.0)
        if s.arch == "gpt-oss":
            w.add_rope_dimension_count(s.head_dim)
            w.add_expert_count(4)
            w.add_expert_used_count(2)
            w.add_expert_feed_forward_length(s.ff)

    def matrix(self, name: str, *dims: int, std: float | None = None):
        """dims as numpy has them: the last one is the input."""
        std = dims[-1] ** -0.5 if std is None else std
        if self.s.type == "q4_0" and dims[-1] % 32 == 0:
            blocks = int(np.prod(dims)) // 32
            raw = np.empty((blocks, 18), np.uint8)
            raw[:, :2] = np.frombuffer(np.float16(std / _CODE_STD).tobytes(), np.uint8)
            raw[:, 2:] = _CODES[self.rng.integers(0, len(_CODES), (blocks, 16), np.uint8)]
            raw = raw.reshape(*dims[:-1], dims[-1] // 32 * 18)
            self.w.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
        else:
            x = self.rng.standard_normal(dims, dtype=np.float32) * np.float32(std)
            self.w.add_tensor(name, x.astype(np.float16))

    def vector(self, name: str, *dims: int, value: float = 1.0, std: float = 0.0):
        x = np.full(dims, value, np.float32)
        if std:
            x += self.rng.standard_normal(dims, dtype=np.float32) * np.float32(std)
        self.w.add_tensor(name, x)

    def norm(self, name: str, n: int, value: float = 1.0):
        self.vector(f"{name}.weight", n, value=value)
        if self.s.arch == "bloom":
            self.vector(f"{name}.bias", n, value=0.0, std=0.02)

    def tensors(self):
        s = self.s
        q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
        self.matrix("token_embd.weight", s.vocab, s.width, std=0.05)
        if s.arch == "bloom":
            self.norm("token_embd_norm", s.width)
        if s.arch == "gpt-oss":
            self.matrix("output.weight", s.vocab, s.width)
        self.norm("output_norm", s.width)
        for layer in range(s.layers):
            b = f"blk.{layer}."
            self.norm(b + "attn_norm", s.width)
            if s.arch == "bloom":
                self.matrix(b + "attn_qkv.weight", q + 2 * kv, s.width, std=s.gain * s.width**-0.5)
                self.vector(b + "attn_qkv.bias", q + 2 * kv, value=0.0, std=0.02)
            else:
                sharp = s.gain if s.arch in ("gemma2", "gpt-oss") else 1.0  # these have no query and key norms
                for name, n, gain in (("q", q, sharp), ("k", kv, sharp), ("v", kv, 1.0)):
                    self.matrix(f"{b}attn_{name}.weight", n, s.width, std=gain * s.width**-0.5)
                    if s.arch == "gpt-oss":
                        self.vector(f"{b}attn_{name}.bias", n, value=0.0, std=0.02)
            self.matrix(b + "attn_output.weight", s.width, q)
            if s.arch in ("bloom", "gpt-oss"):
                self.vector(b + "attn_output.bias", s.width, value=0.0, std=0.02)
            if s.arch in ("qwen3", "gemma3"):
                self.vector(b + "attn_q_norm.weight", s.head_dim, value=s.gain)
                self.vector(b + "attn_k_norm.weight", s.head_dim, value=s.gain)
            if s.arch != "qwen3" and s.arch != "bloom":
                self.norm(b + "post_attention_norm", s.width)
            if s.arch == "gpt-oss":
                self.vector(b + "attn_sinks.weight", s.heads, value=1.0, std=1.0)
                self.experts(b, 4)
                continue
            self.norm(b + "ffn_norm", s.width)
            if s.arch.startswith("gemma"):
                self.norm(b + "post_ffw_norm", s.width)
            for name, rows, cols in (("gate", s.ff, s.width), ("up", s.ff, s.width), ("down", s.width, s.ff)):
                if s.arch == "bloom" and name == "gate":
                    continue
                self.matrix(f"{b}ffn_{name}.weight", rows, cols)
                if s.arch == "bloom":
                    self.vector(f"{b}ffn_{name}.bias", rows, value=0.0, std=0.02)

    def experts(self, b: str, n: int):
        s = self.s
        self.vector(b + "ffn_gate_inp.weight", n, s.width, value=0.0, std=s.width**-0.5)
        self.vector(b + "ffn_gate_inp.bias", n, value=0.0, std=0.02)
        for name, rows, cols in (("gate", s.ff, s.width), ("up", s.ff, s.width), ("down", s.width, s.ff)):
            self.matrix(f"{b}ffn_{name}_exps.weight", n, rows, cols)
            self.vector(f"{b}ffn_{name}_exps.bias", n, rows, value=0.0, std=0.02)

    def write(self):
        self.metadata()
        self.tensors()
        self.w.write_header_to_file()
        self.w.write_kv_data_to_file()
        self.w.write_tensors_to_file()
        self.w.close()


def make(path, shape: Shape) -> Path:
    """Writes the model unless the same one is there already; returns its path."""
    path = Path(path)
    note = path.with_suffix(".shape")
    text = repr(shape)
    if path.exists() and note.exists() and note.read_text() == text:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    _Maker(part, shape).write()
    part.replace(path)
    note.write_text(text)
    return path


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("out")
    ap.add_argument("--preset", choices=PRESETS, help="shape to begin with")
    for f in dataclasses.fields(Shape):
        ap.add_argument("--" + f.name.replace("_", "-"), type=type(f.default), help=f"default {f.default}")
    args = vars(ap.parse_args())
    shape = PRESETS.get(args.pop("preset") or "", Shape())
    out = args.pop("out")
    shape = dataclasses.replace(shape, **{k: v for k, v in args.items() if v is not None})
    print(make(out, shape), shape)


if __name__ == "__main__":
    main()
