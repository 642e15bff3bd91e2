"""An unmodified SGLang with lessismore as a server has it: found by the entry point, set by the environment. Its model runs in a process
of its own, so that what is seen here is what it answers, and its statistics file."""

import asyncio
import json
import os
import pathlib
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
import engines  # noqa: E402
from engines import keep, say  # noqa: E402, F401  for the parts

ROOT = engines.ROOT
engines.install(
    "sglang.srt.plugins",
    beside='random_weights = "random_weights:register"\nwatch = "watch:register"\nno_dsl = "no_dsl:register"',
    path=[HERE],
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")


class Served:
    def __init__(self, model, settings, **more):
        """settings: lessismore's variables without their prefix; None: SGLang's FlashAttention 3 alone."""
        import sglang

        self.stats = pathlib.Path(tempfile.mkdtemp()) / "stats.json"
        if settings is None:
            more["attention_backend"] = "fa3"
        else:
            for name, value in {**settings, "stats": str(self.stats)}.items():
                os.environ[f"LESSISMORE_{name.upper()}"] = str(value)
            more.setdefault("attention_backend", "lessismore")
        begin = time.time()
        self.engine = sglang.Engine(
            model_path=str(model), skip_tokenizer_init=True, random_seed=0, sampling_backend="pytorch", disable_prefill_cuda_graph=True,
            log_level="info", decode_log_interval=1000, **more,
        )  # fmt: skip
        say(f"SGLang {sglang.__version__}: engine in {time.time() - begin:.1f} s")

    def generate(self, prompts, tokens):
        """The tokens after each prompt, so many of each."""
        given = [dict(temperature=0, max_new_tokens=n, ignore_eos=True) for n in tokens]
        return [out["output_ids"] for out in self.engine.generate(input_ids=prompts, sampling_params=given)]

    def serve(self, prompts, tokens, rows):
        """As generate, but so many requests at once: the next one comes when one is done, while others decode."""
        free = asyncio.Semaphore(rows)

        async def one(prompt, n):
            async with free:
                given = dict(temperature=0, max_new_tokens=n, ignore_eos=True)
                return (await self.engine.async_generate(input_ids=prompt, sampling_params=given))["output_ids"]

        async def every():
            return await asyncio.gather(*(one(*each) for each in zip(prompts, tokens)))

        return self.engine.loop.run_until_complete(every())

    def end(self, name, checks):
        """Says whether all that was checked is right, and ends the process by it: 0, or 1."""
        bad = [what for what, right in checks.items() if not right]
        say(f"{name}: {'FAILED: ' + ', '.join(bad) if bad else 'ok'}")
        self.engine.shutdown()
        sys.stdout.flush()
        os._exit(bool(bad))

    def flush(self):
        """Empties the radix cache, which SGLang does when the last step is over."""
        for _ in range(50):
            if self.engine.flush_cache().success:
                return
            time.sleep(0.1)
        raise RuntimeError("SGLang did not empty its cache")

    def report(self, wait=10.5):
        """What was counted. It is written every ten seconds, at a step; without waiting it may lack as many."""
        time.sleep(wait)
        self.generate([[5, 6, 7]], [4])
        return json.loads(self.stats.read_text())["sglang"]
