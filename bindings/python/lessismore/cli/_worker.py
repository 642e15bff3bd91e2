"""Holds one context in llama-cpp-python and decodes when it is told to: JSON lines in, JSON lines out (_process.py).

First line: {"model", "context", "threads", "kv", "flash", "enable": arguments or absent}, answered by {"result": null} once
the context is there. Each line after it is [name, arguments] of one of CALLS, a method of Context, answered by {"result": its
value}; null ends the process.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from typing import Any, Optional

import numpy as np
import numpy.typing as npt

from . import _llama

BLOCK = 512
TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "bf16": 30}
CALLS = ("fill", "time", "show", "walk", "place", "back", "save", "load", "report")
Logits = npt.NDArray[np.float32]


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
        self.length = 0  # tokens that sequence 0 has

    def decode(self, tokens: list[int], position: int, sequence: int) -> None:
        b = self.batch
        b.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            b.token[i], b.pos[i], b.n_seq_id[i], b.seq_id[i][0] = token, position + i, 1, sequence
            b.logits[i] = i == len(tokens) - 1
        if code := self.c.llama_decode(self.ctx, b):
            raise SystemExit(f"llama_decode returned {code}")
        self.c.llama_get_logits_ith(self.ctx, len(tokens) - 1)  # waits for it

    def show(self, tokens: list[int]) -> None:
        """Puts tokens behind sequence 0, as a prompt: many at once."""
        for i in range(0, len(tokens), BLOCK):
            self.decode(tokens[i : i + BLOCK], self.length, 0)
            self.length += len(tokens[i : i + BLOCK])

    def next(self, token: int) -> Logits:
        """Puts one token behind sequence 0; the logits of what follows, in the host's memory."""
        self.decode([token], self.length, 0)
        self.length += 1
        return np.ctypeslib.as_array(self.c.llama_get_logits_ith(self.ctx, -1), (self.vocabulary,))

    def walk(self, tokens: list[int], logits: Optional[str] = None) -> list[float]:
        """Milliseconds that each of these tokens takes, one at a time. What follows each goes to a file, as f32."""
        out = None if logits is None else np.memmap(logits, np.float32, "w+", shape=(len(tokens), self.vocabulary))
        ms = []
        for i, token in enumerate(tokens):
            start = time.perf_counter()
            found = self.next(token)
            ms.append((time.perf_counter() - start) * 1e3)
            if out is not None:
                out[i] = found
        return ms

    def place(self) -> int:
        """How many tokens sequence 0 has."""
        return self.length

    def back(self, length: int) -> bool:
        """Takes tokens away from sequence 0 again; false: this model's memory cannot."""
        if not self.c.llama_memory_seq_rm(self.memory, 0, length, -1):
            return False
        self.length = length
        return True

    def save(self, file: str) -> int:
        """Sequence 0 into a file, for contexts that lie like this one; how many tokens it has."""
        if not self.c.llama_state_seq_save_file(self.ctx, file.encode(), 0, (ctypes.c_int32 * 0)(), 0):
            raise SystemExit("the host cannot save a sequence")
        return self.length

    def load(self, file: str, length: int) -> None:
        """Sequence 0 out of a file, so many tokens; nothing tells their order, so that a row behind them alone is dense."""
        count = ctypes.c_size_t()
        self.c.llama_memory_seq_rm(self.memory, 0, -1, -1)
        if not self.c.llama_state_seq_load_file(self.ctx, file.encode(), 0, (ctypes.c_int32 * 1)(), 1, ctypes.byref(count)):
            raise SystemExit("the host cannot restore a sequence")
        self.length = length

    def report(self) -> Optional[dict[str, Any]]:
        """What the library counted so far; None: it is not in force."""
        from .._errors import UnsupportedError
        from ..engine import HostEngine

        try:
            return HostEngine().report()
        except UnsupportedError:
            return None

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
        self.length = block * (count - 1)
        self.show(tokens)
        self.time(2)  # the first one moves the keys to their positions
        return self.length

    def time(self, count: int) -> list[float]:
        """Milliseconds of each of so many tokens, which are removed again."""
        place = self.length
        ms = self.walk([3 + i for i in range(count)])
        self.back(place)
        return ms

    def free(self) -> None:
        self.c.llama_batch_free(self.batch)
        self.c.llama_free(self.ctx)
        self.c.llama_model_free(self.model)


def main() -> None:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever the host prints goes elsewhere
    context = Context(json.loads(sys.stdin.readline()))
    print(json.dumps({"result": None}), file=out)
    for line in sys.stdin:
        asked = json.loads(line)
        if asked is None:
            break
        name, arguments = asked
        if name not in CALLS:
            raise SystemExit(f"{name} is none of {', '.join(CALLS)}")
        print(json.dumps({"result": getattr(context, name)(**arguments)}), file=out)
    context.free()


if __name__ == "__main__":
    main()
