"""FlashInfer's ways to run a decode step's attention. Its caches are pages of tokens: a store [row][token][head][dim] is
one as it lies, so nothing is copied.

Two plans of its wrappers: the one for CUDA graphs, which a host that captures once and replays while n grows has to take,
and the one for just these lengths, which it could capture anew for each token; the second is mostly a little faster."""

from functools import partial

import flashinfer
import torch
from flashinfer.decode import trtllm_batch_decode_with_kv_cache

VERSION = flashinfer.__version__
LAYOUTS = ((16, False), (16, True), (64, False), (128, False))  # tokens in a page, whether pages are shuffled
SPACE = 512 << 20


class Pages:
    def __init__(self, batch, context, size, shuffled):
        self.batch, self.context, self.size = batch, context, size
        count = batch * context // size
        places = torch.randperm(count, device="cuda") if shuffled else torch.arange(count, device="cuda")
        self.table = places.int().view(batch, -1)
        self.starts = torch.arange(batch + 1, dtype=torch.int32) * (context // size)
        self.last = torch.full((batch,), size, dtype=torch.int32)
        self.name = f"pages of {size}{', shuffled' if shuffled else ''}"

    def view(self, x):
        return x.view(-1, self.size, *x.shape[2:])

    def row(self, x, i):
        """Row i's tokens [token][head][dim] as the table has them."""
        return self.view(x)[self.table[i]].flatten(0, 1)


def space():
    return torch.zeros(SPACE, dtype=torch.uint8, device="cuda")  # XQA counts in it from zero


def wrapper(backend, tensor_cores, any_length, pages, q, kv_heads, out):
    buffers = {}
    if any_length:
        buffers = {
            f"paged_kv_{name}_buffer": torch.empty(n, dtype=torch.int32, device="cuda")
            for name, n in (("indptr", pages.batch + 1), ("indices", pages.table.numel()), ("last_page_len", pages.batch))
        }
    w = flashinfer.BatchDecodeWithPagedKVCacheWrapper(space(), "NHD", any_length, tensor_cores, backend=backend, **buffers)
    w.plan(
        pages.starts,
        pages.table.flatten(),
        pages.last,
        q.shape[1],
        kv_heads,
        q.shape[2],
        pages.size,
        q_data_type=q.dtype,
        kv_data_type=q.dtype,
        **({"block_tables": pages.table} if backend == "cudnn" else {}),
    )
    return lambda key, value: w.run(q, (key, value), out=out)


def xqa(pages, q, kv_heads, out):
    work, lengths = space(), torch.full((pages.batch,), pages.context, dtype=torch.int32, device="cuda")
    return lambda key, value: trtllm_batch_decode_with_kv_cache(
        q,
        (key, value),
        work,
        pages.table,
        lengths,
        pages.context,
        bmm1_scale=q.shape[2] ** -0.5,
        bmm2_scale=1.0,
        out=out,
        kv_layout="NHD",
        backend="xqa",
    )


def persistent(pages, q, kv_heads, out):
    w = flashinfer.BatchAttention("NHD")
    w.plan(
        torch.arange(pages.batch + 1, dtype=torch.int32, device="cuda"),
        pages.starts.cuda(),
        pages.table.flatten(),
        torch.full((pages.batch,), pages.context, dtype=torch.int32, device="cuda"),
        q.shape[1],
        kv_heads,
        q.shape[2],
        q.shape[2],
        pages.size,
        q_data_type=q.dtype,
        kv_data_type=q.dtype,
    )
    sums = torch.empty(q.shape[:2], dtype=torch.float32, device="cuda")
    return lambda key, value: w.run(q, (key, value), out=out, lse=sums)


# Each takes Pages, queries [row][head][dim], the number of KV heads and the output, and returns what runs one layer.
WAYS = {
    "CUDA cores": partial(wrapper, "fa2", False, True),
    "CUDA cores, this length": partial(wrapper, "fa2", False, False),
    "tensor cores": partial(wrapper, "fa2", True, True),
    "tensor cores, this length": partial(wrapper, "fa2", True, False),
    "fa3, this length": partial(wrapper, "fa3", True, False),
    "cudnn": partial(wrapper, "cudnn", False, True),
    "xqa": xqa,
    "persistent": persistent,
}
