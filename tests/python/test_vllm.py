"""lessismore.vllm without vLLM and without a GPU: against what is recorded of vLLM's interfaces, and in a stand-in of them."""

import contextlib
import ctypes
import dataclasses
import importlib
import inspect
import json
import os
import subprocess
import sys
import types
from typing import Any

import numpy as np
import prometheus_client.multiprocess
import pytest
import torch
import vllm_interface as stand_in
from attention_call import Library
from conftest import PACKAGE, ROOT
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import lessismore
import lessismore.vllm
from lessismore._errors import ArgumentError, DeviceError
from lessismore.vllm import context, identity, layers, memory, metrics, options, profile, ranks, rows, serving, settings

VERSIONS = stand_in.VERSIONS
HEADS, KV_HEADS, DIM, PAGE, PAGES = 4, 2, 64, 16, 64


# ---- vLLM's interfaces ----


@contextlib.contextmanager
def installed(patch):
    """The backend's module in the stand-in; its current[0] is the configuration."""
    current = [None]
    stand_in.install(patch, current)
    patch.delitem(sys.modules, "lessismore.vllm.backend", raising=False)
    import lessismore.vllm.backend as module

    module.current = current
    patch.setattr(torch.cuda, "current_stream", lambda: stand_in.Object(cuda_stream=0))
    yield module
    context._contexts.clear()
    sys.modules.pop("lessismore.vllm.backend", None)


@pytest.fixture
def backend(monkeypatch):
    with installed(monkeypatch) as module:
        yield module


@pytest.mark.parametrize("version", VERSIONS)
def test_overridden_methods_take_what_vllm_gives(backend, version):
    modules = stand_in.recorded(version)
    flash, base = modules["vllm/v1/attention/backends/flash_attn.py"], modules["vllm/v1/attention/backend.py"]
    pairs = ((backend.Builder, flash["FlashAttentionMetadataBuilder"], base["AttentionMetadataBuilder"]),
             (backend.Impl, flash["FlashAttentionImpl"], base["AttentionImplBase"]),
             (backend.Backend, flash["FlashAttentionBackend"], base["AttentionBackend"]))  # fmt: skip
    for ours, theirs, abstract in pairs:
        methods = {**abstract["methods"], **theirs["methods"]}
        own = {name: f for name, f in vars(ours).items() if isinstance(f, (classmethod, staticmethod)) or inspect.isfunction(f)}
        for name in set(own) - {"_build", "_decode", "_tokens"}:
            assert name in methods, f"vLLM {version} has no {name}"
            given = [p for p in methods[name] if p not in ("self", "cls")]
            taken = inspect.signature(getattr(ours, name)).parameters
            free = any(p.kind is p.VAR_KEYWORD for p in taken.values())
            assert free or [p for p in taken if p != "self"] == given, f"{ours.__name__}.{name} of vLLM {version} has {given}"


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_read_is_there(version):
    modules = stand_in.recorded(version)
    backends, config = (
        modules["vllm/v1/attention/backend.py"],
        {k.rsplit("/", 1)[-1]: v for k, v in modules.items() if k.startswith("vllm/config/")},
    )
    flash = modules["vllm/v1/attention/backends/flash_attn.py"]
    assert {"num_heads", "head_size", "scale", "num_kv_heads", "alibi_slopes", "sliding_window", "kv_cache_dtype", "logits_soft_cap", "attn_type",
            "kv_sharing_target_layer_name", "sinks", "batch_invariant_enabled"} <= set(flash["FlashAttentionImpl"]["sets"])  # fmt: skip
    assert {"seq_lens", "block_table", "num_actual_tokens", "scheduler_metadata"} <= set(flash["FlashAttentionMetadata"]["fields"])
    assert {"UNIFORM_SINGLE_TOKEN_DECODE", "UNIFORM_BATCH", "NEVER"} <= set(backends["AttentionCGSupport"]["fields"])
    assert backends["AttentionMetadataBuilder"]["methods"]["_init_reorder_batch_threshold"][1:3] == [
        "reorder_batch_threshold",
        "supports_spec_as_decode",
    ]
    assert "_init_reorder_batch_threshold" in backends["AttentionMetadataBuilder"]["methods"]
    assert backends["AttentionType"]["texts"]["DECODER"] == layers.DECODER
    assert layers.PLAIN in modules["vllm/model_executor/layers/attention/attention.py"]
    assert {"is_overridden", "get_path"} <= set(modules["vllm/v1/attention/backends/registry.py"]["AttentionBackendEnum"]["methods"])
    assert "get_current_vllm_config" in config["vllm.py"]
    for name in ("additional_config", "speculative_config", "model_config", "parallel_config", "scheduler_config", "compilation_config"):
        assert name in config["vllm.py"]["VllmConfig"]["fields"], name
    parallel = config["parallel.py"]["ParallelConfig"]
    for name in ("pipeline_parallel_size", "tensor_parallel_size", "decode_context_parallel_size", "prefill_context_parallel_size", "enable_dbo",
                 "data_parallel_size", "data_parallel_rank", "data_parallel_index", "world_size", "rank"):  # fmt: skip
        assert name in parallel["fields"], name
    assert "use_ubatching" in parallel["methods"]
    assert {"gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override", "block_size"} <= set(
        config["cache.py"]["CacheConfig"]["fields"]
    )
    assert "max_num_seqs" in config["scheduler.py"]["SchedulerConfig"]["fields"]
    assert {"dtype", "max_model_len", "model", "revision", "quantization", "hf_text_config"} <= set(
        config["model.py"]["ModelConfig"]["fields"]
    )
    assert {"method", "num_speculative_tokens", "parallel_drafting"} <= set(config["speculative.py"]["SpeculativeConfig"]["fields"])
    assert "supports_quant_query_input" in flash["FlashAttentionImpl"]["sets"] + backends["AttentionImplBase"]["fields"]
    attention = modules["vllm/model_executor/layers/attention/attention.py"]
    assert ("calculate_kv_scales" in attention["Attention"]["sets"]) == (version in ("0.26.0", "0.27.1"))  # scales are loaded, later
    assert {"_q_scale_float", "_k_scale_float", "_v_scale_float"} <= set(backends["AttentionLayer"]["fields"])
    assert "rswa_window" in config["model.py"]["ModelConfig"]["methods"]
    assert {"static_forward_context", "cudagraph_mode"} <= set(config["compilation.py"]["CompilationConfig"]["fields"])
    assert {"has_full_cudagraphs", "has_piecewise_cudagraphs"} <= set(config["compilation.py"]["CUDAGraphMode"]["methods"])


@pytest.mark.parametrize("version", VERSIONS)
def test_every_field_of_a_step_is_known(version):
    fields = stand_in.recorded(version)["vllm/v1/attention/backend.py"]["CommonAttentionMetadata"]["fields"]
    assert set(fields) <= rows.KNOWN
    assert set(rows.PER_ROW) & set(fields) and set(rows.OWN) <= set(fields)


@pytest.mark.parametrize("version", VERSIONS)
def test_options_of_parallel_ranks_and_drafts_are_known(version):
    """A new one is for whoever records a version to look at: it may change what a rank's attention has to compute."""
    modules = stand_in.recorded(version)
    for path, name, known in (("parallel", "ParallelConfig", options.PARALLEL), ("speculative", "SpeculativeConfig", options.SPECULATIVE)):
        fields = {field for field in modules[f"vllm/config/{path}.py"][name]["fields"] if not field.startswith("_")}
        assert fields <= known, fields - known


def test_the_entry_point_registers(monkeypatch):
    group = (PACKAGE / "pyproject.toml").read_text().split('[project.entry-points."vllm.general_plugins"]')[1].split("[")[0]
    assert group.split() == ["lessismore", "=", '"lessismore.vllm:register"']
    monkeypatch.setattr(metrics, "announce", lambda: None)
    monkeypatch.setenv(lessismore.vllm.PREFIXES, "")  # which it changes
    for names in (False, True):
        registry = stand_in.install(monkeypatch, [None], names)
        lessismore.vllm.register()
        lessismore.vllm.register()
        known = ["CUSTOM", "LESSISMORE"] if names else ["CUSTOM"]
        assert registry.chosen == dict.fromkeys(known, "lessismore.vllm.backend.Backend")


def test_another_plug_ins_backend_stays_its_own(monkeypatch, caplog):
    monkeypatch.setattr(metrics, "announce", lambda: None)
    monkeypatch.setenv(lessismore.vllm.PREFIXES, "")
    for names in (False, True):
        registry = stand_in.install(monkeypatch, [None], names)
        registry.chosen["CUSTOM"] = "theirs.Backend"
        caplog.clear()
        lessismore.vllm.register()
        ours = {"LESSISMORE": "lessismore.vllm.backend.Backend"} if names else {}
        assert registry.chosen == {"CUSTOM": "theirs.Backend", **ours}
        assert "CUSTOM is theirs.Backend" in caplog.text and ("LESSISMORE is lessismore's" in caplog.text) == names


