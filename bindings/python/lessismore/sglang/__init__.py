"""SGLang: decode attention of an unmodified SGLang server by lessismore.

    LESSISMORE_LAYERS=2,12 python -m sglang.launch_server --model-path MODEL --attention-backend lessismore

SGLang finds register() by the entry point group sglang.srt.plugins and calls it in each of its processes. Nothing here imports
sglang or torch before that. docs/sglang.md says what is sparse, and what is left to SGLang.
"""

from __future__ import annotations

from typing import Any

__all__ = ["NAME", "register"]

NAME = "lessismore"  # of the attention backend


def register() -> None:
    """Announces the attention backend, to the command line and to the model runner."""
    from sglang.srt.layers.attention import attention_registry
    from sglang.srt.server_args import ATTENTION_BACKEND_CHOICES, add_attention_backend_choices

    if NAME in ATTENTION_BACKEND_CHOICES:
        return
    add_attention_backend_choices([NAME])
    attention_registry.register_attention_backend(NAME)(create)


def create(runner: Any) -> Any:
    """The backend of a model runner: SGLang's FlashAttention 3 with the decode rows given to lessismore."""
    from .backend import Backend

    return Backend(runner)
