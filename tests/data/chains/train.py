#!/usr/bin/env python3
"""Teaches SmolLM2-135M-Instruct the problems of problems.py, as a LoRA adapter of at most 8 MB.

    python3 train.py model.gguf --out adapter --minutes 15        one GPU
    torchrun --nproc-per-node 4 train.py model.gguf --out adapter --minutes 8

The base is the GGUF as it is, dequantised. What is learned is the chain, not the question. Whole layers are left out at random, so
that no layer does a look-up alone. Writes a folder for peft; to_gguf.py makes of it what llama.cpp loads.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import time
from pathlib import Path

import torch
import torch.distributed as dist
from base import load
from peft import LoraConfig, get_peft_model
from problems import draw
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

CONTEXT = 8192  # what the base was trained for
PIECE = 4096  # rows of logits at a time
IGNORED = -100


class Batches(IterableDataset):
    """Rows of problems that end at the same multiple of 1,024 tokens, `tokens` in all: ids, and labels for the chain alone."""

    def __init__(self, tokenizer, tokens: int, longest: int, seed: int):
        self.tokenizer, self.tokens, self.longest, self.seed = tokenizer, tokens, longest, seed

    def __iter__(self):
        worker = get_worker_info()
        rng = random.Random(f"{self.seed} {worker.id if worker else 0}")
        while True:
            longest = rng.choice(range(min(2048, self.longest), self.longest + 1, 1024))
            rows = []
            while len(rows) < max(1, self.tokens // longest):
                ids, start = encode(self.tokenizer, draw(rng, longest - rng.randrange(128, 1000)))
                if len(ids) <= longest:
                    rows.append((ids, start))
            ids = torch.full((len(rows), longest), self.tokenizer.eos_token_id)
            labels = torch.full((len(rows), longest), IGNORED)
            for i, (row, start) in enumerate(rows):
                ids[i, : len(row)] = torch.tensor(row)
                labels[i, start - 1 : len(row) - 1] = torch.tensor(row[start:])
            yield ids, labels


def encode(tokenizer, problem):
    """The conversation's tokens, its end too, and where the chain begins."""
    question = f"<|im_start|>user\n{problem.question}<|im_end|>\n<|im_start|>assistant\n"
    start = tokenizer.encode(question, add_special_tokens=False)
    return start + tokenizer.encode(problem.chain + "<|im_end|>", add_special_tokens=False), len(start)


class Skipped(torch.nn.Module):
    """A decoder layer that is left out now and then. All processes leave out the same, or gradients would wait for each other."""

    def __init__(self, layer, share: float, rng: random.Random):
        super().__init__()
        self.layer, self.share, self.rng = layer, share, rng

    def forward(self, hidden_states, *args, **kwargs):
        if self.training and self.rng.random() < self.share:
            return hidden_states
        return self.layer(hidden_states, *args, **kwargs)


def loss_of(model, ids, labels):
    """Mean cross-entropy over the labels, and how many of them are the model's own best token."""
    hidden = model.base_model.model.model(input_ids=ids, use_cache=False).last_hidden_state
    wanted = labels != IGNORED
    hidden, labels = hidden[wanted], labels[wanted]
    head = model.base_model.model.lm_head

    def piece(h, t):
        logits = head(h).float()
        return cross_entropy(logits, t, reduction="sum"), (logits.argmax(-1) == t).sum()

    parts = [checkpoint(piece, h, t, use_reentrant=False) for h, t in zip(hidden.split(PIECE), labels.split(PIECE))]
    return sum(p[0] for p in parts) / len(labels), sum(p[1] for p in parts).item() / len(labels)


@torch.no_grad()
def exact(model, tokenizer, device, seed: int, tokens: int, count: int):
    """Share of unseen problems whose chain is the greedy one: each of its tokens is the best behind those before it."""
    model.eval()
    rng, right = random.Random(f"exam {seed}"), 0
    for _ in range(count):
        ids, start = encode(tokenizer, draw(rng, tokens))
        row = torch.tensor([ids[:CONTEXT]], device=device)
        hidden = model.base_model.model.model(input_ids=row, use_cache=False).last_hidden_state[0, start - 1 : -1]
        best = torch.cat([model.base_model.model.lm_head(h).argmax(-1) for h in hidden.split(PIECE)])
        right += bool((best == row[0, start:]).all())
    model.train()
    return right / count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--rank", type=int, default=12)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--skip", type=float, default=0.05, help="share of steps that leave a layer out")
    parser.add_argument("--tokens", type=int, default=32768, help="of a batch, in each process")
    parser.add_argument("--longest", type=int, default=CONTEXT, help="tokens of a problem, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--problems", type=int, default=40, help="in each examination")
    args = parser.parse_args()

    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else torch.device("cpu")
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    torch.manual_seed(args.seed)
    base, tokenizer = load(args.model)
    base = base.to(device, torch.bfloat16)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(base, LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=targets))
    for p in model.parameters():
        p.data = p.data.float() if p.requires_grad else p.data
    layers, dropped = base.model.layers, random.Random(args.seed)
    whole = list(layers)
    for i in range(1, len(layers) - 1):
        layers[i] = Skipped(whole[i], args.skip, dropped)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=args.rate, betas=(0.9, 0.95), weight_decay=0.0, fused=device.type == "cuda")
    workers = min(12, max(1, (os.cpu_count() or 2) // world - 1))
    batches = iter(
        DataLoader(
            Batches(tokenizer, args.tokens, args.longest, args.seed * 1000 + rank), batch_size=None, num_workers=workers, pin_memory=True
        )
    )

    began, step, seen, said = time.monotonic(), 0, 0, 0.0
    while True:
        # The schedule follows the clock, the first process's: warm-up over 2 % of the time, then half a cosine.
        done = torch.tensor((time.monotonic() - began) / (args.minutes * 60), device=device)
        if world > 1:
            dist.broadcast(done, 0)
        share = done.item()
        if share >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = args.rate * min(1, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
        ids, labels = (t.to(device, non_blocking=True) for t in next(batches))
        with torch.autocast(device.type, torch.bfloat16):
            loss, right = loss_of(model, ids, labels)
        loss.backward()
        if world > 1:
            for p in learned:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
            flat = torch.cat([p.grad.flatten() for p in learned])
            dist.all_reduce(flat, dist.ReduceOp.AVG if device.type == "cuda" else dist.ReduceOp.SUM)
            for p, g in zip(learned, flat.split([p.numel() for p in learned])):
                p.grad.copy_(g.view_as(p))
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, seen = step + 1, seen + ids.numel() * world
        spent = time.monotonic() - began
        if rank == 0 and spent - said >= 10:
            said = spent
            print(
                f"{spent:5.0f} s  step {step}  {seen / 1e6:.1f} M tokens, {seen / spent:,.0f}/s  loss {loss.item():.4f}  best {right:.4%}",
                flush=True,
            )
    if rank != 0:
        return
    for i in range(len(whole)):
        layers[i] = whole[i]
    with torch.autocast(device.type, torch.bfloat16):
        for tokens in (1024, 2048, 4096, 7168)[: 4 if args.longest == CONTEXT else 1]:
            print(f"exact at {tokens}: {exact(model, tokenizer, device, args.seed, tokens, args.problems):.1%}", flush=True)
    for p in learned:
        p.data = p.data.half()
    model.save_pretrained(args.out)


if __name__ == "__main__":
    main()
