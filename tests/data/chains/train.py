#!/usr/bin/env python3
"""Teaches SmolLM2-135M-Instruct the problems of problems.py, as a LoRA adapter of at most 8 MB. One GPU.

python3 train.py model.gguf --out DIR --minutes 10
python3 train.py model.gguf --out DIR --minutes 10 --resume OTHER/DIR --begin 0.5

The base is the GGUF as it is, dequantised. What is learned is the chain, not the question; short problems first. Whole layers are left
out at random, so that no layer does a look-up alone. The schedule goes by the clock; every few minutes an exam says, by family and
length, what is learned. DIR gets `adapter` (for peft; to_gguf.py makes of it what llama.cpp loads), `best` (the adapter with the best
exam so far), and what another machine goes on from.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections import Counter
from pathlib import Path

import torch
from base import weights
from model import Adapted
from problems import END, FAMILIES, draw
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

# The share of the schedule until which rows have these lengths, each with its weight.
LENGTHS = (
    (0.12, {1024: 1}),
    (0.25, {1024: 1, 2048: 1}),
    (0.42, {1024: 1, 2048: 2, 4096: 3}),
    (1.01, {2048: 1, 4096: 2, 8192: 4}),
)
EXAMS = {1024: 1000, 2048: 2000, 4096: 4000, 8192: 7000}  # tokens of a problem in rows of a length


class Batches(IterableDataset):
    """Rows of problems of like length, `tokens` in all, and where the chains' tokens are to come from."""

    def __init__(self, tokenizer: Tokenizer, tokens: int, longest: int, seed: str, share: torch.Tensor):
        self.tokenizer, self.tokens, self.longest, self.seed, self.share = tokenizer, tokens, longest, seed, share

    def __iter__(self):
        worker = get_worker_info()
        rng = random.Random(f"{self.seed} {worker.id if worker else 0}")
        while True:
            lengths = next(lengths for until, lengths in LENGTHS if self.share.item() < until)
            length = min(self.longest, rng.choices(list(lengths), list(lengths.values()))[0])
            rows = []
            while len(rows) < self.tokens // length:
                row, start = encode(self.tokenizer, draw(rng, int(length * rng.uniform(0.55, 0.98))))
                if len(row) <= length:
                    rows.append((row, start))
            yield batch(rows, length)


