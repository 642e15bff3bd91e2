"""Where the model and the rules compute: on the CPU with NumPy, or on an NVIDIA GPU with CuPy.

Both speak the same language: a function of NumPy computes where its arguments are, and `like=` makes an array there. What
meets NumPy's arrays of the host's memory (results, counts, the library) goes through host() first.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np

from .weights import Array

NAMES = ("cpu", "cuda")


def module(name: str) -> Any:
    """What makes arrays on a device of NAMES. Raises ImportError where CuPy is missing, ValueError where it finds no GPU."""
    if name == "cpu":
        return np
    try:
        import cupy
    except ImportError as e:
        raise ImportError(f"--device cuda needs CuPy (such as the package cupy-cuda13x): {e}") from e
    if os.environ.get("CUPY_TF32", "0") != "0":
        raise ValueError("CUPY_TF32 is set: products would be rounded to 10 bits, which costs more than the methods do")
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as e:
        raise ValueError(f"--device cuda: CuPy finds no GPU here ({e})") from None
    return cupy


def host(array: Array) -> Array:
    """The same in the host's memory."""
    return array if isinstance(array, np.ndarray) else array.get()


# CuPy finds what stands where in an order by sorting everything, which takes ten times as long as all the rest. A block of threads for
# each row counts, from the highest byte to the lowest, what lies above; bits of float32 that are turned round where it is negative
# have the numbers' order.
_SELECT = r"""
extern "C" __global__ void at_share(const float* rows, long long n, double target, int by_value, float* found) {
    __shared__ double held[256];
    __shared__ unsigned prefix;
    __shared__ double above;
    const float* row = rows + blockIdx.x * n;
    if (threadIdx.x == 0) { prefix = 0; above = 0; }
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int i = threadIdx.x; i < 256; i += blockDim.x) held[i] = 0;
        __syncthreads();
        const unsigned known = shift == 24 ? 0u : ~0u << (shift + 8);
        for (long long i = threadIdx.x; i < n; i += blockDim.x) {
            unsigned bits = __float_as_uint(row[i]);
            bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
            if ((bits & known) == prefix) atomicAdd(&held[bits >> shift & 255], by_value ? (double) row[i] : 1.0);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            double sum = above;
            int last = -1;  // the lowest byte that is there at all
            for (int i = 255; i >= 0; i--) {
                if (held[i] == 0) continue;
                last = i;
                above = sum;
                sum += held[i];
                if (sum >= target) break;
            }
            prefix |= (unsigned) last << shift;
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) found[blockIdx.x] = __uint_as_float(prefix & 0x80000000u ? prefix & 0x7fffffffu : ~prefix);
}
"""


def is_cuda(array: Array) -> bool:
    return type(array).__module__.partition(".")[0] == "cupy"


def reaching(rows: Array, target: float, by_value: bool) -> Array:
    """Of each row of the last axis, on a GPU, the largest number that so many are not below (or that come to so much, with those
    above): [..., 1]. Where all together come to less, the least of those above 0."""
    import cupy

    rows = cupy.ascontiguousarray(rows, np.float32)
    found: Array = cupy.empty((*rows.shape[:-1], 1), np.float32)
    if found.size:
        _select()((found.size,), (256,), (rows, np.int64(rows.shape[-1]), np.float64(target), np.int32(by_value), found))
    return found


@functools.lru_cache(maxsize=1)
def _select() -> Any:
    import cupy

    return cupy.RawKernel(_SELECT, "at_share")
