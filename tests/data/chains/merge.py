#!/usr/bin/env python3
"""The base with the adapter in it, as a folder that transformers and vLLM load.

python3 merge.py model.gguf adapter OUT --tokenizer FOLDER      FOLDER has tokenizer.json and what belongs to it
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from base import weights
from problems import END_ID
from safetensors.torch import load_file, save_file


def merged(gguf: Path, adapter: Path) -> tuple[dict[str, torch.Tensor], dict]:
    tensors, config = weights(gguf)
    described = json.loads((adapter / "adapter_config.json").read_text())
    scale = described["lora_alpha"] / described["r"]
    halves = load_file(adapter / "adapter_model.safetensors")
    for name, a in halves.items():
        if name.endswith("lora_A.weight"):
            to = name.removeprefix("base_model.model.").replace("lora_A.", "")
            tensors[to] = tensors[to] + scale * halves[name.replace("lora_A", "lora_B")].float() @ a.float()
    return tensors, config


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    args = parser.parse_args()
    tensors, config = merged(args.model, args.adapter)
    args.out.mkdir(parents=True, exist_ok=True)
    if config["tie_word_embeddings"]:
        del tensors["lm_head.weight"]
    save_file({n: t.half().contiguous() for n, t in tensors.items()}, args.out / "model.safetensors", metadata={"format": "pt"})
    more = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float16", "hidden_act": "silu"}
    more |= {"bos_token_id": 1, "eos_token_id": END_ID, "pad_token_id": END_ID, "attention_bias": False, "mlp_bias": False}
    (args.out / "config.json").write_text(json.dumps({**config, **more}, indent=2) + "\n")
    for file in args.tokenizer.iterdir():
        if file.name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"):
            shutil.copy(file, args.out)
    for name in ("task.py", "problems.py"):  # for `lessismore compare`
        shutil.copy(Path(__file__).with_name(name), args.out)


if __name__ == "__main__":
    main()
