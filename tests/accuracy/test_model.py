"""The model in NumPy, of files of each kind: against transformers, and against the file that llama.cpp reads."""

import json
import pathlib
import struct

import numpy as np
import pytest
from conftest import FOLDER

from lessismore.compare.methods import Full
from lessismore.compare.model import Model

SHAPE = {
    "vocab_size": 97, "hidden_size": 96, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
}  # fmt: skip
STRETCHED = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
KINDS = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama3": ("LlamaConfig", {"rope_parameters": STRETCHED}),
    "linear": ("LlamaConfig", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"tie_word_embeddings": True}),
}


def made(folder, kind, dtype="float32", **more):
    """A random model in a folder, and transformers' own."""
    import torch
    import transformers

    config, settings = KINDS[kind]
    torch.manual_seed(int.from_bytes(np.random.default_rng().bytes(4), "little"))
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**SHAPE, **settings, **more))
    for tensor in model.parameters():  # biases and norms, too
        torch.nn.init.normal_(tensor, std=0.3) if tensor.ndim > 1 else tensor.data.add_(0.3 * torch.randn_like(tensor))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def said(model, tokens):
    """Of the model in NumPy, in pieces."""
    cache = model.cache(len(tokens))
    pieces = [model.run(tokens[a:b], cache, Full(0)) for a, b in ((0, 50), (50, 51), (51, len(tokens)))]
    return np.concatenate(pieces)


@pytest.mark.parametrize("kind", KINDS)
def test_against_transformers(kind, rng, tmp_path):
    import torch

    reference = made(tmp_path, kind, dtype="bfloat16" if kind == "llama" else "float32")
    tokens = rng.integers(0, 97, 200).tolist()
    with torch.inference_mode():
        want = reference(torch.tensor([tokens])).logits[0].numpy()
    np.testing.assert_allclose(said(Model(tmp_path), tokens), want, rtol=2e-3, atol=2e-3 * np.abs(want).max())


def test_last_logits(rng, tmp_path):
    made(tmp_path, "qwen2")
    model, tokens = Model(tmp_path), rng.integers(0, 97, 30).tolist()
    whole = model.run(tokens, model.cache(), Full(0))
    np.testing.assert_allclose(model.run(tokens, model.cache(), Full(0), 3), whole[-3:], rtol=1e-5, atol=1e-5)
    assert model.run(tokens, model.cache(), Full(0), 0).shape == (0, 97)


def test_gguf_against_folder(task, rng):
    """The reasoner's file for llama.cpp is in f16, its folder too."""
    import sys

    sys.path.insert(0, str(FOLDER))
    import to_gguf

    tokens = rng.integers(3, 40, 120).tolist()
    np.testing.assert_allclose(said(Model(pathlib.Path(to_gguf.path())), tokens), said(task.model, tokens), rtol=1e-4, atol=1e-3)


# ---- what is refused ----


def changed(folder, **config):
    made(folder, "llama")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))


@pytest.mark.parametrize(
    "config, text",
    [
        ({"architectures": ["GemmaForCausalLM"]}, "GemmaForCausalLM is none of LlamaForCausalLM"),
        ({"hidden_act": "gelu"}, "the activation gelu"),
        ({"use_sliding_window": True}, "sliding window"),
        ({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "sliding window"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rotated in a way"),
        ({"tie_word_embeddings": False}, "no weights lm_head.weight"),
        ({"num_hidden_layers": 2}, "weights that are not computed here: model.layers.2."),
        ({"num_hidden_layers": 4}, "no weights model.layers.3."),
    ],
)
def test_another_model(config, text, tmp_path):
    changed(tmp_path, **config)
    with pytest.raises(ValueError, match=text):
        Model(tmp_path)


def test_a_bias_that_is_not_computed(tmp_path):
    made(tmp_path, "llama", attention_bias=True)
    with pytest.raises(ValueError, match="o_proj.bias"):
        Model(tmp_path)


def test_files_that_are_no_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="no weights"):
        Model(tmp_path)
    with pytest.raises(ValueError, match="no GGUF file"):
        Model(tmp_path / "config.json")
    with pytest.raises(FileNotFoundError):
        Model(tmp_path / "nothing")
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 40))
    with pytest.raises(ValueError, match="no safetensors"):
        Model(tmp_path)


def test_a_file_of_another_kind(tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "gemma3")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="of the kind gemma3"):
        Model(tmp_path / "other.gguf")
