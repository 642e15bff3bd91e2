"""vLLM: decode attention of an unmodified vLLM server by lessismore.

    vllm serve MODEL --attention-backend CUSTOM --additional-config '{"lessismore": {"budget": 2048, "layers": [2, 12]}}'

vLLM finds register() by the entry point group vllm.general_plugins and calls it in each of its processes. Nothing here
imports vllm or torch before vLLM asks for the backend. docs/vllm.md says what is sparse, and what is left to vLLM.
"""

from __future__ import annotations

import logging
import os

from . import metrics

__all__ = ["NAME", "register"]

logger = logging.getLogger("vllm.lessismore")

NAME = "LESSISMORE"  # of the backend, where vLLM takes new names
BACKEND = "lessismore.vllm.backend.Backend"
PREFIXES = "VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY"  # of the variables that vLLM hands to the workers that Ray starts


def register() -> None:
    """Announces the attention backend to vLLM, as CUSTOM and, where vLLM takes new names, as LESSISMORE; and the
    metrics to the process that serves /metrics. Has vLLM hand our variables to workers that Ray starts, which inherit Ray's. Does
    nothing the second time.

    vLLM calls this in each server of a machine where the package is installed, whatever its attention backend: what goes wrong is
    logged, and ends none of them.
    """
    for what, do in (("attention backend", _backend), ("metrics", metrics.announce), ("variables for Ray's workers", _carry)):
        try:
            do()
        except Exception as e:
            logger.warning("lessismore: no %s in this vLLM: %s", what, e)


def _backend() -> None:
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    custom, names = AttentionBackendEnum.CUSTOM, hasattr(AttentionBackendEnum, "register")
    if custom.is_overridden() and custom.get_path() != BACKEND:
        more = f", --attention-backend {NAME} is lessismore's" if names else ""
        logger.warning("lessismore: --attention-backend CUSTOM is %s, as another plug-in says%s", custom.get_path(), more)
    else:
        register_backend(custom, BACKEND)
    if names and NAME not in AttentionBackendEnum.__members__:
        register_backend(NAME, BACKEND)


def _carry() -> None:
    ours, given = "LESSISMORE", [prefix for prefix in os.environ.get(PREFIXES, "").split(",") if prefix.strip()]
    if ours not in (prefix.strip() for prefix in given):
        os.environ[PREFIXES] = ",".join([*given, ours])