def test_a_vllm_that_takes_no_plug_in_like_this_starts_all_the_same(monkeypatch, caplog):
    """It is called for each server of the machine, those of another attention backend, too."""
    monkeypatch.setenv(lessismore.vllm.PREFIXES, "")
    stand_in.install(monkeypatch, [None])
    monkeypatch.setitem(sys.modules, "vllm.v1.attention.backends.registry", None)

    def full():
        raise OSError("no space left")

    monkeypatch.setattr(metrics, "announce", full)
    lessismore.vllm.register()
    assert (
        "no attention backend in this vLLM" in caplog.text
        and "no metrics in this vLLM: no space left" in caplog.text
        and os.environ[lessismore.vllm.PREFIXES]
    )


@pytest.mark.parametrize(("given", "wanted"), [(None, "LESSISMORE"), ("A_, B_", "A_, B_,LESSISMORE"), ("LESSISMORE,A_", "LESSISMORE,A_")])
def test_workers_that_ray_starts_are_handed_our_variables(monkeypatch, given, wanted):
    """vLLM hands on variables whose names begin in one of these ways; what Ray starts inherits Ray's environment."""
    name = lessismore.vllm.PREFIXES
    monkeypatch.setenv(name, "") if given is None else monkeypatch.setenv(name, given)
    monkeypatch.setattr(metrics, "announce", lambda: None)
    stand_in.install(monkeypatch, [None])
    for _ in range(2):
        lessismore.vllm.register()
        assert os.environ[name] == wanted


def test_importing_the_package_imports_neither_vllm_nor_torch():
    code = "import sys, lessismore.vllm; assert not {'vllm', 'torch'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(PACKAGE)})


# ---- settings ----


def test_settings_come_from_the_configuration_then_the_environment():
    environment = {"LESSISMORE_BUDGET": "128", "LESSISMORE_LAYERS": "2,9", "LESSISMORE_GUARD": "off", "LESSISMORE_PROFILE": "off"}
    found, wrong = settings.read({"lessismore": {"budget": 256, "split": False}}, environment)
    assert wrong is None and (found.budget, found.layers, found.guard, found.split, found.profile) == (256, (2, 9), 0, False, "off")
    found, _ = settings.read({"lessismore": {"layers": None}, "other": 1}, environment)
    assert found.layers is None and found.budget == 128
    assert settings.read({}, {}) == (settings.Settings(), None) == settings.read(None, {"LESSISMORE": "on", "LESSISMORE_LAYERS": "auto"})
    assert settings.read({}, {"LESSISMORE": "off"})[0].enabled is False


@pytest.mark.parametrize(("given", "text"), [
    ({"budgt": 1}, "lessismore has no budgt"), ({"budget": 0}, "budget = 0"), ({"budget": 1.5}, "budget = 1.5"), ({"budget": True}, "budget = True"),
    ({"layers": []}, "layers = []"), ({"layers": [3, 2]}, "layers = [3, 2]"), ({"layers": "2,12"}, "layers = '2,12'"), ({"layers": [-1]}, "layers = [-1]"),
    ({"recency": 2}, "recency = 2"), ({"recency": "x"}, "recency = 'x'"), ({"policy": "best"}, "policy = 'best'"), ({"split": 1}, "split = 1"),
    ({"max_rows": 5000}, "max_rows = 5000"), ({"work_bytes": 0}, "work_bytes = 0"), ({"stats": ""}, "stats = ''"),
    ({"stats_interval": -1}, "stats_interval = -1"), ({"stats_interval": float("nan")}, "stats_interval = nan"), ([1], "lessismore = [1]"),
])  # fmt: skip
def test_a_wrong_setting_is_named(given, text):
    with pytest.raises(ArgumentError, match="lessismore") as e:
        settings.read({"lessismore": given}, {})
    assert text in str(e.value)


@pytest.mark.parametrize("given", [
    {"Lessismore": {"budget": 128}}, {"lessimore": {"layers": [2, 9]}}, {"less_is_more": {}}, {"budget": 128, "layers": [2, 9]}, {"other": 1, "recency": 0.5},
])  # fmt: skip
def test_settings_that_stand_elsewhere_are_an_error_not_the_defaults(given):
    with pytest.raises(ArgumentError, match='"lessismore"'):
        settings.read(given, {})


def test_another_plug_ins_configuration_is_none_of_ours():
    for other in ({"ascend_scheduler_config": {"budget": 1}, "layers": 3, "profile": "x", "enabled": True}, {1: 2}, {}):
        assert settings.read(other, {}) == (settings.Settings(), None)
        assert settings.read({**other, "lessismore": {"budget": 128}}, {})[0].budget == 128


@pytest.mark.parametrize(("name", "value"), [
    ("LESSISMORE", "maybe"), ("LESSISMORE_BUDGET", "many"), ("LESSISMORE_BUDGET", "0"), ("LESSISMORE_LAYERS", "2,x"), ("LESSISMORE_LAYERS", "9,2"),
    ("LESSISMORE_RECENCY", "2"), ("LESSISMORE_POLICY", "best"), ("LESSISMORE_GUARD", "often"), ("LESSISMORE_INTERVAL", "4"),
])  # fmt: skip
def test_a_wrong_variable_is_named_and_switches_everything_off(name, value):
    found, wrong = settings.read({}, {name: value})
    assert not found.enabled and name in wrong and (value in wrong or value.split(",")[-1] in wrong)


# ---- layers ----


def impl(**more):
    return stand_in.FlashAttentionImpl(**{**dict(num_heads=HEADS, head_size=DIM, scale=DIM**-0.5, num_kv_heads=KV_HEADS), **more})


def census(**given):
    return layers.Census({name: stand_in.Attention(name, i) for name, i in given.items()}, stand_in.FlashAttentionImpl)


def test_layers_are_numbered_in_the_models_order_and_others_are_left():
    class ChunkedLocalAttention(stand_in.Attention):
        pass

    found = layers.Census({
        **{f"model.layers.{i}.self_attn.attn": stand_in.Attention("", impl()) for i in (10, 2, 1)},
        "model.layers.3.self_attn.attn": stand_in.Attention("", impl(sliding_window=128)),
        "model.layers.4.self_attn.attn": ChunkedLocalAttention("", impl()),
        "model.layers.5.self_attn.attn": stand_in.Attention("", impl(head_size=128)),
        "model.layers.6.linear_attn": object(),
    }, stand_in.FlashAttentionImpl)  # fmt: skip
    assert [name.split(".")[2] for name in found.numbers] == ["1", "2", "10"] and list(found.numbers.values()) == [0, 1, 2]
    assert sorted(found.others.values()) == ["heads other than the first layer's: (4, 2, 128), not (4, 2, 64)", "layers of class ChunkedLocalAttention",
                                             "sliding-window layers"]  # fmt: skip


def test_layers_whose_names_do_not_tell_their_order_are_left():
    for names in (["a.attn", "b.1.attn"], ["a.1.attn", "b.1.attn"], ["model.1.layers.2.attn"]):
        found = census(**{name: impl() for name in names})
        assert not found.numbers and len(found.others) == len(names)


@pytest.mark.parametrize(("given", "reason"), [
    (dict(attn_type="encoder_only"), "attention of type"), (dict(sliding_window=64), "sliding-window"), (dict(alibi_slopes=[1.0]), "ALiBi"),
    (dict(kv_sharing_target_layer_name="x"), "another layer's K/V"), (dict(kv_cache_dtype="int8_per_token_head"), "K/V of type int8"),
    (dict(kv_cache_dtype="fp8_e5m2"), "K/V of type"), (dict(head_size=80), "heads of 80"), (dict(num_heads=34), "34 query heads for 2"),
])  # fmt: skip
def test_a_layer_that_cannot_take_part_says_why(given, reason):
    assert reason in layers.single(impl(**given), stand_in.Attention("", None))
    assert layers.single(impl(), stand_in.Attention("", None)) is None


@pytest.mark.parametrize(
    "given", [dict(sinks=torch.ones(HEADS)), dict(logits_soft_cap=20.0), dict(kv_cache_dtype="fp8", logits_soft_cap=50.0)]
)
def test_a_layer_with_sinks_or_a_soft_cap_takes_part(given):
    assert layers.single(impl(**given), stand_in.Attention("", None)) is None


def test_fp8_takes_part_with_one_scale_for_a_layer():
    layer, fp8 = stand_in.Attention("", None), impl(kv_cache_dtype="fp8")
    assert layers.single(fp8, layer) is None
    layer.calculate_kv_scales = True
    assert "calculate_kv_scales" in layers.single(fp8, layer)
    layer.calculate_kv_scales, layer._k_scale = False, torch.ones(KV_HEADS)
    assert "for each head" in layers.single(fp8, layer)
    mixed = census(**{"layers.0": fp8, "layers.1": impl()})  # kv_cache_dtype_skip_layers
    assert list(mixed.numbers) == ["layers.0"] and "heads other" in mixed.others["layers.1"]


def test_a_drafters_layers_are_not_numbered():
    names = {f"model.layers.{i}.self_attn.attn": stand_in.Attention("", impl()) for i in range(5)} | {
        "mtp.layers.0.attn": stand_in.Attention("", impl())
    }
    found = layers.Census(names, stand_in.FlashAttentionImpl, 4)
    assert len(found.numbers) == 4 and set(found.others.values()) == {"layers that draft"} and found.drafting == 2


