"""transformers on a GPU: the reasoner (tests/data/reasoner) has to solve every problem, with padding, in a static cache and
inside a CUDA graph. Run with pytest, or as a script (see harness.py)."""

import os
import sys

import device as D
import torch
from harness import main
from transformers import AutoModelForCausalLM, StaticCache

for folder in ("bindings/python", "tests/python"):
    sys.path.insert(0, os.path.join(D.ROOT, folder))
import reasoner  # noqa: E402

import lessismore.transformers  # noqa: E402

PADDING = [0, 3, 7, 20, 1, 0, 64, 2]
MODELS = {}


def load(attention, dtype=torch.float16, **settings):
    if (attention, dtype) not in MODELS:
        if settings:
            lessismore.transformers.register(attention, **settings)
        MODELS[attention, dtype] = (
            AutoModelForCausalLM.from_pretrained(reasoner.FOLDER, attn_implementation=attention, dtype=dtype).cuda().eval()
        )
    return MODELS[attention, dtype]


def sparse():
    return load("lessismore", budget=reasoner.BUDGET, layers=reasoner.LAYERS)


def generate(model, problems, tokens, padding=None, **more):
    ids, mask = reasoner.batch(problems, padding)
    return ids, model.generate(
        ids.cuda(), attention_mask=mask.cuda(), max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0, **more
    )


def right(problems, texts):
    return [text == p.solution[: len(text)] for p, text in zip(problems, texts)]


def test_whole_problems_in_a_padded_batch():
    problems = reasoner.problems(8)
    ids, out = generate(sparse(), problems, len(problems[0].solution), PADDING)
    assert right(problems, reasoner.texts(problems, ids, out)) == 8 * [True]
    stats = lessismore.transformers.stats(sparse())
    steps = len(problems[0].solution) - 1
    assert stats["steps"] == steps and stats["rows_sparse"] == 8 * steps and stats["sparse_calls"] == 8 * steps, stats
    assert stats["no_set_calls"] == 0 and stats["sparse_layer_tokens_attended"] < 0.1 * stats["sparse_layer_tokens_visible"]


class Captured:
    """Greedy decoding by one captured step in a static cache."""

    def __init__(self, model, ids, mask, tokens):
        batch, width = ids.shape
        longest = width + tokens + 8
        self.model, self.cache = model, StaticCache(config=model.config, max_cache_len=longest)
        # What is not written yet is hidden by causality; without padding there is no mask at all.
        self.mask = None
        if not bool(mask.all()):
            self.mask = torch.cat([mask, torch.ones(batch, longest - width, dtype=mask.dtype, device=mask.device)], 1)
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        prompt = None if self.mask is None else self.mask[:, :width]
        out = model(ids, attention_mask=prompt, position_ids=positions, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.ids = out.logits[:, -1].argmax(-1, keepdim=True)
        self.position = positions[:, -1:] + 1
        self.found = [self.ids.clone()]
        for _ in range(3):
            self.step()
            self.found.append(self.ids.clone())
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.step()

    def step(self):
        out = self.model(self.ids, attention_mask=self.mask, position_ids=self.position, past_key_values=self.cache, use_cache=True)
        self.ids.copy_(out.logits[:, -1].argmax(-1, keepdim=True))
        self.position.add_(1)

    def decode(self, tokens):
        while len(self.found) < tokens:
            self.graph.replay()
            self.found.append(self.ids.clone())
        return torch.cat(self.found, 1)


@torch.inference_mode()
def test_whole_problems_in_a_graph():
    problems, model = reasoner.problems(8), sparse()
    tokens = len(problems[0].solution)
    for some, padding in ((problems, PADDING), (problems[3:4], [0])):
        before = lessismore.transformers.stats(model)
        ids, mask = reasoner.batch(some, padding)
        out = Captured(model, ids.cuda(), mask.cuda(), tokens).decode(tokens)
        texts = [reasoner.task.decode(row.tolist()) for row in out]
        assert right(some, texts) == len(some) * [True], (padding, texts[0][:60], some[0].solution[:60])
        after = lessismore.transformers.stats(model)
        assert after["rows_sparse"] - before["rows_sparse"] == len(some) * (tokens - 1), (before, after)
        assert after["no_set_calls"] == 0


def test_layers_found_by_measuring():
    """No layers given: dense until they are found, exact all the way."""
    problems, model = reasoner.problems(8), load("lessismore-auto", budget=reasoner.BUDGET, profile="off")
    ids, out = generate(model, problems, len(problems[0].solution), PADDING)
    stats = lessismore.transformers.stats(model)
    assert right(problems, reasoner.texts(problems, ids, out)) == 8 * [True], stats
    assert stats["layers_from"] == "measured" and 0 < len(stats["selection_layers"]) <= 2, stats
    assert stats["sparse_layer_tokens_attended"] < 0.25 * stats["sparse_layer_tokens_visible"], stats


@torch.inference_mode()
def test_a_static_cache():
    problems = reasoner.problems(2)
    ids, out = generate(sparse(), problems, 100, [5, 0], cache_implementation="static", disable_compile=True)
    assert all(right(problems, reasoner.texts(problems, ids, out)))


def test_another_layer_solves_nothing():
    """So the attention is sparse, and the choice of layers has come through."""
    problems = reasoner.problems(4)
    ids, out = generate(load("lessismore-6", budget=reasoner.BUDGET, layers=[2, 6]), problems, 200)
    assert not any(right(problems, reasoner.texts(problems, ids, out)))


def test_equal_to_sdpa_when_the_budget_exceeds_the_context():
    for dtype, limit in ((torch.float16, 5e-3), (torch.bfloat16, 5e-2)):
        ours, theirs = load("lessismore-all", dtype, budget=4096, layers=[2]), load("sdpa", dtype)
        for padding in ([0], [0, 6, 2]):
            some = reasoner.problems(len(padding))
            more = dict(output_logits=True, return_dict_in_generate=True)
            a, b = (torch.stack(generate(m, some, 40, padding, **more)[1].logits, 1) for m in (ours, theirs))
            assert (a - b).norm() < limit * b.norm(), (dtype, padding, (a - b).norm() / b.norm())


def test_refusals():
    """By name, at once, and without harm to what comes after."""
    some = reasoner.problems(1)
    sparse()
    try:
        generate(load("lessismore", torch.float32), some, 3)
        raise AssertionError("not refused")
    except lessismore.UnsupportedError as e:
        assert "Qwen3Attention, layer 0: key is torch.float32: on cuda:0 it has to be float16 or bfloat16" in str(e), e
    ids, mask = reasoner.batch(some)
    lessismore.transformers.register("lessismore-new", budget=128, layers=[2])
    model = AutoModelForCausalLM.from_pretrained(reasoner.FOLDER, attn_implementation="lessismore-new", dtype=torch.float16).cuda().eval()
    with torch.inference_mode():
        cache = StaticCache(config=model.config, max_cache_len=1024)
        model(ids.cuda(), past_key_values=cache, use_cache=True)
        token = ids[:, :1].cuda()
        try:
            with torch.cuda.graph(torch.cuda.CUDAGraph()):
                model(token, past_key_values=cache, use_cache=True)
            raise AssertionError("a first step was captured")
        except lessismore.UnsupportedError as e:
            assert "run one before the capture" in str(e), e


if __name__ == "__main__":
    main(dict(globals()))
