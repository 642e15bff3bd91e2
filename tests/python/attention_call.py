"""A stand-in of lim_decoder_attend()."""

import ctypes

import numpy as np

from lessismore._errors import ArgumentError


class Library:
    """Attends as the C header says, from the addresses that it is given: float16, pages of a table, sinks."""

    def __init__(self, heads, kv_heads, head_dim, page_size, capacity=0):
        self.capacity = capacity
        self.heads, self.kv_heads, self.head_dim, self.page_size = heads, kv_heads, head_dim, page_size
        self.rows, self.layers, self.error = [], [], None
        self.sets = {}  # the tokens that a layer attends to for a row, where it does not attend to all

    def __call__(self, handle, a):
        if self.error is not None:
            raise self.error
        if a.n_rows > 1 and a.table_stride < -(-self.capacity // self.page_size):
            raise ArgumentError(f"table_stride = {a.table_stride} is less than the pages of the capacity")
        self.rows.append(a.n_rows)
        self.layers.append(a.layer)
        assert a.page_size == self.page_size and a.query_dtype == a.output_dtype == 1 and a.struct_size == ctypes.sizeof(a)

        def at(address, shape, strides, kind=np.float16):
            last = ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8))
            size = sum((n - 1) * s for n, s in zip(shape, strides)) + np.dtype(kind).itemsize
            return np.ndarray(shape, kind, np.ctypeslib.as_array(last, (size,)), strides=strides)

        for row, n in enumerate(at(a.lengths, (a.n_rows,), (4,), np.int32)):
            to = at(a.output + row * a.output_row_stride, (self.heads, self.head_dim), (a.output_head_stride, 2))
            q = at(a.query + row * a.query_row_stride, (self.heads, self.head_dim), (a.query_head_stride, 2)).astype(np.float64)
            to[:] = 0
            if n == 0:
                continue
            table = at(a.table + row * a.table_stride * 4, (-(-int(n) // self.page_size),), (4,), np.int32)
            k = np.concatenate(
                [
                    at(
                        a.key + int(p) * a.key_page_stride,
                        (self.page_size, self.kv_heads, self.head_dim),
                        (a.key_token_stride, a.key_head_stride, 2),
                    )
                    for p in table
                ]
            )
            v = np.concatenate(
                [
                    at(
                        a.value + int(p) * a.value_page_stride,
                        (self.page_size, self.kv_heads, self.head_dim),
                        (a.value_token_stride, a.value_head_stride, 2),
                    )
                    for p in table
                ]
            )
            k, v = (np.repeat(x[:n].astype(np.float64), self.heads // self.kv_heads, 1) for x in (k, v))
            if (a.layer, row) in self.sets:
                k, v = (x[self.sets[a.layer, row]] for x in (k, v))
            p = np.exp(np.einsum("hd,thd->ht", q, k) * a.scale)
            rest = np.exp(at(a.sinks, (self.heads,), (4,), np.float32).astype(np.float64))[:, None] if a.sinks else 0
            to[:] = np.einsum("ht,thd->hd", p, v) / (p.sum(1, keepdims=True) + rest)
        return 0