def test_a_stage_selects_with_its_first_sparse_layer():
    for first, n, want in ((0, 6, (2,)), (6, 6, (0, 3)), (9, 3, (0,)), (2, 4, (0,)), (0, 2, ()), (10, 2, (0,)), (0, 12, (2, 9))):
        assert layers.of_stage((2, 9), first, n) == want, (first, n)
    found = census(**{f"model.layers.{i}.attn": impl() for i in (6, 7, 8)})
    assert found.stage(12) == 6
    for names, most in (((6, 8), 12), ((6, 7, 8), 8), ((), 12)):
        with pytest.raises(ValueError, match="pipeline"):
            census(**{f"model.layers.{i}.attn": impl() for i in names}).stage(most)
    with pytest.raises(ValueError, match="pipeline"):
        census(**{"model.layers.6.attn": impl(), "model.layers.7.attn": impl(sliding_window=8)}).stage(12)


@pytest.mark.parametrize("change", [
    dict(parallel=dict(decode_context_parallel_size=2)), dict(parallel=dict(prefill_context_parallel_size=2)),
    dict(parallel=dict(enable_dbo=True)), dict(parallel=dict(use_ubatching=True)), dict(dtype=torch.float32), dict(speculative="draft_model"), dict(speculative="eagle", drafting=True), dict(rswa=64),
])  # fmt: skip
def test_an_engine_that_would_go_wrong_is_left_to_vllm(backend, change):
    c = stand_in.config({"layers": [1]}, dtype=change.get("dtype", torch.float16), **change.get("parallel", {}))
    assert layers.whole(stand_in.config({"layers": [1]})) is None
    if "speculative" in change:
        c.speculative_config = stand_in.Object(
            method=change["speculative"], num_speculative_tokens=3, parallel_drafting=change.get("drafting", False)
        )
    c.model_config.rswa_window = change.get("rswa")
    reason = layers.whole(c)
    assert reason and context.of(c).reason == reason
    assert backend.Builder.get_cudagraph_support(c, None) is stand_in.AttentionCGSupport.ALWAYS  # vLLM's own


class Later:
    """A default as pydantic keeps it."""

    def __init__(self, default=None, default_factory=None):
        self.default, self.default_factory = default, default_factory


@dataclasses.dataclass
class LaterParallelConfig:
    tensor_parallel_size: int = 2  # known, whatever it is
    spread_heads: bool = False
    shards: Any = Later(1)
    plan: Any = Later(default_factory=lambda: ["plain"])
    names: list = dataclasses.field(default_factory=list)
    _private: int = 3


@pytest.mark.parametrize(("change", "reason"), [
    ({}, None), (dict(spread_heads=None), None), (dict(_private=4), None), (dict(spread_heads=True), "spread_heads = True: an option that is not known"),
    (dict(shards=2), "shards = 2"), (dict(shards=0), "shards = 0"), (dict(plan=["other"]), "plan = ['other']"), (dict(names=["a"]), "names = ['a']"),
])  # fmt: skip
def test_an_engine_with_an_option_that_came_later_is_left_to_vllm(change, reason):
    later = LaterParallelConfig(shards=1, plan=["plain"])
    later.__dict__.update(stand_in.config().parallel_config.__dict__, **change)
    c = stand_in.config({"layers": [1]})
    c.parallel_config = later
    found = layers.whole(c)
    assert found is None if reason is None else reason in found


def test_a_version_of_vllm_with_other_interfaces_is_left_to_itself(backend, monkeypatch):
    c = stand_in.config({"layers": [0]})
    del c.model_config.dtype
    assert "this version of vLLM is not known" in context.of(c).reason and "dtype" in context.of(c).reason
    d = opened({"layers": [0]}, monkeypatch, AttributeError("no max_num_seqs"))
    assert not d.active and d.reason == "this version of vLLM is not known: no max_num_seqs"


# ---- steps ----


class Model:
    """Two layers in the stand-in, opened without a GPU, and steps of any rows."""

    def __init__(self, backend, version, monkeypatch, settings=None, order="NHD", drafts=0):
        self.config = backend.current[0] = stand_in.config({"layers": [0], **(settings or {})})
        if drafts:
            self.config.speculative_config = stand_in.Object(method="ngram", num_speculative_tokens=drafts, parallel_drafting=False)
        self.common, self.backend = stand_in.common_class(version), backend
        names = [f"model.layers.{i}.attn" for i in range(2)]
        self.layers = [stand_in.Attention(name, backend.Impl(HEADS, DIM, DIM**-0.5, KV_HEADS)) for name in names]
        self.config.compilation_config.static_forward_context.update(zip(names, self.layers))
        self.context = context.of(self.config)

        def make(self, found, device):
            self.decoder, self.max_rows, self.capacity, self.numbers = (
                stand_in.Object(_use=lambda: 1, stats=lambda: {}, close=lambda: None),
                6 * (1 + drafts),
                512,
                found.numbers,
            )
            self.most_tokens = 1 + drafts

        monkeypatch.setattr(context.Context, "_make", make)
        self.library = Library(HEADS, KV_HEADS, DIM, PAGE)
        monkeypatch.setattr(context._library, "library", lambda: stand_in.Object(lim_decoder_attend=self.library))
        self.builder = backend.Builder(None, names, self.config, torch.device("cpu"))
        shape = (PAGES, PAGE, KV_HEADS, 2 * DIM) if order == "NHD" else (PAGES, KV_HEADS, PAGE, 2 * DIM)
        store = torch.randn(shape, dtype=torch.float16)
        self.store = store.transpose(1, 2) if order == "NHD" else store

    def step(self, queries, seen, capture=False, padding=0, **more):
        """Requests with so many query tokens each that see so many tokens; of padding, so many. Returns vLLM's metadata."""
        n, tokens = len(queries), sum(queries) + padding
        starts = torch.tensor([0, *np.cumsum(queries)], dtype=torch.int32)
        table = torch.randint(0, PAGES, (n, 512 // PAGE), dtype=torch.int32)
        lengths = torch.tensor(seen, dtype=torch.int32)
        c = self.common(query_start_loc=starts, query_start_loc_cpu=starts.clone(), seq_lens=lengths, num_reqs=n, num_actual_tokens=tokens,
                        max_query_len=max(queries), max_seq_len=max(seen), block_table_tensor=table, slot_mapping=torch.arange(tokens), **more)  # fmt: skip
        return self.builder.build_for_cudagraph_capture(c) if capture else self.builder.build(0, c)

    def attend(self, metadata, padding=0):
        """Both layers' outputs, and what vLLM alone makes of them."""
        tokens = metadata.num_actual_tokens + padding
        query = torch.randn(tokens, HEADS, DIM, dtype=torch.float16)
        key = torch.randn(tokens, KV_HEADS, DIM, dtype=torch.float16)
        got, want = [], []
        for layer in self.layers:
            out, alone = torch.zeros(2, tokens, HEADS, DIM, dtype=torch.float16)
            layer.impl.forward(layer, query, key, key, self.store, metadata, out)
            whole = stand_in.Metadata(**{f: getattr(metadata, f) for f in stand_in.Metadata.__dataclass_fields__})
            whole.scheduler_metadata = torch.tensor([len(metadata.seq_lens)])
            stand_in.FlashAttentionImpl.forward(layer.impl, layer, query, key, key, self.store, whole, alone)
            got.append(out), want.append(alone)
        return torch.stack(got), torch.stack(want)


def close(got, want):
    torch.testing.assert_close(got.float(), want.float(), rtol=2e-3, atol=2e-3)


@pytest.fixture(params=VERSIONS)
def model(request, backend, monkeypatch):
    torch.manual_seed(1)
    return Model(backend, request.param, monkeypatch)


def test_decode_rows_are_ours(model):
    close(*model.attend(model.step([1, 1, 1], [5, 200, 17]), padding=5))  # a graph's tokens may be more than the step's
    assert model.library.rows == [3, 3] and model.library.layers == [0, 1]
    assert model.context.counts["decode_steps"] == 1 and not model.context.declined


def test_the_other_order_of_the_store(backend, monkeypatch):
    model = Model(backend, VERSIONS[0], monkeypatch, order="HND")
    close(*model.attend(model.step([1, 1], [5, 200])))
    assert model.library.rows == [2, 2]


def test_a_captured_step_is_the_same_and_not_counted(model):
    close(*model.attend(model.step([1, 1], [1, 1], capture=True)))
    assert model.library.rows == [2, 2] and not model.context.counts
    close(*model.attend(model.step([1, 1, 1], [9, 8, 0])))  # a padded row of the graph sees nothing
    assert model.library.rows[-1] == 3


def test_padded_rows_leave_zeros(model):
    got, _ = model.attend(model.step([1, 1], [9, 0]))
    assert (got[:, 1] == 0).all()


@given(data=st.data())
@hypothesis_settings(max_examples=15, deadline=None)
def test_any_step_gives_what_vllm_alone_gives(data):
    with pytest.MonkeyPatch.context() as patch, installed(patch) as module:
        model = Model(module, data.draw(st.sampled_from(VERSIONS)), patch)
        queries = data.draw(st.lists(st.sampled_from([1, 1, 1, 2, 5, 30]), min_size=1, max_size=8))
        queries.sort()
        seen = [q + data.draw(st.integers(0, 100)) for q in queries]
        metadata = model.step(queries, seen)
        close(*model.attend(metadata))
        decoding = queries.count(1)
        ours = decoding if 0 < decoding <= 6 else 0
        assert metadata.lessismore.rows == ours and model.library.rows == [ours] * (2 if ours else 0)
        assert (metadata.lessismore.rest is not None) == (0 < ours < len(queries))
        for layer in model.layers:
            assert layer.impl.calls == (ours < len(queries)) + 1  # the comparison is the last


def test_a_prompt_among_the_first_rows_ends_ours(model):
    close(*model.attend(model.step([1, 3, 1], [50, 60, 70])))
    assert model.library.rows == [1, 1]


# ---- speculation ----


@pytest.fixture(params=VERSIONS)
def speculating(request, backend, monkeypatch):
    torch.manual_seed(1)
    return Model(backend, request.param, monkeypatch, drafts=3)


def test_each_speculated_token_is_a_row_that_sees_what_is_before_it(speculating):
    metadata = speculating.step([4, 4], [50, 200])
    close(*speculating.attend(metadata))
    assert speculating.library.rows == [8, 8] and metadata.lessismore.lengths.tolist() == [47, 48, 49, 50, 197, 198, 199, 200]
    metadata = speculating.step([1, 3, 2], [50, 200, 7])  # as many drafts as were found
    close(*speculating.attend(metadata))
    assert speculating.library.rows[2:] == [6, 6] and metadata.lessismore.lengths.tolist() == [50, 198, 199, 200, 6, 7]
    assert speculating.context.counts["decode_steps"] == 2 and not speculating.context.declined


def test_steps_without_drafts_are_as_ever(speculating):
    metadata = speculating.step([1, 1], [50, 200])
    close(*speculating.attend(metadata))
    assert metadata.lessismore.lengths is None and speculating.library.rows == [2, 2]


def test_drafts_beside_prompts(speculating):
    metadata = speculating.step([1, 4, 30], [50, 200, 60])
    close(*speculating.attend(metadata))
    assert speculating.library.rows == [5, 5] and metadata.lessismore.requests == 2 and len(metadata.lessismore.rest.seq_lens) == 1
    other = speculating.builder.update_block_table(metadata, metadata.block_table.flip(1).contiguous(), metadata.slot_mapping)
    assert other.lessismore.rest.block_table.equal(other.block_table[2:]) and other.lessismore.table.equal(
        other.block_table[[0, 1, 1, 1, 1]]
    )
    close(*speculating.attend(other))


def test_a_group_that_only_takes_another_ones_metadata_over(speculating):
    """vLLM builds a step's metadata for one of the groups of layers that are alike; the others' builders get that, and their own block table."""
    metadata, m = speculating.step([4, 1, 30], [50, 200, 60]), speculating
    second = m.backend.Builder(None, m.builder.layer_names, m.config, torch.device("cpu"))
    other = second.update_block_table(metadata, metadata.block_table.flip(1).contiguous(), metadata.slot_mapping)
    assert other.lessismore.table.equal(other.block_table[[0, 0, 0, 0, 1]]) and metadata.lessismore.table.equal(
        metadata.block_table[[0, 0, 0, 0, 1]]
    )
    close(*m.attend(other))
    close(*m.attend(metadata))


def test_a_replayed_graphs_padding_sees_nothing_and_memory_keeps_its_place(speculating):
    captured = speculating.step([4, 4, 4], [9, 9, 9], capture=True)
    replayed = speculating.step([4, 0, 0], [50, 0, 0], padding=8)
    plan = replayed.lessismore
    assert plan.lengths.tolist() == [47, 48, 49, 50] + 8 * [0]
    assert (
        plan.lengths.data_ptr() == captured.lessismore.lengths.data_ptr() and plan.table.data_ptr() == captured.lessismore.table.data_ptr()
    )
    assert plan.table.stride() == captured.lessismore.table.stride() and plan.table[:4].equal(replayed.block_table[[0] * 4])


def test_a_server_that_has_slept_speculates_as_before(speculating):
    """vLLM makes builders in the memory of its K/V store, which comes back with other contents; a step's is made elsewhere."""
    builder = speculating.builder
    for owner in (builder, builder.tokens):
        for value in vars(owner).values() if owner is not None else ():
            if isinstance(value, torch.Tensor):
                value.fill_(-7)
    close(*speculating.attend(speculating.step([4, 1, 3], [50, 200, 17])))
    assert speculating.library.rows == [8, 8]


def test_speculation_wants_graphs_of_several_tokens_and_rows_for_them(speculating):
    assert speculating.builder.reorder_batch_threshold == 4
    assert speculating.backend.Builder.get_cudagraph_support(speculating.config, None) is stand_in.AttentionCGSupport.UNIFORM_BATCH
    assert speculating.step([4] * 6, [9] * 6).lessismore.rows == 24
    assert speculating.step([4] * 7, [9] * 7).lessismore.rows == 0 and "more than 24 rows" in speculating.context.declined


@given(data=st.data())
@hypothesis_settings(max_examples=15, deadline=None)
def test_any_speculating_step_gives_what_vllm_alone_gives(data):
    with pytest.MonkeyPatch.context() as patch, installed(patch) as module:
        model = Model(module, data.draw(st.sampled_from(VERSIONS)), patch, drafts=3)
        queries = sorted(data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 5, 30]), min_size=1, max_size=6)))
        metadata = model.step(queries, [q + data.draw(st.integers(0, 100)) for q in queries])
        close(*model.attend(metadata))
        assert metadata.lessismore.rows == sum(q for q in queries if q <= 4)