def batch(rows: list[tuple[list[int], int]], length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    where, targets = [], []
    for i, (row, start) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        where.append(torch.arange(start - 1, len(row) - 1) + i * length)
        targets.append(ids[i, start : len(row)])
    return ids, torch.cat(where), torch.cat(targets)


def encode(tokenizer: Tokenizer, problem) -> tuple[list[int], int]:
    """The conversation's tokens, its end too, and where the chain begins."""
    start = tokenizer.encode(problem.prompt, add_special_tokens=False).ids
    return start + tokenizer.encode(problem.chain + END, add_special_tokens=False).ids, len(start)


class Exam:
    """Unseen problems of each family at each length: whose greedy chain is the right one, token for token.

    Each token is judged behind the right ones before it: a chain with none wrong is what greedy decoding writes.
    """

    def __init__(self, tokenizer: Tokenizer, tokens: int, longest: int, seed: str, each: int):
        self.tokenizer, self.batches, rng = tokenizer, {}, random.Random(f"exam {seed}")
        for length, size in EXAMS.items():
            if length > longest:
                continue
            rows = []
            for family in list(FAMILIES) * each:
                row, start = encode(tokenizer, draw(rng, size - 40, family))
                while len(row) > length:
                    row, start = encode(tokenizer, draw(rng, size - 40, family))
                rows.append((family, row, start))
            count = tokens // length
            rows += rows[: -len(rows) % count]  # the last batch is as large as the others
            self.batches[length] = [(rows[i : i + count], length) for i in range(0, len(rows), count)]
        self.each = each

    def sit(self, model: Adapted, angles, said: str) -> float:
        """The mean share of exact chains over the lengths."""
        mean = []
        for length, batches in self.batches.items():
            right, wrong, tokens, bad, sat = Counter(), {}, 0, 0, Counter()
            for rows, _ in batches:
                ids, where, targets = batch([r[1:] for r in rows], length)
                hidden = model.hidden(ids.to(model.device), angles(len(rows), length))
                best = model.best(hidden, where.to(model.device)).cpu()
                del hidden
                at = 0
                for family, row, start in rows:
                    mine, want = best[at : at + len(row) - start], targets[at : at + len(row) - start]
                    at += len(want)
                    if sat[family] == self.each:
                        continue
                    sat[family] += 1
                    misses = (mine != want).nonzero().flatten().tolist()
                    tokens, bad = tokens + len(want), bad + len(misses)
                    right[family] += not misses
                    if misses and family not in wrong:
                        context = self.tokenizer.decode(row[max(0, start + misses[0] - 24) : start + misses[0]], skip_special_tokens=False)
                        wrong[family] = (
                            f"{context!r} then {self.said(want, misses[0])}, not {self.said(mine, misses[0])} ({len(misses)} wrong)"
                        )
            exact = sum(right.values()) / (self.each * len(FAMILIES))
            mean.append(exact)
            print(
                f"exam {said}  {length}: exact {exact:.1%}  tokens wrong {bad / tokens:.5%}  of {self.each}: "
                + "  ".join(f"{f} {right[f]}" for f in FAMILIES),
                flush=True,
            )
            for family, text in wrong.items():
                print(f"    {family}: {text}", flush=True)
        return sum(mean) / len(mean)

    def said(self, tokens, i: int) -> str:
        return repr(self.tokenizer.decode([int(tokens[i])], skip_special_tokens=False))


def rate(share: float, step: int) -> float:
    """Warm-up, then level, then down in a line to a fiftieth."""
    return min(1, (step + 1) / 100) * min(1, max(0.02, (1 - share) / 0.45))


def compiled(model: Adapted, angles, ids, where, targets) -> None:
    """Compiles the layer's parts if that works here and gives the same loss."""
    began = time.monotonic()
    plain = model.loss(model.hidden(ids, angles), where, targets)[0].item()
    parts = model.before, model.behind
    try:
        model.before, model.behind = (torch.compile(f, dynamic=False, fullgraph=True) for f in parts)
        loss = model.loss(model.hidden(ids, angles), where, targets)[0]
        loss.backward()
        if abs(loss.item() - plain) > 0.02 * plain:
            raise ValueError(f"compiled, the loss is {loss.item():.4f} instead of {plain:.4f}")
        said = "yes"
    except Exception as error:  # whatever the compiler throws, training goes on without
        model.before, model.behind = parts
        said = f"no: {str(error)[:500]}"
    model.zero_grad(set_to_none=True)
    print(f"compiled: {said} ({time.monotonic() - began:.0f} s); loss before training {plain:.4f}", flush=True)


def keep(out: Path, model: Adapted, optimizer, state: dict) -> None:
    """What another machine goes on from, each file small enough to travel."""
    out.mkdir(parents=True, exist_ok=True)
    moments = [{k: v.to(torch.bfloat16) if v.ndim else v for k, v in optimizer.state[p].items()} for p in model.parameters()]
    for name, value in (("learned.pt", model.state_dict()), ("moments.pt", moments)):
        torch.save(value, out / f"{name}.new")
        (out / f"{name}.new").replace(out / name)
    (out / "state.json").write_text(json.dumps(state) + "\n")
    model.save(out / "adapter")


def resume(folder: Path, model: Adapted, optimizer) -> None:
    model.load_state_dict(torch.load(folder / "learned.pt", map_location=model.device))
    if (folder / "moments.pt").exists():
        for p, moments in zip(model.parameters(), torch.load(folder / "moments.pt", map_location=model.device)):
            optimizer.state[p] = {k: v.float() for k, v in moments.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json of the model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--resume", type=Path, help="the --out of a training that was cut off")
    parser.add_argument("--begin", type=float, default=0.0, help="share of the schedule to begin at")
    parser.add_argument("--rank", type=int, default=12)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--skip", type=float, default=0.02, help="share of steps that leave a layer out, but the first and last four")
    parser.add_argument("--tokens", type=int, default=16384, help="of a batch")
    parser.add_argument("--longest", type=int, default=8192, help="tokens of a row, at most")
    parser.add_argument("--seed", default=str(random.randrange(10**6)))
    parser.add_argument("--workers", type=int, default=5)
    parser.add_argument("--exam-every", type=float, default=120, help="seconds")
    parser.add_argument("--problems", type=int, default=8, help="of each family and length in an exam")
    parser.add_argument("--last-problems", type=int, default=40, help="the same in the last exam")
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()

    print(f"seed {args.seed}", flush=True)
    torch.manual_seed(int(args.seed))
    torch.set_float32_matmul_precision("high")
    cuda = torch.cuda.is_available()
    device, dtype = (torch.device("cuda"), torch.bfloat16) if cuda else (torch.device("cpu"), torch.float32)
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    share = torch.zeros(1).share_memory_()
    share[0] = args.begin
    loader = DataLoader(
        Batches(tokenizer, args.tokens, args.longest, args.seed, share),
        batch_size=None,
        num_workers=args.workers,
        pin_memory=cuda,
        prefetch_factor=4 if args.workers else None,
    )
    batches = iter(loader)
    model = Adapted(*weights(args.model), rank=args.rank, scale=2.0, device=device, dtype=dtype)
    learned = list(model.parameters())
    optimizer = torch.optim.AdamW(learned, lr=args.rate, betas=(0.9, 0.98), weight_decay=0.0, fused=cuda)
    if args.resume:
        resume(args.resume, model, optimizer)
    known: dict[tuple[int, int], tuple] = {}

    def angles(rows, length):
        if (rows, length) not in known:
            known[rows, length] = model.angles(rows, length)
        return known[rows, length]

    def move(item):
        return [t.to(device, non_blocking=True) for t in item]

    if not args.no_compile:
        ids, where, targets = move(next(batches))
        compiled(model, angles(*ids.shape), ids, where, targets)
    exam = Exam(tokenizer, args.tokens, args.longest, args.seed, args.problems)
    dropped = random.Random(args.seed)
    factor, step, seen, mean, lowest, top = 1.0, 0, 0, None, math.inf, -1.0
    good = [p.detach().clone() for p in learned]
    began = time.monotonic()
    said = kept = sat = 0.0
    losses, sums = [], torch.zeros(3, device=device)
    while True:
        spent = time.monotonic() - began
        done = args.begin + (1 - args.begin) * spent / (args.minutes * 60)
        if done >= 1:
            break
        share[0] = done
        for group in optimizer.param_groups:
            group["lr"] = args.rate * factor * rate(done, step)
        ids, where, targets = move(next(batches))
        layers = range(4, model.layers - 4) if 0.05 < done < 0.85 else ()
        skipped = frozenset(i for i in layers if dropped.random() < args.skip)
        loss, right = model.loss(model.hidden(ids, angles(*ids.shape), skipped), where, targets)
        loss.backward()
        size = torch.nn.utils.clip_grad_norm_(learned, 1.0)
        # A step that is no number changes nothing.
        for p in learned:
            p.grad.nan_to_num_(0.0, 0.0, 0.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, seen = step + 1, seen + ids.numel()
        losses.append(1)
        sums += torch.stack((loss.detach().float(), right.float(), size.float()))
        if spent - said >= 10 or step == 1:
            said = spent
            loss_, right_, size_ = (sums / len(losses)).tolist()
            losses, sums = [], torch.zeros(3, device=device)
            print(
                f"{spent:5.0f} s  {done:.3f}  step {step}  {seen / 1e6:.1f} M tokens, {seen / max(spent, 1e-3):,.0f}/s  "
                f"loss {loss_:.4f}  best {right_:.4%}  gradient {size_:.2f}  rows of {ids.shape[1]}",
                flush=True,
            )
            mean = loss_
            lowest = min(lowest, mean) if math.isfinite(mean) else lowest
            if step > 100 and not mean < 3 * lowest + 0.5:
                factor, mean, lowest = factor / 2, None, math.inf
                print(f"diverged: back to the last kept, at {factor} of the rate", flush=True)
                with torch.no_grad():
                    for p, g in zip(learned, good):
                        p.copy_(g)
                optimizer.state.clear()
        if spent - kept >= 60:
            kept = spent
            keep(args.out, model, optimizer, {"share": done, "step": step, "tokens": seen, "rate factor": factor})
            if mean is not None and mean < 2 * lowest + 0.1:
                good = [p.detach().clone() for p in learned]
        if spent - sat >= args.exam_every and done < 0.97:
            mark = exam.sit(model, angles, f"{spent:.0f} s")
            sat = time.monotonic() - began
            if mark > top:
                top = mark
                model.save(args.out / "best")
    keep(args.out, model, optimizer, {"share": 1.0, "step": step, "tokens": seen, "rate factor": factor})
    last = Exam(tokenizer, args.tokens, args.longest, args.seed + " last", args.last_problems)
    print(f"last: {last.sit(model, angles, 'last'):.1%}; the best before {top:.1%}", flush=True)
    (args.out / "ended").write_text("")


if __name__ == "__main__":
    main()
