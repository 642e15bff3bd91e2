"""A connector of vLLM that puts a prompt's context in place but for its last tokens, which are computed: as a turn that follows others."""

from vllm.distributed.kv_transfer.kv_connector.v1.decode_bench_connector import DecodeBenchConnector

CONNECTOR = {"kv_connector": "PlacedConnector", "kv_connector_module_path": "placed", "kv_role": "kv_both",
             "kv_connector_extra_config": {"fill_mean": 0.0, "fill_std": 1.0}}  # fmt: skip


class PlacedConnector(DecodeBenchConnector):
    def get_num_new_matched_tokens(self, request, num_computed_tokens):
        found, later = super().get_num_new_matched_tokens(request, num_computed_tokens)
        return max(0, found - (request.kv_transfer_params or {}).get("computed", 0)), later