@pytest.mark.parametrize(("queries", "more", "reason"), [
    ([3, 1], {}, "prompts"), ([1] * 7, {}, "more than 6 rows"), ([1, 1], {"causal": False}, "not causal"),
    ([1, 1], {"rswa_prefix_lens": torch.ones(2)}, "reference window"), ([1, 1], {"encoder_seq_lens": torch.ones(2)}, "encoder"),
    ([1, 1], {"logits_indices_padded": torch.ones(2)}, "last token"),
])  # fmt: skip
def test_a_step_that_is_left_says_why(model, queries, more, reason):
    metadata = model.step(queries, [9] * len(queries), **more)
    assert metadata.lessismore.rows == 0 and model.context.counts["left_steps"] == 1
    (found,) = model.context.declined.items()
    assert reason in found[0] and found[1] == len(queries)
    if "causal" not in more:
        close(*model.attend(metadata))
    assert not model.library.rows


def test_a_field_that_is_not_known_leaves_the_step(model):
    model.common = stand_in.dataclasses.make_dataclass("Newer", [("tree_mask", object, None)], bases=(model.common,))
    assert model.step([1], [9], tree_mask=1).lessismore.rows == 0 and "tree_mask" in next(iter(model.context.declined))
    assert model.step([1], [9]).lessismore.rows == 1


def test_a_common_prefix_is_left(model):
    c = model.step([1, 1], [40, 41])
    common = model.common(query_start_loc=c.query_start_loc, query_start_loc_cpu=c.query_start_loc, seq_lens=c.seq_lens, num_reqs=2, num_actual_tokens=2,
                          max_query_len=1, max_seq_len=41, block_table_tensor=c.block_table, slot_mapping=c.slot_mapping)  # fmt: skip
    assert model.builder.build(16, common).lessismore.rows == 0 and "cascade" in next(iter(model.context.declined))


def test_another_groups_block_table_reaches_the_rows_behind(model):
    metadata = model.step([1, 4], [50, 60])
    other = model.builder.update_block_table(metadata, metadata.block_table.flip(1).contiguous(), metadata.slot_mapping)
    assert other.lessismore.rest.block_table.equal(other.block_table[1:]) and metadata.lessismore.rest.block_table.equal(
        metadata.block_table[1:]
    )
    close(*model.attend(other))


def test_without_split_mixed_steps_are_left(backend, monkeypatch):
    model = Model(backend, VERSIONS[0], monkeypatch, {"split": False})
    assert model.step([1, 4], [50, 60]).lessismore.rows == 0 and model.step([1, 1], [50, 60]).lessismore.rows == 2


def test_the_draft_of_a_speculator_is_left(model):
    c = model.step([1, 1], [40, 41])
    common = stand_in.Object(num_reqs=2, num_actual_tokens=2, max_query_len=1, query_start_loc=c.query_start_loc, max_seq_len=41, seq_lens=c.seq_lens,
                             block_table_tensor=c.block_table, slot_mapping=c.slot_mapping, causal=True)  # fmt: skip
    assert model.builder.build_for_drafting(common, 0).lessismore.rows == 0


@pytest.mark.parametrize("queries", [[1, 1], [1, 4]])
def test_what_the_library_refuses_vllm_computes_from_then_on(model, queries):
    model.library.error = DeviceError("no such page")
    close(*model.attend(model.step(queries, [50, 60])))
    assert model.context.reason == "no such page" and not model.library.rows
    model.library.error = None
    assert model.step(queries, [50, 60]).lessismore.rows == 0


def test_tensors_of_another_shape_are_refused_not_read(model):
    model.store = model.store[..., : 2 * DIM - 16]
    metadata = model.step([1, 1], [5, 6])
    layer, out = model.layers[0], torch.zeros(2, HEADS, DIM, dtype=torch.float16)
    with pytest.raises((RuntimeError, IndexError, ValueError)):  # the stand-in's attention cannot take it either
        layer.impl.forward(layer, out.clone(), out, out, model.store, metadata, out)
    assert "kv_cache has shape" in model.context.reason and not model.library.rows


