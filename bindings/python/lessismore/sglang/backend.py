"""SGLang's FlashAttention 3 backend, with the rows that decode given to lessismore. SGLang imports this when the backend is chosen.

A decode step's rows have one token each; prompts, drafts, and layers and models that layers.py names stay SGLang's.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.layers.attention.flashattention_backend import FlashAttentionBackend

from .._errors import Error
from . import context

try:  # 0.5.12 and later say so where keys and values go
    from sglang.srt.layers.attention.flashattention_backend import KVWriteLoc
except ImportError:
    KVWriteLoc = None


class Backend(FlashAttentionBackend):
    def __init__(self, model_runner: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(model_runner, *args, **kwargs)
        self.shared = context.Context(model_runner, self)
        self.calls_by_layer: dict[int, Any] = {}  # None: SGLang's for good
        self.saved = False

    def forward_decode(
        self, q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, save_kv_cache: bool = True, *args: Any, **kwargs: Any
    ) -> Any:  # fmt: skip
        sinks = kwargs.get("sinks")
        # Anything else that is said of a layer's attention is not known here.
        plain = not args and all(name == "sinks" or value is None or value is False for name, value in kwargs.items())
        if plain and self.shared.active and forward_batch.spec_info is None:
            output = self._decode(q, k, v, layer, forward_batch, save_kv_cache, sinks)
            if output is not None:
                return output
            save_kv_cache = save_kv_cache and not self.saved
        return super().forward_decode(q, k, v, layer, forward_batch, save_kv_cache, *args, **kwargs)

    def _decode(self, q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, save: bool, sinks: Any) -> Any:
        """A layer's output; None: SGLang has to compute it. self.saved: keys and values are in the store already."""
        self.saved = False
        call = self.calls_by_layer.get(layer.layer_id, self)
        if call is self:
            number = self.shared.numbers.get(layer.layer_id)
            call = self.calls_by_layer[layer.layer_id] = None if number is None else context.Call(self.shared, layer, number)
        if call is None:
            return None
        m = self.forward_metadata
        rows, query = len(m.cache_seqlens_int32), q.view(-1, layer.tp_q_head_num, layer.head_dim)
        if rows > self.shared.max_rows or len(query) != rows or m.max_seq_len_q != 1:
            self.shared.declined[f"more than {self.shared.max_rows} rows" if rows > self.shared.max_rows else "rows of several tokens"] += (
                rows
            )
            return None
        if k is not None and save:
            self._save(layer, forward_batch, k, v)
            self.saved = True
        pool = self._pool(forward_batch)
        keys, values = (x.view(-1, self.page_size, layer.tp_k_head_num, layer.head_dim) for x in pool.get_kv_buffer(layer.layer_id))
        given = getattr(forward_batch, "_attn_output", None)
        output = q.new_empty(rows, layer.tp_q_head_num * layer.v_head_dim) if given is None else given
        try:
            table = self.shared.table(m.page_table, self.page_size)
            call.run(query, keys, values, m.cache_seqlens_int32, table, output.view(rows, layer.tp_q_head_num, layer.v_head_dim), sinks)
        except Error as e:
            self.calls_by_layer[layer.layer_id] = None
            self.shared.fail(e)
            return None
        return output.view(rows, layer.tp_q_head_num * layer.v_head_dim)

    def _save(self, layer: Any, forward_batch: Any, k: Any, v: Any) -> None:
        """Keys and values into the store, as forward_decode of SGLang's own backend does."""
        where = forward_batch.out_cache_loc
        if KVWriteLoc is not None:
            swa = self.forward_metadata.swa_out_cache_loc
            named = getattr(KVWriteLoc, "for_layer", None)
            where = KVWriteLoc(where, swa) if named is None else named(forward_batch, layer, swa_loc=swa)
        self._pool(forward_batch).set_kv_buffer(layer, where, k, v, layer.k_scale, layer.v_scale)

    def _pool(self, forward_batch: Any) -> Any:
        pool = getattr(self, "token_to_kv_pool", None)
        return forward_batch.token_to_kv_pool if pool is None else pool


def _counting(name: str) -> Any:
    """SGLang's own step of that name, after the step has been counted: graphs are replayed without forward_decode()."""
    theirs = getattr(FlashAttentionBackend, name)

    def prepare(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.shared.tick()
        return theirs(self, *args, **kwargs)

    return prepare


# What SGLang calls before a step: in graphs of later versions, of earlier ones, and without graphs.
for _name in ("init_forward_metadata_out_graph", "init_forward_metadata_replay_cuda_graph", "init_forward_metadata"):
    if hasattr(FlashAttentionBackend, _name):
        setattr(Backend, _name, _counting(_name))
