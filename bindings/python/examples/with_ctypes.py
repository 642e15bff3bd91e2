"""ctypes alone, as from any language: lessismore.h in Python's words, one layer of one step. python with_ctypes.py LIBRARY."""

from ctypes import CDLL, Structure, byref, c_double, c_float, c_int32, c_int64, c_size_t, c_void_p, sizeof
from sys import argv

import numpy as np


def struct(name, *fields):  # types, each with its fields' names
    return type(name, (Structure,), {"_fields_": [(n, t) for t, names in fields for n in names.split()]})


Params = struct("lim_engine_params", (c_size_t, "struct_size"), (c_void_p, "layers"), (c_int64, "layers_count"),
                (c_double, "recency"), (c_void_p, "logger logger_user"),
                (c_int32, "n_layers budget sink_tokens policy n_threads reserved"))  # fmt: skip
Attention = struct("lim_attention", (c_size_t, "struct_size"), (c_void_p, "query key value output"),
                   (c_int64, "query_head k_slot k_head v_slot v_head output_head n_slots query_position"),
                   (c_void_p, "positions mask alibi_slopes sinks"), (c_int32, "layer heads kv_heads key_dim value_dim"),
                   (c_int32, "q_type k_type v_type o_type"), (c_float, "scale softcap"), (c_int32, "reserved"))  # fmt: skip
lib, params, engine, sequence = CDLL(argv[1]), Params(), c_void_p(), c_void_p()
assert lib.lim_engine_default_params(byref(params), c_size_t(sizeof(params))) == 0
params.n_layers = 4
assert lib.lim_engine_create(byref(params), byref(engine)) == 0
assert lib.lim_sequence_create(engine, byref(sequence)) == 0
query, output, keys, values = (np.ones(shape, np.float32) for shape in ((8, 64), (8, 64), (999, 2, 64), (999, 2, 64)))
a = Attention(sizeof(Attention), *(x.ctypes.data for x in (query, keys, values, output)), 256, 512, 256, 512, 256, 256,
              n_slots=999, query_position=998, heads=8, kv_heads=2, key_dim=64, value_dim=64)  # fmt: skip
assert lib.lim_attend(sequence, byref(a)) == 0
print(output.mean())
assert lib.lim_sequence_free(sequence) == 0 and lib.lim_engine_free(engine) == 0
