"""vLLM: decode attention of an unmodified vLLM server by lessismore.

    vllm serve MODEL --attention-backend CUSTOM --additional-config '{"lessismore": {"budget": 2048, "layers": [2, 12]}}'

vLLM finds register() by the entry point group vllm.general_plugins and calls it in each of its processes. Nothing here
imports vllm or torch before vLLM asks for the backend. docs/vllm.md says what is sparse, and what is left to vLLM.
"""

from __future__ import annotations

import os

from . import metrics

__all__ = ["NAME", "register"]

NAME = "LESSISMORE"  # of the backend, where vLLM takes new names
BACKEND = "lessismore.vllm.backend.Backend"
PREFIXES = "VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY"  # of the variables that vLLM hands to the workers that Ray starts


def register() -> None:
    """Announces the attention backend to vLLM, as CUSTOM and, where vLLM takes new names, as LESSISMORE; and the
    metrics to the process that serves /metrics. Has vLLM hand our variables to workers that Ray starts, which inherit Ray's. Does
    nothing the second time."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    register_backend(AttentionBackendEnum.CUSTOM, BACKEND)
    if hasattr(AttentionBackendEnum, "register") and NAME not in AttentionBackendEnum.__members__:
        register_backend(NAME, BACKEND)
    metrics.announce()
    _carry()


def _carry() -> None:
    ours, given = "LESSISMORE", [prefix for prefix in os.environ.get(PREFIXES, "").split(",") if prefix.strip()]
    if ours not in (prefix.strip() for prefix in given):
        os.environ[PREFIXES] = ",".join([*given, ours])
