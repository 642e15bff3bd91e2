"""The host's own flash attention, called directly: llama-cpp-python's ggml on given arrays."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import numpy as np

F32, F16 = 0, 1


class _InitParams(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("memory", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


class Ggml:
    """One loaded copy of ggml's CPU code."""

    def __init__(self) -> None:
        cache = os.environ.get("LESSISMORE_CACHE") or os.path.join(
            os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "lessismore", "hosts"
        )
        found = sorted(Path(cache, "llama-cpp-python").glob("lib/python*/site-packages/llama_cpp/lib"))
        assert found, f"no llama-cpp-python under {cache}: run tests/hosts/install.py"
        self.base = ctypes.CDLL(str(found[0] / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
        self.cpu = ctypes.CDLL(str(found[0] / "libggml-cpu.so"))
        pointer, i64 = ctypes.c_void_p, ctypes.c_int64
        for name, result, arguments in (
            ("ggml_init", pointer, [_InitParams]),
            ("ggml_free", None, [pointer]),
            ("ggml_new_tensor_4d", pointer, [pointer, ctypes.c_int] + [i64] * 4),
            ("ggml_permute", pointer, [pointer, pointer] + [ctypes.c_int] * 4),
            ("ggml_flash_attn_ext", pointer, [pointer] * 5 + [ctypes.c_float] * 3),
            ("ggml_flash_attn_ext_add_sinks", None, [pointer, pointer]),
            ("ggml_new_graph", pointer, [pointer]),
            ("ggml_build_forward_expand", None, [pointer, pointer]),
            ("ggml_get_data", pointer, [pointer]),
        ):
            f = getattr(self.base, name)
            f.restype, f.argtypes = result, arguments
        self.cpu.ggml_graph_compute_with_ctx.argtypes = [pointer, pointer, ctypes.c_int]
        self.cpu.ggml_cpu_init()

    def attend(
        self,
        query: np.ndarray,
        key: np.ndarray,
        value: np.ndarray,
        mask: np.ndarray,
        scale: float,
        softcap: float = 0.0,
        sinks: np.ndarray | None = None,
    ) -> np.ndarray:
        """query [heads, dim] f32, key and value [n, kv_heads, dim] f16, mask [n] f16; gives [heads, dim] f32."""
        size = 3 * (key.nbytes + value.nbytes) + (1 << 24)
        c = self.base.ggml_init(_InitParams(size, None, False))
        try:

            def tensor(a: np.ndarray, *shape: int) -> int:
                a = np.ascontiguousarray(a)
                t = self.base.ggml_new_tensor_4d(c, F16 if a.dtype == np.float16 else F32, *shape)
                ctypes.memmove(self.base.ggml_get_data(t), a.ctypes.data, a.nbytes)
                return t

            heads, dim = query.shape
            n, kv_heads, dim_v = value.shape
            q = tensor(query, dim, 1, heads, 1)
            k = self.base.ggml_permute(c, tensor(key, dim, kv_heads, n, 1), 0, 2, 1, 3)
            v = self.base.ggml_permute(c, tensor(value, dim_v, kv_heads, n, 1), 0, 2, 1, 3)
            node = self.base.ggml_flash_attn_ext(c, q, k, v, tensor(mask, n, 1, 1, 1), scale, 0.0, softcap)
            if sinks is not None:
                self.base.ggml_flash_attn_ext_add_sinks(node, tensor(sinks, heads, 1, 1, 1))
            graph = self.base.ggml_new_graph(c)
            self.base.ggml_build_forward_expand(graph, node)
            assert self.cpu.ggml_graph_compute_with_ctx(c, graph, 1) == 0
            out = np.empty((heads, dim_v), np.float32)
            ctypes.memmove(out.ctypes.data, self.base.ggml_get_data(node), out.nbytes)
            return out
        finally:
            self.base.ggml_free(c)
