"""llama.cpp's C interface through ctypes, for any build that exports it.

`load()` takes the C functions from a libllama that is loaded already (a Python
binding's, by its handle), from a folder of libraries or from one library file, and
proves the layout of the parameter structs before anything is called with them: the
library fills a buffer far too large with its defaults, then the number of bytes it
wrote and the known defaults must be where the declarations below put them.
Only what the tests use is declared.
"""

from __future__ import annotations

import ctypes as ct
import os
import platform
from pathlib import Path

F16, F32, Q4_0, Q8_0, BF16 = 1, 0, 2, 8, 30
TYPES = {"f16": F16, "f32": F32, "q4_0": Q4_0, "q8_0": Q8_0, "bf16": BF16, "q5_1": 7}
FLASH = {"auto": -1, False: 0, True: 1}

EvalCallback = ct.CFUNCTYPE(ct.c_bool, ct.c_void_p, ct.c_bool, ct.c_void_p)
LogCallback = ct.CFUNCTYPE(None, ct.c_int, ct.c_char_p, ct.c_void_p)


class ModelParams(ct.Structure):
    _fields_ = [
        ("devices", ct.c_void_p),
        ("tensor_buft_overrides", ct.c_void_p),
        ("n_gpu_layers", ct.c_int32),
        ("split_mode", ct.c_int),
        ("load_mode", ct.c_int),
        ("lazy_mode", ct.c_int),
        ("main_gpu", ct.c_int32),
        ("tensor_split", ct.c_void_p),
        ("progress_callback", ct.c_void_p),
        ("progress_callback_user_data", ct.c_void_p),
        ("kv_overrides", ct.c_void_p),
        ("vocab_only", ct.c_bool),
        ("check_tensors", ct.c_bool),
        ("use_extra_bufts", ct.c_bool),
        ("no_host", ct.c_bool),
        ("no_alloc", ct.c_bool),
        ("load_mtp", ct.c_bool),
    ]


class ContextParams(ct.Structure):
    _fields_ = [
        ("n_ctx", ct.c_uint32),
        ("n_batch", ct.c_uint32),
        ("n_ubatch", ct.c_uint32),
        ("n_seq_max", ct.c_uint32),
        ("n_rs_seq", ct.c_uint32),
        ("n_outputs_max", ct.c_uint32),
        ("n_outputs_max_per_seq", ct.c_uint32),
        ("n_threads", ct.c_int32),
        ("n_threads_batch", ct.c_int32),
        ("ctx_type", ct.c_int),
        ("rope_scaling_type", ct.c_int),
        ("pooling_type", ct.c_int),
        ("attention_type", ct.c_int),
        ("flash_attn_type", ct.c_int),
        ("rope_freq_base", ct.c_float),
        ("rope_freq_scale", ct.c_float),
        ("yarn_ext_factor", ct.c_float),
        ("yarn_attn_factor", ct.c_float),
        ("yarn_beta_fast", ct.c_float),
        ("yarn_beta_slow", ct.c_float),
        ("yarn_orig_ctx", ct.c_uint32),
        ("defrag_thold", ct.c_float),
        ("cb_eval", EvalCallback),
        ("cb_eval_user_data", ct.c_void_p),
        ("type_k", ct.c_int),
        ("type_v", ct.c_int),
        ("abort_callback", ct.c_void_p),
        ("abort_callback_data", ct.c_void_p),
        ("embeddings", ct.c_bool),
        ("offload_kqv", ct.c_bool),
        ("no_perf", ct.c_bool),
        ("op_offload", ct.c_bool),
        ("swa_full", ct.c_bool),
        ("kv_unified", ct.c_bool),
        ("samplers", ct.c_void_p),
        ("n_samplers", ct.c_size_t),
        ("ctx_other", ct.c_void_p),
    ]


class ContextParams027(ct.Structure):
    """The same since ggml 0.27, of October 2026."""

    _fields_ = [
        f
        for name, kind in ContextParams._fields_
        for f in ([(name, kind), ("moe_cache_size", ct.c_uint64)] if name == "type_v" else [(name, kind)])
    ]


class Batch(ct.Structure):
    _fields_ = [
        ("n_tokens", ct.c_int32),
        ("token", ct.POINTER(ct.c_int32)),
        ("embd", ct.POINTER(ct.c_float)),
        ("pos", ct.POINTER(ct.c_int32)),
        ("n_seq_id", ct.POINTER(ct.c_int32)),
        ("seq_id", ct.POINTER(ct.POINTER(ct.c_int32))),
        ("logits", ct.POINTER(ct.c_int8)),
    ]


P, I, B, S = ct.c_void_p, ct.c_int32, ct.c_bool, ct.c_size_t
SIGNATURES = {
    "ggml_backend_load": (P, [ct.c_char_p]),
    "ggml_backend_load_all_from_path": (None, [ct.c_char_p]),
    "ggml_get_name": (ct.c_char_p, [P]),
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [LogCallback, P]),
    "llama_model_default_params": (ModelParams, []),
    "llama_context_default_params": (ContextParams, []),
    "llama_model_load_from_file": (P, [ct.c_char_p, ModelParams]),
    "llama_model_free": (None, [P]),
    "llama_model_get_vocab": (P, [P]),
    "llama_vocab_n_tokens": (I, [P]),
    "llama_tokenize": (I, [P, ct.c_char_p, I, ct.POINTER(I), I, B, B]),
    "llama_init_from_model": (P, [P, ContextParams]),
    "llama_free": (None, [P]),
    "llama_get_memory": (P, [P]),
    "llama_decode": (I, [P, Batch]),
    "llama_synchronize": (None, [P]),
    "llama_get_logits_ith": (ct.POINTER(ct.c_float), [P, I]),
    "llama_set_n_threads": (None, [P, I, I]),
    "llama_memory_clear": (None, [P, B]),
    "llama_memory_seq_rm": (B, [P, I, I, I]),
    "llama_memory_seq_cp": (None, [P, I, I, I, I]),
    "llama_memory_seq_add": (None, [P, I, I, I, I]),
    "llama_memory_seq_pos_max": (I, [P, I]),
    "llama_state_seq_get_size": (S, [P, I]),
    "llama_state_seq_get_data": (S, [P, P, S, I]),
    "llama_state_seq_set_data": (S, [P, P, S, I]),
}


