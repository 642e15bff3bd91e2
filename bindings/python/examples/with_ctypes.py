"""ctypes alone, as from any language: lessismore.h in Python's words, one layer of one step. python with_ctypes.py LIBRARY."""

from ctypes import CDLL, Structure, byref, c_double, c_int32, c_int64, c_size_t, c_uint64, c_void_p, sizeof
from sys import argv

import numpy as np


def struct(name, *fields):  # types, each with its fields' names
    return type(name, (Structure,), {"_fields_": [(n, t) for t, names in fields for n in names.split()]})


Params = struct("lim_engine_params", (c_size_t, "struct_size"), (c_void_p, "layers"), (c_int64, "layers_count"),
                (c_double, "recency"), (c_void_p, "logger logger_user"),
                (c_int32, "n_layers budget sink_tokens policy n_threads reserved"))  # fmt: skip
Shape = struct(
    "lim_decoder_params", (c_size_t, "struct_size"), (c_int32, "device max_rows"), (c_int32 * 6, "shape"), (c_uint64 * 4, "rest")
)
Attention = struct("lim_attention", (c_size_t, "struct_size"), (c_int32, "layer n_rows"), (c_void_p, "query key value output"),
                   (c_int64 * 10, "strides"), (c_int32 * 4, "dtypes"), (c_void_p, "lengths"),
                   (c_int32, "heads kv_heads head_dim value_dim"), (c_int64, "n_slots"), (c_uint64 * 13, "rest"))  # fmt: skip
lib, params, engine, decoder = CDLL(argv[1]), Params(), c_void_p(), c_void_p()
assert lib.lim_engine_default_params(byref(params), c_size_t(sizeof(params))) == 0
params.n_layers = 4
assert lib.lim_engine_create(byref(params), byref(engine)) == 0
assert lib.lim_decoder_create(engine, byref(Shape(sizeof(Shape), -1, 1)), byref(decoder)) == 0
query, output, keys, values = (np.ones(shape, np.float32) for shape in ((8, 64), (8, 64), (999, 2, 64), (999, 2, 64)))
strides, length = (c_int64 * 10)(0, 256, 0, 256, 0, 512, 256, 0, 512, 256), np.array([999], np.int32)
a = Attention(sizeof(Attention), 0, 1, *(x.ctypes.data for x in (query, keys, values, output)), strides,
              lengths=length.ctypes.data, n_slots=999, heads=8, kv_heads=2, head_dim=64)  # fmt: skip
assert lib.lim_decoder_attend(decoder, byref(a)) == 0
print(output.mean())
assert lib.lim_decoder_free(decoder) == 0 and lib.lim_engine_free(engine) == 0
