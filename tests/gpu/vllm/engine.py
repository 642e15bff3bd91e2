"""An unmodified vLLM in this process with lessismore as a server has it: found by the entry point, set by additional_config.

What is looked into here is what no server shows: steps, graphs, the metadata of a step.
"""

import gc
import json
import os
import pathlib
import sys
import time

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import engines  # noqa: E402
from engines import BEGIN, keep, say  # noqa: E402, F401  for the parts

ROOT = engines.ROOT
engines.install("vllm.general_plugins")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")  # nothing is sampled here, and a pack has no FlashInfer
import torch  # noqa: E402


def arguments(model, settings, **more):
    """LLM's arguments. settings: lessismore's; None: vLLM alone."""
    found = dict(model=str(model), skip_tokenizer_init=True, seed=0, **more)
    if settings is not None:
        found.update(attention_backend="CUSTOM", additional_config={"lessismore": settings})
    return found


class Served:
    """An engine, and what its steps were."""

    def __init__(self, model, settings, **more):
        from vllm import LLM

        begin = time.time()
        self.llm = LLM(**arguments(model, settings, **more))
        self.engine = self.llm.llm_engine
        self.core = self.engine.engine_core.engine_core
        worker = self.core.model_executor.driver_worker
        self.runner = getattr(worker, "worker", worker).model_runner
        self.config = self.engine.vllm_config
        self.block = self.config.cache_config.block_size
        self.blocks = self.config.cache_config.num_gpu_blocks
        self.context = None
        if settings is not None:
            from lessismore.vllm import context

            self.context = context.of(self.config)
        self.steps, self.replays = [], []
        self._watch()
        c = self.config.compilation_config
        say(
            f"{torch.cuda.get_device_name()}: engine in {time.time() - begin:.1f} s, runner {type(self.runner).__module__}, graphs {c.cudagraph_mode},",
            f"compile mode {c.mode}, async scheduling {self.config.scheduler_config.async_scheduling}, K/V {self.blocks * self.block} tokens",
        )
        if self.context is not None:
            d = self.context
            say(
                f"lessismore: {d.reason or 'on'}; layers {d.choice.layers} ({d.choice.source}), {len(d.numbers)} take part, rows {d.max_rows},",
                f"work {d.work_bytes / 1e6:.0f} MB",
            )

    def _watch(self):
        execute = self.runner.execute_model

        def watched(output, *args, **kwargs):
            n = output.num_scheduled_tokens
            if n:
                event = torch.cuda.Event(enable_timing=True)
                event.record()
                self.steps.append((len(n), output.total_num_scheduled_tokens, max(n.values()), event))
            return execute(output, *args, **kwargs)

        self.runner.execute_model = watched
        manager = getattr(self.runner, "cudagraph_manager", None)
        if manager is None:
            return
        replay = manager.run_fullgraph

        def timed(desc):
            x, y = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            x.record()
            out = replay(desc)
            y.record()
            self.replays.append((desc.num_tokens, x, y))
            return out

        manager.run_fullgraph = timed

    def kinds(self):
        """Steps by what they held: decode, prompts, both."""
        found = {}
        for rows, tokens, most, _ in self.steps:
            kind = "decode" if most == 1 else "mixed" if tokens > most and rows > 1 else "prompt"
            found[kind] = found.get(kind, 0) + 1
        return found

    def add(self, name, ids, tokens):
        from vllm import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        self.engine.add_request(name, {"prompt_token_ids": ids}, params)

    def switch(self, on):
        begin = time.time()
        switch(self.runner, self.context, on)
        say(f"lessismore {'on' if on else 'off'}: graphs captured in {time.time() - begin:.1f} s")

    def library(self):
        """What the library counted; nothing, where vLLM is alone."""
        return {} if self.context is None else self.context.decoder.stats()

    def counted(self):
        """What the plug-in counted: steps, and rows that were left to vLLM."""
        return ({}, {}) if self.context is None else (dict(self.context.counts), dict(self.context.declined))

    def report(self):
        return {} if self.context is None else self.context.report()

    def about(self):
        """What its times depend on, for keep()."""
        return dict(kv_tokens=self.blocks * self.block, work_bytes=0 if self.context is None else self.context.work_bytes)


def switch(runner, context, on):
    """Captures the decode graphs again, with one attention or the other: both in one process, with one K/V store."""
    from vllm.config.compilation import CUDAGraphMode

    context.reason = None if on else "switched off for comparison"
    torch.cuda.synchronize()
    manager = runner.cudagraph_manager
    descs = manager._capture_descs
    kept = descs.pop(CUDAGraphMode.PIECEWISE, None)
    manager.graphs.clear()
    manager.pool = torch.cuda.graph_pool_handle()  # an emptied pool is not taken up again
    gc.collect()
    runner.capture_model()
    if kept is not None:
        descs[CUDAGraphMode.PIECEWISE] = kept


def short(report):
    """A report on one line."""
    library = {k: v for k, v in (report.get("library") or {}).items() if v}
    return json.dumps({"counts": report["counts"], "declined": report["declined"], "library": library})
