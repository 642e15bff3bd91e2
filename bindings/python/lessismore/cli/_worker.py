"""Holds one context in llama-cpp-python and decodes when it is told to: JSON lines in, JSON lines out.

First line: {"model", "context", "threads", "kv", "flash", "enable": arguments or absent}; then {"steps": n}, answered
by {"ms": [...]}, each time from the same position on; then {"end": true}.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from typing import Any

from . import _llama

BLOCK = 512
TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "bf16": 30}


class Context:
    """A model and one long sequence."""

    def __init__(self, job: dict[str, Any]) -> None:
        from llama_cpp import llama_cpp as c

        self.c = c
        _llama.quiet()
        if "enable" in job:
            from .. import llama_cpp as ours

            ours.enable(**job["enable"])
        c.llama_backend_init()
        model_params = c.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self.model = c.llama_model_load_from_file(job["model"].encode(), model_params)
        if not self.model:
            raise SystemExit(f"the host cannot load {job['model']}")
        params = c.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = job["context"] + 2 * BLOCK, BLOCK, BLOCK, 2
        params.n_threads = params.n_threads_batch = job["threads"]
        params.flash_attn_type = int(job["flash"])
        params.type_k = params.type_v = TYPES[job["kv"]]
        params.kv_unified = True
        self.ctx = c.llama_init_from_model(self.model, params)
        if not self.ctx:
            raise SystemExit(f"the host cannot make this context: {job}")
        self.memory = c.llama_get_memory(self.ctx)
        self.batch = c.llama_batch_init(BLOCK, 0, 1)
        self.vocabulary = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self.model))

    def decode(self, tokens: list[int], position: int, sequence: int) -> None:
        b = self.batch
        b.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            b.token[i], b.pos[i], b.n_seq_id[i], b.seq_id[i][0] = token, position + i, 1, sequence
            b.logits[i] = i == len(tokens) - 1
        if code := self.c.llama_decode(self.ctx, b):
            raise SystemExit(f"llama_decode returned {code}")
        self.c.llama_get_logits_ith(self.ctx, len(tokens) - 1)  # waits for it

    def fill(self, length: int) -> int:
        """About so many tokens in sequence 0; returns how many. One block is computed, the others but the last are its copies.

        The last one is computed where it stands: a host shows no order of copied tokens, and a row is sparse only where its
        newest ones are known."""
        c, step = self.c, 7919  # any text will do
        block = min(BLOCK, length)
        tokens = [3 + i * step % (min(self.vocabulary, 50_000) - 6) for i in range(block)]
        self.decode(tokens, 0, 1)
        size = c.llama_state_seq_get_size(self.ctx, 1)
        state = (ctypes.c_uint8 * size)()
        if c.llama_state_seq_get_data(self.ctx, state, size, 1) != size:
            raise SystemExit("the host cannot save a sequence")
        count = length // block
        for i in range(count - 1):
            c.llama_memory_seq_rm(self.memory, 1, -1, -1)
            if c.llama_state_seq_set_data(self.ctx, state, size, 1) != size:
                raise SystemExit("the host cannot restore a sequence")
            if i:
                c.llama_memory_seq_add(self.memory, 1, -1, -1, block * i)
            c.llama_memory_seq_cp(self.memory, 1, 0, -1, -1)
        c.llama_memory_seq_rm(self.memory, 1, -1, -1)
        self.decode(tokens, block * (count - 1), 0)
        return count * block

    def steps(self, position: int, count: int) -> list[float]:
        """Milliseconds of each of so many tokens, which are removed again."""
        ms = []
        for i in range(count):
            start = time.perf_counter()
            self.decode([3 + i], position + i, 0)
            ms.append((time.perf_counter() - start) * 1e3)
        self.c.llama_memory_seq_rm(self.memory, 0, position, -1)
        return ms

    def free(self) -> None:
        self.c.llama_batch_free(self.batch)
        self.c.llama_free(self.ctx)
        self.c.llama_model_free(self.model)


def main() -> None:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever the host prints goes elsewhere
    job = json.loads(sys.stdin.readline())
    context = Context(job)
    position = context.fill(job["context"])
    context.steps(position, 2)  # the first one moves the keys to their positions
    print(json.dumps({"filled": position}), file=out)
    for line in sys.stdin:
        asked = json.loads(line)
        if "steps" not in asked:
            break
        print(json.dumps({"ms": context.steps(position, asked["steps"])}), file=out)
    context.free()
    print(json.dumps({"end": True}), file=out)


if __name__ == "__main__":
    main()
