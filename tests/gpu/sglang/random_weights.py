"""A plug-in of SGLang for these tests: the weights that load_format="dummy" makes up are those of the vLLM suite's model."""

import pathlib
import sys


def register():
    from sglang.srt.model_loader import loader

    sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "vllm"))
    import random_model

    loader.initialize_dummy_weights = lambda model, *args, **kwargs: random_model.randomize(model)
