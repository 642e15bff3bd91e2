"""Driver for xllamacpp, whose module has all of llama.cpp linked in statically.

Job: {"model", "prompts", "lengths", "context", "threads", "flash": false, "library", "environ", "stream"}.
The module exports ggml's functions, so the library is handed to the very copy of
ggml that runs the model.
"""

import ctypes
import os

import protocol


def main():
    job = protocol.job()
    import xllamacpp
    from xllamacpp import xllamacpp as module

    os.environ.update(job.get("environ", {}))
    if job.get("library"):
        load = ctypes.CDLL(module.__file__).ggml_backend_load
        load.restype, load.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
        if not load(job["library"].encode()) and not job.get("may_refuse"):
            raise RuntimeError(f"the host refused {job['library']}")
    params = xllamacpp.CommonParams()
    params.model.path = job["model"]
    params.n_ctx = job.get("context", 2048)
    params.n_parallel = 1
    params.warmup = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = job.get("threads", 1)
    if job.get("flash") is False:
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    for i, (ids, n) in enumerate(zip(job["prompts"], job["lengths"])):
        text, out = [], []

        def chunk(part, i=i, out=out, text=text):
            for choice in part.get("choices", []):
                text.append(choice.get("text") or "")
                if job.get("stream") and choice.get("text"):
                    protocol.emit(prompt=i, text=choice["text"])
            return False

        error = server.handle_completions(
            {"prompt": ids, "max_tokens": n, "temperature": 0.0, "top_k": 1, "stream": True, "ignore_eos": True, "cache_prompt": False},
            chunk,
        )
        if isinstance(error, dict) and "error" in error:
            raise RuntimeError(str(error))
        protocol.emit(prompt=i, text="".join(text))
    del server


if __name__ == "__main__":
    main()
