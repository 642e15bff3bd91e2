"""A model of Qwen3-8B's shape with random weights, as vLLM loads it."""

import json
import pathlib
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
K_NORM = 1.5  # scales the logits: attention that is neither flat nor on a single token


def folder(layers=36, **changes):
    """A model's folder, without weights: load_format="dummy"."""
    config = {**json.loads((HERE / "qwen3-8b.json").read_text()), "num_hidden_layers": layers, **changes}
    path = pathlib.Path(tempfile.mkdtemp(prefix="lessismore-model-"))
    (path / "config.json").write_text(json.dumps(config))
    return path


def randomize(model):
    import torch

    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if weight.dim() >= 2:
            weight.data.normal_(0, 0.02)
        elif "q_norm" in name or "k_norm" in name:
            weight.data.fill_(K_NORM)
        elif name.endswith("weight"):
            weight.data.fill_(1)
