"""Times the CUDA kernels on the Qwen3-8B shape and prints one table; --json FILE for all of it.

Each figure is the median of replays of a CUDA graph of 36 launches or so over the K/V of several layers in turn,
so that nothing is left in the second-level cache from the run before, divided by their number; a replay's own four
microseconds are in it. Graphs of torch's attention and of FlashInfer's, where it is installed, have 36 as well. Read
bandwidth is measured in the same run by a kernel that only reads."""

import argparse
import ctypes as C
import json
import os
import statistics
import warnings

import device as D
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

warnings.filterwarnings("ignore")

HEADS, KV_HEADS, LAYERS = 32, 8, 36
DIM = 128  # unless --dim says otherwise
DENSE, SELECTING = (0, 1), (2, 12)
BUDGET = 2048
PAGE = 16  # of the paged layout
PAIRS = 5  # of a full layer with FlashAttention 3's


def time_graph(body, repeats=15, out=None):
    """Microseconds of one replay. What out then holds is a replay's."""
    body()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        body()
    if out is not None:
        out.fill_(float("nan"))
    for _ in range(2):
        graph.replay()
    times = []
    for _ in range(repeats):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        graph.replay()
        b.record()
        torch.cuda.synchronize()
        times.append(a.elapsed_time(b) * 1e3)
    return statistics.median(times)