def test_sinks_follow_the_weights(model):
    sinks = torch.ones(HEADS, dtype=torch.bfloat16)
    layer = model.layers[0]
    layer.impl.sinks = sinks
    model.attend(model.step([1], [5]))
    kept = layer.impl.call.sinks
    assert layer.impl.call.arguments.sinks == kept.data_ptr() and kept.dtype == torch.float32
    sinks.fill_(3)
    layer.impl.process_weights_after_loading(torch.float16)
    assert layer.impl.call.sinks is kept and (kept == 3).all()


def test_while_layers_are_measured_graphs_leave_attention_out(model):
    model.context.measures = True
    assert model.backend.Builder.get_cudagraph_support(model.config, None) is stand_in.AttentionCGSupport.NEVER


def test_rows_that_decode_come_first_and_graphs_are_of_single_tokens(model):
    assert model.builder.reorder_batch_threshold == 1
    assert model.backend.Builder.get_cudagraph_support(model.config, None) is stand_in.AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE
    assert model.backend.Backend.get_name() == "CUSTOM"


# ---- K/V in fp8 ----


def test_fp8_hands_over_scales_and_dequantized_queries(model):
    layer = model.layers[0]
    layer.impl.kv_cache_dtype = "fp8"
    layer._q_scale_float, layer._k_scale_float, layer._v_scale_float = 0.5, 0.25, 2.0
    metadata, seen = model.step([1, 1], [5, 20]), []

    def attend(handle, a):
        query = np.ctypeslib.as_array(ctypes.cast(a.query, ctypes.POINTER(ctypes.c_uint16)), (2 * HEADS * DIM,)).view(np.float16).copy()
        seen.append((a.scale, a.key_scale, a.value_scale, a.value - a.key, a.key_token_stride, a.query_dtype, query))
        return 0

    model.context.__dict__["decoder"]._use = lambda: 1
    call = context.Call(model.context, layer.impl, layer, 0)
    call.attend = attend
    query = torch.randn(2, HEADS, DIM).to(torch.float8_e4m3fn)
    store = torch.zeros(PAGES, PAGE, KV_HEADS, 2 * DIM, dtype=torch.uint8).transpose(1, 2)
    call.run(query, store, metadata.seq_lens, metadata.block_table, torch.zeros(2, HEADS, DIM, dtype=torch.float16), 2)
    scale, key_scale, value_scale, apart, token, dtype, given = seen[0]
    assert (key_scale, value_scale, apart, token, dtype) == (0.25, 2.0, DIM, KV_HEADS * 2 * DIM, 1) and np.isclose(scale, DIM**-0.5 * 0.5)
    assert (given == query.to(torch.float16).numpy().ravel()).all()
    layer._k_scale_float = 0.75  # weights loaded anew
    call.refresh()
    call.run(query, store, metadata.seq_lens, metadata.block_table, torch.zeros(2, HEADS, DIM, dtype=torch.float16), 2)
    assert seen[1][1] == 0.75


# ---- opening ----


def opened(settings_, monkeypatch, error=None, mode=stand_in.Mode.FULL_AND_PIECEWISE):
    c = stand_in.config(settings_, mode)
    c.compilation_config.static_forward_context["layers.0"] = stand_in.Attention("layers.0", impl())
    d = context.Context(c)
    if error is not None:

        def make(self, found, device):
            raise error

        monkeypatch.setattr(context.Context, "_make", make)
    d.open(stand_in.FlashAttentionImpl, torch.device("cpu"))
    return d


def test_a_library_or_device_that_is_missing_leaves_everything_to_vllm(monkeypatch):
    d = opened({"layers": [0]}, monkeypatch, lessismore.LibraryError("liblessismore.so was not found"))
    assert "not found" in d.reason and not d.active
    d = opened({"layers": [0]}, monkeypatch, DeviceError("no CUDA driver"))
    assert d.reason == "no CUDA driver" and not d.active


def test_a_setting_that_is_wrong_for_the_model_is_an_error(monkeypatch):
    with pytest.raises(ArgumentError, match="layer"):
        opened({"layers": [7]}, monkeypatch)
    monkeypatch.setenv("LESSISMORE_LAYERS", "7")  # as with every host: the log says so
    assert "layer" in opened(None, monkeypatch).reason


def test_without_memory_everything_is_vllms(monkeypatch):
    d = opened({"layers": [0]}, monkeypatch, torch.OutOfMemoryError("tried to allocate"))
    assert "tried to allocate" in d.reason and not d.active


def test_without_layers_or_profile_nothing_is_sparse_and_the_log_says_how(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    mode = stand_in.Object(has_full_cudagraphs=lambda: True, has_piecewise_cudagraphs=lambda: False)  # FULL: attention is in every graph
    d = opened({}, monkeypatch, mode=mode)
    assert "calibrate" in d.reason and "FULL_AND_PIECEWISE" in d.reason


def engines(monkeypatch, c, names):
    """What the library's engine would be made with, for layers of these numbers. No device is touched."""
    made, real = [], context.serving.Engine

    def engine(n, *settings, **given):
        if "layers" not in given:  # what is in force is the library's to say
            return real(n, *settings, **given)
        made.append((n, given["layers"]))
        return stand_in.Object(close=lambda: None)

    monkeypatch.setattr(context.serving, "Engine", engine)
    monkeypatch.setattr(context.Context, "_fit", lambda self, census, number: False)
    for i in names:
        c.compilation_config.static_forward_context[f"model.layers.{i}.attn"] = stand_in.Attention("", impl())
    d = context.Context(c)
    d.open(stand_in.FlashAttentionImpl, torch.device("cuda", 0))
    return d, made


class Decoder:
    """The library's on a GPU, as far as it is made with what suits it."""

    made: list = []
    open = 0

    def __init__(self, engine, max_rows, **given):
        self.made.append((max_rows, given))
        Decoder.open += 1

    @staticmethod
    def work_size(engine, max_rows, **shape):
        return 100 * max_rows

    def stats(self):
        return {}

    def close(self):
        Decoder.open -= 1


def test_a_context_length_that_vllm_finds_is_the_decoders(backend, monkeypatch):
    """--max-model-len auto: block tables are as wide as the context that fits, which vLLM knows only after it has measured its memory."""
    monkeypatch.setattr(serving, "Decoder", Decoder)
    Decoder.made.clear()
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, device=None, **more: zeros(*shape, **more))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: stand_in.Object(total_memory=1 << 30))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda number: 0)
    c = backend.current[0] = stand_in.config({"layers": [0]})
    c.cache_config = stand_in.Object(gpu_memory_utilization=0.5, block_size=16)
    names = [f"model.layers.{i}.attn" for i in range(2)]
    c.compilation_config.static_forward_context.update({name: stand_in.Attention(name, impl()) for name in names})
    d = context.of(c)
    d.open(stand_in.FlashAttentionImpl, torch.device("cuda", 0))
    ((rows_, first),) = Decoder.made
    assert d.active and first["capacity"] == d.capacity == 512
    c.model_config.max_model_len = 160
    d.work.fill_(7)  # steps that measured what graphs take
    for _ in range(2):  # a builder for each group of layers
        backend.Builder(None, names, c, torch.device("cpu"))
    (_, (again, second)) = Decoder.made
    assert d.active and again == rows_ == d.max_rows and Decoder.open == 1 and second["work"] is first["work"] is d.work
    assert not d.work.any()  # as a decoder needs it
    assert second == {**first, "capacity": 160, "kv_tokens": min(first["kv_tokens"], rows_ * 160)} and d.capacity == 160
    d.close()
    assert Decoder.open == 0


@pytest.mark.parametrize(("layers_", "names", "want", "reason"), [
    ([0, 3], (2, 3), (0, 1), None),  # the stage's first layer would be sparse: it selects, too
    ([0, 3], (0, 1), (0,), None), ([2], (0, 1), None, "before the first selection layer"), ([2], (2, 3), (0,), None),
    ([0], (2,), (0,), None), ([0], (1, 3), None, "pipeline stages"),
])  # fmt: skip
def test_a_pipelines_stage_takes_its_own_part_of_the_layers(monkeypatch, layers_, names, want, reason):
    d, made = engines(monkeypatch, stand_in.config({"layers": layers_}, pipeline_parallel_size=2), names)
    assert made == ([] if want is None else [(len(names), want)])
    assert d.reason is None if reason is None else reason in d.reason


def test_a_layer_beyond_the_pipelines_model_is_an_error(monkeypatch):
    with pytest.raises(ArgumentError, match=r"\[9\] are not in 0 \.\. 3"):
        engines(monkeypatch, stand_in.config({"layers": [9]}, pipeline_parallel_size=2), (2, 3))


@pytest.mark.parametrize(("change", "measured"), [
    ({}, True), (dict(mode=stand_in.Mode.PIECEWISE), True), (dict(mode=stand_in.Mode.NONE), True), (dict(tensor_parallel_size=2), False),
    (dict(pipeline_parallel_size=2), False), (dict(drafts=3), False), (dict(layers=[0]), False),
])  # fmt: skip
def test_layers_are_measured_where_graphs_can_leave_attention_out(monkeypatch, tmp_path, change, measured):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    change = dict(change)
    drafts, given = change.pop("drafts", 0), {"layers": change.pop("layers")} if "layers" in change else {}
    c = stand_in.config(given, **change)
    if drafts:
        c.speculative_config = stand_in.Object(method="ngram", num_speculative_tokens=drafts, parallel_drafting=False)
    d, made = engines(monkeypatch, c, range(4))
    assert d.measures == measured and d.most_tokens == (1 + drafts if made else 1)
    assert made == ([(4, None)] if measured else [(4, (0,))] if given else []) and (made or "not known" in d.reason)


