"""Selection layers found by measuring, on the GPU against the CPU engine on the same queries, keys and values; the guard;
captured steps. A model made up for it: of 12 layers the lower ones all look at the same tokens, layers 9 and 10 have two
heads that look up one token, another one in each step. Run like test_library.py."""

import os
import random
import sys

import device as D
import torch
from harness import SEED, main

sys.path.insert(0, os.path.join(D.ROOT, "bindings", "python"))
import lessismore  # noqa: E402

LAYERS, HEADS, KV_HEADS, DIM, BUDGET, CAPACITY = 12, 8, 2, 64, 128, 2048
FIRST, STEPS = 1040, 60  # an eighth of what is seen is more than the budget from the beginning; one measurement


class Model:
    """Two rows: what layer j's heads ask for in step s, of tokens whose keys are random directions."""

    def __init__(self, rng, lookups=(9, 10)):
        self.gen = torch.Generator().manual_seed(rng.randrange(1 << 31))
        self.lookups = lookups
        self.key = torch.nn.functional.normalize(torch.randn(2, CAPACITY, KV_HEADS, DIM, generator=self.gen), dim=-1)
        self.value = torch.randn(2, CAPACITY, KV_HEADS, DIM, generator=self.gen).half()
        self.liked = torch.randperm(800, generator=self.gen)[:30] + 10
        self.key16 = self.key.half()

    def step(self):
        """[layers][rows][heads][dim] f16"""
        shared = self.key[:, self.liked].sum(1).repeat_interleave(HEADS // KV_HEADS, 1)  # [rows][heads][dim]
        query = 6 * shared[None] + 0.5 * torch.randn(LAYERS, 2, HEADS, DIM, generator=self.gen)
        for r in range(2):
            token = 60 + int(torch.randint(700, (1,), generator=self.gen))
            for layer in self.lookups:
                for head in (1, 6):
                    query[layer, r, head] = 80 * self.key[r, token, head // (HEADS // KV_HEADS)]
        return query.half()


class OnGpu:
    def __init__(self, model, **setting):
        self.model = model
        self.engine = lessismore.Engine(LAYERS, budget=BUDGET, **setting)
        self.decoder = self.engine.decoder(2, device=0, capacity=CAPACITY, heads=HEADS, kv_heads=KV_HEADS, head_dim=DIM)
        self.key, self.value = model.key16.cuda(), model.value.cuda()
        self.lengths = torch.tensor([100, FIRST - 1], dtype=torch.int32, device="cuda")
        self.query = torch.zeros(LAYERS, 2, HEADS, DIM, dtype=torch.float16, device="cuda")
        self.out = torch.zeros(LAYERS, 2, HEADS, DIM, device="cuda")

    def run(self):
        for layer in range(LAYERS):
            self.decoder.attend(layer, self.query[layer], self.key, self.value, lengths=self.lengths, out=self.out[layer])

    def step(self, query=None, wait=True):
        self.query.copy_(self.model.step() if query is None else query)
        self.run()
        if wait:  # so that what a step brings is there when the next one asks
            torch.cuda.synchronize()
        self.lengths.add_(1)

    def close(self):
        self.decoder.close()
        self.engine.close()


def learned(engine):
    found = engine.report()["models"]
    assert len(found) == 1, found
    return found[0]


def test_the_cpu_engines_choice():
    """The same layers from the same losses, step by step the same; later steps are sparse and counted."""
    rng = random.Random(SEED)
    for policy in ("union", "mass"):
        gpu = OnGpu(Model(rng), policy=policy)
        gpu.step()  # looks at the lengths
        with lessismore.Engine(LAYERS, budget=BUDGET, policy=policy, n_threads=4) as engine, engine.decoder() as alone:
            for s in range(STEPS):
                n = FIRST + s
                query = gpu.model.step()
                gpu.step(query)
                for layer in range(LAYERS):
                    out = alone.attend(layer, query[layer, 1].numpy(), gpu.model.key16[1, :n].numpy(), gpu.model.value[1, :n].numpy())
                    worst = (torch.from_numpy(out) - gpu.out[layer, 1].cpu()).abs().max()
                    assert worst < 6e-3, (policy, s, layer, worst)
            alone.attend(0, query[0, 1].numpy(), gpu.model.key16[1, : n + 1].numpy(), gpu.model.value[1, : n + 1].numpy())
            gpu.step()
            want, got = learned(engine), learned(gpu.engine)
        assert got["choice"] == want["choice"] == [2, 9], (policy, got["choice"], want["choice"])
        assert got["measured"]["steps"] == want["measured"]["steps"] == STEPS
        worst = max(abs(a - b) for x, y in zip(got["loss"], want["loss"]) for a, b in zip(x, y))
        assert worst < 2e-3, f"{policy}: the losses differ by {worst}"
        worst = max(abs(a - b) for x, y in zip(got["loss_error"], want["loss_error"]) for a, b in zip(x, y))
        assert worst < 2e-3, f"{policy}: their errors differ by {worst}"
        worst = max(abs(a - b) for x, y in zip(got["loss_square"], want["loss_square"]) for a, b in zip(x, y))
        assert worst < 2e-3, f"{policy}: their squares differ by {worst}"
        stats = gpu.decoder.stats()
        assert stats["steps"] == STEPS + 2 and stats["select_calls"] == 2 and stats["sparse_calls"] == 8, stats
        gpu.close()


def test_nobody_waits():
    """The same without a stop in between: results come when they come."""
    gpu = OnGpu(Model(random.Random(SEED + 1)))
    for _ in range(300):
        gpu.step(wait=False)
    torch.cuda.synchronize()
    gpu.step()
    gpu.step()
    assert learned(gpu.engine)["choice"] == [2, 9]
    gpu.close()


def test_guard():
    """No alarm while the model is as it was measured; one, and another measurement, when it is not any more."""
    gpu = OnGpu(Model(random.Random(SEED + 2)), guard=2)
    for _ in range(STEPS + 300):
        gpu.step(wait=False)
    torch.cuda.synchronize()
    gpu.step()
    gpu.decoder.stats()
    context = gpu.engine.report()["contexts"][0]
    assert context["alarms"] == 0 and context["audits"] > 60, context
    audited = {a["layer"]: a for a in context["audited"]}
    assert set(audited) == {3, 4, 5, 6, 7, 8, 10, 11}, audited
    assert all(abs(a["loss"] - a["expected"]) < 0.15 for a in audited.values()), audited
    gpu.model.lookups = (6, 7, 8)
    for _ in range(560):
        gpu.step(wait=False)
    torch.cuda.synchronize()
    gpu.step()
    context = gpu.engine.report()["contexts"][0]
    what = [e["what"] for e in context["events"]]
    assert "drift" in what and what[-1] == "measured", what
    assert learned(gpu.engine)["choice"] == [2, 6], learned(gpu.engine)["choice"]
    gpu.close()


def test_captured_steps():
    """A host that captures, and does what it is told."""
    gpu = OnGpu(Model(random.Random(SEED + 3)), guard=8)
    graph, captured, replays, eagers, captures = None, None, 0, 0, 0
    for _ in range(220):
        generation, eager = gpu.decoder.poll()
        if eager:
            gpu.step()
            eagers += 1
            continue
        gpu.query.copy_(gpu.model.step())
        if generation != captured:
            graph, captured, captures = torch.cuda.CUDAGraph(), generation, captures + 1
            with torch.cuda.graph(graph, stream=torch.cuda.Stream()):
                gpu.run()
        graph.replay()
        torch.cuda.synchronize()
        gpu.lengths.add_(1)
        replays += 1
    assert learned(gpu.engine)["choice"] == [2, 9]
    stats = gpu.decoder.stats()
    assert captures <= 3 and STEPS < eagers < STEPS + 60 and stats["steps"] == 220, (captures, eagers, replays, stats)
    assert stats["sparse_calls"] > 8 * (replays - 20)
    # What the graph computes is what a step without it would.
    gpu.query.copy_(gpu.model.step())
    graph.replay()
    torch.cuda.synchronize()
    replayed = gpu.out.clone()
    gpu.run()
    torch.cuda.synchronize()
    same = sum(torch.equal(replayed[l], gpu.out[l]) for l in range(LAYERS))
    assert same >= LAYERS - 1, "all but perhaps one that was audited"
    gpu.close()


if __name__ == "__main__":
    main(globals())
