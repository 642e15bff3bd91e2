"""torch tensors on a GPU on their way to the library: queued on torch's current stream, read by no one on the way.

What a row sees is worked out by torch on the GPU, once per step, so that a captured step looks afresh at each replay.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple, Optional

import torch

from . import _library
from ._errors import ArgumentError, BusyError, UnsupportedError
from ._torch import DTYPES
from .batch import Batch
from .engine import Engine

KV_DTYPES = {torch.float16: "f16", torch.bfloat16: "bf16"}
LEAST_CAPACITY = 1024
KEPT = 4  # batches of different shapes that a decoder keeps, besides those that a graph was captured from
LENGTHS = "lessismore_lengths"  # on a mask that hides nothing but what is not written yet


class Shape(NamedTuple):
    """What a batch is made for."""

    device: torch.device
    rows: int
    capacity: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype


class Seen(NamedTuple):
    """What each row of a step sees."""

    lengths: torch.Tensor  # [batch] int32: so many tokens
    order: Optional[torch.Tensor]  # [batch, slots] int64: a visible slot's place among them, else slots; None: the slot itself


def see(mask: Optional[torch.Tensor], batch: int, slots: int, device: torch.device) -> Seen:
    """Reads an attention mask [batch or 1, 1, 1, slots or more] of bool (True: visible), without waiting for it.

    Raises UnsupportedError for any other: whether it only hides could be told only by reading it.
    """
    if mask is None:
        return Seen(torch.full((batch,), slots, dtype=torch.int32, device=device), None)
    lengths = getattr(mask, LENGTHS, None)
    if lengths is not None and lengths.shape == (batch,):
        return Seen(lengths, None)
    if mask.dim() != 4 or mask.shape[0] not in (1, batch) or mask.shape[1] != 1 or mask.shape[2] != 1:
        raise UnsupportedError(f"attention_mask has shape {tuple(mask.shape)}, not ({batch}, 1, 1, {slots})")
    if mask.shape[3] < slots:
        raise ArgumentError(f"attention_mask has shape {tuple(mask.shape)}, but there are {slots} keys")
    if mask.dtype != torch.bool:
        raise UnsupportedError(f"attention_mask is {mask.dtype}: on a GPU it has to be bool")
    visible = mask[:, 0, 0, :slots].expand(batch, slots)
    count = visible.cumsum(-1)
    return Seen(count[:, -1].to(torch.int32), torch.where(visible, count - 1, slots))


class CudaDecoder:
    """One thread's batches on an engine. Nothing outlives a step in them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._batches: dict[Shape, Batch] = {}  # the one last used is last
        self._captured: set[Shape] = set()
        self._call = _library.BatchAttention(struct_size=ctypes.sizeof(_library.BatchAttention))
        self._layer = -1
        self._seen: Optional[Seen] = None
        self._mask: Optional[torch.Tensor] = None  # what it was seen in, kept so that it stays the same object
        self._slots = 0
        self._shape: Optional[Shape] = None
        self._tables: dict[int, torch.Tensor] = {}

    def forget(self) -> None:
        """No token set outlives this: the keys may be another text's from now on."""
        self._shape = None
        for batch in self._batches.values():
            batch.reset()

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: Optional[torch.Tensor],
        scale: float,
        softcap: float,
        sinks: Optional[torch.Tensor],
    ) -> torch.Tensor:
        """One layer of a decode step: see _torch.Decoder.attend(). The output is there once the stream is."""
        batch, heads, _, head_dim = query.shape
        _, kv_heads, slots, value_dim = value.shape
        for name, tensor in (("query", query), ("key", key), ("value", value)):
            if tensor.stride(-1) != 1:
                raise UnsupportedError(f"{name} has strides {tensor.stride()}: its last dimension is not contiguous")
            if tensor.device != query.device:
                raise UnsupportedError(f"{name} is on {tensor.device}, query on {query.device}")
        if value_dim != head_dim or value.dtype != key.dtype:
            raise UnsupportedError(
                f"value is {value.dtype} with heads of {value_dim}, key {key.dtype} with heads of {head_dim}: on a GPU both are alike"
            )
        shape = Shape(query.device, _room(batch, 1), _room(slots, LEAST_CAPACITY), heads, kv_heads, head_dim, key.dtype)
        fresh = layer <= self._layer or self._shape is None
        if not fresh and shape != self._shape:
            raise UnsupportedError(f"on a GPU all layers are alike, but this one is {shape}, and the one before it {self._shape}")
        if fresh or mask is not self._mask or slots != self._slots or self._seen is None:
            self._seen = see(mask, batch, slots, query.device)
            self._mask, self._slots, self._shape = mask, slots, shape
            self._tables.clear()
        self._layer = layer
        handle = self._batch(shape)._use()

        output = query.new_empty((batch, 1, heads, head_dim))
        q_size, k_size = query.element_size(), key.element_size()
        a = self._call
        a.layer, a.n_rows = layer, batch
        a.query, a.key, a.value, a.output = query.data_ptr(), key.data_ptr(), value.data_ptr(), output.data_ptr()
        a.query_dtype = a.output_dtype = DTYPES[query.dtype]
        a.query_row_stride, a.query_head_stride = query.stride(0) * q_size, query.stride(1) * q_size
        a.output_row_stride, a.output_head_stride = heads * head_dim * q_size, head_dim * q_size
        a.key_page_stride, a.key_head_stride, a.key_token_stride = (key.stride(i) * k_size for i in range(3))
        a.value_page_stride, a.value_head_stride, a.value_token_stride = (value.stride(i) * k_size for i in range(3))
        a.lengths = self._seen.lengths.data_ptr()
        a.table = 0
        if self._seen.order is not None:
            table = self._table(key, value, self._seen.order, shape.capacity)
            a.table, a.table_stride, a.page_size = table.data_ptr(), table.stride(0), 1
            a.key_page_stride, a.value_page_stride = a.key_token_stride, a.value_token_stride
        a.scale, a.softcap = scale, softcap
        a.sinks = 0 if sinks is None else sinks.data_ptr()
        a.stream = _stream(query.device)
        _attend(query.device, handle, a)
        return output

    def _table(self, key: torch.Tensor, value: torch.Tensor, order: torch.Tensor, capacity: int) -> torch.Tensor:
        """[batch, capacity + 1] int32: each row's visible slots in position order, counted from the first row's first. What
        is not visible is dropped behind the capacity."""
        between = []
        for name, tensor in (("key", key), ("value", value)):
            row, slot = tensor.stride(0), tensor.stride(2)
            if len(order) > 1 and (slot <= 0 or row % slot):
                raise UnsupportedError(f"{name} has strides {tensor.stride()}: rows with padding have to be whole slots apart")
            between.append(row // slot if len(order) > 1 else 0)
        apart = between[0]
        if between[1] != apart:
            raise UnsupportedError(f"value has strides {value.stride()}, key {key.stride()}: with padding, rows are as many slots apart")
        table = self._tables.get(apart)
        if table is None:
            batch, slots = order.shape
            if (batch - 1) * apart + slots > 1 << 31:
                raise UnsupportedError(f"key has strides {key.stride()}: more than 2147483648 slots with padding")
            table = torch.empty((batch, capacity + 1), dtype=torch.int32, device=order.device)
            rows = torch.arange(batch, dtype=torch.int32, device=order.device) * apart
            ids = torch.arange(slots, dtype=torch.int32, device=order.device) + rows[:, None]
            table.scatter_(1, torch.where(order < slots, order, capacity), ids)
            self._tables[apart] = table
        return table

    def _batch(self, shape: Shape) -> Batch:
        """The batch of a shape, made if need be."""
        capturing = _capturing(shape.device)
        found = self._batches.pop(shape, None)
        if found is None:
            if capturing:
                raise UnsupportedError("a step of a new shape is being captured: run one before the capture")
            found = _open(self._engine, shape)
            idle = [s for s in self._batches if s not in self._captured]
            for old in idle[: max(0, len(idle) - KEPT + 1)]:
                self._batches.pop(old).close()
        self._batches[shape] = found
        if capturing:
            self._captured.add(shape)
        return found

    def read(self) -> None:
        """Has the engine know what was counted. Waits for the GPU."""
        for batch in list(self._batches.values()):
            try:
                batch.stats()
            except BusyError:  # in a step on another thread: as last read
                pass


def _room(needed: int, least: int) -> int:
    """The power of two that holds it."""
    return max(least, 1 << (needed - 1).bit_length())


def _open(engine: Engine, shape: Shape) -> Batch:
    args: tuple[Any, ...] = (engine, shape.rows, shape.capacity, shape.heads, shape.kv_heads, shape.head_dim, KV_DTYPES[shape.dtype])
    number = shape.device.index or 0
    size = Batch.work_size(*args, device=number)
    # On torch's current stream, as the kernels are: what the memory was used for before is done by then.
    return Batch(*args, device=number, work=torch.zeros(size, dtype=torch.uint8, device=shape.device))


def _stream(device: torch.device) -> int:
    return int(torch.cuda.current_stream(device).cuda_stream)


def _capturing(device: torch.device) -> bool:
    capturing: bool = torch.cuda.is_current_stream_capturing()
    return capturing


def _attend(device: torch.device, handle: int, call: _library.BatchAttention) -> None:
    attend = _library.library().lim_batch_attend
    if torch.cuda.current_device() == device.index:
        attend(handle, call)
        return
    with torch.cuda.device(device):  # the driver launches in the thread's context
        attend(handle, call)
