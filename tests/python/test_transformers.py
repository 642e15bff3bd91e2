"""The reasoner through transformers: whole problems, each way that generate() takes."""

import pytest
import reasoner
import torch
from reasoner import BUDGET, LAYERS
from transformers import AutoModelForCausalLM, AutoTokenizer

import lessismore.transformers

PADDING = [0, 3, 7, 20]
SHORT = 120  # tokens of a solution that are enough to see one go wrong


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def load():
    def load(attention, dtype=torch.float32, **settings):
        if settings:
            lessismore.transformers.register(attention, **settings)
        return AutoModelForCausalLM.from_pretrained(reasoner.FOLDER, attn_implementation=attention, dtype=dtype)

    return load


@pytest.fixture(scope="module")
def sparse(load):
    return load("lessismore", budget=BUDGET, layers=LAYERS)


@pytest.fixture(scope="module")
def dense(load):
    return load("sdpa")


@pytest.fixture(scope="module")
def problems():
    return reasoner.problems(8)


def solve(model, problems, tokens=None, padding=None, **options):
    ids, mask = reasoner.batch(problems, padding)
    tokens = tokens or len(problems[0].solution)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0, **options)
    return reasoner.texts(problems, ids, out)


def right(problems, texts):
    return [text == p.solution[: len(text)] for p, text in zip(problems, texts)]


def test_one_by_one(sparse, problems):
    before = engaged(sparse)
    for p in problems:
        assert solve(sparse, [p]) == [p.solution]
    after = engaged(sparse)
    steps = sum(len(p.solution) - 1 for p in problems)
    assert after["rows_sparse"] - before["rows_sparse"] == steps
    assert after["sparse_calls"] - before["sparse_calls"] == 8 * steps  # of 12 layers 2 come first and 2 choose
    assert after["no_set_calls"] == 0
    assert after["prompt_calls"] - before["prompt_calls"] == 12 * len(problems)
    assert after["layers"] == 12 and after["selection_layers"] == LAYERS
    assert after["sparse_layer_tokens_attended"] < 0.1 * after["sparse_layer_tokens_visible"]


def engaged(model):
    try:
        return lessismore.transformers.stats(model)
    except lessismore.Error as e:
        assert "has not been called" in str(e)
        return dict.fromkeys(("rows_sparse", "sparse_calls", "prompt_calls"), 0)


@pytest.mark.parametrize("half", [0, 1])
def test_batches_with_padding(sparse, problems, half):
    four = problems[4 * half :][:4]
    assert solve(sparse, four, padding=PADDING) == [p.solution for p in four]


def test_stock_solves_padded_batches(dense, problems):
    """What the test above is held against."""
    assert all(right(problems[:4], solve(dense, problems[:4], SHORT, PADDING)))


def test_another_layer_solves_nothing(load, problems):
    """So the attention is sparse, and the choice of layers has come through."""
    model = load("lessismore-6", budget=BUDGET, layers=[2, 6])
    assert not any(right(problems[:4], solve(model, problems[:4], 200)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(load, problems, dtype):
    model = load("lessismore", dtype)
    assert all(right(problems[:2], solve(model, problems[:2], SHORT, [0, 5])))
    assert lessismore.transformers.stats(model)["rows_sparse"] == 2 * (SHORT - 1)


def test_rows_have_sets_of_their_own(sparse, problems):
    """A row's logits are what they are when it is alone."""
    two = problems[:2]
    batched = logits(sparse, two, [0, 9])
    for i in range(2):
        torch.testing.assert_close(batched[i], logits(sparse, two[i : i + 1], [0])[0], atol=2e-4, rtol=0)


def logits(model, problems, padding, tokens=40, **options):
    ids, mask = reasoner.batch(problems, padding)
    out = model.generate(
        ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0,
        output_logits=True, return_dict_in_generate=True, **options,
    )  # fmt: skip
    return torch.stack(out.logits, 1)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("padding", [[0], [0, 6, 2]])
def test_equal_to_sdpa_when_the_budget_exceeds_the_context(load, dense, problems, cache, padding):
    model = load("lessismore-all", budget=4096)
    some = problems[: len(padding)]
    ours = logits(model, some, padding, cache_implementation=cache)
    theirs = logits(dense, some, padding, cache_implementation=cache)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))
    stats = lessismore.transformers.stats(model)
    assert stats["rows_sparse"] == 0 and stats["rows_full"] == 39 * len(padding)


@pytest.mark.parametrize("padding", [[0], [5, 0]])
def test_static_cache(sparse, problems, padding):
    some = problems[: len(padding)]
    ours = solve(sparse, some, SHORT, padding, cache_implementation="static")
    assert all(right(some, ours))
    assert lessismore.transformers.stats(sparse)["no_set_calls"] == 0


def test_beams(load, dense, sparse, problems):
    model = load("lessismore-all", budget=4096)
    two = problems[:2]
    assert solve(model, two, 20, [0, 4], num_beams=3) == solve(dense, two, 20, [0, 4], num_beams=3)
    assert all(right(two, solve(sparse, two, 30, [0, 4], num_beams=3)))


def test_speculation_is_verified_densely(sparse, problems):
    before = lessismore.transformers.stats(sparse)
    assert all(right(problems[:1], solve(sparse, problems[:1], SHORT, prompt_lookup_num_tokens=4)))
    assert lessismore.transformers.stats(sparse)["prompt_calls"] > before["prompt_calls"] + 12


def test_rolled_back_and_decoded_again(sparse, problems):
    ids, _ = reasoner.batch(problems[:1])
    solution = reasoner.task.encode(problems[0].solution[:12])

    def decode(cache, tokens):
        out = []
        for token in tokens:
            out.append(sparse(torch.tensor([[token]]), past_key_values=cache, use_cache=True).logits)
        return out

    with torch.inference_mode():
        cache = sparse(ids, use_cache=True).past_key_values
        first = decode(cache, solution)
        for layer in range(3):  # from any number of tokens
            cache.crop(-(4 + layer))
            again = decode(cache, solution[-(4 + layer) :])
            assert all(torch.equal(a, b) for a, b in zip(again, first[-(4 + layer) :]))


def test_with_a_tokenizer(sparse, problems):
    """As users write it."""
    tokenizer = AutoTokenizer.from_pretrained(reasoner.FOLDER, padding_side="left")
    one, other = problems[0], reasoner.problems(1, steps=40)[0]
    inputs = tokenizer([f"<bos>{p.prompt}" for p in (one, other)], return_tensors="pt", padding=True, return_token_type_ids=False)
    assert inputs.attention_mask[1, 0] == 0
    out = sparse.generate(**inputs, max_new_tokens=100, do_sample=False)
    found = [t.replace(" ", "") for t in tokenizer.batch_decode(out[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)]
    assert right([one, other], found) == [True, True]
