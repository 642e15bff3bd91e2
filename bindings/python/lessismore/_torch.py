"""torch tensors on their way to the library: addresses and strides of where they are, never a copy."""

from __future__ import annotations

import ctypes
from typing import NamedTuple, Optional

import torch

from . import _library
from ._errors import ArgumentError, UnsupportedError
from .decoder import Decoder
from .engine import Engine

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # lim_dtype
HEAD_DIM_STEP, HEAD_DIM_MAX = 16, 256


def check(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    """Raises UnsupportedError for a device, an element type or a head size that the kernels do not have."""
    if device.type not in ("cpu", "cuda"):
        raise UnsupportedError(f"{name} is on {device}: this version attends on the CPU and on CUDA devices only")
    if dtype not in DTYPES:
        raise UnsupportedError(f"{name} is {dtype}, which is none of float32, float16, bfloat16")
    if device.type == "cuda" and name != "query" and dtype == torch.float32:
        raise UnsupportedError(f"{name} is {dtype}: on {device} it has to be float16 or bfloat16")
    if head_dim % HEAD_DIM_STEP or not 0 < head_dim <= HEAD_DIM_MAX:
        raise UnsupportedError(f"{name} has heads of {head_dim}: no multiple of {HEAD_DIM_STEP} up to {HEAD_DIM_MAX}")


class Seen(NamedTuple):
    """What each row of a batch sees: slots [start, start + length), less those that `hidden` hides."""

    start: int
    lengths: torch.Tensor  # [batch] int32
    hidden: Optional[torch.Tensor]  # [batch, slots - start] float16, 0 or -inf; None: nothing in between is hidden


def see(mask: Optional[torch.Tensor], batch: int, slots: int) -> Seen:
    """Reads an attention mask [batch or 1, 1, 1, slots or more]: bool (True: visible), or additive with 0 and -inf.

    Raises UnsupportedError for one that does more than hide, or that differs between heads.
    """
    if mask is None:
        return Seen(0, torch.full((batch,), slots, dtype=torch.int32), None)
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
    end = slots - marks.flip(-1).argmax(-1)
    start = int(first.min())
    hidden = None
    if not torch.equal(visible.sum(-1), end - start):  # gaps, or paddings of different lengths
        hidden = torch.where(visible[:, start:], 0.0, float("-inf")).to(torch.float16).expand(batch, slots - start).contiguous()
    return Seen(start, (end - start).to(torch.int32).repeat(batch // len(first)), hidden)


class CpuDecoder:
    """One thread's decoder on an engine. Nothing outlives a step in it, but token sets where they last (an interval)."""

    def __init__(self, engine: Engine, lasts: bool = False) -> None:
        self._engine = engine
        self._decoder: Optional[Decoder] = None
        self._rows = 0
        self._call = _library.Attention(struct_size=ctypes.sizeof(_library.Attention))
        self._attend = _library.library().lim_decoder_attend
        self._layer = -1
        self._seen = see(None, 0, 0)
        self._mask: Optional[torch.Tensor] = None  # what it was seen in, kept so that it stays the same object
        self._shape = (0, 0)
        self._lasts = lasts
        self._newest: dict[int, torch.Tensor] = {}  # where they do: each layer's keys of the rows' own tokens, of its last call
        self._goes_on = False  # the step's rows are those of the one before, as far as it has come

    def forget(self) -> None:
        """No token set outlives this: the keys may be another text's from now on."""
        if self._decoder is not None:
            self._decoder.reset()

    def _recognise(self, layer: int, key: torch.Tensor) -> None:
        """Forgets token sets unless each row is the text that the row of its number was, a token on: texts may take turns, and beams
        change places. The key before a row's own tells, in deep layers by the whole of its text."""
        own = self._seen.lengths.long() - 1 + self._seen.start
        rows = torch.arange(len(own))
        before, newest = self._newest.get(layer), key[rows, :, own]  # a copy: caches write in place
        self._newest[layer] = newest
        if self._goes_on and (before is None or before.shape != newest.shape or not torch.equal(key[rows, :, (own - 1).clamp(0)], before)):
            self._goes_on = False
            self.forget()

    def _of(self, rows: int) -> Decoder:
        """A decoder that takes so many rows."""
        if self._decoder is None or rows > self._rows:
            self._rows = max(rows, 2 * self._rows)
            self._decoder = self._engine.decoder(self._rows)
        return self._decoder

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
            query: [batch, heads, 1, head_dim]
            key, value: [batch, kv_heads, slots, head_dim or value_dim]
            mask: see see().
            scale, softcap: 0: 1/sqrt(head_dim); none.
            sinks: [heads] float32, contiguous, or None.

        Returns:
            [batch, 1, heads, value_dim] of query's type.

        Raises ArgumentError, UnsupportedError and whatever the library refuses, each with a text.
        """
        batch, heads, _, head_dim = query.shape
        _, kv_heads, slots, value_dim = value.shape
        for name, tensor in (("query", query), ("key", key), ("value", value)):
            if tensor.stride(-1) != 1:
                raise UnsupportedError(f"{name} has strides {tensor.stride()}: its last dimension is not contiguous")
        # The same mask object may hold something else in the next step, never within one.
        fresh = layer <= self._layer
        if fresh or mask is not self._mask or self._shape != (batch, slots):
            self._seen = see(mask, batch, slots)
            self._mask, self._shape = mask, (batch, slots)
        self._layer = layer
        start, lengths, hidden = self._seen
        if self._lasts:
            self._goes_on |= fresh
            self._recognise(layer, key)

        output = query.new_empty((batch, 1, heads, value_dim))
        a = self._call
        a.layer, a.n_rows = layer, batch
        a.heads, a.kv_heads, a.head_dim, a.value_dim, a.n_slots = heads, kv_heads, head_dim, value_dim, slots - start
        a.query_dtype = a.output_dtype = DTYPES[query.dtype]
        a.key_dtype, a.value_dtype = DTYPES[key.dtype], DTYPES[value.dtype]
        a.scale, a.softcap = scale, softcap
        a.sinks = None if sinks is None else sinks.data_ptr()
        q_size, k_size, v_size = query.element_size(), key.element_size(), value.element_size()
        a.query_row_stride, a.query_head_stride = query.stride(0) * q_size, query.stride(1) * q_size
        a.output_row_stride, a.output_head_stride = heads * value_dim * q_size, value_dim * q_size
        a.key_page_stride, a.key_head_stride, a.key_token_stride = (key.stride(i) * k_size for i in range(3))
        a.value_page_stride, a.value_head_stride, a.value_token_stride = (value.stride(i) * v_size for i in range(3))
        a.query, a.output = query.data_ptr(), output.data_ptr()
        a.key, a.value = key.data_ptr() + start * a.key_token_stride, value.data_ptr() + start * a.value_token_stride
        a.lengths = lengths.data_ptr()
        a.mask, a.mask_row_stride = (None, 0) if hidden is None else (hidden.data_ptr(), slots - start)
        self._attend(self._of(batch)._use(), a)
        return output
