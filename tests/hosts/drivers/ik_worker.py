"""bench_worker.py for ik_llama.cpp, whose C interface is that of an older llama.cpp; by the package ik-llama-cpp-python.

Job: {"model", "context": tokens, "flash": true | false, "threads", "kv", "fill_threads", "in_place"}; answers as bench_worker.py does.
"""

import ctypes as ct
import time

import ik_llama_cpp._ctypes_api as api
import numpy as np
import protocol

BLOCK = 512
TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "bf16": 30}

# Not among the package's own.
for name, result, arguments in (
    ("llama_set_n_threads", None, [ct.c_void_p, ct.c_uint32, ct.c_uint32]),
    ("llama_kv_cache_seq_rm", ct.c_bool, [ct.c_void_p, ct.c_int32, ct.c_int32, ct.c_int32]),
    ("llama_kv_cache_seq_cp", None, [ct.c_void_p, ct.c_int32, ct.c_int32, ct.c_int32, ct.c_int32]),
    ("llama_kv_cache_seq_add", None, [ct.c_void_p, ct.c_int32, ct.c_int32, ct.c_int32, ct.c_int32]),
    ("llama_state_seq_get_size", ct.c_size_t, [ct.c_void_p, ct.c_int32, ct.c_uint32]),
    ("llama_state_seq_get_data", ct.c_size_t, [ct.c_void_p, ct.c_void_p, ct.c_size_t, ct.c_int32, ct.c_uint32]),
    ("llama_state_seq_set_data", ct.c_size_t, [ct.c_void_p, ct.c_void_p, ct.c_size_t, ct.c_int32, ct.c_uint32]),
):
    function = getattr(api._lib, name)
    function.restype, function.argtypes = result, arguments


class Context:
    """One sequence, greedy."""

    def __init__(self, job):
        api.llama_backend_init()
        params = api.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = api.llama_model_load_from_file(job["model"].encode(), params)
        if not self.model:
            raise SystemExit(f"ik_llama.cpp cannot load {job['model']}")
        p = api.llama_context_default_params()
        p.n_ctx, p.n_batch, p.n_ubatch, p.n_seq_max = job["context"] + 2 * BLOCK, BLOCK, BLOCK, 2
        p.n_threads = p.n_threads_batch = job.get("fill_threads", job["threads"])
        p.flash_attn = job["flash"]
        p.type_k = p.type_v = TYPES[job.get("kv", "f16")]
        self.ptr = api.llama_init_from_model(self.model, p)
        if not self.ptr:
            raise SystemExit("ik_llama.cpp cannot make this context")
        self.threads, self.in_place = job["threads"], min(job.get("in_place") or BLOCK, BLOCK)
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.batch = api.llama_batch_init(BLOCK, 0, 1)

    def decode(self, tokens, position, sequence) -> int:
        b = self.batch
        b.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            b.token[i], b.pos[i], b.n_seq_id[i], b.seq_id[i][0] = token, position + i, 1, sequence
            b.logits[i] = i == len(tokens) - 1
        if code := api.llama_decode(self.ptr, b):
            raise SystemExit(f"llama_decode returned {code}")
        return int(np.ctypeslib.as_array(api.llama_get_logits_ith(self.ptr, len(tokens) - 1), (self.vocabulary,)).argmax())

    def fill(self, n, progress) -> int:
        """As engine.fill_context: one block computed, its copies, and the last tokens computed in place."""
        tokens = np.random.default_rng(0).integers(3, min(self.vocabulary, 50_000) - 3, BLOCK).tolist()
        lib, end = api._lib, BLOCK * max(1, n // BLOCK)
        start = end - self.in_place
        self.decode(tokens, 0, 1)
        size = lib.llama_state_seq_get_size(self.ptr, 1, 0)
        state = (ct.c_uint8 * size)()
        if lib.llama_state_seq_get_data(self.ptr, state, size, 1, 0) != size:
            raise SystemExit("ik_llama.cpp cannot save a sequence")
        for i in range(-(-start // BLOCK)):
            lib.llama_kv_cache_seq_rm(self.ptr, 1, -1, -1)
            if lib.llama_state_seq_set_data(self.ptr, state, size, 1, 0) != size:
                raise SystemExit("ik_llama.cpp cannot restore a sequence")
            if i:
                lib.llama_kv_cache_seq_add(self.ptr, 1, -1, -1, BLOCK * i)
            lib.llama_kv_cache_seq_cp(self.ptr, 1, 0, -1, -1)
            progress((i + 1) * BLOCK)
        lib.llama_kv_cache_seq_rm(self.ptr, 1, -1, -1)
        lib.llama_kv_cache_seq_rm(self.ptr, 0, start, -1)
        self.decode(tokens[start - end :], start, 0)
        lib.llama_set_n_threads(self.ptr, self.threads, self.threads)
        return end

    def steps(self, position, count):
        """Milliseconds and best tokens of so many steps, which are removed again."""
        ms, best, token = [], [], 3
        for i in range(count):
            start = time.perf_counter()
            token = self.decode([token], position + i, 0)
            ms.append((time.perf_counter() - start) * 1e3)
            best.append(token)
        api._lib.llama_kv_cache_seq_rm(self.ptr, 0, position, -1)
        return ms, best


def main():
    job = protocol.job()
    context = Context(job)
    protocol.turns(lambda progress: context.fill(job["context"], progress), context.steps)
    protocol.emit(event="end")


if __name__ == "__main__":
    main()
