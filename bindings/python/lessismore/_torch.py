"""torch tensors on their way to the library: addresses and strides of where they are, never a copy."""

from __future__ import annotations

import ctypes
from typing import NamedTuple, Optional

import torch

from . import _library
from ._errors import ArgumentError, UnsupportedError
from .engine import Engine
from .sequence import Sequence

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # lim_dtype
HEAD_DIM_STEP, HEAD_DIM_MAX = 16, 256
CUDA_HEAD_DIMS = (64, 128, 256)


def check(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    """Raises UnsupportedError for a device, an element type or a head size that the kernels do not have."""
    if device.type not in ("cpu", "cuda"):
        raise UnsupportedError(f"{name} is on {device}: this version attends on the CPU and on CUDA devices only")
    if dtype not in DTYPES:
        raise UnsupportedError(f"{name} is {dtype}, which is none of float32, float16, bfloat16")
    if device.type == "cuda":
        if name != "query" and dtype == torch.float32:
            raise UnsupportedError(f"{name} is {dtype}: on {device} it has to be float16 or bfloat16")
        if head_dim not in CUDA_HEAD_DIMS:
            raise UnsupportedError(f"{name} has heads of {head_dim}: on {device} it has to be one of {CUDA_HEAD_DIMS}")
    if head_dim % HEAD_DIM_STEP or not 0 < head_dim <= HEAD_DIM_MAX:
        raise UnsupportedError(f"{name} has heads of {head_dim}: no multiple of {HEAD_DIM_STEP} up to {HEAD_DIM_MAX}")


class Sight(NamedTuple):
    """What each row of a batch sees: tokens [start, start + length), less those that `hidden` hides."""

    start: list[int]
    length: list[int]
    hidden: Optional[torch.Tensor]  # [batch, slots] float16, 0 or -inf; None: nothing in between is hidden


def look(mask: Optional[torch.Tensor], batch: int, slots: int) -> Sight:
    """Reads an attention mask [batch or 1, 1, 1, slots or more]: bool (True: visible), or additive with 0 and -inf.

    Raises UnsupportedError for one that does more than hide, or that differs between heads.
    """
    if mask is None:
        return Sight([0] * batch, [slots] * batch, None)
    if mask.dim() != 4 or mask.shape[0] not in (1, batch) or mask.shape[1] != 1 or mask.shape[2] != 1:
        raise UnsupportedError(f"attention_mask has shape {tuple(mask.shape)}, not ({batch}, 1, 1, {slots})")
    if mask.shape[3] < slots:
        raise ArgumentError(f"attention_mask has shape {tuple(mask.shape)}, but there are {slots} keys")
    visible = mask[:, 0, 0, :slots]
    if visible.dtype != torch.bool:
        numbers = visible
        visible = numbers == 0
        if not (visible | (numbers <= torch.finfo(numbers.dtype).min)).all():
            raise UnsupportedError("attention_mask adds other values than 0 and -inf to the logits")
    marks = visible.to(torch.uint8)
    first = marks.argmax(-1)
    length = slots - marks.flip(-1).argmax(-1) - first
    hidden = None
    if not torch.equal(visible.sum(-1), length):
        hidden = torch.where(visible, 0.0, float("-inf")).to(torch.float16).expand(batch, slots).contiguous()
    repeat = batch // len(first)
    return Sight(first.tolist() * repeat, length.tolist() * repeat, hidden)


class Decoder:
    """One thread's sequences on an engine: one per row of its batches. Nothing outlives a step in them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sequences: list[Sequence] = []
        self._call = _library.Attention(struct_size=ctypes.sizeof(_library.Attention))
        self._attend = _library.library().lim_attend
        self._layer = -1
        self._sight = Sight([], [], None)
        self._mask: Optional[torch.Tensor] = None  # what the sight was made from, kept so that it stays the same object
        self._shape = (0, 0)

    def forget(self) -> None:
        """No token set outlives this: the keys may be another text's from now on."""
        for sequence in self._sequences:
            sequence.reset()

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
        """One layer of a decode step.

        Args:
            layer: counted among the layers that take part.
            query: [batch, heads, 1, key_dim]
            key, value: [batch, kv_heads, slots, key_dim or value_dim]
            mask: see look().
            scale, softcap: 0: 1/sqrt(key_dim); none.
            sinks: [heads] float32, contiguous, or None.

        Returns:
            [batch, 1, heads, value_dim] of query's type.

        Raises ArgumentError, UnsupportedError and whatever the library refuses, each with a text.
        """
        batch, heads, _, key_dim = query.shape
        _, kv_heads, slots, value_dim = value.shape
        for name, tensor in (("query", query), ("key", key), ("value", value)):
            if tensor.stride(-1) != 1:
                raise UnsupportedError(f"{name} has strides {tensor.stride()}: its last dimension is not contiguous")
        # The same mask object may hold something else in the next step, never within one.
        if layer <= self._layer or mask is not self._mask or self._shape != (batch, slots):
            self._sight = look(mask, batch, slots)
            self._mask, self._shape = mask, (batch, slots)
        self._layer = layer
        while len(self._sequences) < batch:
            self._sequences.append(self._engine.sequence())

        output = query.new_empty((batch, 1, heads, value_dim))
        a = self._call
        a.layer, a.heads, a.kv_heads, a.key_dim, a.value_dim = layer, heads, kv_heads, key_dim, value_dim
        a.query_dtype = a.output_dtype = DTYPES[query.dtype]
        a.key_dtype, a.value_dtype = DTYPES[key.dtype], DTYPES[value.dtype]
        a.scale, a.softcap = scale, softcap
        a.sinks = None if sinks is None else sinks.data_ptr()
        q_size, k_size, v_size = query.element_size(), key.element_size(), value.element_size()
        q_batch, q_head = query.stride(0) * q_size, query.stride(1) * q_size
        k_batch, k_head, k_slot = (key.stride(i) * k_size for i in range(3))
        v_batch, v_head, v_slot = (value.stride(i) * v_size for i in range(3))
        a.query_head_stride, a.output_head_stride = q_head, value_dim * q_size
        a.key_head_stride, a.key_token_stride = k_head, k_slot
        a.value_head_stride, a.value_token_stride = v_head, v_slot
        q, k, v, o = query.data_ptr(), key.data_ptr(), value.data_ptr(), output.data_ptr()
        o_batch = heads * value_dim * q_size
        start, length, hidden = self._sight
        for row in range(batch):
            a.query, a.output = q + row * q_batch, o + row * o_batch
            a.key, a.value = k + row * k_batch + start[row] * k_slot, v + row * v_batch + start[row] * v_slot
            a.n_slots = length[row]
            a.query_position = length[row] - 1
            a.mask = None if hidden is None else hidden[row, start[row] :].data_ptr()
            self._attend(self._sequences[row]._use(), a)
        return output
