"""Token sets that serve several steps on a GPU: against float64 on the sets that a model of the rules expects, whatever happens to
the rows, the pages and the graph in between. Run with pytest, or as a script (see harness.py)."""

import random

import device as D
import numpy as np
import torch
from harness import QUICK, SEED, main
from test_kernels import random_problem
from test_library import LAYERS, attend, check, make_decoder, make_engine, visible

EVENTS = ("grow",) * 8 + ("jump", "same", "reset", "replay", "replay", "move")


class Model:
    """What a decoder should do: the host's view (steps that the sets have served) and the device's (its last finished step)."""

    def __init__(self, budget, interval, choose):
        self.budget, self.interval, self.choose = budget, interval, choose
        self.joined = None  # None: the next step chooses
        self.lengths, self.size, self.sets = [], 0, []

    def step(self, lengths, replayed=False):
        """What a step does: "choose", "resume" or "dense"."""
        if not replayed and self.joined is not None and self.joined + 1 < self.interval:
            self.joined += 1
            alike = self.size == self.budget + self.joined - 1 and all(
                n == m + 1 or (n <= 0 and m <= 0) for n, m in zip(lengths, self.lengths, strict=True)
            )
            self.lengths, self.size = lengths, self.size + 1 if alike else 0
            if not alike:
                return "dense"
            self.sets = [[np.append(s, n - 1) if n > 0 else s for s, n in zip(group, lengths)] for group in self.sets]
            return "resume"
        if not replayed:
            self.joined = 0
        self.lengths, self.size, self.sets = lengths, self.budget, self.choose()
        return "choose"

    def set(self, group, row):
        """As token_set() has it: nothing where a row sees no more than a set holds."""
        return self.sets[group][row] if self.lengths[row] > self.size > 0 else np.array([], np.int32)


def move(p):
    """The host's pages lie elsewhere; the text is the same."""
    order = torch.randperm(p.key.shape[0], device="cuda")
    for x in (p.key, p.value):
        raw = x.view(torch.uint8) if x.element_size() == 1 else x
        raw.copy_(raw[order].clone())
    where = torch.empty_like(order)
    where[order] = torch.arange(len(order), device="cuda")
    p.table.copy_(where[p.table.long()].to(torch.int32))


def test_sets_serve_several_steps():
    rng = random.Random(SEED)
    did = dict.fromkeys(("choose", "resume", "dense"), 0)
    for _ in range(4 if QUICK else 24):
        budget, interval, steps = rng.choice([7, 16, 64, 200]), rng.choice([2, 3, 5]), 10 if QUICK else 30
        lengths = [rng.choice([0, 1, budget - 2, budget, budget + 1, rng.randint(1, 1500)]) for _ in range(rng.choice([1, 2, 5]))]
        capacity = max(*lengths, budget) + 2 * steps + 2
        p = random_problem(rng, lengths=lengths, capacity=capacity, budget=budget)
        base = D.TORCH[D.F16 if p.kv_type in (*D.PACKED, D.FP8) else p.kv_type]
        # Layers from the second selection layer on have queries of their own, and so other sets.
        queries = [p.query, torch.randn(p.query.shape, device="cuda").to(p.query.dtype)]
        outs = [torch.empty_like(p.output) for _ in range(LAYERS)]

        def use(layer, p=p, queries=queries, base=base):
            p.query = queries[layer >= 3]
            p.query64 = p.query.to(base).double()

        with (
            make_engine(budget) as plain,
            make_decoder(plain, p) as chooser,
            make_engine(budget, interval=interval) as engine,
            make_decoder(engine, p, kv_tokens=rng.choice([0, p.rows * capacity])) as decoder,
        ):

            def step(p=p, decoder=decoder, outs=outs, use=use):
                for layer, out in enumerate(outs):
                    use(layer)
                    attend(decoder, p, layer, out)

            def choose(p=p, chooser=chooser, use=use):
                found = []
                for first in (0, 3):
                    use(first)
                    for layer in range(LAYERS):
                        attend(chooser, p, layer)
                    sets = [chooser.token_set(r) for r in range(p.rows)]
                    found.append([s if len(s) else np.arange(max(n, 0)) for s, n in zip(sets, p.lengths.tolist())])
                return found

            model = Model(budget, interval, choose)
            step()
            assert model.step(p.lengths.tolist()) == "choose"
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=torch.cuda.Stream()):
                step()
            model.joined = 0  # the host has seen a step that chooses
            reused, counted = 0, 1
            for _ in range(steps):
                event = rng.choice([e for e in EVENTS if e != "move" or p.table is not None])
                if event != "same":
                    p.lengths.add_((p.lengths > 0).to(torch.int32))
                if event == "jump":
                    p.lengths[rng.randrange(p.rows)] += 1
                if event == "move":
                    move(p)
                if event == "reset":
                    decoder.reset()
                    model.joined = None
                if event == "replay":
                    graph.replay()
                else:
                    step()
                what = model.step(p.lengths.tolist(), event == "replay")
                did[what] += 1
                where = f"{event}, {what}, joined {model.joined}, budget {budget}, interval {interval}"
                for r in range(p.rows):
                    assert np.array_equal(decoder.token_set(r), model.set(1, r)), f"{where}: row {r}: {p.describe()}"
                sparse = {"choose": (2, 4), "resume": (1, 2, 3, 4), "dense": ()}[what]
                for layer, out in enumerate(outs):
                    use(layer)
                    seen = visible(p, [model.set(int(layer >= 3), r) for r in range(p.rows)]) if layer in sparse else None
                    check(p, out, p.reference(seen), f"layer {layer}: {where}")
                counted, reused = counted + 1, reused + (what == "resume")
            stats = decoder.stats()
            assert stats["steps"] == counted and stats["reused_steps"] == reused, (stats, counted, reused)
    assert all(did.values()), did


def test_what_a_step_counts():
    """Of a step that goes on with sets, every layer from the first selection layer on attends to budget + joined tokens."""
    p = random_problem(
        random.Random(SEED), kv_type=D.F16, dim=128, group=4, kv_heads=2, lengths=[300, 50], capacity=400, layout="strided", budget=64,
    )  # fmt: skip
    with make_engine(64, interval=3) as engine, make_decoder(engine, p) as decoder:
        for step in range(3):
            before = decoder.stats()
            for layer in range(LAYERS):
                attend(decoder, p, layer)
            after = decoder.stats()
            n = np.array(p.lengths.tolist())
            got = {name: after[name] - before[name] for name in after}
            held = int(np.minimum(n, 64 + step).sum())
            sparse = 2 if step == 0 else 4
            assert got["tokens_attended"] == (LAYERS - sparse) * n.sum() + sparse * held, (step, got)
            assert (got["select_calls"], got["sparse_calls"], got["reused_steps"]) == ((2, 2, 0) if step == 0 else (0, 4, 1)), (step, got)
            assert got["rows_sparse"] == 1 and got["no_set_calls"] == 0
            p.lengths.add_(1)


if __name__ == "__main__":
    main(dict(globals()))
