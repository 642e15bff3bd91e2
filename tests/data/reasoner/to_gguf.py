#!/usr/bin/env python3
"""The reasoner as a GGUF file, for llama.cpp and what is built on it: made from model.safetensors when it is needed.

    python3 tests/data/reasoner/to_gguf.py     prints the file's path

Needs the standard library only, so that every Python that runs a host can make it, on machines without a network too.
"""

from __future__ import annotations

import array
import json
import os
import struct
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
OUTPUT = FOLDER.parents[2] / "build" / "reasoner-f16.gguf"
SOURCES = [FOLDER / name for name in ("config.json", "model.safetensors", "tokenizer.json")] + [Path(__file__)]

ALIGNMENT = 32
F32, F16 = 0, 1  # ggml's tensor types
U32, I32, FLOAT, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9  # GGUF's value types
CONTROL, NORMAL = 3, 1  # token types

# Names in a block: ggml's, and those of transformers.
BLOCK = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def path() -> Path:
    """The GGUF file, made first where it is missing or older than what it is made from. Safe among processes."""
    if not OUTPUT.exists() or OUTPUT.stat().st_mtime < max(source.stat().st_mtime for source in SOURCES):
        OUTPUT.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(prefix=OUTPUT.name, dir=OUTPUT.parent)
        try:
            with os.fdopen(handle, "wb") as f:
                f.write(convert())
            os.chmod(part, 0o644)
            os.replace(part, OUTPUT)
        except BaseException:
            os.unlink(part)
            raise
    return OUTPUT


def convert(tied: bool = True) -> bytes:
    """Matrices stay float16, norms become float32, as llama.cpp wants them. Not tied: the output matrix is a tensor of its own."""
    config = json.loads((FOLDER / "config.json").read_text())
    tensors = read_tensors(FOLDER / "model.safetensors")
    infos, data = [], bytearray()
    wanted = list(names(config["num_hidden_layers"]))
    if not tied:
        tensors["output"] = tensors["model.embed_tokens.weight"]
        wanted.append(("output.weight", "output"))
    for name, source in wanted:
        shape, raw = tensors.pop(source)
        kind = F16
        if len(shape) == 1:
            kind, raw = F32, array.array("f", struct.unpack(f"<{shape[0]}e", raw)).tobytes()
        infos.append(string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, len(data)))
        data += raw + bytes(-len(raw) % ALIGNMENT)
    if tensors:
        raise ValueError(f"model.safetensors has tensors without a name in GGUF: {', '.join(tensors)}")
    fields = metadata(config)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(fields)) + b"".join(fields + infos)
    return head + bytes(-len(head) % ALIGNMENT) + data


def names(layers: int):
    """Pairs of names, ggml's and transformers', in the file's order. The output matrix is the embedding."""
    yield "token_embd.weight", "model.embed_tokens.weight"
    for i in range(layers):
        for ours, theirs in BLOCK.items():
            yield f"blk.{i}.{ours}.weight", f"model.layers.{i}.{theirs}.weight"
    yield "output_norm.weight", "model.norm.weight"


def read_tensors(file: Path) -> dict[str, tuple[list[int], bytes]]:
    with file.open("rb") as f:
        header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
        data = f.read()
    header.pop("__metadata__", None)
    if other := {of["dtype"] for of in header.values()} - {"F16"}:
        raise ValueError(f"{file} has tensors of {', '.join(sorted(other))}, not of F16 alone")
    return {name: (of["shape"], data[slice(*of["data_offsets"])]) for name, of in header.items()}


def metadata(config: dict) -> list[bytes]:
    vocabulary = json.loads((FOLDER / "tokenizer.json").read_text())["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.get)
    types = [CONTROL if len(token) > 1 else NORMAL for token in tokens]  # one token per character, others have names
    a = "qwen3."
    return [
        field("general.architecture", STRING, "qwen3"),
        field("general.name", STRING, "reasoner"),
        field(a + "context_length", U32, config["max_position_embeddings"]),
        field(a + "embedding_length", U32, config["hidden_size"]),
        field(a + "block_count", U32, config["num_hidden_layers"]),
        field(a + "feed_forward_length", U32, config["intermediate_size"]),
        field(a + "attention.head_count", U32, config["num_attention_heads"]),
        field(a + "attention.head_count_kv", U32, config["num_key_value_heads"]),
        field(a + "attention.key_length", U32, config["head_dim"]),
        field(a + "attention.value_length", U32, config["head_dim"]),
        field(a + "rope.freq_base", FLOAT, config["rope_theta"]),
        field(a + "attention.layer_norm_rms_epsilon", FLOAT, config["rms_norm_eps"]),
        field("general.file_type", U32, F16),
        field(a + "vocab_size", U32, config["vocab_size"]),
        field("tokenizer.ggml.model", STRING, "gpt2"),
        field("tokenizer.ggml.pre", STRING, "default"),
        field("tokenizer.ggml.tokens", STRING, tokens),
        field("tokenizer.ggml.token_type", I32, types),
        field("tokenizer.ggml.merges", STRING, ["! !"]),  # llama.cpp wants one; this one joins nothing
        field("tokenizer.ggml.bos_token_id", U32, config["bos_token_id"]),
        field("tokenizer.ggml.eos_token_id", U32, config["eos_token_id"]),
        field("tokenizer.ggml.padding_token_id", U32, config["pad_token_id"]),
        field("tokenizer.ggml.add_bos_token", BOOL, True),
    ]


def string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def field(key: str, kind: int, value) -> bytes:
    def one(x) -> bytes:
        return string(x) if kind == STRING else struct.pack({U32: "<I", I32: "<i", FLOAT: "<f", BOOL: "<?"}[kind], x)

    if isinstance(value, list):
        return string(key) + struct.pack("<IIQ", ARRAY, kind, len(value)) + b"".join(map(one, value))
    return string(key) + struct.pack("<I", kind) + one(value)


if __name__ == "__main__":
    print(path())