def test_the_first_rank_says_what_all_of_them_do(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
    said = []

    def first(make):
        if not said:
            said.append(make())
        return said[0]

    monkeypatch.setattr(ranks, "first", first)
    monkeypatch.setattr(ranks, "every", lambda own: [own, own])
    monkeypatch.setattr(ranks, "together", lambda n: n == 2)
    for start in ("measured", "kept"):
        opened = []
        for rank in range(2):  # each on a machine of its own
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ("second" if rank else "first")))
            monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
            opened.append(engines(monkeypatch, stand_in.config({}, tensor_parallel_size=2), range(4)))
        choices = [d.choice for d, _ in opened]
        if start == "measured":
            assert [made for _, made in opened] == [[(4, None)]] * 2 and all(d.measures for d, _ in opened)
            assert choices[0].profile and choices[1].profile is None  # one file, one process that writes it
            force = serving.in_force(settings.Settings(), 4)
            kept(type(tmp_path)(choices[0].profile), weights=f"model {choices[0].model}", settings=force)
            said.clear()
        else:  # in graphs, as the first rank knows it
            assert [made for _, made in opened] == [[(4, (1, 3))]] * 2 and not any(d.measures for d, _ in opened)
    given = engines(monkeypatch, stand_in.config({"layers": [0]}, tensor_parallel_size=2), range(4))
    assert given[1] == [(4, (0,))] and not given[0].measures
    # What one rank has measured is of its heads: a start on one GPU measures all of them, and two ranks take that from then on.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
    alone, _ = engines(monkeypatch, stand_in.config({}), range(4))
    assert alone.measures and alone.choice.profile != choices[0].profile and "measured" in alone.choice.source
    kept(type(tmp_path)(alone.choice.profile), weights=f"model {alone.choice.model}", choice=(2,), settings=force)
    said.clear()
    assert engines(monkeypatch, stand_in.config({}, tensor_parallel_size=2), range(4))[1] == [(4, (2,))]


@pytest.mark.parametrize(("others", "text"), [
    ({"budget": 128}, "the ranks' settings differ: budget is None on rank 0 and 128 on rank 1"), ({"layers": None}, "layers is"), ("switched off", "rank 1: switched off"),
    ({"stats": "elsewhere", "profile": "other"}, None),
])  # fmt: skip
def test_ranks_of_other_settings_are_dense_and_none_waits_for_another(monkeypatch, others, text):
    """A variable that is set on one machine only. Who has layers asks the first rank nothing, who has none would wait for its answer."""
    own = settings.of_all(settings.Settings(layers=(0,)))
    their = (others, own) if isinstance(others, str) else (None, {**own, **{k: v for k, v in others.items() if k in own}})
    seen = []

    def every(value):
        seen.append(value)
        return [value, their]

    monkeypatch.setattr(ranks, "every", every)
    monkeypatch.setattr(ranks, "together", lambda n: n == 2)
    monkeypatch.setenv("LESSISMORE_LAYERS", "0")
    d, made = engines(monkeypatch, stand_in.config(tensor_parallel_size=2), range(4))
    assert seen[0] == (None, own)
    assert (d.reason is None and made == [(4, (0,))] and len(seen) == 2) if text is None else (text in d.reason and not made)


def test_ranks_of_other_versions_have_other_settings():
    older, newer = (None, {"budget": 1}), (None, {"budget": 1, "later": 2})
    for found, text in (
        ((older, newer), "later is not known on rank 0 and 2 on rank 1"),
        ((newer, older), "later is 2 on rank 0 and not known on rank 1"),
    ):
        assert text in (ranks.against(found) or "")
    assert ranks.against((newer, newer)) is None


def test_a_rank_that_fails_makes_all_of_them_dense(monkeypatch):
    said = []

    def every(value):
        said.append(value)
        return [value, (None if len(said) == 1 else "out of memory", value[1])]

    monkeypatch.setattr(ranks, "every", every)
    monkeypatch.setattr(ranks, "together", lambda n: n == 2)
    d, made = engines(monkeypatch, stand_in.config({"layers": [0]}, tensor_parallel_size=2), range(4))
    assert made and d.engine is None and d.reason == "rank 1: out of memory"
    said.clear()
    monkeypatch.setenv("LESSISMORE", "off")  # on this one only: it says so to those that wait for it
    d, made = engines(monkeypatch, stand_in.config(tensor_parallel_size=2), range(4))
    assert not made and d.reason == "switched off" and said[0][0] == "switched off"


def test_a_rank_whose_error_ends_it_says_so_to_those_that_wait(monkeypatch):
    """vLLM waits for each rank's answer, first rank first: one that waited for a rank that is gone would not say so for half an hour."""
    for error in (ArgumentError("head_dim = 1"), RuntimeError("a driver's fault")):
        said = []
        monkeypatch.setattr(ranks, "every", lambda value: said.append(value[0]) or [value, value])
        monkeypatch.setattr(ranks, "together", lambda n: n == 2)
        with monkeypatch.context() as patch:

            def make(self, found, device):
                raise error

            patch.setattr(context.Context, "_make", make)
            with pytest.raises(type(error), match=str(error)):
                engines(patch, stand_in.config({"layers": [0]}, tensor_parallel_size=2), range(4))
        assert said == [None, str(error)]


RANK = """
import sys, torch.distributed as d
from lessismore import ArgumentError
from lessismore.vllm import ranks
rank, path = int(sys.argv[1]), sys.argv[2]
assert not ranks.together(2)
d.init_process_group("gloo", init_method="file://" + path, rank=rank, world_size=2)
assert ranks.together(2) and not ranks.together(4) and not ranks.together(1)
def make():
    assert rank == 0
    return {"layers": (1, 3)}
assert ranks.first(make) == {"layers": (1, 3)}
def refuse():
    raise ArgumentError("profile x: it is none")
try:
    ranks.first(refuse)
except ArgumentError as e:
    assert str(e) == "profile x: it is none"
def fail():
    raise OSError(5, "a disk's fault")
assert ranks.every((None, rank)) == [(None, 0), (None, 1)]
try:
    ranks.first(fail)
except OSError as e:
    assert e.errno == 5
    print("refused")
d.destroy_process_group()  # else torch now and then aborts at the process's end
"""


def test_ranks_agree_over_torch_distributed(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE), "GLOO_SOCKET_IFNAME": "lo"}
    found = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path / "meet")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    for process in found:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0 and said.endswith("refused\n"), said


def test_work_memory_bounds_the_rows():
    for limit, most in ((0, 0), (99, 0), (100, 1), (1000, 10), (1 << 40, 64)):
        assert memory.rows_within(lambda n: 100 * n, 64, limit) == most


