"""A model of Qwen3-8B's shape in vLLM whose contexts are put in place rather than computed, by vLLM's own DecodeBenchConnector: K/V is random,
and nothing is shared."""

import json
import statistics
import time

import numpy as np
import torch
from engine import Served, say

CONNECTOR = {"kv_connector": "DecodeBenchConnector", "kv_role": "kv_both", "kv_connector_extra_config": {"fill_mean": 0.0, "fill_std": 1.0}}


def arguments(max_model_len, max_num_seqs, graphs, **more):
    """vLLM's. graphs: the sizes that are captured."""
    return dict(load_format="dummy", max_model_len=max_model_len, max_num_seqs=max_num_seqs, max_num_batched_tokens=8192, gpu_memory_utilization=0.9,
                enable_prefix_caching=False, compilation_config={"cudagraph_capture_sizes": graphs}, kv_transfer_config=CONNECTOR, **more)  # fmt: skip


class Bench(Served):
    def fit(self, tokens):
        """How many rows of so many tokens there is memory for."""
        return min((self.blocks - 1) // -(-tokens // self.block), self.config.scheduler_config.max_num_seqs)

    def case(self, text, mode, steps):
        """One of decode.py's cases."""
        rows, context = text.split("x")
        low, high = (int(c) for c in (context.split("-") * 2)[:2])
        fit = self.fit((low + high) // 2 + steps + 32)
        rows = min(fit, fit if rows == "fit" else int(rows))
        torch.manual_seed(7)
        rng = np.random.default_rng(3)
        self.steps.clear(), self.replays.clear()
        before = self.library()
        for i in range(rows):
            self.add(f"{text}-{mode}-{i}", rng.integers(10, 150000, int(rng.integers(low, high + 1))).tolist(), steps + 16)
        stamps = []
        while self.engine.has_unfinished_requests():
            out = self.engine.step()
            if out:
                stamps.append((time.perf_counter(), len(out)))
        torch.cuda.synchronize()
        full = [y[0] - x[0] for x, y in zip(stamps, stamps[1:]) if x[1] == rows and y[1] == rows][6:-2]
        graph = [x.elapsed_time(y) for n, x, y in self.replays if n >= rows][6:-2]
        after = self.library()
        changed = {k: after[k] - before[k] for k in after}
        found = dict(rows=rows, context=context, mode=mode, step_ms=round(statistics.median(full) * 1e3, 3), n=len(full),
                     graph_ms=round(statistics.median(graph), 3) if graph else None, padded=self.replays[-1][0] if self.replays else None,
                     tokens_per_s=round(rows / statistics.median(full)))  # fmt: skip
        if changed.get("steps"):
            found.update(
                attended=round(changed["tokens_attended"] / changed["tokens_visible"], 4),
                rows_sparse=changed["rows_sparse"],
                no_set=changed["no_set_calls"],
            )
        say(json.dumps(found))
        return found
