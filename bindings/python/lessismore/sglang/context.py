"""What the layers of one SGLang model runner share: the library's engine, its decoder, and what was counted."""

from __future__ import annotations

import atexit
import ctypes
import logging
import types
import weakref
from collections import Counter
from typing import Any, Optional

import torch

from .. import _library
from .._device import DTYPES as NUMBERS
from .._errors import ArgumentError, Error
from .._version import __version__
from ..decoder import Decoder
from ..engine import Engine
from ..vllm import memory, metrics, profile, settings
from ..vllm.context import LEVELS, in_force
from ..vllm.layers import DTYPES
from . import layers

logger = logging.getLogger("sglang.lessismore")


class Context:
    """Opened with SGLang's attention backend, once the model and its K/V store are there. Whatever goes wrong leaves everything to SGLang."""

    def __init__(self, runner: Any, backend: Any) -> None:
        self.settings, wrong = settings.read(None)
        self.reason: Optional[str] = None  # why nothing is sparse
        self.census: Optional[layers.Census] = None
        self.engine: Optional[Engine] = None
        self.decoder: Optional[Decoder] = None
        self.work: Optional[torch.Tensor] = None
        self.numbers: dict[int, int] = {}
        self.choice = profile.Choice()
        self.max_rows = self.capacity = self.kv_tokens = 0
        self.counts: Counter[str] = Counter()
        self.declined: Counter[str] = Counter()  # rows, by reason
        self.reporter: Optional[metrics.Reporter] = None
        if wrong is not None:
            return self.refuse(wrong, logging.ERROR)
        if not self.settings.enabled:
            return self.refuse("switched off")
        against = layers.whole(runner, backend)
        if against is not None:
            return self.refuse(against)
        try:
            self._open(runner, backend)
        except (Error, torch.OutOfMemoryError) as e:
            self.close()
            self.refuse(str(e), logging.ERROR)

    @property
    def active(self) -> bool:
        return self.decoder is not None and self.reason is None

    def refuse(self, reason: str, level: int = logging.INFO) -> None:
        """From now on SGLang attends to everything."""
        self.reason = reason
        logger.log(level, "lessismore: nothing is sparse: %s", reason)

    def _open(self, runner: Any, backend: Any) -> None:
        own, arguments = self.settings, runner.server_args
        self.census = census = layers.Census([m for m in runner.model.modules() if type(m).__name__ == "RadixAttention"])
        for reason in sorted(set(census.others.values())):
            logger.info("lessismore: %d layers are SGLang's: %s", list(census.others.values()).count(reason), reason)
        if not census.numbers:
            return self.refuse("no layer takes part")
        force, measures = in_force(own), bool(arguments.disable_cuda_graph) and arguments.tp_size == 1
        self.choice = choice = profile.choose(own, force, len(census.numbers), profile.about(_described(runner)), measures)
        if choice.reason is not None:
            return self.refuse(f"the selection layers are not known: {HOW}", logging.WARNING)
        self.engine = Engine(
            len(census.numbers), budget=own.budget, layers=choice.layers, recency=own.recency, sink_tokens=own.sink_tokens, policy=own.policy,
            selections=own.selections, guard=own.guard, model=choice.model, profile=choice.profile, n_threads=1, logger=_log,
        )  # fmt: skip
        number, first = torch.cuda.current_device(), census.first
        self.capacity = int(runner.req_to_token_pool.req_to_token.shape[1])
        shape: dict[str, Any] = dict(
            device=number, capacity=self.capacity, heads=first.tp_q_head_num, kv_heads=first.tp_k_head_num, head_dim=first.head_dim,
            dtype=DTYPES[str(runner.kv_cache_dtype)],
        )  # fmt: skip
        # Rows that share a prefix may see more together than the store holds: the step is then dense, and counted.
        tokens = 0 if choice.layers is None else own.kv_tokens or max(int(runner.token_to_kv_pool.size), self.capacity)
        engine = self.engine

        def size(rows: int) -> int:
            return Decoder.work_size(engine, rows, **shape, kv_tokens=min(tokens, rows * self.capacity))

        limit = own.work_bytes or torch.cuda.get_device_properties(number).total_memory // memory.SHARE
        self.max_rows = memory.rows_within(size, min(int(runner.req_to_token_pool.size), own.max_rows), limit)
        if self.max_rows == 0:
            return self.refuse(f"a row of {self.capacity} tokens needs {size(1)} bytes, more than work_bytes = {limit}", logging.WARNING)
        self.kv_tokens = min(tokens, self.max_rows * self.capacity)
        self.work = torch.zeros(size(self.max_rows), dtype=torch.uint8, device=f"cuda:{number}")
        self.decoder = Decoder(engine, self.max_rows, **shape, kv_tokens=self.kv_tokens, work=self.work)
        self.numbers = census.numbers
        logger.info(
            "lessismore %s: %d layers take part, selection layers %s; budget %d; query heads %d of %d; up to %d rows in a step, work memory %.0f MB",
            __version__, len(self.numbers), f"{list(choice.layers)} ({choice.source})" if choice.layers else choice.source, force["budget"],
            first.tp_q_head_num, first.tp_q_head_num * arguments.tp_size, self.max_rows, self.work_bytes / 1e6,
        )  # fmt: skip
        rank = int(getattr(runner, "tp_rank", 0) or 0)
        self.reporter = metrics.Reporter(self, rank, int(arguments.tp_size), own.stats_interval, own.stats, "sglang")
        atexit.register(_at_exit, weakref.ref(self))

    @property
    def work_bytes(self) -> int:
        return 0 if self.work is None else self.work.numel()

    def close(self) -> None:
        """Gives the library's memory back."""
        for handle in (self.decoder, self.engine):
            if handle is not None:
                handle.close()
        self.decoder = self.engine = self.work = None
        self.numbers = {}

    def fail(self, error: Error) -> None:
        """A layer was refused in the middle of a step: SGLang computes it, and everything from the next step on."""
        self.declined["refused by the library"] += 1
        self.refuse(str(error), logging.ERROR)

    def tick(self) -> None:
        """Once a step or more often, replayed ones included."""
        if self.reporter is not None:
            self.reporter.tick()

    def report(self) -> dict[str, Any]:
        """What was counted. Waits for the GPU."""
        return {
            "reason": self.reason, "layers": None if self.choice.layers is None else list(self.choice.layers), "source": self.choice.source,
            "taking_part": len(self.numbers), "others": dict(Counter(self.census.others.values())) if self.census else {},
            "max_rows": self.max_rows, "kv_tokens": self.kv_tokens, "work_bytes": self.work_bytes, "counts": dict(self.counts),
            "declined": dict(self.declined), "library": None if self.decoder is None else self.decoder.stats(),
        }  # fmt: skip


