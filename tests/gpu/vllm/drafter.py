"""A drafter for the reasoner by EAGLE's method, one layer whose weights are drawn: what it says is wrong nearly always, and right where a token
comes twice, since the model's own last state is passed on. Whatever it says, the answers have to be the model's."""

import json
import pathlib
import tempfile


def folder(model):
    import torch
    from safetensors.torch import save_file

    full = json.loads((pathlib.Path(model) / "config.json").read_text())
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps",
            "rope_theta", "rope_parameters", "max_position_embeddings", "bos_token_id", "eos_token_id", "torch_dtype", "dtype")  # fmt: skip
    config = {k: full[k] for k in kept}
    config.update(architectures=["LlamaForCausalLM"], model_type="llama", num_hidden_layers=1, attention_bias=False, mlp_bias=False,
                  tie_word_embeddings=True)  # fmt: skip
    hidden, wide, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    torch.manual_seed(4)
    shapes = {"self_attn.q_proj": (heads, hidden), "self_attn.k_proj": (kv_heads, hidden), "self_attn.v_proj": (kv_heads, hidden),
              "self_attn.o_proj": (hidden, heads), "mlp.gate_proj": (wide, hidden), "mlp.up_proj": (wide, hidden), "mlp.down_proj": (hidden, wide)}  # fmt: skip
    weights = {f"layers.0.{name}.weight": torch.randn(shape) * 0.02 for name, shape in shapes.items()}
    weights["layers.0.post_attention_layernorm.weight"] = torch.ones(hidden)
    weights["fc.weight"] = torch.cat((torch.zeros(hidden, hidden), torch.eye(hidden)), 1)  # token | state
    path = pathlib.Path(tempfile.mkdtemp(prefix="lessismore-drafter-"))
    (path / "config.json").write_text(json.dumps(config))
    save_file({name: w.half().contiguous() for name, w in weights.items()}, path / "model.safetensors", metadata={"format": "pt"})
    return path
