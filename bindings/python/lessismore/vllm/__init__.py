"""vLLM: decode attention of an unmodified vLLM server by lessismore.

    vllm serve MODEL --attention-backend CUSTOM --additional-config '{"lessismore": {"budget": 2048, "layers": [2, 12]}}'

vLLM finds register() by the entry point group vllm.general_plugins and calls it in each of its processes. Nothing here
imports vllm or torch before vLLM asks for the backend. docs/vllm.md says what is sparse, and what is left to vLLM.
"""

from __future__ import annotations

from . import metrics

__all__ = ["NAME", "register"]

NAME = "LESSISMORE"  # of the backend, where vLLM takes new names
BACKEND = "lessismore.vllm.backend.Backend"


def register() -> None:
    """Announces the attention backend to vLLM, as CUSTOM and, where vLLM takes new names, as LESSISMORE; and the
    metrics to the process that serves /metrics. Does nothing the second time."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    register_backend(AttentionBackendEnum.CUSTOM, BACKEND)
    if hasattr(AttentionBackendEnum, "register") and NAME not in AttentionBackendEnum.__members__:
        register_backend(NAME, BACKEND)
    metrics.announce()