class Api:
    """The functions of SIGNATURES as attributes, `llama_` left out; `lib` the libraries."""

    def __init__(self, *libs: ct.CDLL):
        self.libs = libs
        self._prove(libs, "llama_model_default_params", [ModelParams], {"use_extra_bufts": True, "vocab_only": False, "kv_overrides": None})
        params = self._prove(
            libs,
            "llama_context_default_params",
            [ContextParams, ContextParams027],
            {
                "n_ctx": 512,
                "n_batch": 2048,
                "n_ubatch": 512,
                "n_seq_max": 1,
                "flash_attn_type": -1,
                "yarn_ext_factor": -1.0,
                "type_k": F16,
                "type_v": F16,
                "offload_kqv": True,
                "samplers": None,
                "ctx_other": None,
            },
        )
        signatures = {**SIGNATURES, "llama_context_default_params": (params, []), "llama_init_from_model": (P, [P, params])}
        for name, (res, args) in signatures.items():
            for lib in libs:
                # A CDLL caches one object per function: never touch one that others use.
                fn = getattr(lib, name, None)
                if fn is not None:
                    break
            else:
                raise RuntimeError(f"{libs[0]._name} does not export {name}")
            fn.restype, fn.argtypes = res, args
            setattr(self, name.removeprefix("llama_"), fn)

    def function(self, name: str, res, args):
        """A function that is not in SIGNATURES."""
        fn = next(getattr(lib, name) for lib in self.libs if hasattr(lib, name))
        fn.restype, fn.argtypes = res, args
        return fn

    @staticmethod
    def _prove(libs, name, structs, known):
        """Which of the structs the library's is."""

        class Wide(ct.Structure):
            _fields_ = [("raw", ct.c_ubyte * 1024)]

        lib = next(lib for lib in libs if hasattr(lib, name))
        candidates = structs
        if platform.machine() == "x86_64":
            # Both structs are returned through a hidden pointer; passing that pointer ourselves keeps what the library leaves
            # untouched. On ARM64 it travels in a register that ctypes alone can set: there the defaults have to do.
            fn = ct.CFUNCTYPE(ct.c_void_p, ct.c_void_p)((name, lib))
            wide = []
            for fill in (0xA5, 0x5A):
                buf = Wide()
                ct.memset(ct.byref(buf), fill, ct.sizeof(buf))
                fn(ct.addressof(buf))
                wide.append(bytes(buf.raw))
            touched = max(i for i in range(1024) if wide[0][i] == wide[1][i]) + 1
            # The last bytes may be padding, which a compiler need not write.
            candidates = [s for s in structs if -(-touched // ct.alignment(s)) * ct.alignment(s) == ct.sizeof(s)]
            if not candidates:
                raise RuntimeError(f"{name}: the library's struct has {touched} bytes, declared are {[ct.sizeof(s) for s in structs]}")
            filled = wide[0]
        else:
            filled = bytes(ct.CFUNCTYPE(Wide)((name, lib))().raw)
        wrong = []
        for struct in candidates:
            got = struct.from_buffer_copy(filled[: ct.sizeof(struct)])
            other = [f"{field} is {getattr(got, field)!r}, expected {v!r}" for field, v in known.items() if getattr(got, field) != v]
            if not other:
                return struct
            wrong += other
        raise RuntimeError(f"{name}: {wrong[0]}: another layout")


def load(where) -> Api:
    """`where`: a CDLL that is loaded, a folder of llama.cpp libraries, or a library file."""
    if isinstance(where, ct.CDLL):
        return Api(ct.CDLL(where._name, handle=where._handle))
    where = Path(where)
    if not where.is_dir():
        return Api(_module(where))
    base, ggml, llama = (_library(where, name) for name in ("ggml-base", "ggml", "llama"))
    api = Api(llama, ggml, base)
    if sorted(where.glob("libggml-cpu*.so")):  # run-time loaded backends: the host's own call
        api.ggml_backend_load_all_from_path(os.fsencode(where))
    return api


def _module(path: Path) -> ct.CDLL:
    """A library file whose functions are looked up when they are called: a Python module's own face may be for another Python."""
    dlopen = ct.CDLL(None).dlopen
    dlopen.restype, dlopen.argtypes = ct.c_void_p, [ct.c_char_p, ct.c_int]
    # Where it cannot be opened, CDLL says why.
    return ct.CDLL(os.fspath(path), handle=dlopen(os.fsencode(path), os.RTLD_LAZY))


def _library(where: Path, name: str) -> ct.CDLL:
    found = sorted(where.glob(f"lib{name}.so*")) or sorted(where.glob(f"lib{name}.v*.so"))
    if not found:
        raise RuntimeError(f"no lib{name} in {where}")
    return ct.CDLL(os.fspath(found[0].resolve()))


def ggml(where) -> ct.CDLL:
    """ggml alone, out of a folder of libraries whose backends are not loaded."""
    _library(Path(where), "ggml-base")
    lib = _library(Path(where), "ggml")
    lib.ggml_backend_load.restype, lib.ggml_backend_load.argtypes = SIGNATURES["ggml_backend_load"]
    return lib
