"""What the layers of one SGLang model runner share."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import types
from typing import Any, Optional

import torch

from .. import _library
from .._device import DTYPES as NUMBERS
from .._errors import ArgumentError, Error
from .._version import __version__
from ..vllm import identity, metrics, profile, serving, settings
from ..vllm.layers import DTYPES
from . import layers

logger = logging.getLogger("sglang.lessismore")


class Context(serving.Serving):
    """Opened with SGLang's attention backend, once the model and its K/V store are there. Whatever goes wrong leaves everything to SGLang."""

    logger = logger

    def __init__(self, runner: Any, backend: Any) -> None:
        own, wrong = settings.read(None)
        super().__init__(own)
        self.widened: tuple[Any, Any] = (None, None)  # a step's page table, and the same as wide as the library wants it
        self._try(runner, backend, wrong)
        self.report_by(metrics.Reporter(self, *_rank(runner), own.stats_interval, own.stats, "sglang"))

    def _try(self, runner: Any, backend: Any, wrong: Optional[str]) -> None:
        """wrong: what is wrong with the settings."""
        if wrong is not None:
            return self.refuse(wrong, logging.ERROR)
        if not self.settings.enabled:
            return self.refuse("switched off")
        try:
            against = layers.whole(runner, backend)
            if against is not None:
                return self.refuse(against)
            self._open(runner, backend)
        except (Error, torch.OutOfMemoryError) as e:
            self.give_up(str(e))
        except serving.UNKNOWN as e:
            self.give_up(f"this version of SGLang is not known: {e}")

    def _open(self, runner: Any, backend: Any) -> None:
        own, arguments = self.settings, runner.server_args
        self.census = census = layers.Census([m for m in runner.model.modules() if type(m).__name__ == "RadixAttention"])
        for reason, n in sorted(self.others().items()):
            logger.info("lessismore: %d layers are SGLang's: %s", n, reason)
        if not census.numbers:
            return self.refuse("no layer takes part")
        heads = census.first.tp_q_head_num * arguments.tp_size, census.first.head_dim
        force, measures = serving.in_force(own, len(census.numbers)), layers.without_graphs(arguments) and arguments.tp_size == 1
        model = "" if own.layers is not None else identity.about(_described(runner))
        self.choice = choice = profile.choose(own, force, len(census.numbers), model, measures, heads)
        if choice.reason is not None:
            return self.refuse(choice.reason if own.quality else f"the selection layers are not known: {HOW}", logging.WARNING)
        self.make_engine(len(census.numbers))
        first, capacity = census.first, int(backend.max_context_len)  # as wide as the page tables of graphs are; the pool's rows are wider
        shape: dict[str, Any] = dict(
            device=torch.cuda.current_device(), capacity=capacity, heads=first.tp_q_head_num, kv_heads=first.tp_k_head_num,
            head_dim=first.head_dim, dtype=DTYPES[str(runner.kv_cache_dtype)],
        )  # fmt: skip
        # Rows that share a prefix may see more together than the store holds: the step is then dense, and counted.
        tokens = 0 if choice.layers is None else own.kv_tokens or max(int(runner.token_to_kv_pool.size), capacity)
        if not self.allocate(shape, tokens, int(runner.req_to_token_pool.size)):
            return
        self.numbers = census.numbers
        logger.info(
            "lessismore %s: %d layers take part, selection layers %s; budget %d; query heads %d of %d; up to %d rows in a step, work memory %.0f MB",
            __version__, len(self.numbers), self.chosen(), force["budget"], first.tp_q_head_num, first.tp_q_head_num * arguments.tp_size, self.max_rows, self.work_bytes / 1e6,
        )  # fmt: skip

    def tick(self) -> None:
        self.widened = (None, None)  # a table is one step's, whoever gives the same tensor again
        super().tick()

    def table(self, given: torch.Tensor, page_size: int) -> torch.Tensor:
        """A step's pages. Without graphs SGLang's table ends with the longest row; the library wants rows that could hold the capacity."""
        pages = -(-self.capacity // page_size)
        if len(given) == 1 or given.stride(0) >= pages:
            return given
        if self.widened[0] is not given:  # by the first layer of a step
            wide = given.new_zeros(len(given), pages)
            wide[:, : given.shape[1]] = given
            self.widened = given, wide
        return self.widened[1]


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
        if sinks is None:
            a.sinks = None
        else:  # a captured graph takes them over again in each replay
            self.sinks = serving.as_float32(self.sinks, sinks)
            a.sinks = self.sinks.data_ptr()
        self.attend(decoder._use(), a)

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
        serving.check_int32(cache_seqlens=lengths, page_table=table)
        a.key, a.value = keys.data_ptr(), values.data_ptr()
        a.key_page_stride, a.key_token_stride, a.key_head_stride = (2 * n for n in keys.stride()[:3])
        a.value_page_stride, a.value_token_stride, a.value_head_stride = (2 * n for n in values.stride()[:3])
        a.page_size = keys.shape[1]
        a.query_dtype = a.output_dtype = NUMBERS[dtype]
        a.scale, a.softcap = layer.scaling, layer.logit_cap or 0.0
        self.store = (keys.data_ptr(), values.data_ptr())


def _described(runner: Any) -> Any:
    """The model, as identity.about() reads vLLM's configuration: the same model has the same profile there and here."""
    model = runner.model_config
    more = {name: getattr(model, name, None) for name in ("revision", "quantization")}
    return types.SimpleNamespace(model_config=types.SimpleNamespace(hf_config=model.hf_config, model=model.model_path, **more))


def _rank(runner: Any) -> tuple[int, int]:
    """This process's number among all that compute, and how many there are, as far as it knows: replica by replica, and in each by the
    tensor-parallel rank. SGLang keeps both with its model runner, later in an object of the runner's (0.5.19), and then in the process
    (0.5.23). Where it keeps them elsewhere, the number is one that no other process has."""
    tensor, replicas = int(runner.server_args.tp_size), int(getattr(runner.server_args, "dp_size", 1) or 1)
    try:
        of = runner if hasattr(runner, "tp_rank") else getattr(runner, "ps", None) or _parallel()
        replica = int((of.dp_rank if hasattr(of, "dp_rank") else _titled()) or 0)
        return replica * tensor + int(of.tp_rank), tensor * max(replicas, replica + 1)
    except Exception as e:  # statistics are no reason not to start
        if tensor * replicas == 1:
            return 0, 1
        logger.warning("lessismore: which rank this is is not known, statistics go by the process's number: %s", e)
        return os.getpid(), tensor * replicas


def _parallel() -> Any:
    from sglang.srt.runtime_context import get_parallel

    return get_parallel()


def _titled() -> int:
    """The replica, where SGLang says it in the process's title alone (0.5.11)."""
    import setproctitle

    found = re.match(r"sglang::scheduler_DP(\d+)", setproctitle.getproctitle())
    return int(found[1]) if found else 0
