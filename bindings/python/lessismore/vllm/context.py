"""What the layers of one vLLM engine in one process share."""

from __future__ import annotations

import ctypes
import dataclasses
import logging
import weakref
from typing import Any, Optional

import torch

from .. import _library
from .._device import DTYPES as NUMBERS
from .._errors import ArgumentError, Error
from .._version import __version__
from . import identity, layers, memory, metrics, profile, ranks, rows, serving, settings

logger = logging.getLogger("vllm.lessismore")
OTHER = "this version of vLLM is not known"


class Context(serving.Serving):
    """Opened once, in the run that measures memory, so that vLLM leaves the work memory out of the K/V store's share."""

    logger = logger

    def __init__(self, config: Any) -> None:
        """Reads the settings. Raises ArgumentError for a wrong one in additional_config."""
        own, wrong = settings.read(config.additional_config)
        super().__init__(own)
        self.config = config
        if wrong is not None:
            self.refuse(wrong, logging.ERROR)
        elif not own.enabled:
            self.refuse("switched off")
        elif (against := self._against()) is not None:
            self.refuse(against)
        self.opened = False
        self.most_tokens = 1  # of a request that decodes, in a step
        self.measures = False  # finds the selection layers while serving
        self.counting: Any = None  # the builder whose steps are counted

    @property
    def hopeful(self) -> bool:
        """Whether steps may still come to have rows that are ours."""
        return self.reason is None

    # ---- opening ----

    def open(self, ours: type, device: torch.device) -> None:
        """Makes the library's engine and decoder, once all layers are there. Raises ArgumentError for a setting of additional_config
        that is wrong for this model; whatever else goes wrong leaves everything to vLLM, on all ranks."""
        if self.opened:
            return
        self.opened = True
        if self._agreed():
            try:
                self._open(ours, device)
            except Exception as e:
                self.reason = str(e) or repr(e)  # for the other ranks, which wait for it
                self._agreed()
                raise
            self._agreed()
        own = self.settings
        self.report_by(metrics.Reporter(self, *_rank(self.config.parallel_config), own.stats_interval, own.stats))

    def _agreed(self) -> bool:
        """Whether nothing speaks against it on this rank or another one: graphs of one have to be graphs of all."""
        parallel = self.config.parallel_config
        if parallel.pipeline_parallel_size == 1 and ranks.together(parallel.tensor_parallel_size):
            against = ranks.against(ranks.every((self.reason, settings.of_all(self.settings))))
            if against is not None and self.reason is None:
                self.give_up(against, logging.WARNING)
        return self.reason is None

    def _open(self, ours: type, device: torch.device) -> None:
        most = layers.total(self.config)
        self.census = census = layers.Census(self.config.compilation_config.static_forward_context, ours, most)
        for reason, n in self.others().items():
            logger.info("lessismore: %d layers are vLLM's: %s", n, reason)
        if not census.numbers:
            return self.refuse("no layer takes part")
        try:
            self._make(census, device)
        except (Error, torch.OutOfMemoryError) as e:
            if isinstance(e, ArgumentError) and settings.from_config(self.config.additional_config):
                self.close()
                raise
            self.give_up(str(e))
        except serving.UNKNOWN as e:
            self.give_up(f"{OTHER}: {e}")

    def _against(self) -> Optional[str]:
        """Why nothing of this engine can be sparse, whatever its layers are."""
        try:
            return layers.whole(self.config)
        except serving.UNKNOWN as e:
            return f"{OTHER}: {e}"

    def fit(self, longest: int) -> None:
        """No context is longer than that, as vLLM has found since: its block tables may be too narrow for what was announced."""
        if not self.active or longest >= self.capacity:
            return
        try:
            self.narrow(longest)
        except Error as e:
            self.give_up(str(e))

    def _make(self, census: layers.Census, device: torch.device) -> None:
        config = self.config
        graphs, parallel = config.compilation_config.cudagraph_mode, config.parallel_config
        tensor, stages = parallel.tensor_parallel_size, parallel.pipeline_parallel_size
        # A graph keeps the layers' roles: where layers are measured, vLLM is told to leave attention out of its graphs.
        whole = graphs is not None and graphs.has_full_cudagraphs() and not graphs.has_piecewise_cudagraphs()
        measures = not whole and stages == 1 and layers.most_tokens(config) == 1
        n_layers, first = len(census.numbers), 0
        if stages > 1:
            n_layers = layers.total(config) or 0
            try:
                first = census.stage(n_layers)
            except ValueError as e:
                return self.refuse(str(e), logging.WARNING)
        force, choice = self._choose(n_layers, measures, tensor if stages == 1 else 0)
        self.choice = choice
        if choice.reason is not None:
            return self.refuse(choice.reason, logging.WARNING)
        self.measures, self.most_tokens = choice.measure, layers.most_tokens(config)
        if stages > 1 and choice.layers is not None:
            if choice.layers[-1] >= n_layers:
                raise ArgumentError(f"layers = {list(choice.layers)} are not in 0 .. {n_layers - 1}")
            self.choice = choice = dataclasses.replace(
                choice, layers=layers.of_stage(choice.layers, first, len(census.numbers)),
                source=f"{choice.source}, of a stage that begins with layer {first} of {n_layers}",
            )  # fmt: skip
            if not choice.layers:
                return self.refuse("every layer of this stage comes before the first selection layer")
        self.make_engine(len(census.numbers))
        if not self._fit(census, torch.cuda.current_device() if device.index is None else device.index):
            return
        self.numbers = census.numbers
        heads = census.first.num_heads
        logger.info(
            "lessismore %s: %d layers take part, selection layers %s; budget %d; query heads %d of %d; up to %d of %d rows in a step, work memory %.0f MB",
            __version__, len(self.numbers), self.chosen(), force["budget"], heads, heads * tensor, self.max_rows, config.scheduler_config.max_num_seqs * self.most_tokens, self.work_bytes / 1e6,
        )  # fmt: skip
        if self.measures and graphs is not None and graphs.has_full_cudagraphs():
            logger.info(
                "lessismore: vLLM's graphs leave attention out, since layers are measured and audited while serving; where layers are given, graphs have everything"
            )

    def _choose(self, n_layers: int, measures: bool, tensor: int) -> tuple[dict[str, Any], profile.Choice]:
        """The settings in force, and where the selection layers come from. Of several ranks the first one says so, since a graph of one
        has to be a graph of all. Where it knows no layers, each measures its own heads and chooses for them; the first one's choice is kept,
        and all take it from the next start on.

        Args:
            tensor: ranks, all of them with every layer; 0: each has some of the layers.
        """
        own, first = self.settings, self.census.first
        shape = first.num_heads * max(self.config.parallel_config.tensor_parallel_size, 1), first.head_size

        def here() -> tuple[dict[str, Any], profile.Choice]:
            force, model = serving.in_force(own, n_layers), "" if own.layers is not None else identity.about(self.config)
            found = profile.choose(own, force, n_layers, model, measures and tensor == 1, shape)
            if found.reason is not None and measures and together:  # what one rank measures is of its heads only: not the model's profile
                of_one = identity.of_ranks(model, tensor)
                for measuring in (False, True):  # what was kept goes into full graphs
                    if found.reason is not None:
                        found = profile.choose(own, force, n_layers, of_one, measuring, shape)
            return force, found

        together = own.layers is None and ranks.together(tensor)  # the same on each: _agreed()
        if not together:
            return here()
        force, found = ranks.first(here)
        if found.measure and torch.distributed.get_rank() != 0:
            found = dataclasses.replace(found, profile=None)
        return force, found

    def _fit(self, census: layers.Census, number: int) -> bool:
        """The decoder for what vLLM may ask of a step; False: there is not enough work memory for a row."""
        config, impl = self.config, census.first
        shape: dict[str, Any] = dict(
            device=number, capacity=config.model_config.max_model_len, heads=impl.num_heads, kv_heads=impl.num_kv_heads, head_dim=impl.head_size,
            dtype="fp8" if impl.kv_cache_dtype in layers.FP8 else layers.DTYPES[str(config.model_config.dtype)],
        )  # fmt: skip
        total = torch.cuda.get_device_properties(number).total_memory
        token_bytes = len(census.numbers) * 2 * impl.num_kv_heads * impl.head_size * (1 if shape["dtype"] == "fp8" else 2)
        # Rows that share pages of a prefix may see more together than the store holds: the step is then dense, and counted.
        # The tokens of a request that speculates see nearly the same, and each is a row.
        tokens = self.settings.kv_tokens or self.most_tokens * memory.kv_tokens(
            config, token_bytes, total, torch.cuda.memory_allocated(number)
        )
        if self.choice.layers is None:
            tokens = 0  # measuring has room for each row
        return self.allocate(shape, tokens, config.scheduler_config.max_num_seqs * self.most_tokens)

    # ---- steps ----

    def count(self, builder: Any, found: rows.Split, n_rows: int) -> None:
        """Notes a step; of builders of several groups of layers, the first one's."""
        if self.counting is None:
            self.counting = builder
        if builder is not self.counting:
            return
        self.counts["steps"] += 1
        self.counts["decode_steps" if found.whole else "split_steps" if found.rows else "left_steps"] += 1
        self.counts["rows"] += found.rows
        if found.reason is not None:
            self.declined[found.reason] += n_rows
        self.tick()


