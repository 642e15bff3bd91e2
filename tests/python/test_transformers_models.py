"""Kinds of models: what is offloaded agrees with NumPy and with the model's own eager attention, the rest is refused by name."""

import gc
import re
import sys
import threading
import weakref

import numpy as np
import pytest
import reference
import torch
import transformers
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import lessismore.transformers
from lessismore import _torch

BUDGET, LAYERS = 24, [1]
SIZE = dict(
    vocab_size=99, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=32, max_position_embeddings=512, pad_token_id=0,
)  # fmt: skip
ALTERNATE = ["sliding_attention", "full_attention"]
MODELS = {
    "llama": lambda: transformers.LlamaConfig(**SIZE),
    "qwen2": lambda: transformers.Qwen2Config(**SIZE),
    "qwen3": lambda: transformers.Qwen3Config(**SIZE),
    "mistral": lambda: transformers.MistralConfig(**SIZE, sliding_window=None),
    "qwen3 with windows": lambda: transformers.Qwen3Config(
        **SIZE | dict(num_hidden_layers=8), layer_types=4 * ALTERNATE, sliding_window=16, use_sliding_window=True
    ),
    "gemma2": lambda: transformers.Gemma2Config(
        **SIZE | dict(num_hidden_layers=8), layer_types=4 * ALTERNATE, sliding_window=16, attn_logit_softcapping=2.0,
        query_pre_attn_scalar=20,
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **SIZE | dict(num_hidden_layers=8), layer_types=4 * ALTERNATE, sliding_window=16
    ),
    "gpt-oss": lambda: transformers.GptOssConfig(
        **SIZE | dict(num_hidden_layers=8), layer_types=4 * ALTERNATE, sliding_window=16, num_local_experts=2,
        num_experts_per_tok=1,
    ),
}  # fmt: skip
OFFLOADED = 4  # full-attention layers of each