HOW = (
    "name them (LESSISMORE_LAYERS=2,12), give a profile (LESSISMORE_PROFILE=FILE, which `lessismore calibrate` makes), or start once with "
    "--disable-cuda-graph on one GPU, which measures them and keeps them for the next start"
)


class Call:
    """One layer's call, with what does not change from step to step filled in."""

    def __init__(self, context: Context, layer: Any, number: int) -> None:
        self.context, self.layer = context, layer
        self.arguments = _library.Attention(struct_size=ctypes.sizeof(_library.Attention), layer=number)
        self.store = (0, 0)
        self.sinks: Optional[torch.Tensor] = None
        self.attend = _library.library().lim_decoder_attend

    def run(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, lengths: torch.Tensor, table: torch.Tensor,
            output: torch.Tensor, sinks: Optional[torch.Tensor]) -> None:  # fmt: skip
        """query, output: [rows, heads, head_dim]; keys, values: [pages, page_size, kv_heads, head_dim]. On torch's current stream. Raises
        Error: then nothing was queued."""
        a, decoder = self.arguments, self.context.decoder
        if decoder is None:
            raise ArgumentError("the decoder is closed")
        if self.store != (keys.data_ptr(), values.data_ptr()):
            self._prepare(query, keys, values, lengths, table)
        a.query, a.query_row_stride, a.query_head_stride = query.data_ptr(), query.stride(0) * 2, query.stride(1) * 2
        a.output, a.output_row_stride, a.output_head_stride = output.data_ptr(), output.stride(0) * 2, output.stride(1) * 2
        a.lengths, a.table, a.table_stride = lengths.data_ptr(), table.data_ptr(), table.stride(0)
        a.n_rows, a.stream = len(lengths), torch.cuda.current_stream().cuda_stream
        a.sinks = None if sinks is None else self._sinks(sinks).data_ptr()
        self.attend(decoder._use(), a)

    def _sinks(self, given: torch.Tensor) -> torch.Tensor:
        """As float32, in memory that keeps its place; a captured graph takes them over again in each replay."""
        if self.sinks is None:
            self.sinks = torch.empty(given.shape, dtype=torch.float32, device=given.device)
        return self.sinks.copy_(given)

    def _prepare(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, lengths: torch.Tensor, table: torch.Tensor) -> None:
        layer, a = self.layer, self.arguments
        dtype = DTYPES.get(str(keys.dtype))
        for name, tensor in (("keys", keys), ("values", values)):
            if (
                tensor.dim() != 4
                or tensor.shape[2:] != (layer.tp_k_head_num, layer.head_dim)
                or tensor.stride(3) != 1
                or tensor.dtype != keys.dtype
            ):
                raise ArgumentError(f"{name} are {tensor.dtype} of shape {tuple(tensor.shape)} and strides {tensor.stride()}")
        if dtype is None or query.dtype != keys.dtype or query.stride(2) != 1 or query.shape[1:] != (layer.tp_q_head_num, layer.head_dim):
            raise ArgumentError(f"query is {query.dtype} of shape {tuple(query.shape)} and strides {query.stride()}, keys are {keys.dtype}")
        for name, tensor in (("cache_seqlens", lengths), ("page_table", table)):
            if tensor.dtype != torch.int32 or tensor.stride(-1) != 1:
                raise ArgumentError(f"{name} is {tensor.dtype} with strides {tensor.stride()}")
        a.key, a.value = keys.data_ptr(), values.data_ptr()
        a.key_page_stride, a.key_token_stride, a.key_head_stride = (2 * n for n in keys.stride()[:3])
        a.value_page_stride, a.value_token_stride, a.value_head_stride = (2 * n for n in values.stride()[:3])
        a.page_size = keys.shape[1]
        a.query_dtype = a.output_dtype = NUMBERS[dtype]
        a.scale, a.softcap = layer.scaling, layer.logit_cap or 0.0
        self.store = (keys.data_ptr(), values.data_ptr())


def _described(runner: Any) -> Any:
    """The model, as profile.about() reads vLLM's configuration: the same model has the same profile there and here."""
    model = runner.model_config
    more = {name: getattr(model, name, None) for name in ("revision", "quantization")}
    return types.SimpleNamespace(model_config=types.SimpleNamespace(hf_config=model.hf_config, model=model.model_path, **more))


def _at_exit(of_context: "weakref.ref[Context]") -> None:
    context = of_context()
    if context is not None and context.reporter is not None:
        context.reporter.write()


def _log(level: int, text: str) -> None:
    logger.log(LEVELS[level], "lessismore: %s", text)
