"""An unmodified SGLang with lessismore as a server has it: found by the entry point, set by the environment. Its model runs in a process
of its own, so that what is seen here is what it answers, and its statistics file."""

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
engines.install("sglang.srt.plugins", beside='random_weights = "random_weights:register"\nwatch = "watch:register"', path=[HERE])
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

    def report(self):
        """What was counted. It is written every ten seconds, at a step."""
        time.sleep(10.5)
        self.generate([[5, 6, 7]], [4])
        return json.loads(self.stats.read_text())["sglang"]
