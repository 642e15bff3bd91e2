"""Options of vLLM that say how an engine is spread, and how it speculates: those that are known, in any version that is tested.

What they change is looked at in layers.py, or is nothing to attention. An option that came later may be either.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Optional

PARALLEL = frozenset(
    """
    all2all_backend assigned_physical_gpu_ids cp_kv_cache_interleave_size cpu_distributed_timeout_seconds data_parallel_backend
    data_parallel_external_lb data_parallel_hybrid_lb data_parallel_index data_parallel_master_ip data_parallel_master_port
    data_parallel_rank data_parallel_rank_local data_parallel_rpc_port data_parallel_size data_parallel_size_local
    dbo_decode_token_threshold dbo_prefill_token_threshold dcp_comm_backend dcp_kv_cache_interleave_size dcp_q_replicate
    decode_context_parallel_size disable_custom_all_reduce disable_nccl_for_dp_synchronization distributed_executor_backend
    distributed_timeout_seconds dp_sync_interval elastic_ep_max_dp_size enable_batch_sharded_sampling enable_dbo enable_elastic_ep
    enable_ep_weight_filter enable_eplb enable_expert_parallel enable_fault_tolerance enable_hc_sp enable_shm_tensor_arena
    eplb_config expert_placement_strategy fault_tolerance_config is_moe_model master_addr master_port max_parallel_loading_workers
    nnodes node_rank numa_bind numa_bind_cpus numa_bind_nodes pipeline_parallel_size placement_group prefill_context_parallel_size
    rank ray_runtime_env ray_workers_use_nsight sd_worker_cls tensor_parallel_size ubatch_size worker_cls worker_extension_cls
    world_size
""".split()
)
SPECULATIVE = frozenset(
    """
    attention_backend code_revision disable_eagle_block_drop disable_lookahead_block_hashes disable_padded_drafter_batch
    draft_lm_head_quantization draft_load_config draft_model_config draft_parallel_config draft_sample_method
    draft_tensor_parallel_size dspark_draft_topk enable_adaptive_verification enforce_eager fly_entropy_threshold fly_entropy_top_k
    fly_window_size index_share_for_mtp_iteration kv_cache_dtype max_model_len method model moe_backend num_speculative_tokens
    num_speculative_tokens_per_batch_size parallel_drafting prompt_lookup_max prompt_lookup_min quantization rejection_sample_method
    revision suffix_decoding_max_cached_requests suffix_decoding_max_spec_factor suffix_decoding_max_tree_depth
    suffix_decoding_min_token_prob synthetic_acceptance_length synthetic_acceptance_rates target_model_config target_parallel_config
    tensor_parallel_size use_heterogeneous_vocab use_local_argmax_reduction xpress_topc
""".split()
)


def unknown(given: Any, known: frozenset[str]) -> Optional[str]:
    """An option that is not known and has another value than it has by itself; None: there is none. given: one of vLLM's configurations."""
    for field in dataclasses.fields(given) if dataclasses.is_dataclass(given) else ():
        if field.name in known or field.name.startswith("_"):
            continue
        value = getattr(given, field.name, None)
        if value is not None and value is not False and value != _default(field):
            return f"{field.name} = {value}"
    return None


def _default(field: Any) -> Any:
    """vLLM's configurations are dataclasses of pydantic, whose defaults may be in an object of pydantic's."""
    for owner in (field.default, field):
        if getattr(owner, "default_factory", None) not in (None, dataclasses.MISSING):
            return owner.default_factory()
        if hasattr(owner, "default"):
            return owner.default
    return field.default
