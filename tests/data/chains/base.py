"""The base model out of its GGUF: dequantised, by transformers' names. And back: what llama.cpp calls an adapter's tensors."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch

LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def weights(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """The model's tensors in float32 by their names in transformers, and what LlamaConfig takes."""
    reader = gguf.GGUFReader(path)

    def value(key):
        return reader.get_field(f"llama.{key}").contents()

    heads, kv_heads = value("attention.head_count"), value("attention.head_count_kv")
    tensors = {}
    for tensor in reader.tensors:
        name, kind = tensor.name.rsplit(".", 1)
        array = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if name.startswith("blk."):
            _, layer, part = name.split(".")
            if part in ("attn_q", "attn_k"):
                array = halves(array, heads if part == "attn_q" else kv_heads)
            name = f"model.layers.{layer}.{LAYER[part]}"
        else:
            name = OTHER[name]
        tensors[f"{name}.{kind}"] = torch.from_numpy(np.ascontiguousarray(array))
    config = dict(
        hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=value("context_length"),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        rope_theta=value("rope.freq_base"),
        vocab_size=len(tensors["model.embed_tokens.weight"]),
        tie_word_embeddings="lm_head.weight" not in tensors,
    )
    tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"])
    return tensors, config


def halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a head from llama.cpp's order, where a rotated pair is two neighbours, to transformers', where it is half a head apart."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def neighbours(rows: np.ndarray, heads: int) -> np.ndarray:
    """The other way round."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
