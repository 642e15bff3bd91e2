"""A connector of vLLM that puts a prompt's context in place but for its last tokens, which are computed: as a turn that follows others."""

from vllm.distributed.kv_transfer.kv_connector.v1.decode_bench_connector import DecodeBenchConnector

# A producer by name only, though it fills: where a connector is a consumer, too, vLLM 0.26 keeps a preempted request's blocks until the step under
# way is done, so that a full store has it preempt one request after the other, up to the one that wants a block. Here contexts are
# filled on the stream of the steps, and a server without a connector gets blocks back at once.
CONNECTOR = {"kv_connector": "PlacedConnector", "kv_connector_module_path": "placed", "kv_role": "kv_producer",
             "kv_connector_extra_config": {"fill_mean": 0.0, "fill_std": 1.0}}  # fmt: skip


class PlacedConnector(DecodeBenchConnector):
    def get_num_new_matched_tokens(self, request, num_computed_tokens):
        if request.num_preemptions:  # its context comes from where it came from; prompt and answer so far are computed again
            self.connector_scheduler._filled_requests.discard(request.request_id)
        found, later = super().get_num_new_matched_tokens(request, num_computed_tokens)
        computed = (request.kv_transfer_params or {}).get("computed", 0) + request.num_tokens - request.num_prompt_tokens
        return max(0, found - computed), later
