"""Driver for hosts that are a libllama: runs one scenario of scenarios.py.

Job: {"host": "llama-cpp-python" | folder or file with llama.cpp's libraries,
      "library": path of liblessismore.so or null, "environ": {set before loading},
      "loads": how often the library is loaded, "early": how often before the host's own backends (a folder's),
      "scenario": name, "model": path, "gpu_layers": how many are on GPUs, ...arguments of the scenario}
"""

from __future__ import annotations

import os

import engine
import protocol
import scenarios

import capi


def open_host(host: str, library: str | None, environ: dict, loads: int = 1, early: int = 0) -> capi.Api:
    for _ in range(early):
        if capi.ggml(host).ggml_backend_load(library.encode()):
            raise RuntimeError("the library was accepted by a host without a CPU backend")
    if host == "llama-cpp-python":
        import llama_cpp.llama_cpp

        api = capi.load(llama_cpp.llama_cpp._lib)
    else:
        api = capi.load(host)
    os.environ.update(environ)
    for _ in range(loads if library else 0):
        # Loaded is not engaged: whether it is, the library's stats say.
        if not api.ggml_backend_load(library.encode()):
            raise RuntimeError(f"the host refused {library}")
    return api


def main():
    job = protocol.job()
    api = open_host(job.pop("host"), job.pop("library", None), job.pop("environ", {}), job.pop("loads", 1), job.pop("early", 0))
    job_log = engine.quiet(api, job.pop("log_level", 3))
    model = engine.Model(api, job.pop("model"), job.pop("gpu_layers", 0))
    getattr(scenarios, job.pop("scenario"))(model, **job)
    model.free()
    api.log_set(capi.LogCallback(), None)  # a CUDA backend logs at the process's end
    del job_log


if __name__ == "__main__":
    main()