class Call:
    """One layer's call, with what does not change from step to step filled in."""

    def __init__(self, context: Context, impl: Any, layer: Any, number: int) -> None:
        self.context, self.impl, self.layer = context, impl, layer
        self.arguments = _library.Attention(struct_size=ctypes.sizeof(_library.Attention), layer=number)
        self.store = 0
        self.quantized = impl.kv_cache_dtype in layers.FP8
        self.sinks: Optional[torch.Tensor] = None
        self.attend = _library.library().lim_decoder_attend

    def run(
        self, query: torch.Tensor, kv_cache: torch.Tensor, lengths: torch.Tensor, table: torch.Tensor, output: torch.Tensor, n: int
    ) -> None:
        """The attention of the first n rows, on torch's current stream. Raises Error: then nothing was queued."""
        a, decoder = self.arguments, self.context.decoder
        if decoder is None:
            raise ArgumentError("the decoder is closed")
        if self.quantized and query.dtype != output.dtype:
            query = query[:n].to(output.dtype)  # vLLM has quantized it; its scale is in the logits' one
        if self.store != kv_cache.data_ptr():
            self._prepare(query, kv_cache, lengths, table, output)
        a.query, a.query_row_stride = query.data_ptr(), query.stride(0) * 2
        a.output, a.output_row_stride = output.data_ptr(), output.stride(0) * 2
        a.lengths, a.table, a.table_stride = lengths.data_ptr(), table.data_ptr(), table.stride(0)
        a.n_rows, a.stream = n, torch.cuda.current_stream().cuda_stream
        self.attend(decoder._use(), a)

    def refresh(self) -> None:
        """Takes the weights over again: they were loaded, or loaded anew."""
        self.store = 0  # the scales of K/V are among them
        if self.impl.sinks is not None:
            self.sinks = serving.as_float32(self.sinks, self.impl.sinks)

    def _prepare(
        self, query: torch.Tensor, kv_cache: torch.Tensor, lengths: torch.Tensor, table: torch.Tensor, output: torch.Tensor
    ) -> None:
        """K/V is [pages, kv_heads, page_size, 2 * head_size] in any order of memory but the last dimension's: keys, then
        values, of a token and head side by side."""
        impl, a, size = self.impl, self.arguments, kv_cache.element_size()
        if (
            kv_cache.dim() != 4
            or kv_cache.shape[1] != impl.num_kv_heads
            or kv_cache.shape[3] != 2 * impl.head_size
            or kv_cache.stride(3) != 1
        ):
            raise ArgumentError(f"kv_cache has shape {tuple(kv_cache.shape)} and strides {kv_cache.stride()}")
        if self.quantized:
            kind = str(kv_cache.dtype) in ("torch.uint8", "torch.float8_e4m3fn") and str(output.dtype) in layers.DTYPES
        else:
            kind = str(kv_cache.dtype) in layers.DTYPES and output.dtype == kv_cache.dtype
        if not kind or impl.head_size * 2 > kv_cache.stride(2) and kv_cache.shape[2] > 1:
            raise ArgumentError(f"kv_cache is {kv_cache.dtype} with strides {kv_cache.stride()}, output {output.dtype}")
        for name, tensor in (("query", query), ("output", output)):
            if (
                tensor.dim() != 3
                or tensor.shape[1:] != (impl.num_heads, impl.head_size)
                or tensor.stride(2) != 1
                or tensor.dtype != output.dtype
            ):
                raise ArgumentError(f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)} and strides {tensor.stride()}")
        serving.check_int32(seq_lens=lengths, block_table=table)
        a.key, a.value = kv_cache.data_ptr(), kv_cache.data_ptr() + size * impl.head_size
        a.key_page_stride, a.key_head_stride, a.key_token_stride = (size * n for n in kv_cache.stride()[:3])
        a.value_page_stride, a.value_head_stride, a.value_token_stride = a.key_page_stride, a.key_head_stride, a.key_token_stride
        a.page_size = kv_cache.shape[2]
        a.query_head_stride, a.output_head_stride = query.stride(1) * 2, output.stride(1) * 2
        a.query_dtype = a.output_dtype = NUMBERS[layers.DTYPES[str(output.dtype)]]
        a.scale, a.softcap = impl.scale, impl.logits_soft_cap or 0.0
        if self.quantized:
            a.scale = impl.scale * (self.layer._q_scale_float if impl.supports_quant_query_input else 1.0)
            a.key_scale, a.value_scale = self.layer._k_scale_float, self.layer._v_scale_float
        if impl.sinks is not None:
            if self.sinks is None:
                self.refresh()
            assert self.sinks is not None
            a.sinks = self.sinks.data_ptr()
        self.store = kv_cache.data_ptr()


# One for each VllmConfig's compilation_config, whose static_forward_context holds the layers.
_contexts: dict[int, Context] = {}


def of(config: Any) -> Context:
    """The context of an engine. Raises ArgumentError."""
    owner = config.compilation_config
    found = _contexts.get(id(owner))
    if found is None:
        found = _contexts[id(owner)] = Context(config)
        try:
            weakref.finalize(owner, _contexts.pop, id(owner), None)
        except TypeError:  # it then lives as long as the process
            found.owner = owner  # type: ignore[attr-defined]
    return found


def _rank(parallel: Any) -> tuple[int, int]:
    """This process's number among all that compute, and how many there are, as far as it knows: vLLM tells the engines of a dense model
    with data parallelism that they are alone, and leaves each its number (data_parallel_index)."""
    world, replica = parallel.world_size, getattr(parallel, "data_parallel_index", None)
    if replica is None:
        replica = getattr(parallel, "data_parallel_rank", 0) or 0
    replicas = max(getattr(parallel, "data_parallel_size", 1) or 1, replica + 1)
    return replica * world + getattr(parallel, "rank", 0), world * replicas
