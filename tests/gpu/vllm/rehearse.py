#!/usr/bin/env python3
"""serving.py without a GPU: vLLM's own engine, scheduler and connector, over an executor that only takes time, and that on a clock of its own.
What a load does to the K/V store shows here in seconds: how many requests finish, wait, are preempted, and that the script comes to its end.

    rehearse.py [--store TOKENS] [--full SHARE] serving.py's arguments

vLLM 0.26 has to be importable (a pack will do), and torch 2.11, also without CUDA. --full: of the store, how much may be foreseen (serving.FULL).
Times are of an H200, measured: a step's rest, what a token costs that its rows see, and a prompt's token.
"""

import argparse
import concurrent.futures
import dataclasses
import os
import random
import sys
import types

PACE = {"on": (5.9e-3, 6.2e-9), "off": (7.4e-3, 34e-9), "flashinfer": (7.4e-3, 34e-9)}  # seconds a step and a token
PROMPT, HOST, START = 5e-5, 1.5e-3, 100.0  # seconds: a prompt's token, a step's preparation, an engine's start
TOKEN = 36 * 2 * 8 * 128 * 2  # bytes of K/V

p = argparse.ArgumentParser(add_help=False)
p.add_argument("--store", type=int, default=793408)
p.add_argument("--full", type=float)
own, rest = p.parse_known_args()
sys.argv[1:] = rest
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
mode = "flashinfer" if "--backend" in rest else "on"


class Clock:
    """time, and what the GPU is busy until."""

    now = gpu = 0.0

    def time(self):
        return self.now

    perf_counter = time

    def sleep(self, seconds):
        self.now += seconds

    def wait(self):
        self.now = max(self.now, self.gpu)


clock = Clock()


class Later(concurrent.futures.Future):
    """A result that is there at a time of the clock's."""

    def __init__(self, value, at):
        super().__init__()
        self.value, self.at = value, at

    def result(self, timeout=None):
        clock.now = max(clock.now, self.at)
        return self.value

    def done(self):
        return clock.now >= self.at


def kernels():
    """Modules of vLLM's machine code, without any."""
    for name in ("vllm._C_stable_libtorch", "vllm.vllm_flash_attn", "vllm.vllm_flash_attn.flash_attn_interface"):
        module = types.ModuleType(name)
        module.__path__ = []

        def found(name):
            if name.startswith("__"):
                raise AttributeError(name)
            return lambda *a, **k: 3 if "version" in name else True

        module.__getattr__ = found
        sys.modules[name] = module


def platform():
    """vLLM on a Hopper GPU, as far as its configuration asks."""
    kernels()
    import vllm.platforms
    from vllm.platforms.cuda import CudaPlatformBase
    from vllm.platforms.interface import DeviceCapability

    class Hopper(CudaPlatformBase):
        get_device_capability = classmethod(lambda cls, device_id=0: DeviceCapability(9, 0))
        get_device_name = classmethod(lambda cls, device_id=0: "no GPU")
        get_device_total_memory = classmethod(lambda cls, device_id=0: 140 << 30)
        device_count = classmethod(lambda cls: 1)
        num_compute_units = classmethod(lambda cls, device_id=0: 132)
        is_pin_memory_available = classmethod(lambda cls: False)

    vllm.platforms._current_platform = Hopper()
    import vllm._custom_ops as ops
    import vllm.model_executor.models.registry as registry

    for name in [n for n in vars(ops) if "supports" in n or "supported" in n]:
        setattr(ops, name, lambda *a, **k: False)

    def about(model):
        given = {f.name: False for f in dataclasses.fields(registry._ModelInfo)}
        given.update(architecture="Qwen3ForCausalLM", is_text_generation_model=True, supports_pp=True, attn_type="decoder", score_type="bi-encoder",
                     default_seq_pooling_type="LAST", default_tok_pooling_type="ALL")  # fmt: skip
        return registry._ModelInfo(**given)

    registry._LazyRegisteredModel.inspect_model_cls = about


def executor(torch):
    from vllm.v1.executor.abstract import Executor
    from vllm.v1.kv_cache_interface import FullAttentionSpec
    from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, ModelRunnerOutput

    class Runner:
        """Takes the time of a step, and says a token of each request whose prompt is over."""

        model, scheduler = None, None

        def __init__(self):
            self.computed, self.out = {}, None

        def execute_model(self, step):
            for request in step.scheduled_new_reqs:
                self.computed[request.req_id] = request.num_computed_tokens
            self.computed.update(zip(step.scheduled_cached_reqs.req_ids, step.scheduled_cached_reqs.num_computed_tokens))
            if not step.num_scheduled_tokens:
                return Later(EMPTY_MODEL_RUNNER_OUTPUT, clock.now)
            seen = prompts = 0
            for name, n in step.num_scheduled_tokens.items():
                seen, prompts = seen + self.computed[name], prompts + (n if n > 1 else 0)
                self.computed[name] += n
            begin, token = PACE[mode]
            clock.now += HOST
            clock.gpu = max(clock.gpu, clock.now) + (begin + token * seen + PROMPT * prompts) * random.uniform(0.97, 1.03)
            names = list(step.num_scheduled_tokens)
            said = [[1000] if self.computed[name] >= self.scheduler.requests[name].num_tokens else [] for name in names]
            self.out = Later(ModelRunnerOutput(req_ids=names, req_id_to_index={name: i for i, name in enumerate(names)}, sampled_token_ids=said,
                                               logprobs=None, prompt_logprobs_dict={}, pooler_output=[]), clock.gpu)  # fmt: skip
            return Later(None, clock.now)

    class Timed(Executor):
        supports_async_scheduling = classmethod(lambda cls: True)
        supported_tasks = ("generate",)

        def _init_executor(self):
            self.driver_worker = types.SimpleNamespace(model_runner=Runner())

        def get_kv_cache_specs(self):
            return [{f"{i}": FullAttentionSpec(block_size=16, num_kv_heads=8, head_size=128, dtype=torch.bfloat16) for i in range(36)}]

        def determine_available_memory(self):
            return [own.store * TOKEN + 1000]

        def execute_model(self, step, non_block=False):
            return self.driver_worker.model_runner.execute_model(step)

        def sample_tokens(self, grammar, non_block=False):
            return self.driver_worker.model_runner.out

        def collective_rpc(self, *a, **k):
            return [None]

        def nothing(self, *a, **k):
            return None

        check_health = initialize_from_config = get_kv_connector_handshake_metadata = init_kv_output_aggregator = shutdown = nothing
        compile_or_warm_up_model = nothing

    return Timed


def main():
    platform()
    import torch

    class Event:
        def __init__(self, **k):
            pass

        def record(self):
            pass

    torch.cuda.Event, torch.cuda.synchronize, torch.cuda.get_device_name = Event, lambda *a: clock.wait(), lambda *a: "no GPU"
    import bench
    import engine
    import engines
    import serving

    class Rehearsed(bench.Bench):
        def __init__(self, folder, settings, **more):
            more.update(attention_backend="FLASH_ATTN", async_scheduling=True, distributed_executor_backend=executor(torch))
            super().__init__(folder, None, **more)
            self.runner.scheduler = self.core.scheduler
            clock.now = clock.gpu = START

        def switch(self, on):
            global mode
            mode = "on" if on else "off"

    for module in (serving, bench, engine, engines):
        module.time, module.BEGIN = clock, 0.0
    serving.Bench, serving.random_model.randomize = Rehearsed, lambda model: None
    serving.FULL = own.full or serving.FULL
    serving.main()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
