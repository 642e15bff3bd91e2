#!/usr/bin/env python3
"""An adapter as peft writes it, for llama.cpp's --lora.

python3 to_gguf.py adapter adapter.gguf
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import gguf
import numpy as np
from base import LAYER, neighbours
from safetensors.numpy import load_file

PART = {theirs: ours for ours, theirs in LAYER.items()}
NAME = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.(.+)\.lora_([AB])\.weight")


def convert(folder: Path, to: Path, heads: int, kv_heads: int) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    writer = gguf.GGUFWriter(to, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(config["lora_alpha"]))
    for name, array in sorted(load_file(folder / "adapter_model.safetensors").items()):
        match = NAME.fullmatch(name)
        if match is None:
            raise SystemExit(f"{folder}: {name} is no part of a layer that llama.cpp adapts")
        layer, part, half = match.groups()
        if half == "B" and PART[part] in ("attn_q", "attn_k"):
            array = neighbours(array, heads if PART[part] == "attn_q" else kv_heads)
        writer.add_tensor(f"blk.{layer}.{PART[part]}.weight.lora_{half.lower()}", np.ascontiguousarray(array, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--kv-heads", type=int, default=3)
    args = parser.parse_args()
    convert(args.adapter, args.out, args.heads, args.kv_heads)


if __name__ == "__main__":
    main()
