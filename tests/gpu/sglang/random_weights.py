"""A plug-in of SGLang for these tests: the weights that load_format="dummy" makes up are those of the vLLM suite's model. Where GATE names a file,
they wait for it: an engine that starts beside another one takes memory and the GPU only when that one is done."""

import os
import pathlib
import sys
import time


def register():
    from sglang.srt.model_loader import loader

    sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "vllm"))
    import random_model

    def weights(model, *args, **kwargs):
        gate = os.environ.get("GATE")
        while gate and not os.path.exists(gate):
            time.sleep(0.1)
        random_model.randomize(model)

    loader.initialize_dummy_weights = weights
