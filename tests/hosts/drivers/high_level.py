"""Driver for llama-cpp-python as its users write it: llama_cpp.Llama."""

import os

import protocol


def main():
    job = protocol.job()
    import llama_cpp

    os.environ.update(job.get("environ", {}))
    if job.get("library"):
        import ctypes

        load = ctypes.CDLL("libllama", handle=llama_cpp.llama_cpp._lib._handle).ggml_backend_load
        load.restype, load.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
        if not load(job["library"].encode()) and not job.get("may_refuse"):
            raise RuntimeError(f"the host refused {job['library']}")
    draft = None
    if job.get("lookup"):
        from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

        draft = LlamaPromptLookupDecoding(max_ngram_size=4, num_pred_tokens=job["lookup"])
    llm = llama_cpp.Llama(
        job["model"],
        n_ctx=job.get("context", 2048),
        n_threads=job.get("threads", 1),
        n_threads_batch=job.get("threads", 1),
        flash_attn=job.get("flash", True),
        draft_model=draft,
        logits_all=draft is not None,  # a draft needs them, but the host makes room for n_batch alone
        verbose=False,
    )
    for i, (ids, n) in enumerate(zip(job["prompts"], job["lengths"])):
        out = []
        llm.reset()
        for token in llm.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0, reset=True):
            out.append(token)
            if job.get("stream"):
                protocol.emit(prompt=i, token=token)
            if len(out) >= n:
                break
        protocol.emit(prompt=i, tokens=out)
    llm.close()


if __name__ == "__main__":
    main()
