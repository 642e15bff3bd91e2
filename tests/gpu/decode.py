"""Whole decode of a model of Qwen3-8B's shape in transformers, each step one CUDA graph: stock sdpa, torch's flash and cuDNN
attention at their best, and lessismore, in one run. Weights and K/V are random: speed does not depend on them.

Layers share K/V stores in rotation where all of them would not fit (--gigabytes); each is far larger than any cache,
so that it comes from memory every time. A step needs nothing from the host, so that several are queued: `ms` is that of
one of them; `alone_ms`, of one that the host waits for, has the time in which the graph's first kernels are queued, and
`eager_ms`, without a graph, is what the host needs to queue them all, unless the GPU needs longer."""

import argparse
import json
import os
import statistics
import sys
import time

import device as D
import torch
import torch.nn.functional as F
from bench import time_graph
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM, Qwen3Config, StaticCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

sys.path.insert(0, os.path.join(D.ROOT, "bindings", "python"))
import lessismore.transformers  # noqa: E402

SHAPE = dict(
    vocab_size=151936,
    hidden_size=4096,
    intermediate_size=12288,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=1 << 18,
)
BUDGET, SELECTING = 2048, [2, 12]
SPARE = 64  # tokens that are decoded at most
EAGER = 4  # of them, without a graph
# Names with "flash" in them are transformers' own.
TORCH = {"fa2": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


class Torch:
    """A backend of torch's attention without a mask, over the keys that there are: what a host with a captured step for each
    length could do at best."""

    def __init__(self, backend, kv_heads):
        self.backend, self.kv_heads, self.tokens = backend, kv_heads, 0
        self.packed = {}  # by rows and tokens: whether a KV head's query heads are query tokens, or grouped by the backend itself

    def choose(self, query, key, value):
        """Takes what is faster over a layer's store. False: the backend takes neither."""
        case, times = (query.shape[0], self.tokens), {}
        for packed in (False, True):
            self.packed[case] = packed
            try:
                times[packed] = time_graph(lambda: self(None, query, key, value, None, query.shape[-1] ** -0.5), 5)
            except RuntimeError:  # a backend that does not take the shape
                torch.cuda.synchronize()
        self.packed[case] = min(times, key=times.get, default=False)
        return bool(times)

    def __call__(self, module, query, key, value, attention_mask, scaling=None, **kwargs):
        key, value = key[:, :, : self.tokens], value[:, :, : self.tokens]
        packed = self.packed[query.shape[0], self.tokens]
        x = query.reshape(query.shape[0], self.kv_heads, -1, query.shape[-1]) if packed else query
        with sdpa_kernel(self.backend):
            out = F.scaled_dot_product_attention(x, key, value, scale=scaling, enable_gqa=not packed)
        return out.reshape(query.shape).transpose(1, 2).contiguous(), None


class Decode:
    def __init__(self, layers, gigabytes):
        config = Qwen3Config(**{**SHAPE, "num_hidden_layers": layers})
        begin = time.time()
        with torch.device("cuda"):
            self.model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
        torch.cuda.synchronize()
        print(
            f"{torch.cuda.get_device_name()}: {sum(p.numel() for p in self.model.parameters()) / 1e9:.1f} G weights in {time.time() - begin:.1f} s",
            flush=True,
        )
        self.gigabytes = gigabytes
        self.torch = {name: Torch(backend, config.num_key_value_heads) for name, backend in TORCH.items()}
        for name, attention in self.torch.items():
            ALL_ATTENTION_FUNCTIONS.register(name, attention)
            ALL_MASK_ATTENTION_FUNCTIONS.register(name, lambda **kwargs: None)
        lessismore.transformers.register("lessismore", budget=BUDGET, layers=SELECTING)
        self.result = {"device": torch.cuda.get_device_name(), "rows": []}

    def fill(self, batch, context):
        config = self.model.config
        self.cache = StaticCache(config=config, max_cache_len=context + SPARE)
        per_layer = 4 * batch * config.num_key_value_heads * (context + SPARE) * config.head_dim
        distinct = max(2, min(config.num_hidden_layers, int(self.gigabytes * 1e9 / per_layer)))
        one = torch.empty(batch, config.num_key_value_heads, 1, config.head_dim, device="cuda", dtype=torch.bfloat16)
        for i, layer in enumerate(self.cache.layers):
            if i < distinct:
                layer.lazy_initialization(one, one)
                layer.keys.normal_()
                layer.values.normal_()
            else:
                was, layer.max_cache_len = layer.max_cache_len, 1  # no store of its own
                layer.lazy_initialization(one, one)
                layer.max_cache_len = was
                layer.keys, layer.values = self.cache.layers[i % distinct].keys, self.cache.layers[i % distinct].values
        return distinct

    def step(self):
        out = self.model(self.ids, position_ids=self.position, past_key_values=self.cache, use_cache=True)
        self.ids.copy_(out.logits[:, -1].argmax(-1, keepdim=True))
        self.position.add_(1)

    def rewind(self, batch, context):
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(context)
        self.ids = torch.zeros(batch, 1, dtype=torch.int64, device="cuda")
        self.position = torch.full((batch, 1), context, dtype=torch.int64, device="cuda")

    def prepare(self, batch, context):
        self.cache = None
        torch.cuda.empty_cache()
        for attention in self.torch.values():
            attention.tokens = context + 2
        return self.fill(batch, context)

    def capture(self, attention, batch, context):
        self.model.set_attn_implementation(attention)
        self.rewind(batch, context)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            self.step()
        return graph

    def measure(self, graph, batch):
        def replay(steps):
            """Milliseconds of a step, where the host queues some and then waits."""
            a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            a.record()
            for _ in range(steps):
                graph.replay()
            b.record()
            torch.cuda.synchronize()
            return a.elapsed_time(b) / steps

        replay(1)
        alone = statistics.median(replay(1) for _ in range(3))
        queued = max(1, min(5, int(100 / alone)))
        times = []
        while len(times) < 8 and (len(times) < 3 or sum(times) * queued < 1500):
            times.append(replay(queued))
        ms = statistics.median(times)
        begin = time.time()
        for _ in range(EAGER):
            self.step()
        torch.cuda.synchronize()
        eager = (time.time() - begin) / EAGER * 1e3
        return {"ms": ms, "tokens_per_s": batch / ms * 1e3, "alone_ms": alone, "queued": queued, "eager_ms": eager}

    def profile(self, graph):
        """Milliseconds of a step by what they are spent on."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as p:
            for _ in range(3):
                graph.replay()
            torch.cuda.synchronize()
        of = {}
        for e in p.key_averages():
            name = e.key.lower()
            attends = "lim_attend" in name or "lim_short" in name
            kind = (
                "selection"
                if "lim_select" in name
                else "list"
                if attends and "indexed" in name
                else "full"
                if attends
                else "count"
                if "lim_tally" in name
                else "attention"
                if any(w in name for w in ("flash", "fmha", "sdpa", "cudnn_generated"))
                else "matrix products"
                if any(w in name for w in ("gemm", "nvjet", "cutlass", "gemv", "cublas", "xmma"))
                else "the rest"
            )
            of[kind] = of.get(kind, 0) + e.device_time_total / 3e3
        if not of:
            raise RuntimeError("the profiler saw no kernel")
        return {k: round(v, 3) for k, v in of.items() if v > 0}

    def case(self, batch, context, ways):
        row = {"batch": batch, "context": context, "stores": self.prepare(batch, context)}
        config, layer = self.model.config, self.cache.layers[0]
        query = torch.randn(batch, config.num_attention_heads, 1, config.head_dim, device="cuda", dtype=torch.bfloat16)
        for attention in ways:
            if attention in self.torch and not self.torch[attention].choose(query, layer.keys, layer.values):
                row[attention] = {"failed": "does not take the shape"}
                continue
            try:
                row[attention] = self.measure(self.capture(attention, batch, context), batch)
            except torch.OutOfMemoryError as e:
                row[attention] = {"failed": str(e).splitlines()[0][:120]}
                torch.cuda.empty_cache()
        ours = row.get("lessismore", {}).get("ms")
        line = f"batch {batch}  {context // 1024:>3}K"
        for attention in ways:
            of = row[attention]
            line += f"   {attention} " + (
                of.get("failed")
                or f"{of['ms']:.2f} ms (alone {of['alone_ms']:.2f}, eager {of['eager_ms']:.1f}), {of['tokens_per_s']:.0f} tokens/s"
            )
            if "ms" in of and ours and attention != "lessismore":
                line += f" ({of['ms'] / ours:.2f}x)"
        print(line, flush=True)
        return row

    def where(self, row, ways):
        """What the time of a measured case goes to."""
        batch, context = row["batch"], row["context"]
        self.prepare(batch, context)
        for attention in ways:
            if attention == "sdpa" or "ms" not in row[attention]:
                continue
            of = self.profile(self.capture(attention, batch, context))
            of["between kernels"] = round(row[attention]["ms"] - sum(of.values()), 3)
            row[attention]["kernels_ms"] = of
            print(
                f"batch {batch}  {context // 1024:>3}K   {attention}: "
                + ", ".join(f"{k} {v:.2f}" for k, v in sorted(of.items(), key=lambda kv: -kv[1])),
                flush=True,
            )


@torch.inference_mode()
def main():
    p = argparse.ArgumentParser()
    p.add_argument("--json")
    p.add_argument("--cases", default="1:8,1:32,1:64,8:8,8:32,8:64", help="batch:context in thousands of tokens")
    p.add_argument("--ways", default=",".join(["sdpa", *TORCH, "lessismore"]))
    p.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"])
    p.add_argument("--gigabytes", type=float, default=24)
    a = p.parse_args()
    d, ways = Decode(a.layers, a.gigabytes), a.ways.split(",")
    try:
        for case in a.cases.split(","):
            batch, k = case.split(":")
            d.result["rows"].append(d.case(int(batch), int(float(k) * 1024), ways))
        for row in d.result["rows"]:  # last: once a profiler was there, graphs take longer
            try:
                d.where(row, ways)
            except RuntimeError as e:  # a machine that lets nobody look
                print(f"no profile: {e}", flush=True)
    finally:
        if a.json:
            with open(a.json, "w") as f:
                json.dump(d.result, f, indent=1)


if __name__ == "__main__":
    main()
