"""Makes a copy of the reasoner whose weights are off by as much as they are large: of its drafts two in three are right."""

from __future__ import annotations

from pathlib import Path

import hostlib
import numpy as np


def make(path: Path) -> Path:
    import gguf  # which a machine that makes no model need not have

    raw = bytearray(hostlib.REASONER.read_bytes())
    rng = np.random.default_rng(7)
    for tensor in gguf.GGUFReader(hostlib.REASONER).tensors:
        if tensor.data.dtype == np.float16:
            start = int(tensor.data_offset)
            values = np.frombuffer(raw, np.float16, tensor.data.size, start).astype(np.float32)
            values *= 1 + rng.standard_normal(values.size, np.float32)
            raw[start : start + values.size * 2] = values.astype(np.float16).tobytes()
    path.write_bytes(raw)
    return path
