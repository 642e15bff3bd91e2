"""The library's work memory, which is not vLLM's K/V store's: how much, and for how many rows."""

from __future__ import annotations

from typing import Any, Callable

SHARE = 64  # of the device's memory, at most one part of so many


def kv_tokens(config: Any, token_bytes: int, device_bytes: int, used_bytes: int) -> int:
    """The tokens that the K/V store will hold, from above: vLLM sizes it later, by what is left then.

    Args:
        config: vLLM's VllmConfig.
        token_bytes: of a token's keys and values in the layers that take part.
        device_bytes, used_bytes: memory of the device; of it, what the weights have.
    """
    cache, longest = config.cache_config, int(config.model_config.max_model_len)
    blocks = getattr(cache, "num_gpu_blocks_override", None)
    room = getattr(cache, "kv_cache_memory_bytes", None) or int(device_bytes * cache.gpu_memory_utilization) - used_bytes
    tokens = int(blocks * cache.block_size if blocks and cache.block_size else room // token_bytes)
    return min(max(tokens, longest), int(config.scheduler_config.max_num_seqs) * longest)


def rows_within(size: Callable[[int], int], most: int, limit: int) -> int:
    """The most rows whose work memory is within a limit; 0: not even one's. size: bytes by rows, which grows with them."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if size(middle) <= limit:
            low = middle
        else:
            high = middle - 1
    return low
