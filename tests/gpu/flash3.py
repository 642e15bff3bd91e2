"""FlashAttention 3 as vLLM's own backend calls it in a step's CUDA graph: a store in pages, a schedule that is worked out once a step, the
splits that vLLM leaves room for."""

import torch
import vllm
import vllm._custom_ops  # noqa: F401  registers what the next line wants
from vllm.vllm_flash_attn import flash_attn_varlen_func, get_scheduler_metadata

VERSION = vllm.__version__
SPLITS = 32  # vLLM's flash_attn_max_num_splits_for_cuda_graph


def layer(query, kv_heads, lengths, longest, table, page_size, out):
    """What computes a layer of a store's keys and values, [page][token][head][dim]."""
    batch, heads, dim = query.shape
    starts = torch.arange(batch + 1, dtype=torch.int32, device=query.device)
    schedule = get_scheduler_metadata(
        batch_size=batch, max_seqlen_q=1, max_seqlen_k=longest, num_heads_q=heads, num_heads_kv=kv_heads, headdim=dim, cache_seqlens=lengths,
        qkv_dtype=query.dtype, cu_seqlens_q=starts, page_size=page_size, causal=True, num_splits=SPLITS,
    )  # fmt: skip
    return lambda key, value: flash_attn_varlen_func(
        q=query, k=key, v=value, out=out, cu_seqlens_q=starts, max_seqlen_q=1, seqused_k=lengths, max_seqlen_k=longest, softmax_scale=dim**-0.5,
        causal=True, block_table=table, scheduler_metadata=schedule, fa_version=3, num_splits=SPLITS,
    )  # fmt: skip