@pytest.mark.parametrize(("more", "tokens"), [
    (dict(), (80 * 0.5 - 10) // 2), (dict(kv_cache_memory_bytes=8), 7), (dict(kv_cache_memory_bytes=30), 15), (dict(num_gpu_blocks_override=1), 16),
    (dict(num_gpu_blocks_override=1000), 21),
])  # fmt: skip
def test_tokens_of_the_store(more, tokens):
    c = stand_in.config()
    c.cache_config = stand_in.Object(gpu_memory_utilization=0.5, block_size=16, **more)
    c.model_config.max_model_len, c.scheduler_config.max_num_seqs = 7, 3
    assert memory.kv_tokens(c, 2, 80, 10) == tokens


# ---- profiles ----

IN_FORCE = {"budget": 2048, "recency": 0.25, "sink_tokens": 4, "policy": "union", "selections": 2}


def kept(path, weights="model m", n=4, choice=(1, 3), **changed):
    content = {"format": 1, "model": {"layers": n, "weights": weights}, "settings": {**IN_FORCE}, "choice": list(choice), **changed}
    path.write_text(json.dumps(content))
    return str(path)


def test_where_selection_layers_come_from(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def choose(measures, **given):
        return profile.choose(settings.Settings(**given), IN_FORCE, 4, "m", measures)

    assert choose(False, layers=(0, 2)).layers == (0, 2)
    assert choose(False).reason and not choose(False).layers
    fresh = choose(True)
    assert fresh.measure and fresh.profile and fresh.model == "m"
    kept(type(tmp_path)(fresh.profile))  # as the library leaves it
    assert choose(False).layers == (1, 3)  # graphs keep what they were captured with
    again = choose(True)
    assert again.measure and again.layers is None and again.profile == fresh.profile
    assert choose(False, profile="off").reason
    other = kept(tmp_path / "other.json", weights="model of transformers")
    for measures in (False, True):  # measured elsewhere: its layers, as if they were given
        found = choose(measures, profile=other)
        assert found.layers == (1, 3) and not found.measure and "another host" in found.source
    assert choose(True, profile=str(tmp_path / "new.json")).measure and choose(False, profile=str(tmp_path / "new.json")).reason


def test_a_model_is_told_by_its_weights_wherever_they_lie(tmp_path):
    def text(model, **more):
        c = stand_in.config()
        c.model_config.__dict__.update(model=str(model), **more)
        return identity.about(c)

    weights, rng = tmp_path / "a", np.random.default_rng()
    weights.mkdir()
    content = rng.bytes(3 << 20)
    (weights / "model.safetensors").write_bytes(content)
    (weights / "config.json").write_text("{}")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "model.safetensors").write_bytes(content)
    (tmp_path / "current").symlink_to(weights)
    first = text(weights)
    assert first.startswith("served files ") and first == text(tmp_path / "b") == text(tmp_path / "current", revision="main")
    assert text(weights / "model.safetensors").startswith("served files ")  # one file, as of GGUF
    for name in ("tokenizer.json", "tokenizer.model", "Figure.PNG"):  # large, but no weights: another tokenizer is no other model
        (weights / name).write_bytes(rng.bytes(2 << 20))
        assert text(weights) == first
    (weights / "model.safetensors").write_bytes(rng.bytes(3 << 20))  # another checkpoint in its place
    assert identity.another(first, text(weights)) and text(tmp_path / "current") == text(weights) != first
    quantized = text(tmp_path / "b", quantization="fp8")
    assert first != quantized and not identity.another(first, quantized) and "configuration" in identity.difference(first, quantized)
    drawn = tmp_path / "drawn", tmp_path / "drawn2"
    for folder in drawn:  # of a model whose weights are drawn
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    assert text(drawn[0]) == text(drawn[1]) and text(drawn[0]).startswith("served none ")
    named = text("some/model"), text("some/model", revision="v2"), text("other/model")
    assert len(set(named)) == 3 and all(name.startswith("served name ") for name in named) and identity.another(named[0], named[2])
    assert not identity.another(named[0], named[1]) and identity.difference(named[0], named[1]) == "of another revision of the model"
    assert not identity.another(first, named[0]) and identity.difference(named[0], first) == "of another host"
    assert text("temporary", model_weights="s3://models/x") == text("elsewhere", model_weights="s3://models/x")


def test_a_profile_of_another_model_is_an_error_where_that_can_be_told(tmp_path):
    def choose(weights, measures=False, shape=None, **changed):
        path = kept(tmp_path / "p.json", weights=weights, **changed)
        return profile.choose(settings.Settings(profile=path), IN_FORCE, 4, "served files aa cc", measures, shape)

    for measures in (False, True):
        with pytest.raises(ArgumentError, match="another model was served"):
            choose("model served files bb cc", measures)
        for weights, told in (
            ("model served files aa dd", "of another configuration of the model"), ("model served files aa cc one-of-2", "by the heads of one rank"),
            ("model served name bb cc", "of another host"), ("model 0123456789abcdef", "of another host"), ("0123456789abcdef", "of another host"),
        ):  # fmt: skip
            found = choose(weights, measures)
            assert found.layers == (1, 3) and not found.measure and told in found.source
    own = choose("model served files aa cc")
    assert own.layers == (1, 3) and own.source == f"profile {tmp_path / 'p.json'}"
    assert choose("model served files aa cc", True).measure
    for model, text in (
        (dict(heads=16, key_dim=128), "heads 16, here it is 32"),
        (dict(heads=32, key_dim=64), "key_dim 64, here it is 128"),
    ):
        with pytest.raises(ArgumentError, match=text):
            choose("x", shape=(32, 128), model={"layers": 4, "weights": "x", **model})
    assert choose("x", shape=(32, 128), model={"layers": 4, "weights": "x", "heads": 32, "key_dim": 128}).layers
    assert choose("x", shape=(32, 128), model={"layers": 4, "weights": "x", "heads": 0, "key_dim": 0}).layers


def test_the_librarys_own_profile_is_known_again(tmp_path):
    """It is the library that writes which model a profile is of."""
    rng, path, model = np.random.default_rng(), str(tmp_path / "p.json"), "served files aa cc"
    asked = settings.Settings(budget=16, profile=path)
    with lessismore.Engine(6, asked, model=model, n_threads=1) as engine, engine.decoder() as decoder:
        key = rng.standard_normal((1, 400, 2, 64), dtype=np.float32)
        for step in range(100):
            for layer in range(6):
                decoder.attend(layer, rng.standard_normal((1, 4, 64), dtype=np.float32), key, key, lengths=np.array([200 + step], np.int32))
    force = serving.in_force(asked, 6)
    found = profile.choose(asked, force, 6, model, False)
    assert found.layers and found.source == f"profile {path}" and profile.choose(asked, force, 6, model, True).measure
    with pytest.raises(ArgumentError, match="another model was served"):
        profile.choose(asked, force, 6, "served files bb cc", False)


def test_a_target_needs_a_profile_that_was_measured_for_it(tmp_path):
    force = {**{k: v for k, v in IN_FORCE.items() if k != "selections"}, "quality": True}
    assert serving.in_force(settings.Settings(quality=0.01, layers=(0, 2)), 4) == force
    assert serving.in_force(settings.Settings(), 4) == IN_FORCE
    assert serving.in_force(settings.Settings(), 36) == {**IN_FORCE, "selections": 6}

    def choose(measures, path, quality=0.01):
        return profile.choose(settings.Settings(quality=quality, profile=path), force, 4, "m", measures)

    for measures in (False, True):
        found = choose(measures, str(tmp_path / "none.json"))
        assert "quality = 0.01: it needs a profile" in found.reason and not found.layers and not found.measure
        other = kept(tmp_path / "other.json", weights="another host's", tried={"target": 0.01}, **{"settings": force})
        assert choose(measures, other).layers == (1, 3)
        assert "for 0.01" in choose(measures, other, 0.001).reason
    with pytest.raises(ArgumentError, match="made for quality None, here it is True"):
        choose(False, kept(tmp_path / "plain.json"))
    with pytest.raises(ArgumentError, match="quality = 0.01 chooses"):
        profile.choose(settings.Settings(quality=0.01, layers=(0, 2)), force, 4, "m", False)


@pytest.mark.parametrize("changed", [
    {"format": 2}, {"choice": []}, {"choice": [1, 9]}, {"choice": [3, 1]}, {"choice": [True, 2]}, {"model": {"layers": 5}}, {"settings": {**IN_FORCE, "budget": 64}},
    {"settings": {}}, {"model": 3},
])  # fmt: skip
def test_a_named_profile_that_does_not_fit_is_an_error(tmp_path, changed):
    with pytest.raises(ArgumentError, match="profile"):
        profile.choose(settings.Settings(profile=kept(tmp_path / "p.json", **changed)), IN_FORCE, 4, "m", False)


def test_what_is_no_profile_is_an_error(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("{")
    for name in ("pipe", "text", "."):
        with pytest.raises(ArgumentError, match="profile"):
            profile.choose(settings.Settings(profile=str(tmp_path / name)), IN_FORCE, 4, "m", False)


# ---- metrics ----


def test_metrics_are_what_the_processes_wrote(monkeypatch, tmp_path):
    monkeypatch.setenv(metrics.VARIABLE, str(tmp_path))
    library = dict.fromkeys((key for *_, keys in metrics.LIBRARY for key in keys.values()), 0)
    report = {
        "reason": None,
        "work_bytes": 9,
        "counts": {"decode_steps": 3},
        "declined": {"prompts": 2},
        "library": {**library, "rows_sparse": 5},
    }
    counted = stand_in.Object(report=lambda: report, engine=stand_in.Object(report=lambda: {"version": "1"}))
    metrics.Reporter(counted, 0, 1, 1e-9, str(tmp_path / "stats.json")).tick()
    found = {family.name: dict(family.values) for family in metrics.families(metrics.reports(str(tmp_path))[:1])}
    assert found["lessismore_rows"] == {("0", "sparse"): 5, ("0", "full"): 0} and found["lessismore_steps"][("0", "decode")] == 3
    assert found["lessismore_declined_rows"] == {("0", "prompts"): 2} and found["lessismore_active"] == {("0", ""): 1.0}
    assert json.loads((tmp_path / "stats.json").read_text())["vllm"]["rank"] == 0
    (tmp_path / "broken.json").write_text("{")
    assert len(metrics.reports(str(tmp_path))) == 2 and metrics.reports(str(tmp_path / "none")) == []


def test_a_file_of_statistics_is_one_process_s_and_replaces_nobody_else_s(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv(metrics.VARIABLE, str(tmp_path / "metrics"))
    counted = stand_in.Object(report=lambda: {"reason": None}, engine=stand_in.Object(report=lambda: {"version": "1"}))
    for n, name, there in ((1, "%p.json", f"{os.getpid()}.json"), (2, "%p.json", f"{os.getpid()}.json"), (2, "s.json", "s.json.1")):
        for _ in range(2):
            metrics.Reporter(counted, 1, n, 1e-9, str(tmp_path / name)).tick()
        assert json.loads((tmp_path / there).read_text())["version"] == "1"
    (tmp_path / "theirs").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    for name in ("theirs", "link"):
        reporter = metrics.Reporter(counted, 0, 1, 1e-9, str(tmp_path / name))
        reporter.tick()
        reporter.tick()
        assert (tmp_path / "theirs").read_text() == "kept" and reporter.stats is None and reporter.shown is not None
    assert caplog.text.count("was not written by lessismore") == 2


@pytest.mark.parametrize(
    "parallel, ranks",
    [
        (dict(world_size=1, rank=0), (0, 1)),
        (dict(world_size=4, rank=3, data_parallel_size=1, data_parallel_rank=0, data_parallel_index=0), (3, 4)),
        # two engines of a model of experts, and of a dense one, which vLLM 0.26 tells that they are alone
        (dict(world_size=2, rank=1, data_parallel_size=2, data_parallel_rank=1, data_parallel_index=1), (3, 4)),
        (dict(world_size=1, rank=0, data_parallel_size=1, data_parallel_rank=0, data_parallel_index=1), (1, 2)),
        (dict(world_size=2, rank=1, data_parallel_size=1, data_parallel_rank=0, data_parallel_index=1), (3, 4)),
    ],
)
def test_no_two_processes_have_the_same_number(parallel, ranks):
    assert context._rank(stand_in.Object(**parallel)) == ranks


def active(folder):
    """The metric of that name, by rank and reason."""
    found = {family.name: dict(family.values) for family in metrics.families(metrics.reports(str(folder)))}
    return found.get("lessismore_active")


def test_metrics_and_statistics_say_why_nothing_is_sparse_from_the_start(monkeypatch, tmp_path):
    monkeypatch.setenv(metrics.VARIABLE, str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    mode = stand_in.Object(has_full_cudagraphs=lambda: True, has_piecewise_cudagraphs=lambda: False)
    stats = tmp_path / "stats"
    stats.write_text('{"version":"0.0.1","config":{}}')  # a run's before
    d = opened({"stats": str(stats)}, monkeypatch, mode=mode)
    assert "not known" in d.reason and active(tmp_path) == {("0", d.reason): 0.0}
    assert json.loads(stats.read_text())["vllm"]["reason"] == d.reason
    opened({"layers": [0]}, monkeypatch, DeviceError("no CUDA driver"))
    assert active(tmp_path) == {("0", "no CUDA driver"): 0.0}


def test_metrics_say_that_the_library_refused_a_step(model, monkeypatch, tmp_path):
    monkeypatch.setenv(metrics.VARIABLE, str(tmp_path))
    library = dict.fromkeys((key for *_, keys in metrics.LIBRARY for key in keys.values()), 0)
    model.context.decoder.stats = lambda: library
    model.context.reporter = metrics.Reporter(model.context, 0, 1, 1e-9, str(tmp_path / "stats"))
    model.context.engine = stand_in.Object(report=lambda: {"version": "1"}, close=lambda: None)
    model.attend(model.step([1, 1], [5, 9]))
    model.step([1, 1], [5, 9])
    assert json.loads((tmp_path / "stats").read_text())["vllm"]["reason"] is None
    model.context.fail(ArgumentError("too narrow"))
    model.step([1, 1], [5, 9])
    assert json.loads((tmp_path / "stats").read_text())["vllm"]["reason"] == "too narrow"


def test_what_is_counted_is_read_only_when_someone_asked(monkeypatch, tmp_path):
    monkeypatch.setenv(metrics.VARIABLE, str(tmp_path))
    read = []
    reporter = metrics.Reporter(stand_in.Object(report=lambda: read.append(1) or {}), 0, 1, 1e-9, None)
    for asked, times in ((None, 0), (1, 1), (1, 1), (2, 2)):
        if asked is not None:
            (tmp_path / metrics.ASKED).touch()
            os.utime(tmp_path / metrics.ASKED, (asked, asked))
        reporter.tick()
        assert len(read) == times


def test_the_page_of_metrics(monkeypatch, tmp_path):
    registry = prometheus_client.CollectorRegistry()
    registry.register(metrics.Collector(str(tmp_path)))
    report = {"rank": 1, "reason": 'a "reason"', "work_bytes": 9, "counts": {"split_steps": 3}, "declined": {"prompts": 2}, "library": None}
    (tmp_path / "1.json").write_text(json.dumps(report))
    page = prometheus_client.generate_latest(registry).decode()
    assert 'lessismore_steps_total{kind="split",rank="1"} 3.0' in page and 'lessismore_active{rank="1",reason="a \\"reason\\""} 0.0' in page
    assert (tmp_path / metrics.ASKED).exists()


SERVER = """
import os, sys, types
import prometheus_client
from lessismore.vllm import metrics

metrics.announce()
folder = os.environ[metrics.VARIABLE]
metrics.announce()  # as each of vLLM's processes does
report = {"reason": None, "work_bytes": 9, "counts": {"decode_steps": 3}, "declined": {}, "library": None}
context = types.SimpleNamespace(report=lambda: report)
if os.fork() == 0:
    metrics.Reporter(context, 1, 2, 1.0, None).write()
    sys.exit()
os.wait()
print(folder)
print(prometheus_client.generate_latest().decode())
"""


def test_vllms_own_page_shows_what_its_processes_counted_until_it_ends():
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    environment.pop(metrics.VARIABLE, None)
    said = subprocess.run([sys.executable, "-c", SERVER], env=environment, capture_output=True, text=True, check=True).stdout
    folder, _, page = said.partition("\n")
    assert page.count('lessismore_steps_total{kind="decode",rank="1"} 3.0') == 1 and 'lessismore_active{rank="1",reason=""} 1.0' in page
    assert "python_info" in page and not os.path.exists(folder)  # beside what others registered


def test_statistics_that_fail_end_nothing(monkeypatch, tmp_path, caplog):
    def fail():
        raise DeviceError("gone")

    monkeypatch.setenv(metrics.VARIABLE, str(tmp_path))
    reporter = metrics.Reporter(stand_in.Object(report=fail), 0, 1, 1e-9, None)
    reporter.tick()  # no one has asked
    assert not caplog.text
    for _ in range(2):
        (tmp_path / metrics.ASKED).touch()
        reporter.tick()
    assert caplog.text.count("gone") == 1 and os.listdir(tmp_path) == [metrics.ASKED]


# ---- what the GPU suite puts in place ----


class Filling:
    """DecodeBenchConnector's side of the scheduler, as 0.26 has it: a request is filled once, all but its last token."""

    def __init__(self):
        self.connector_scheduler = self
        self._filled_requests = set()

    def get_num_new_matched_tokens(self, request, num_computed_tokens):
        return (0 if request.request_id in self._filled_requests else request.num_tokens - num_computed_tokens - 1), False


def test_a_preempted_requests_context_is_put_in_place_again(monkeypatch):
    name = "vllm.distributed.kv_transfer.kv_connector.v1.decode_bench_connector"
    parts = name.split(".")
    for i in range(1, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:i]), types.ModuleType(parts[i - 1]))
    monkeypatch.setitem(sys.modules, name, stand_in.Object(DecodeBenchConnector=Filling))
    monkeypatch.syspath_prepend(ROOT / "tests" / "gpu" / "vllm")
    monkeypatch.delitem(sys.modules, "placed", raising=False)
    placed = importlib.import_module("placed")
    connector, context, prompt = placed.PlacedConnector(), 9000, 1500
    request = stand_in.Object(
        request_id="a",
        num_tokens=context + prompt,
        num_prompt_tokens=context + prompt,
        num_preemptions=0,
        kv_transfer_params={"computed": prompt},
    )
    assert connector.get_num_new_matched_tokens(request, 0) == (context - 1, False)
    connector._filled_requests.add("a")
    request.num_tokens += 700  # of its answer
    assert connector.get_num_new_matched_tokens(request, 0) == (0, False)  # nothing comes twice
    request.num_preemptions = 1
    assert connector.get_num_new_matched_tokens(request, 0) == (context - 1, False)
    assert placed.CONNECTOR["kv_role"] == "kv_producer"


def test_several_processes_that_serve_metrics_show_each_rank(monkeypatch, tmp_path):
    monkeypatch.setenv(metrics.SEVERAL, str(tmp_path))
    library = dict.fromkeys((key for *_, keys in metrics.LIBRARY for key in keys.values()), 0)
    reports = {
        rank: {
            "reason": None,
            "work_bytes": 9 + rank,
            "counts": {"decode_steps": 3},
            "declined": {},
            "library": {**library, "rows_sparse": 5},
        }
        for rank in range(2)
    }
    reporters = []
    for rank, report in reports.items():
        monkeypatch.setattr(os, "getpid", lambda: 1000 + rank)  # a process for each
        reporters.append(metrics.Reporter(stand_in.Object(report=lambda report=report: report), rank, 2, 1e-9, None))
    for times in range(2):
        for reporter in reporters:
            reporter.tick()
    reports[1].update(reason="switched off", library=None)
    reports[0]["counts"]["decode_steps"] = 4
    for reporter in reporters:
        reporter.tick()
    registry = prometheus_client.CollectorRegistry()
    prometheus_client.multiprocess.MultiProcessCollector(registry)
    page = prometheus_client.generate_latest(registry).decode().splitlines()
    for line in (
        'lessismore_active{rank="0",reason=""} 1.0', 'lessismore_active{rank="1",reason=""} 0.0', 'lessismore_work_bytes{rank="1"} 10.0',
        'lessismore_active{rank="1",reason="switched off"} 0.0', 'lessismore_steps_total{kind="decode",rank="0"} 4.0',
        'lessismore_steps_total{kind="decode",rank="1"} 3.0', 'lessismore_rows_total{kind="sparse",rank="1"} 5.0',
        "# TYPE lessismore_rows_total counter", "# TYPE lessismore_work_bytes gauge",
    ):  # fmt: skip
        assert line in page, (line, page)
