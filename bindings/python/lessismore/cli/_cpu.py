"""The processor that this process runs on."""

from __future__ import annotations

import pathlib
import platform
from typing import Any

from . import _options

FEATURES = (
    "sse4_2 avx avx2 fma f16c bmi2 avx512f avx512bw avx512dq avx512vl avx512_vnni avx512_bf16 avx512_fp16 amx_int8 amx_bf16 "
    "asimd asimdhp asimddp sve sve2 bf16 i8mm"
).split()


def found() -> dict[str, Any]:
    """Its name, how many of them may be used, what of it the kernels could use."""
    model, flags = "", set[str]()
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                model = value.strip()
            elif name.strip() in ("flags", "Features"):
                flags = set(value.split())
    except OSError:
        pass
    return {
        "model": model or platform.machine(),
        "processors": _options.cpus(),
        "features": [name for name in FEATURES if name in flags],
    }
