"""ctypes alone, as from any language: lessismore.h in Python's words, one layer of one step. python with_ctypes.py LIBRARY."""

from ctypes import CDLL, Structure, byref, c_double, c_float, c_int32, c_int64, c_size_t, c_uint64, c_void_p, sizeof
from sys import argv

import numpy as np


def struct(name, *fields):  # types, each with its fields' names
    return type(name, (Structure,), {"_fields_": [(n, t) for t, names in fields for n in names.split()]})


Params = struct("lim_engine_params", (c_size_t, "struct_size"), (c_void_p, "layers"), (c_int64, "layers_count"),
                (c_double, "recency"), (c_void_p, "logger logger_user"),
                (c_int32, "n_layers budget sink_tokens policy n_threads reserved"))  # fmt: skip
Shape = struct("lim_decoder_params", (c_size_t, "struct_size"), (c_int32, "device max_rows"),
               (c_int32, "capacity heads kv_heads head_dim value_dim kv_dtype"), (c_uint64, "work work_size reserved"))  # fmt: skip
Attention = struct("lim_attention", (c_size_t, "struct_size"), (c_int32, "layer n_rows"), (c_void_p, "query key value output"),
                   (c_int64, "query_row query_head output_row output_head"),
                   (c_int64, "key_page key_token key_head value_page value_token value_head"),
                   (c_int32, "query_dtype output_dtype key_dtype value_dtype"), (c_void_p, "lengths"),
                   (c_int32, "heads kv_heads head_dim value_dim"), (c_int64, "n_slots"), (c_float, "scale softcap"),
                   (c_void_p, "sinks table"), (c_int64, "table_stride"), (c_int32, "page_size reserved"), (c_void_p, "stream"),
                   (c_void_p, "query_positions positions"), (c_int64, "positions_row"), (c_void_p, "mask"),
                   (c_int64, "mask_row"), (c_void_p, "alibi_slopes"), (c_float, "key_scale value_scale"))  # fmt: skip
lib, params, engine, decoder = CDLL(argv[1]), Params(), c_void_p(), c_void_p()
assert lib.lim_engine_default_params(byref(params), c_size_t(sizeof(params))) == 0
params.n_layers = 4
assert lib.lim_engine_create(byref(params), byref(engine)) == 0
assert lib.lim_decoder_create(engine, byref(Shape(sizeof(Shape), device=-1, max_rows=1)), byref(decoder)) == 0
query, output, keys, values = (np.ones(shape, np.float32) for shape in ((8, 64), (8, 64), (999, 2, 64), (999, 2, 64)))
lengths = np.array([999], np.int32)
a = Attention(sizeof(Attention), n_rows=1, query=query.ctypes.data, key=keys.ctypes.data, value=values.ctypes.data,
              output=output.ctypes.data, query_head=256, output_head=256, key_token=512, key_head=256, value_token=512,
              value_head=256, lengths=lengths.ctypes.data, n_slots=999, heads=8, kv_heads=2, head_dim=64)  # fmt: skip
assert lib.lim_decoder_attend(decoder, byref(a)) == 0
print(output.mean())
assert lib.lim_decoder_free(decoder) == 0 and lib.lim_engine_free(engine) == 0