def build(config, attention, dtype=torch.float32):
    """A random model whose attention is peaked enough that the choice of tokens shows."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                p.mul_(8)
            elif "sinks" in name:
                p.uniform_(-2, 2)
    return model


def from_numpy(module, query, key, value, attention_mask, scaling=None, softcap=None, s_aux=None, **kwargs):
    """Decode steps of full-attention layers as the method's text has it; everything else by the model's eager function."""
    state = STATES.setdefault(id(module.config), {})
    if query.shape[2] > 1 or kwargs.get("sliding_window") is not None:
        eager = sys.modules[type(module).__module__].eager_attention_forward
        if attention_mask is None:
            n = key.shape[2]
            attention_mask = torch.ones(query.shape[2], n, dtype=torch.bool).tril(n - query.shape[2])[None, None]
        lowest = torch.finfo(query.dtype).min
        mask = torch.where(attention_mask[..., : key.shape[2]], 0.0, lowest)
        more = {"softcap": softcap} if softcap else {}
        return eager(module, query, key, value, mask, scaling=scaling, dropout=0.0, **more)
    types = getattr(module.config, "layer_types", None) or ["full_attention"] * 99
    index = types[: module.layer_idx].count("full_attention")
    out = torch.empty(query.shape[0], 1, query.shape[1], value.shape[3])
    for row in range(query.shape[0]):
        seen = torch.arange(key.shape[2]) if attention_mask is None else attention_mask[row, 0, 0].nonzero()[:, 0]
        q, k, v = query[row, :, 0].double().numpy(), key[row][:, seen], value[row][:, seen]
        k, v = (t.transpose(0, 1).double().numpy() for t in (k, v))
        x = reference.logits(q, k, scale=scaling, softcap=softcap or 0.0)
        kept = np.arange(len(seen))
        if index == LAYERS[0]:
            state[row] = reference.select(x, BUDGET, 0.25, 4)
        elif index > LAYERS[0]:
            kept = state[row]
        s = None if s_aux is None else s_aux.detach().double().numpy()
        out[row, 0] = torch.from_numpy(reference.attend(x[:, kept], v[kept], s))
    return out, None


STATES = {}  # the sets of each row, by configuration


@pytest.fixture(scope="module", autouse=True)
def attention():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    lessismore.transformers.register("lessismore", budget=BUDGET, layers=LAYERS)
    lessismore.transformers.register("lessismore-all", budget=4096)
    ALL_ATTENTION_FUNCTIONS.register("from-numpy", from_numpy)
    ALL_MASK_ATTENTION_FUNCTIONS.register("from-numpy", sdpa_mask)
    yield
    torch.set_num_threads(threads)


def batch(rows=2, width=60):
    ids = torch.randint(3, 99, (rows, width), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if rows > 1:
        ids[1, :7] = mask[1, :7] = 0
    return ids, mask


def logits(model, rows=2, width=60, tokens=12, **options):
    """Of greedy tokens of the first model that is asked, so that all see the same text."""
    ids, mask = batch(rows, width)
    out = model.generate(
        ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0,
        output_logits=True, return_dict_in_generate=True, **options,
    )  # fmt: skip
    return out.sequences, torch.stack(out.logits, 1)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_sparse(name, cache):
    tokens, want = logits(build(MODELS[name](), "from-numpy"))
    model = build(MODELS[name](), "lessismore")
    same, found = logits(model, cache_implementation=cache)
    assert torch.equal(tokens, same)
    torch.testing.assert_close(found, want, atol=3e-4, rtol=1e-3)
    stats = lessismore.transformers.stats(model)
    assert stats["layers"] == OFFLOADED and stats["selection_layers"] == LAYERS
    assert stats["rows_sparse"] == 2 * 11 and stats["no_set_calls"] == 0
    assert stats["sparse_calls"] == 11 * 2  # both rows in one call
    slides = "layer_types" in MODELS[name]().to_dict() and ALTERNATE[0] in MODELS[name]().layer_types
    assert stats["passed_calls"] == (12 * OFFLOADED if slides else 0)
    assert stats["prompt_calls"] == OFFLOADED


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_dense_below_the_budget(name, cache):
    tokens, want = logits(build(MODELS[name](), "eager"), cache_implementation=cache)
    same, found = logits(build(MODELS[name](), "lessismore-all"), cache_implementation=cache)
    assert torch.equal(tokens, same)
    torch.testing.assert_close(found, want, atol=1e-4, rtol=1e-4)
    sparse = logits(build(MODELS[name](), "lessismore"))[1]
    assert (sparse - want).abs().max() > 1e-2  # so the budget makes a difference in these models


@pytest.mark.parametrize("name", ["gemma2", "gpt-oss"])
def test_long_prompts_of_eager_models_are_taken_in_parts(name, monkeypatch):
    want = logits(build(MODELS[name](), "lessismore"))[1]
    for rows in (1, 2):
        want = logits(build(MODELS[name](), "lessismore"), rows)[1]
        monkeypatch.setattr(lessismore.transformers, "EAGER_LOGITS", 4 * 60 * 17 * rows)
        torch.testing.assert_close(logits(build(MODELS[name](), "lessismore"), rows)[1], want, atol=1e-5, rtol=1e-5)
        monkeypatch.undo()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt-oss"])
def test_half_types(name, dtype):
    tokens, want = logits(build(MODELS[name](), "eager", dtype), tokens=3)
    _, found = logits(build(MODELS[name](), "lessismore-all", dtype), tokens=3)
    torch.testing.assert_close(found, want, atol=0.25 if dtype == torch.bfloat16 else 0.04, rtol=0)


def decode(model, mask, width=60):
    """One decode step behind a prompt, with a mask of the caller's."""
    ids, _ = batch(1, width)
    with torch.inference_mode():
        cache = model(ids[:, :-1], use_cache=True).past_key_values
        return model(ids[:, -1:], attention_mask=mask, past_key_values=cache).logits


def test_masks_with_holes():
    """Rows whose visible tokens are not one piece: what is hidden is in no set."""
    mask = torch.ones(1, 60, dtype=torch.long)
    mask[0, 5:9] = mask[0, 40] = 0
    want = decode(build(MODELS["llama"](), "from-numpy"), mask)
    torch.testing.assert_close(decode(build(MODELS["llama"](), "lessismore"), mask), want, atol=1e-4, rtol=1e-3)
    additive = torch.where(mask.bool(), 0.0, float("-inf"))[:, None, None]
    torch.testing.assert_close(decode(build(MODELS["llama"](), "lessismore"), additive), want, atol=1e-4, rtol=1e-3)


def test_a_mask_that_is_changed_in_place():
    model = build(MODELS["llama"](), "lessismore-all")
    visible = torch.zeros(1, 1, 1, 60)
    ids, _ = batch(1)
    with torch.inference_mode():
        cache = model(ids[:, :-1], use_cache=True).past_key_values
        outputs = []
        for start in (0, 30):
            visible[..., :start] = float("-inf")
            outputs.append(model(ids[:, -1:], attention_mask=visible, past_key_values=cache).logits)
            cache.crop(-1)
    assert (outputs[0] - outputs[1]).abs().max() > 1e-2


