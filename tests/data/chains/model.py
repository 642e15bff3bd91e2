"""A Llama model as training needs it: a frozen base, and an adapter that is added to each matrix once per step.

So a pass costs one product a matrix, and the adapter's gradients come through the sum. Rows are filled up on the right and see only
what is before them: no mask.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, scaled_dot_product_attention, silu
from torch.utils.checkpoint import checkpoint

PARTS = {
    "self_attn.q_proj": "wq",
    "self_attn.k_proj": "wk",
    "self_attn.v_proj": "wv",
    "self_attn.o_proj": "wo",
    "mlp.gate_proj": "wg",
    "mlp.up_proj": "wu",
    "mlp.down_proj": "wd",
}
PIECE = 4096  # rows of logits at a time


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    wide = x.float()
    a, b = wide.chunk(2, -1)
    return (wide * cos + torch.cat((-b, a), -1) * sin).to(x.dtype)


def before(x, weight, eps: float, heads: int, kv_heads: int, wq, wk, wv, cos, sin):
    """Queries, keys and values of a layer; keys and values once for each query head."""
    h = norm(x, weight, eps)
    q = rotate(linear(h, wq).view(len(x), heads, -1), cos, sin)
    k = rotate(linear(h, wk).view(len(x), kv_heads, -1), cos, sin)
    v = linear(h, wv).view(len(x), kv_heads, -1)
    return q, k.repeat_interleave(heads // kv_heads, 1), v.repeat_interleave(heads // kv_heads, 1)


def behind(x, attended, weight, eps: float, wo, wg, wu, wd):
    x = x + linear(attended, wo)
    h = norm(x, weight, eps)
    return x + linear(silu(linear(h, wg)) * linear(h, wu), wd)


class Adapted(torch.nn.Module):
    def __init__(self, tensors: dict[str, Tensor], config: dict, rank: int, scale: float, device, dtype):
        super().__init__()
        self.layers, self.heads, self.kv_heads = (config[f"num_{k}"] for k in ("hidden_layers", "attention_heads", "key_value_heads"))
        self.eps, self.theta, self.rank, self.scale = config["rms_norm_eps"], config["rope_theta"], rank, scale
        self.device, self.dtype = device, dtype

        def stacked(part):
            return torch.stack([tensors[f"model.layers.{i}.{part}.weight"] for i in range(self.layers)]).to(device, dtype)

        self.base = {part: stacked(part) for part in PARTS}
        self.norms = [stacked(n).unbind(0) for n in ("input_layernorm", "post_attention_layernorm")]
        self.embed = tensors["model.embed_tokens.weight"].to(device, dtype)
        self.head = self.embed if config["tie_word_embeddings"] else tensors["lm_head.weight"].to(device, dtype)
        self.last_norm = tensors["model.norm.weight"].to(device, dtype)
        self.a, self.b = torch.nn.ParameterDict(), torch.nn.ParameterDict()
        for part, short in PARTS.items():
            layers, rows, columns = self.base[part].shape
            bound = columns**-0.5
            self.a[short] = torch.nn.Parameter((torch.rand(layers, rank, columns, device=device) * 2 - 1) * bound)
            self.b[short] = torch.nn.Parameter(torch.zeros(layers, rows, rank, device=device))
        self.before, self.behind = before, behind

    def merged(self) -> dict[str, tuple[Tensor, ...]]:
        """Each layer's matrices with the adapter in them."""
        return {
            short: torch.baddbmm(self.base[part], (self.b[short] * self.scale).to(self.dtype), self.a[short].to(self.dtype)).unbind(0)
            for part, short in PARTS.items()
        }

    def angles(self, rows: int, length: int) -> tuple[Tensor, Tensor]:
        size = self.base["self_attn.q_proj"].shape[1] // self.heads
        steps = self.theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
        angle = torch.arange(length, dtype=torch.float64)[:, None] * steps
        angle = torch.cat((angle, angle), -1).repeat(rows, 1)[:, None].to(self.device)
        return angle.cos().float(), angle.sin().float()

    def hidden(self, ids: Tensor, angles: tuple[Tensor, Tensor], skipped: frozenset[int] = frozenset()) -> Tensor:
        """The last layer's output, normed, for the rows of ids one behind another. Skipped layers hand on what they get."""
        rows, length = ids.shape
        w = self.merged()
        x = self.embed[ids.flatten()].requires_grad_()  # in every layer alike, so that a part is compiled once
        for i in range(self.layers):
            if i in skipped:
                continue
            q, k, v = self.before(x, self.norms[0][i], self.eps, self.heads, self.kv_heads, *(w[n][i] for n in ("wq", "wk", "wv")), *angles)
            q, k, v = (t.view(rows, length, self.heads, -1).transpose(1, 2) for t in (q, k, v))
            attended = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(len(x), -1)
            x = self.behind(x, attended, self.norms[1][i], self.eps, *(w[n][i] for n in ("wo", "wg", "wu", "wd")))
        return norm(x, self.last_norm, self.eps)

    def loss(self, hidden: Tensor, where: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of the targets at these places, and the share that is the model's own best token."""

        def piece(h, t):
            logits = linear(h, self.head).float()
            return cross_entropy(logits, t, reduction="sum"), (logits.detach().argmax(-1) == t).sum()

        pairs = zip(hidden[where].split(PIECE), targets.split(PIECE))
        parts = [checkpoint(piece, h, t, use_reentrant=False) for h, t in pairs]
        return sum(p[0] for p in parts) / len(targets), sum(p[1] for p in parts) / len(targets)

    @torch.no_grad()
    def best(self, hidden: Tensor, where: Tensor) -> Tensor:
        return torch.cat([linear(h, self.head).argmax(-1) for h in hidden.detach()[where].split(PIECE)])

    def save(self, folder: Path) -> None:
        """The adapter as peft names and describes it, in float16."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for part, short in PARTS.items():
            for half, stack in (("A", self.a[short]), ("B", self.b[short])):
                for i, t in enumerate(stack.detach().half().cpu()):
                    tensors[f"base_model.model.model.layers.{i}.{part}.lora_{half}.weight"] = t.contiguous()
        save_file(tensors, folder / "adapter_model.safetensors")
        described = {
            "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
            "bias": "none",
            "lora_alpha": self.rank * self.scale,
            "lora_dropout": 0.0,
            "peft_type": "LORA",
            "r": self.rank,
            "target_modules": [p.split(".")[1] for p in PARTS],
            "task_type": "CAUSAL_LM",
        }
        (folder / "adapter_config.json").write_text(json.dumps(described, indent=2) + "\n")