class Bench:
    def __init__(self, fatbin):
        self.k = D.Kernels()
        self.module = C.c_void_p()
        with open(fatbin, "rb") as f:
            self.image = f.read()
        self.k.ok(self.k.cuda.cuModuleLoadData(C.byref(self.module), self.image))
        self.result = {"device": torch.cuda.get_device_name(), "rows": []}
        versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "flashinfer": None}
        self.result["versions"] = versions
        try:
            import paged

            self.paged, versions["flashinfer"] = paged, paged.VERSION
        except Exception as e:  # not installed, or not able to start
            self.paged, self.result["flashinfer_missing"] = None, f"{type(e).__name__}: {e}"
        try:
            import flash3

            self.flash3, versions["vllm"] = flash3, flash3.VERSION
        except Exception as e:
            self.flash3, self.result["vllm_missing"] = None, f"{type(e).__name__}: {e}"
        print(
            f"torch {versions['torch']}, cuDNN {versions['cudnn']}, FlashInfer {versions['flashinfer'] or 'NOT MEASURED: ' + self.result['flashinfer_missing']}",
            flush=True,
        )

    def bandwidth(self):
        f = C.c_void_p()
        self.k.ok(self.k.cuda.cuModuleGetFunction(C.byref(f), self.module, b"read_all"))
        x = torch.empty(4 << 30, dtype=torch.uint8, device="cuda").random_()
        sink = torch.zeros(1, dtype=torch.int32, device="cuda")
        best = 0
        for per in (2, 3, 4):
            p = (C.c_uint64(x.data_ptr()), C.c_uint64(x.numel() // 16), C.c_uint64(sink.data_ptr()))
            params = (C.c_void_p * 3)(*[C.cast(C.pointer(v), C.c_void_p) for v in p])

            def body():
                s = C.c_void_p(torch.cuda.current_stream().cuda_stream)
                self.k.ok(self.k.cuda.cuLaunchKernel(f, self.k.device.multiprocessors * per, 1, 1, 512, 1, 1, 0, s, params, None))

            best = max(best, x.numel() / time_graph(body) / 1e6)
        y = torch.empty_like(x)
        copy = 2 * x.numel() / time_graph(lambda: y.copy_(x)) / 1e6
        self.result["read_tb_s"], self.result["copy_tb_s"] = best, copy
        self.read = best
        print(f"{self.result['device']}: read {best:.2f} TB/s, copy {copy:.2f} TB/s", flush=True)

    def case(self, batch, context, layout, kv_type, others):
        torch.cuda.empty_cache()
        element = {D.F16: 2, D.BF16: 2, D.FP8: 1, D.Q8_0: 34 / 32, D.Q4_0: 18 / 32}[kv_type]
        per_layer = batch * context * KV_HEADS * DIM * 2 * element
        layers = max(2, min(8, int(24e9 / per_layer)))
        shape = {
            "contiguous": (batch, KV_HEADS, context, DIM),
            "strided": (batch, context, KV_HEADS, DIM),
            "paged": (batch * context // PAGE, PAGE, KV_HEADS, DIM),
        }[layout]

        def make():
            x = torch.randn(shape, device="cuda", dtype=torch.float16)
            if kv_type in D.PACKED:
                return torch.cat([D.PACKED[kv_type](part)[0] for part in x.split(1)])
            return x.to(D.TORCH[kv_type])

        kv = [[make() for _ in range(2)] for _ in range(layers)]
        table = None
        if layout == "paged":  # as vLLM has them: K beside V, pages in any order
            table = torch.randperm(batch * context // PAGE, device="cuda").int().view(batch, -1)
            for i, two in enumerate(kv):
                kv[i] = torch.cat(two, -1).split(two[0].shape[-1], -1)
        token, head = (2, 1) if layout == "contiguous" else (1, 2)
        q = torch.randn(batch, HEADS, DIM, device="cuda").bfloat16().half()  # the same in either type
        out = torch.empty_like(q)
        lengths = torch.full((batch,), context, dtype=torch.int32, device="cuda")
        token_set = torch.zeros(batch, BUDGET, dtype=torch.int32, device="cuda")

        def call(i, mode):
            c = D.Call()
            rows = lambda x: D.Rows(x.data_ptr(), x.stride(0) * 2, x.stride(1) * 2, D.F16, 0)
            store = lambda x: D.Store(
                x.data_ptr(), x.stride(token) * x.element_size(), x.stride(head) * x.element_size(), x.stride(0) * x.element_size()
            )
            c.query, c.output, c.key, c.value = rows(q), rows(out), store(kv[i][0]), store(kv[i][1])
            c.lengths, c.set, c.set_stride = lengths.data_ptr(), token_set.data_ptr(), BUDGET
            if table is not None:
                c.table, c.table_stride, c.page_shift = table.data_ptr(), table.stride(0), PAGE.bit_length() - 1
            c.n_rows, c.heads, c.kv_heads, c.dim, c.kv_type, c.capacity = batch, HEADS, KV_HEADS, DIM, kv_type, context
            c.scale, c.value_scale, c.mode, c.budget = DIM**-0.5, 1.0, mode, BUDGET
            c.sink_tokens, c.top_k, c.recent = D.split(BUDGET)
            return c

        work = torch.zeros(self.k.work_size(call(0, D.SELECT)), dtype=torch.uint8, device="cuda")

        def plan(i, mode):
            c = call(i, mode)
            c.work = work.data_ptr()
            return self.k.plan(c)

        plans = {m: [plan(i, m) for i in range(layers)] for m in (D.FULL, D.SELECT, D.SPARSE)}

        rounds = -(-LAYERS // layers)

        def run(mode, only=None):
            def body():
                for p in plans[mode] * rounds:
                    p.run(torch.cuda.current_stream(), only)

            return time_graph(body, 9) / layers / rounds

        r = {"batch": batch, "context": context, "layout": layout, "kv": D.NAMES[kv_type], "dim": DIM}
        r["full_us"] = run(D.FULL)
        r["full_share"] = per_layer / r["full_us"] / 1e6 / self.read
        r["select_us"] = run(D.SELECT)
        r["attend_logits_us"] = run(D.SELECT, 0)
        r["selection_us"] = r["select_us"] - r["attend_logits_us"]
        if context > BUDGET:
            r["list_us"] = run(D.SPARSE)
            r["list_share"] = per_layer / context * BUDGET / r["list_us"] / 1e6 / self.read

        def step():
            s = torch.cuda.current_stream()
            for layer in range(LAYERS):
                mode = D.FULL if layer in DENSE else D.SELECT if layer in SELECTING else D.SPARSE
                plans[mode][layer % layers].run(s)

        r["step_us"] = time_graph(step, 7)
        if layout == "paged" and "vllm" in others and self.flash3 and kv_type in (D.F16, D.BF16):
            r.update(self.flash3_layer(batch, context, kv, q, lengths, table, out, plans[D.FULL], layers))
        if kv_type == D.F16 and layout != "paged":
            if "torch" in others:
                r.update(self.torch_step(batch, kv, q, layout, layers))
            if "flashinfer" in others and self.paged and layout == "strided":
                r.update(self.flashinfer_step(batch, context, kv, q, layers))
        measured = {who: r[f"{who}_us"] for who in others if r.get(f"{who}_us") and who != "vllm"}
        if measured:
            r["others_by"] = min(measured, key=measured.get)
            r["others_us"] = measured[r["others_by"]]
            r["speedup"] = r["others_us"] / r["step_us"]
        self.result["rows"].append(r)
        print(
            f"b{batch:<3} {context // 1024:>4}K {layout:<10} {r['kv']:<5} {DIM:<3} full {r['full_us']:8.1f} us {r['full_share']:4.0%}  selection {r['selection_us']:6.1f} us "
            f"{r['selection_us'] / r['full_us']:5.1%} (logits +{r['attend_logits_us'] - r['full_us']:.1f})  list {r.get('list_us', 0):6.1f} us {r.get('list_share', 0):4.0%}  "
            f"step {r['step_us']:9.0f} us"
            + "".join(f"  {who} {us:9.0f} us ({r[f'{who}_by']})" for who, us in measured.items())
            + (f"  {r['speedup']:.2f}x {r['others_by']}" if measured else ""),
            flush=True,
        )

    def flash3_layer(self, batch, context, kv, q, lengths, table, out, full, layers):
        """A full layer beside FlashAttention 3's over the same pages, one and the other in turn: microseconds, and the ratio's median and range."""
        x = q.to(kv[0][0].dtype)
        theirs = torch.empty_like(x)
        layer = self.flash3.layer(x, KV_HEADS, lengths, context, table, PAGE, theirs)
        rounds = -(-LAYERS // layers)

        def of_theirs():
            for i in range(layers * rounds):
                layer(*kv[i % layers])

        def of_ours():
            for p in full * rounds:
                p.run(torch.cuda.current_stream(), None)

        times = [(time_graph(of_ours, 9) / layers / rounds, time_graph(of_theirs, 9) / layers / rounds) for _ in range(PAIRS)]
        full[-1].run(torch.cuda.current_stream(), None)
        layer(*kv[(layers * rounds - 1) % layers])
        error = ((out.float() - theirs.float()).norm(dim=-1) / theirs.float().norm(dim=-1)).max().item()
        if not error < 1e-2:
            raise ValueError(f"FlashAttention 3 and the library differ by {error:.2g}")
        ratios = sorted(ours / other for ours, other in times)
        found = {"vllm_us": statistics.median(t[1] for t in times), "vllm_full_us": statistics.median(t[0] for t in times),
                 "vllm_ratio": statistics.median(ratios), "vllm_ratios": ratios, "vllm_error": error}  # fmt: skip
        print(f"     a full layer {found['vllm_full_us']:.1f} us, FlashAttention 3's {found['vllm_us']:.1f} us: {found['vllm_ratio']:.3f} times ",
              f"({ratios[0]:.3f} to {ratios[-1]:.3f}, {PAIRS} pairs), outputs within {error:.1e}", flush=True)  # fmt: skip
        return found

    def torch_step(self, batch, kv, q, layout, layers):
        """The fastest of torch's: heads by its own grouping, or the group as query tokens (what reads K/V once)."""
        if layout == "strided":
            kv = [[x.transpose(1, 2) for x in two] for two in kv]
        one, packed = q[:, :, None], q.reshape(batch, KV_HEADS, HEADS // KV_HEADS, DIM)
        ways = {}
        for name, backend in (
            ("flash", SDPBackend.FLASH_ATTENTION),
            ("cudnn", SDPBackend.CUDNN_ATTENTION),
            ("efficient", SDPBackend.EFFICIENT_ATTENTION),
        ):
            for how, x, gqa in (("grouped", one, True), ("packed", packed, False)):

                def run(x=x, gqa=gqa, backend=backend):
                    def body():
                        for layer in range(LAYERS):
                            i = layer % layers
                            F.scaled_dot_product_attention(x, kv[i][0], kv[i][1], enable_gqa=gqa)

                    with sdpa_kernel(backend):
                        return time_graph(body, 5)

                ways[f"{name} {how}"] = run
        return self.fastest("torch", ways)

    def flashinfer_step(self, batch, context, kv, q, layers):
        """The fastest of FlashInfer's whose output is right, over the same memory as pages."""
        out, last, ways = torch.empty_like(q), kv[(LAYERS - 1) % layers], {}
        for layout in self.paged.LAYOUTS:
            pages = self.paged.Pages(batch, context, *layout)
            seen = [[pages.view(x) for x in two] for two in kv]
            expected = torch.cat(
                [
                    F.scaled_dot_product_attention(
                        q[row].view(1, KV_HEADS, -1, DIM).float(), *(pages.row(x, row).transpose(0, 1)[None].float() for x in last)
                    )
                    for row in range(batch)
                ]
            ).view(q.shape)
            for name, way in self.paged.WAYS.items():

                def run(way=way, pages=pages, seen=seen, expected=expected):
                    layer_run = way(pages, q, KV_HEADS, out)

                    def body():
                        for layer in range(LAYERS):
                            layer_run(*seen[layer % layers])

                    us = time_graph(body, 5, out)
                    error = ((out - expected).norm(dim=-1) / expected.norm(dim=-1)).max().item()
                    if not error < 5e-3:
                        raise ValueError(f"wrong output, relative error {error:.2g}")
                    return us

                ways[f"{name}, {pages.name}"] = run
        return self.fastest("flashinfer", ways)

    def fastest(self, who, ways):
        found = {}
        for name, run in ways.items():
            try:
                found[name] = run()
            except Exception as e:  # does not take the shape, or answers wrong
                found[name] = None
                self.result.setdefault("refused", {})[f"{who} {name}"] = f"{type(e).__name__}: {e}".splitlines()[0][:200]
                torch.cuda.synchronize()
        by = min((n for n in found if found[n]), key=lambda n: found[n], default=None)
        return {f"{who}_us": found.get(by), f"{who}_by": by, f"{who}_all": found}


def sizes(case):
    batch, k = case.split(":")
    return int(batch), int(float(k) * 1024)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--json")
    p.add_argument("--cases", default="1:2,1:8,1:32,1:128,8:2,8:8,8:32,8:128,32:8,32:32")
    p.add_argument("--paged", default="8:32,16:32", help="further cases, in pages")
    p.add_argument("--layouts", default="strided")
    p.add_argument("--types", default="f16")
    p.add_argument("--dim", type=int, default=DIM, help="head_dim, of 8 KV heads and 32 query heads")
    p.add_argument(
        "--others",
        default="torch,flashinfer,vllm",
        help="whose attention is timed too; torch's and FlashInfer's with f16 only, FlashInfer's in the strided layout only, vLLM's (FlashAttention 3) in pages only",
    )
    a = p.parse_args()
    globals()["DIM"] = a.dim
    others = [who for who in a.others.split(",") if who]
    if unknown := set(others) - {"torch", "flashinfer", "vllm"}:
        p.error(f"--others: {', '.join(unknown)} is not torch, flashinfer or vllm")
    b = Bench(os.path.join(os.path.dirname(D.FATBIN), "read.fatbin"))
    b.bandwidth()
    types = {v: k for k, v in D.NAMES.items()}
    try:
        for layout in a.layouts.split(","):
            for kv in a.types.split(","):
                for case in filter(None, a.cases.split(",")):
                    b.case(*sizes(case), layout, types[kv], others)
        for kv in a.types.split(","):
            for case in filter(None, a.paged.split(",")):
                b.case(*sizes(case), "paged", types[kv], others)
    finally:
        if a.json:
            with open(a.json, "w") as f:
                json.dump(b.result, f, indent=1)


if __name__ == "__main__":
    main()
