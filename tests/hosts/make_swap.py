"""LoRA adapters under which the reasoner reads and writes other digits, and computes with the ones that they stand for.

An adapter exchanges digits in pairs, in the embedding and in the output: a matrix whose rows are exchanged in pairs differs from
the first one by a matrix of one rank a pair. So under its adapter a problem that is written with exchanged digits has exactly one
right solution, another one than without: an answer tells which adapter has computed it.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import task
import to_gguf

PAIRS = {"next": ("01", "23", "45", "67", "89"), "nines": ("09", "18", "27", "36", "45")}


def exchanged(name: str, tokens: list[int]) -> list[int]:
    """Tokens of a text as one writes them under an adapter."""
    other = {task.ID[x]: task.ID[y] for a, b in PAIRS[name] for x, y in ((a, b), (b, a))}
    return [other.get(t, t) for t in tokens]


def base(folder: Path) -> Path:
    """The reasoner with an output matrix of its own: llama.cpp cannot adapt one matrix in both its places."""
    path = folder / "untied.gguf"
    path.write_bytes(to_gguf.convert(tied=False))
    return path


def adapter(folder: Path, name: str) -> Path:
    shape, raw = to_gguf.read_tensors(to_gguf.FOLDER / "model.safetensors")["model.embed_tokens.weight"]
    embedding = np.frombuffer(raw, np.float16).reshape(shape).astype(np.float32)
    pairs = [(task.ID[a], task.ID[b]) for a, b in PAIRS[name]]
    difference = np.stack([embedding[b] - embedding[a] for a, b in pairs])  # [pairs, embedding]
    place = np.zeros((shape[0], len(pairs)), np.float32)  # [vocabulary, pairs]
    for i, (a, b) in enumerate(pairs):
        place[a, i], place[b, i] = 1, -1
    path = folder / f"{name}.gguf"
    w = gguf.GGUFWriter(str(path), "qwen3")
    w.add_type("adapter")
    w.add_string("adapter.type", "lora")
    w.add_float32("adapter.lora.alpha", float(len(pairs)))
    w.add_tensor("output.weight.lora_a", difference)
    w.add_tensor("output.weight.lora_b", place)
    w.add_tensor("token_embd.weight.lora_a", place)
    w.add_tensor("token_embd.weight.lora_b", np.ascontiguousarray(difference.T))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def job(folder: Path) -> dict:
    """What a job of drivers/soak.py says of a server with both adapters."""
    pairs = {name: {t: exchanged(name, [t])[0] for t in map(task.ID.get, "0123456789")} for name in PAIRS}
    return {"model": str(base(folder)), "adapters": {name: str(adapter(folder, name)) for name in PAIRS}, "exchanges": pairs}