REFUSED = {
    "training": (lambda m: m.train()(batch()[0]), "LlamaAttention, layer 0: training"),
    "gradients": (lambda m: m(batch()[0]), "layer 0: gradients"),
    "bias in the mask": (lambda m: decode(m, torch.full((1, 1, 1, 60), -1.0)), "layer 0: attention_mask adds"),
    "a mask per head": (lambda m: decode(m, torch.zeros(1, 4, 1, 60)), r"layer 0: attention_mask has shape \(1, 4, 1, 60\)"),
    "packed": (
        lambda m: m(batch(1)[0], cu_seq_lens_q=torch.tensor([0, 30, 60]), cu_seq_lens_k=torch.tensor([0, 30, 60])),
        "layer 0: cu_seq_lens_., whose meaning",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_calls(what):
    call, text = REFUSED[what]
    with torch.set_grad_enabled(what in ("training", "gradients")), pytest.raises(lessismore.UnsupportedError, match=text):
        call(build(MODELS["llama"](), "lessismore"))


def test_attention_weights_are_refused():
    model = build(MODELS["llama"](), "lessismore")
    with pytest.raises((ValueError, lessismore.UnsupportedError), match="output_attentions"):
        logits(model, output_attentions=True)
    with torch.inference_mode(), pytest.raises((ValueError, lessismore.UnsupportedError), match="output_attentions"):
        model(batch()[0], output_attentions=True)


KINDS = {
    "no full layer": (lambda: transformers.MistralConfig(**SIZE, sliding_window=16), "mistral has no full-attention layer"),
    "head size": (lambda: transformers.LlamaConfig(**SIZE | dict(head_dim=24)), "LlamaAttention, layer 0: query has heads of 24"),
    "layer": (lambda: transformers.LlamaConfig(**SIZE | dict(num_hidden_layers=1)), "names layer 1"),
    "other attention": (
        lambda: transformers.LlamaConfig(**SIZE, layer_types=["full_attention", "indexed_attention"] * 2),
        "llama: layer 1 is of type indexed_attention",
    ),
    "attention of its own": (
        lambda: transformers.BloomConfig(vocab_size=99, hidden_size=64, n_layer=3, n_head=4),
        "BloomConfig: this model's attention cannot be replaced",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_refused_models(kind):
    config, text = KINDS[kind]
    with torch.inference_mode(), pytest.raises(lessismore.Error, match=text):
        build(config(), "lessismore")(batch()[0])
    with pytest.raises(lessismore.Error, match=text):  # and before it is called
        lessismore.transformers.check(build(config(), "lessismore"))


@pytest.mark.parametrize("name", MODELS)
def test_checked_before_it_is_called(name):
    model = build(MODELS[name](), "lessismore")
    lessismore.transformers.check(model)
    assert lessismore.transformers.stats(model)["layers"] == OFFLOADED
    logits(model)
    assert lessismore.transformers.stats(model)["rows_sparse"] == 22
    with pytest.raises(lessismore.ArgumentError, match="attn_implementation='eager'"):
        lessismore.transformers.check(build(MODELS[name](), "eager"))


def test_encoders_are_refused():
    config = transformers.BertConfig(vocab_size=99, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    model = transformers.BertModel._from_config(config, attn_implementation="lessismore").eval()
    with torch.inference_mode(), pytest.raises(lessismore.UnsupportedError, match="only causal|does not say"):
        model(batch()[0])
    with pytest.raises(lessismore.UnsupportedError, match="only causal|no attention layer"):
        lessismore.transformers.check(model)


@pytest.mark.parametrize(
    "device, dtype, text",
    [("meta", torch.float32, "on meta.*on the CPU and on CUDA devices only"), ("cpu", torch.float64, "torch.float64")],
)
def test_refused_tensors(device, dtype, text):
    model = build(MODELS["llama"](), "lessismore", dtype).to(device)
    with torch.inference_mode(), pytest.raises(lessismore.UnsupportedError, match=f"LlamaAttention, layer 0: query is {text}"):
        model(batch(1)[0].to(device))
    with pytest.raises(lessismore.UnsupportedError, match=f"LlamaAttention, layer 0: query is {text}"):  # and before it is called
        lessismore.transformers.check(build(MODELS["llama"](), "lessismore", dtype).to(device))


def test_a_type_that_comes_later():
    model = build(MODELS["llama"](), "lessismore")
    logits(model)
    model.double()
    with pytest.raises(lessismore.UnsupportedError, match="LlamaAttention, layer 0: query is torch.float64"):
        logits(model)


@pytest.mark.parametrize(
    "name, dtype, head_dim, text",
    [
        ("key", torch.float32, 128, "key is torch.float32: on cuda:0 it has to be float16 or bfloat16"),
        ("query", torch.float16, 72, "query has heads of 72: no multiple of 16 up to 256"),
        ("value", torch.float64, 128, "value is torch.float64"),
    ],
)
def test_what_a_gpu_does_not_take(name, dtype, head_dim, text):
    _torch.check("query", torch.device("cuda:0"), torch.float32, 64)
    with pytest.raises(lessismore.UnsupportedError, match=re.escape(text)):
        _torch.check(name, torch.device("cuda:0"), dtype, head_dim)


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"budget": 0}, "budget 0"),
        ({"layers": [9, 2]}, "2 follows 9"),
        ({"policy": "best"}, "policy = 'best'"),
        ({"recency": "x"}, "recency = 'x'"),
        ({"name": "sdpa"}, "name = 'sdpa'"),
    ],
)
def test_register_refuses(settings, text):
    with pytest.raises((lessismore.ArgumentError, TypeError), match=text):
        lessismore.transformers.register(**settings)


def test_statistics_of_a_model_that_was_not_called():
    with pytest.raises(lessismore.Error, match="LlamaForCausalLM has not been called"):
        lessismore.transformers.stats(build(MODELS["llama"](), "lessismore"))


def test_two_models_of_one_configuration():
    config = MODELS["llama"]()
    one, two = build(config, "lessismore"), build(config, "lessismore")
    logits(one), logits(two, tokens=5)
    assert [lessismore.transformers.stats(m)["rows"] for m in (one, two)] == [22, 8]


def test_configurations_are_replaced():
    lessismore.transformers.register("lessismore-other", budget=4096)
    model = build(MODELS["llama"](), "lessismore-other")
    logits(model)
    assert lessismore.transformers.stats(model)["rows_sparse"] == 0
    lessismore.transformers.register("lessismore-other", budget=BUDGET, layers=LAYERS)
    _, found = logits(model)
    assert lessismore.transformers.stats(model)["rows_sparse"] == 22
    model.set_attn_implementation("lessismore")
    torch.testing.assert_close(logits(model)[1], found)


@pytest.mark.parametrize("attempt", range(3))
def test_threads_share_a_model(attempt):
    """Each thread has sets of its own, from the model's first call on."""
    want = logits(build(MODELS["qwen3"](), "lessismore"))[1]
    model, found, start = build(MODELS["qwen3"](), "lessismore"), [], threading.Barrier(3)

    def work():
        torch.set_num_threads(1)
        start.wait()
        for _ in range(4):
            found.append(logits(model)[1])

    threads = [threading.Thread(target=work) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 12 and all(torch.allclose(f, want, atol=1e-6) for f in found)
    stats = lessismore.transformers.stats(model)
    assert stats["rows"] == 12 * 22 and stats["no_set_calls"] == 0


def lasting(model, tokens, caches):
    """Decodes a token of each cache in turn: the logits, and how many steps went on with older sets."""
    before = lessismore.transformers.stats(model)["reused_steps"]
    with torch.inference_mode():
        found = [model(ids, past_key_values=cache).logits for ids, cache in zip(tokens, caches)]
    return found, lessismore.transformers.stats(model)["reused_steps"] - before


def test_sets_that_last_are_of_their_text():
    """An interval's sets serve the next token of their own text, in their own row."""
    lessismore.transformers.register("lessismore-lasts", budget=BUDGET, layers=LAYERS, interval=4, guard=0)
    model, fresh = build(MODELS["llama"](), "lessismore-lasts"), build(MODELS["llama"](), "lessismore")
    ids, _ = batch(2, 90)
    ids[1, :7] = 5

    def prompts(model, *lengths):
        with torch.inference_mode():
            return [model(ids[k : k + 1, :n], use_cache=True).past_key_values for k, n in enumerate(lengths)]

    mine, theirs = prompts(model, 60, 61), prompts(fresh, 60, 61)
    for i in range(8):  # each sees one token more than the other one did
        tokens = [ids[k : k + 1, 60 + k + i : 61 + k + i] for k in range(2)]
        found, reused = lasting(model, tokens, mine)
        assert reused == 0
        assert all(torch.equal(a, b) for a, b in zip(found, lasting(fresh, tokens, theirs)[0]))
    (alone,) = prompts(model, 60)
    assert [lasting(model, [ids[:1, i : i + 1]], [alone])[1] for i in range(60, 70)] == [0, 1, 1, 1, 0, 1, 1, 1, 0, 1]

    with torch.inference_mode():
        both = model(ids[:, :60], use_cache=True).past_key_values
    reused = []
    for i in range(60, 68):
        reused.append(lasting(model, [ids[:, i : i + 1]], [both])[1])
        if i == 65:  # as beams do
            both.reorder_cache(torch.tensor([1, 0]))
    assert reused == [0, 1, 1, 1, 0, 1, 0, 1]


def test_nothing_outlives_the_model():
    model = build(MODELS["llama"](), "lessismore")
    logits(model)
    engine = weakref.ref(lessismore.transformers._layers[model.model.layers[0].self_attn].model.engine)
    del model
    gc.collect()
    assert engine() is None


def test_compiled():
    """torch.compile leaves the library's part as it is."""
    model = build(MODELS["llama"](), "lessismore")
    mask = torch.ones(1, 60, dtype=torch.long)
    want = decode(model, mask)
    for _ in range(2):
        found = decode(torch.compile(model, backend="eager"), mask)
        torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-5)
    tokens, want = logits(model)
    same, found = logits(torch.compile(model, backend="eager"), cache_implementation="static")
    assert torch.equal(tokens, same)
    torch.testing.assert_close(found, want, atol=1e-4, rtol=1e-4)
    torch.compiler.reset()
    with pytest.raises(Exception, match="lessismore"):  # a whole graph cannot be had, and that is said
        decode(torch.compile(model, backend="eager", fullgraph=True), mask)


def test_a_model_that_sees_needs_it_for_its_text_alone():
    """What sees an image is no causal self-attention: the message says how to have the language model alone."""
    text = dict(SIZE, hidden_size=128, rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]})
    vision = dict(depth=2, embed_dim=32, hidden_size=128, num_heads=2, patch_size=4)
    config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision, image_token_id=90, vision_start_token_id=91,
                                        vision_end_token_id=92, video_token_id=93)  # fmt: skip
    image = dict(pixel_values=torch.randn(16, 3 * 2 * 4 * 4), image_grid_thw=torch.tensor([[1, 4, 4]]))
    ids = torch.tensor([[1, 91, 90, 90, 90, 90, 92, 5, 6]])
    image["mm_token_type_ids"] = (ids == 90).int()
    lessismore.transformers.register("lessismore-sees", budget=BUDGET, layers=LAYERS)
    hint = re.escape('attn_implementation={"text_config": "lessismore-sees"}')
    model = transformers.Qwen2VLForConditionalGeneration._from_config(config, attn_implementation="lessismore-sees").eval()
    with pytest.raises(lessismore.UnsupportedError, match=hint):
        lessismore.transformers.check(model)
    with torch.inference_mode(), pytest.raises(lessismore.UnsupportedError, match=hint):
        model(ids, **image)
    model.set_attn_implementation({"text_config": "lessismore-sees", "vision_config": "sdpa"})
    lessismore.transformers.check(model)
    out = model.generate(ids, max_new_tokens=40, min_new_tokens=40, do_sample=False, **image)
    assert out.shape == (1, 49) and lessismore.transformers.stats(model)["rows_sparse"] > 0


def test_assisted_generation_is_said(caplog):
    """Each call checks a draft: nothing is decoded sparsely, and a warning says so, once."""
    lessismore.transformers.register("lessismore-assisted", budget=BUDGET, layers=LAYERS)
    model, assistant = build(MODELS["llama"](), "lessismore-assisted"), build(MODELS["llama"](), "sdpa")
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    said = lambda: [record.message for record in caplog.records if record.name == "lessismore"]  # noqa: E731
    with caplog.at_level("WARNING", "lessismore"), torch.inference_mode():
        for _ in range(3):  # short texts are no drafts
            model(torch.tensor([[1, 2, 3]]))
        assert not said()
        model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=200, min_new_tokens=200, do_sample=False, assistant_model=assistant)
    (text,) = said()
    assert "nothing is decoded sparsely" in text and "assistant_model" in text
    assert lessismore.transformers.stats(model)["rows"] == 0
