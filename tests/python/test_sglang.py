"""lessismore.sglang without SGLang and without a GPU: against what is recorded of SGLang's interfaces, and in a stand-in of them."""

import importlib
import inspect
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import sglang_interface as stand_in
import torch
from attention_call import Library
from conftest import PACKAGE, ROOT

import lessismore.sglang
from lessismore._errors import DeviceError
from lessismore.sglang import context, layers

VERSIONS = stand_in.VERSIONS
KINDS = (stand_in.FIRST, "0.5.15", VERSIONS[-1])  # that differ in where keys and values go, and in what is called before a step
HEADS, KV_HEADS, DIM = 4, 2, 64
SEED = random.SystemRandom().randrange(1 << 31)
FLASH = "layers/attention/flashattention_backend.py"


@pytest.fixture(params=VERSIONS)
def version(request):
    return request.param


@pytest.fixture
def backend(monkeypatch, version):
    stand_in.install(monkeypatch, version)
    monkeypatch.delitem(sys.modules, "lessismore.sglang.backend", raising=False)
    import lessismore.sglang.backend as module

    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stand_in.Object(cuda_stream=0))
    yield module
    sys.modules.pop("lessismore.sglang.backend", None)


# ---- SGLang's interfaces ----


def test_what_is_read_is_there(version):
    found = stand_in.recorded(version)
    modules, first = found["modules"], version == stand_in.FIRST
    assert set(layers.AGAINST) - layers.LATER <= set(found["arguments"]) and ("dcp_size" in found["arguments"]) != first
    assert {"disable_cuda_graph", "tp_size", "dp_size"} <= set(found["arguments"])
    assert found["names"] == ["ATTENTION_BACKEND_CHOICES", "add_attention_backend_choices"] and found["launch"]
    assert modules["layers/attention/attention_registry.py"]["register_attention_backend"]["parameters"] == ["name"]
    assert modules["plugins/__init__.py"]["GENERAL_PLUGINS_GROUP"] == {}
    layer = modules["layers/radix_attention.py"]["RadixAttention"]["sets"]
    assert {"layer_id", "tp_q_head_num", "tp_k_head_num", "head_dim", "v_head_dim", "scaling", "logit_cap", "sliding_window_size", "is_cross_attention",
            "use_irope", "pos_encoding_mode", "logit_capping_method", "attn_type", "k_scale", "v_scale", "xai_temperature_len"} <= set(layer)  # fmt: skip
    assert modules["layers/radix_attention.py"]["AttentionType"]["texts"]["DECODER"] == layers.DECODER
    assert modules["layers/radix_attention.py"]["RadixAttention"]["methods"]["__init__"][9:12] == [
        "is_cross_attention",
        "pos_encoding_mode",
        "logit_capping_method",
    ]
    runner = modules["model_executor/model_runner.py"]["ModelRunner"]["sets"]
    assert {"server_args", "is_draft_worker", "use_mla_backend", "page_size", "model_config", "model"} <= set(runner)
    held = set(modules["distributed/parallel_state_wrapper.py"]["ParallelState"]["fields"]) if "ps" in runner else set(runner)
    if found["ranks"]["context"]:
        assert not {"tp_rank", "ps"} & set(runner) and modules["runtime_context.py"]["get_parallel"] == {"parameters": []}
    else:
        assert "tp_rank" in held and ("dp_rank" in held or found["ranks"]["title"])
    assert found["pools"] == ["token_to_kv_pool", "req_to_token_pool"]
    flash = modules[FLASH]["FlashAttentionBackend"]
    assert {"is_encoder_decoder", "page_size", "forward_metadata", "max_context_len"} <= set(flash["sets"])
    assert {"cache_seqlens_int32", "page_table", "max_seq_len_q"} <= set(modules[FLASH]["FlashAttentionMetadata"]["fields"])
    assert {"get_kv_buffer", "set_kv_buffer"} <= set(modules["mem_cache/memory_pool.py"]["KVCache"]["methods"])
    assert "_attn_output" in json.dumps(found["reads"])
    # Where keys and values go, the pages and what rows see are taken from there, as forward_decode() does.
    assert found["page_table"] and ("KVWriteLoc" in found["imports"]) != first
    assert "swa_out_cache_loc" in modules[FLASH]["FlashAttentionMetadata"]["fields"] or first
    assert first == ("token_to_kv_pool" in [r.split(".")[1] for r in found["reads"] if r.startswith("forward_batch.")])


def test_overridden_methods_take_what_sglang_gives(backend, version):
    methods = stand_in.recorded(version)["modules"][FLASH]["FlashAttentionBackend"]["methods"]
    given = methods["forward_decode"]
    taken = list(inspect.signature(backend.Backend.forward_decode).parameters)
    assert taken[:7] == given[:7] == ["self", "q", "k", "v", "layer", "forward_batch", "save_kv_cache"]
    assert "init_forward_metadata" in methods
    assert ("init_forward_metadata_replay_cuda_graph" if version == stand_in.FIRST else "init_forward_metadata_out_graph") in methods


def test_the_entry_point_registers(monkeypatch, version):
    group = (PACKAGE / "pyproject.toml").read_text().split('[project.entry-points."sglang.srt.plugins"]')[1].split("[")[0]
    assert group.split() == ["lessismore", "=", '"lessismore.sglang:register"']
    registry, arguments = stand_in.install(monkeypatch, version)
    lessismore.sglang.register()
    lessismore.sglang.register()
    assert arguments.ATTENTION_BACKEND_CHOICES == ["fa3", "lessismore"] and registry.ATTENTION_BACKENDS == {
        "lessismore": lessismore.sglang.create
    }


def test_importing_the_package_imports_neither_sglang_nor_torch():
    code = "import sys, lessismore.sglang; assert not {'sglang', 'torch', 'vllm'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(PACKAGE)})


# ---- layers ----


@pytest.mark.parametrize(("given", "reason"), [
    (dict(is_cross_attention=True), "cross"), (dict(attn_type=stand_in.Object(value="encoder_only")), "attention of type"),
    (dict(sliding_window_size=127), "sliding-window"), (dict(use_irope=True), "chunked"), (dict(pos_encoding_mode="ALIBI"), "ALIBI"),
    (dict(logit_cap=30.0, logit_capping_method="rational"), "rational"), (dict(xai_temperature_len=1024), "by position"), (dict(v_head_dim=128), "heads of 64 and 128"),
    (dict(tp_q_head_num=34), "34 query heads for 2"),
])  # fmt: skip
def test_a_layer_that_cannot_take_part_says_why(given, reason):
    assert reason in layers.single(stand_in.RadixAttention(0, **given)) and layers.single(stand_in.RadixAttention(0)) is None


def test_graphs_are_switched_off_as_a_whole_or_for_decode_steps(version):
    assert ("cuda_graph_config" in stand_in.recorded(version)["arguments"]) or version in (stand_in.FIRST, "0.5.15")

    def arguments(off, **more):
        return stand_in.Object(disable_cuda_graph=off, **more)

    def decode(backend):
        return stand_in.Object(decode=stand_in.Object(backend=backend))

    assert layers.without_graphs(arguments(True)) and not layers.without_graphs(arguments(False))
    assert layers.without_graphs(arguments(False, cuda_graph_config=decode("disabled")))
    assert not layers.without_graphs(arguments(False, cuda_graph_config=decode("full")))


def test_layers_are_numbered_by_their_id_and_others_are_left():
    found = layers.Census(
        [stand_in.RadixAttention(i, **more) for i, more in ((10, {}), (2, {}), (3, {"sliding_window_size": 8}), (5, {"tp_q_head_num": 8}))]
    )
    assert found.numbers == {2: 0, 10: 1} and sorted(found.others) == [3, 5]
    assert not layers.Census([stand_in.RadixAttention(1), stand_in.RadixAttention(1)]).numbers


@pytest.mark.parametrize("change", [
    dict(speculative_algorithm="EAGLE"), dict(pp_size=2), dict(enable_dp_attention=True), dict(enable_two_batch_overlap=True),
    dict(enable_deterministic_inference=True), dict(attn_cp_size=2), dict(enable_hisparse=True),
])  # fmt: skip
def test_a_server_that_would_go_wrong_is_left_to_sglang(backend, version, monkeypatch, change):
    monkeypatch.setenv("LESSISMORE_LAYERS", "0")
    ((name, value),) = change.items()
    made = backend.Backend(stand_in.runner(version, [stand_in.RadixAttention(0)], **change))
    assert made.shared.reason == f"{name} = {value}" and not made.shared.active


@pytest.mark.parametrize(("given", "reason"), [
    (dict(kv_cache_dtype=torch.float8_e4m3fn), "K/V of type torch.float8"), (dict(use_mla_backend=True), "latent"), (dict(is_draft_worker=True), "drafts"),
    (dict(page_size=24), "pages of 24"),
])  # fmt: skip
def test_a_model_that_would_go_wrong_is_left_to_sglang(backend, version, given, reason):
    runner = stand_in.runner(version, [stand_in.RadixAttention(0)])
    runner.__dict__.update(given)
    assert reason in backend.Backend(runner).shared.reason


def test_without_layers_or_a_gpu_nothing_is_sparse_and_the_log_says_why(backend, version, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runner = stand_in.runner(version, [stand_in.RadixAttention(i) for i in range(2)])
    assert "--disable-cuda-graph" in backend.Backend(runner).shared.reason
    for name, value, text in (
        ("LESSISMORE", "off", "switched off"),
        ("LESSISMORE_BUDGET", "0", "LESSISMORE_BUDGET"),
        ("LESSISMORE_LAYERS", "7", "layer"),
        ("LESSISMORE_QUALITY", "0.005", "quality = 0.005: it needs a profile"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert text in backend.Backend(runner).shared.reason


def test_statistics_say_why_nothing_is_sparse(backend, version, monkeypatch, tmp_path):
    monkeypatch.setenv("LESSISMORE_STATS", str(tmp_path / "stats"))
    monkeypatch.setenv("LESSISMORE_LAYERS", "0")
    stand_in.rank_process(monkeypatch, version, 0, None)
    for change, text in ((dict(pp_size=2), "pp_size = 2"), (dict(enable_hisparse=True), "enable_hisparse = True")):
        backend.Backend(stand_in.runner(version, [stand_in.RadixAttention(0)], **change))
        assert json.loads((tmp_path / "stats").read_text())["sglang"]["reason"] == text


def test_a_version_of_sglang_with_other_interfaces_is_left_to_itself(backend, version, monkeypatch):
    monkeypatch.setenv("LESSISMORE_LAYERS", "0")
    for break_it in (lambda r: delattr(r.server_args, "enable_pdmux"), lambda r: delattr(r, "req_to_token_pool")):
        runner = stand_in.runner(version, [stand_in.RadixAttention(i) for i in range(2)])
        break_it(runner)
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "current_device", lambda: 0)
            shared = backend.Backend(runner).shared
        assert not shared.active and "this version of SGLang is not known" in shared.reason and "attribute" in shared.reason


class Decoder:
    """The library's on a GPU, as far as it is made with what suits it."""

    made: list = []

    def __init__(self, engine, max_rows, **shape):
        self.made.append((engine.report(), max_rows, shape))

    @staticmethod
    def work_size(engine, max_rows, **shape):
        return 1000 * max_rows + shape["kv_tokens"]

    def stats(self):
        return {}

    def close(self):
        pass


@pytest.fixture
def cpu(monkeypatch):
    """What opening a runner asks of a GPU."""
    monkeypatch.setattr(context.serving, "Decoder", Decoder)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: stand_in.Object(total_memory=64 * 7500))
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, device=None, **more: zeros(*shape, **more))
    Decoder.made.clear()


def test_a_runner_is_opened_by_what_its_model_and_store_are(backend, version, monkeypatch, cpu):
    monkeypatch.setenv("LESSISMORE_LAYERS", "1")
    monkeypatch.setenv("LESSISMORE_BUDGET", "128")
    monkeypatch.setenv("LESSISMORE_POLICY", "mass")
    monkeypatch.setenv("LESSISMORE_GUARD", "off")
    shared = backend.Backend(
        stand_in.runner(version, [stand_in.RadixAttention(i, sliding_window_size=-1 if i else 8) for i in range(4)])
    ).shared
    assert shared.active and shared.numbers == {1: 0, 2: 1, 3: 2}
    ((engine, rows, shape),) = Decoder.made
    # A row of the table is 256 tokens wide: 1,256 bytes a row of the 7,500.
    assert rows == shared.max_rows == 5 and shared.work_bytes == 5000 + 1280 and len(shape.pop("work")) == 6280
    assert shape == dict(device=0, capacity=256, heads=HEADS, kv_heads=KV_HEADS, head_dim=DIM, dtype="f16", kv_tokens=1280)
    config = engine["config"]
    assert (config["budget"], config["layers"], config["policy"], config["guard"]) == (128, [1], "mass", 0)
    report = shared.report()
    assert report["layers"] == [1] and report["others"] == {"sliding-window layers": 1} and report["reason"] is None
    shared.close()
    assert not shared.active


def test_a_profile_of_other_heads_is_refused_by_name(backend, version, monkeypatch, cpu, tmp_path):
    profile = {"format": 1, "settings": context.serving.in_force(context.settings.Settings(), 4), "choice": [1]}
    (tmp_path / "p.json").write_text(
        json.dumps({**profile, "model": {"layers": 4, "heads": 2 * HEADS, "key_dim": DIM, "weights": "a ggml host's"}})
    )
    monkeypatch.setenv("LESSISMORE_PROFILE", str(tmp_path / "p.json"))
    shared = backend.Backend(runner_of(version)).shared
    assert not shared.active and f"heads {2 * HEADS}, here it is {HEADS}" in shared.reason
    stand_in.rank_process(monkeypatch, version, 0, None)
    shared = backend.Backend(runner_of(version, tp_size=2)).shared  # each rank has half of them
    assert shared.active and shared.choice.layers == (1,)
    shared.close()


def test_each_process_of_several_has_its_own_statistics(backend, version, monkeypatch, cpu, tmp_path):
    monkeypatch.setenv("LESSISMORE_LAYERS", "1")
    monkeypatch.setenv("LESSISMORE_STATS", str(tmp_path / "stats"))
    # GPUs: from a first one on, every second one, each process's the only one that it sees (SGLANG_ONE_VISIBLE_DEVICE_PER_PROCESS), of two machines.
    gpus = {"all": lambda i: i, "base": lambda i: 4 + i, "step": lambda i: 2 * i, "one": lambda i: 0, "machines": lambda i: i % 2}
    for tensor, data in ((1, 1), (2, 1), (4, 1), (1, 2), (2, 2)):
        for gpu in gpus.values():
            files = set()
            for number in range(tensor * data):
                monkeypatch.setattr(torch.cuda, "current_device", lambda: gpu(number))
                ranks = dict(tp_rank=number % tensor, dp_rank=None if data == 1 else number // tensor)
                stand_in.rank_process(monkeypatch, version, **ranks)
                shared = backend.Backend(runner_of(version, **ranks, tp_size=tensor, dp_size=data)).shared
                assert shared.active and shared.reporter.rank == number
                files.add(shared.reporter.stats)
                shared.close()
            names = [f"stats.{i}" for i in range(tensor * data)] if tensor * data > 1 else ["stats"]
            assert files == {str(tmp_path / name) for name in names}


def runner_of(version, **more):
    return stand_in.runner(version, [stand_in.RadixAttention(i) for i in range(4)], **more)


def test_a_server_of_several_that_each_think_they_are_alone_has_its_routers_number(backend, version, monkeypatch, cpu, tmp_path):
    """SGLANG_DP_RANK, which SGLang takes for the replica's number."""
    monkeypatch.setenv("LESSISMORE_LAYERS", "1")
    monkeypatch.setenv("LESSISMORE_STATS", str(tmp_path / "stats"))
    stand_in.rank_process(monkeypatch, version, 0, 3)
    shared = backend.Backend(runner_of(version, dp_rank=3)).shared
    assert (shared.reporter.rank, shared.reporter.stats) == (3, str(tmp_path / "stats.3"))


def test_ranks_that_are_kept_elsewhere_have_numbers_of_their_own(backend, version, monkeypatch, cpu, tmp_path, caplog):
    monkeypatch.setenv("LESSISMORE_LAYERS", "1")
    monkeypatch.setenv("LESSISMORE_STATS", str(tmp_path / "stats"))
    monkeypatch.setitem(sys.modules, "sglang.srt.runtime_context", None)
    for tensor in (1, 2):
        runner = runner_of(version, tp_size=tensor)
        for name in ("tp_rank", "dp_rank", "ps"):
            runner.__dict__.pop(name, None)
        shared = backend.Backend(runner).shared
        assert shared.active and shared.reporter.rank == (0 if tensor == 1 else os.getpid())
        assert shared.reporter.stats == str(tmp_path / ("stats" if tensor == 1 else f"stats.{os.getpid()}"))
        assert ("which rank this is is not known" in caplog.text) == (tensor == 2)


# ---- steps ----

of_each_kind = pytest.mark.parametrize("version", KINDS, indirect=True)


class Model:
    """Two layers in the stand-in, opened without a GPU, and steps of any rows."""

    def __init__(self, backend, version, monkeypatch, page_size):
        def open(self, runner, backend):
            self.numbers, self.max_rows, self.capacity = {0: 0, 1: 1}, 4, stand_in.CONTEXT
            self.decoder = stand_in.Object(_use=lambda: 1, stats=lambda: {}, close=lambda: None)

        monkeypatch.setattr(context.Context, "_open", open)
        self.library = Library(HEADS, KV_HEADS, DIM, page_size, stand_in.CONTEXT)
        monkeypatch.setattr(context._library, "library", lambda: stand_in.Object(lim_decoder_attend=self.library))
        self.layers = [stand_in.RadixAttention(i) for i in range(2)]
        self.runner = stand_in.runner(version, self.layers, page_size)
        self.backend, self.page_size = backend.Backend(self.runner), page_size

    def step(self, seen, **more):
        """Both layers' outputs of rows that see so many tokens, and SGLang's own."""
        n, pool = len(seen), self.runner.token_to_kv_pool
        pages = torch.randperm(pool.size // self.page_size)[: n * 256 // self.page_size].view(n, -1).to(torch.int32)
        if more.pop("narrow", False):  # without graphs SGLang's table ends with the longest row
            pages = pages[:, : -(-max(seen) // self.page_size)].contiguous()
        last = torch.tensor(seen) - 1
        loc = pages[torch.arange(n), last // self.page_size].long() * self.page_size + last % self.page_size
        batch = stand_in.Object(spec_info=None, out_cache_loc=loc, pool=pool, token_to_kv_pool=pool)
        batch.__dict__.update(more.pop("batch", {}))
        self.backend.forward_metadata = stand_in.FlashAttentionMetadata(torch.tensor(seen, dtype=torch.int32), pages, more.pop("most", 1))
        got, want = [], []
        for layer in self.layers:
            qkv = torch.randn(n, (HEADS + 2 * KV_HEADS) * DIM, dtype=torch.float16)
            q, k, v = qkv.split([HEADS * DIM, KV_HEADS * DIM, KV_HEADS * DIM], 1)  # rows that are further apart than they are long
            k, v = k.reshape(n, KV_HEADS, DIM), v.reshape(n, KV_HEADS, DIM)
            got.append(self.backend.forward(q, k, v, layer, batch, **more))
            kept = pool.get_kv_buffer(layer.layer_id)
            assert all((a[loc] == b).all() for a, b in zip(kept, (k, v)))  # the new token's are in the store
            want.append(stand_in.FlashAttentionBackend.forward_decode(self.backend, q, k, v, layer, batch, False, **more))
        return torch.stack(got), torch.stack(want)


@pytest.fixture
def model(backend, version, monkeypatch):
    torch.manual_seed(1)
    return Model(backend, version, monkeypatch, 16)


def close(got, want):
    torch.testing.assert_close(got.float(), want.float(), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("page_size", [1, 16])
def test_decode_rows_are_ours(backend, version, monkeypatch, page_size):
    torch.manual_seed(1)
    model = Model(backend, version, monkeypatch, page_size)
    close(*model.step([5, 200, 17]))
    assert model.library.rows == [3, 3] and model.library.layers == [0, 1] and model.backend.calls == 2  # the comparison's
    assert model.runner.token_to_kv_pool.writes == 2


@pytest.mark.parametrize("page_size", [1, 16])
def test_a_table_that_ends_with_the_longest_row_is_ours_too(backend, version, monkeypatch, page_size):
    torch.manual_seed(1)
    model = Model(backend, version, monkeypatch, page_size)
    for seen in ([5, 200, 17], [6, 201, 18], [33], [40, 7]):
        close(*model.step(seen, narrow=True))
    assert model.library.rows == [3, 3, 3, 3, 1, 1, 2, 2] and model.backend.shared.reason is None


@of_each_kind
def test_a_narrow_table_that_is_filled_again_is_read_again(model):
    shared, given = model.backend.shared, torch.zeros(2, 3, dtype=torch.int32)
    wide = shared.table(given, 16)
    assert wide.shape == (2, 256 // 16) and shared.table(given, 16) is wide  # once a step
    given.fill_(7)
    model.backend.init_forward_metadata(None)
    assert (shared.table(given, 16)[:, :3] == 7).all()


@of_each_kind
@pytest.mark.parametrize("page_size", [1, 16])
def test_what_the_gpu_suite_compares_is_told_apart(backend, version, monkeypatch, tmp_path, page_size):
    """tests/gpu/sglang/watch.py, which looks into steps on a GPU: what attends as it should is close, what does not is far."""
    torch.manual_seed(1)
    monkeypatch.setenv("WATCH", str(tmp_path / "watch.json"))
    monkeypatch.setattr(lessismore.sglang, "create", lessismore.sglang.create)
    monkeypatch.syspath_prepend(ROOT / "tests" / "gpu" / "sglang")
    monkeypatch.delitem(sys.modules, "watch", raising=False)
    importlib.import_module("watch").register()
    model = Model(stand_in.Object(Backend=lessismore.sglang.create), version, monkeypatch, page_size)
    sets, shared = {}, model.backend.shared
    shared.settings = stand_in.Object(budget=64)
    shared.choice, shared.decoder.token_set = stand_in.Object(layers=(0,)), lambda row: sets.get(row, np.empty(0, np.int32))
    seen, fresh = [40, 200, 101], random.Random(SEED)
    found = {}
    for named in (True, False):  # whether the library attends to the tokens that it names
        for row, n in enumerate(seen):
            if n > 64:
                sets[row] = np.array(sorted([0, n - 1, *fresh.sample(range(1, n - 1), 62)]), np.int32)
                model.library.sets[1, row] = sets[row] if named else sorted(fresh.sample(range(n), 64))
        for _ in range(8):
            model.step(seen, narrow=True)
        values = json.loads((tmp_path / "watch.json").read_text())
        new = {kind: v[len(found.get(kind, [])) :] for kind, v in values.items()}
        found = values
        assert {kind: len(v) for kind, v in new.items()} == {
            "full": 4,
            "sparse, no measure of right": 2,
            "over the set": 2,
            "sets in order": 2,
            "no set": 1,
        }, SEED
        assert all(error < 4e-3 for error, *_ in new["full"]) and all(good for (good,) in new["sets in order"]), SEED
        assert all((error < 4e-3) == named for error, *_ in new["over the set"]), SEED
        assert all(error > 4e-3 for error, *_ in new["sparse, no measure of right"]), SEED


@of_each_kind
def test_sinks_are_handed_over_as_float32(model):
    sinks = torch.linspace(-1, 3, HEADS, dtype=torch.bfloat16)
    close(*model.step([5, 200], sinks=sinks))
    kept = model.backend.calls_by_layer[0].sinks
    assert kept.dtype == torch.float32 and model.library.rows == [2, 2]
    close(*model.step([6, 201], sinks=sinks * 2))
    assert model.backend.calls_by_layer[0].sinks is kept


@of_each_kind
def test_an_output_that_sglang_gives_is_used(model):
    given = torch.zeros(2, HEADS * DIM, dtype=torch.float16)
    got, _ = model.step([5, 20], batch={"_attn_output": given})
    assert (got[-1] == given).all() and given.abs().sum() > 0


@of_each_kind
@pytest.mark.parametrize("more", [dict(batch={"spec_info": 1}), dict(score_mod=print), dict(most=2)])
def test_what_is_not_plain_decode_is_sglangs(model, more):
    close(*model.step([5, 20], **more))
    assert not model.library.rows and model.runner.token_to_kv_pool.writes == 2


@of_each_kind
def test_too_many_rows_are_sglangs_and_counted(model):
    close(*model.step([5] * 5))
    assert not model.library.rows and model.backend.shared.declined == {"more than 4 rows": 10}


@of_each_kind
def test_what_the_library_refuses_sglang_computes_from_then_on(model):
    model.library.error = DeviceError("no such page")
    close(*model.step([5, 20]))
    assert model.backend.shared.reason == "no such page" and model.runner.token_to_kv_pool.writes == 2  # once a layer, not twice
    model.library.error = None
    close(*model.step([5, 20]))
    assert not model.library.rows


@of_each_kind
def test_steps_are_told_of_before_they_run(model, version):
    ticks = []
    model.backend.shared.reporter = stand_in.Object(tick=lambda: ticks.append(1))
    replay = "init_forward_metadata_replay_cuda_graph" if version == stand_in.FIRST else "init_forward_metadata_out_graph"
    for name in ("init_forward_metadata", replay):
        getattr(model.backend, name)(None)
    assert len(ticks) == 2 and model.backend.prepared == 2


@of_each_kind
def test_statistics_are_written(model, tmp_path, monkeypatch):
    from lessismore.vllm import metrics

    shared = model.backend.shared
    shared.engine = stand_in.Object(report=lambda: {"budget": 7})
    metrics.Reporter(shared, 0, 1, 1.0, str(tmp_path / "stats.json"), "sglang").write()
    found = json.loads((tmp_path / "stats.json").read_text())
    assert found["budget"] == 7 and found["sglang"]["taking_part"] == 2


@of_each_kind
def test_tensors_of_another_shape_are_refused_not_read(model):
    model.layers[0].head_dim, model.layers[0].v_head_dim = 32, 32  # the store has 64
    q = torch.zeros(1, HEADS * 32, dtype=torch.float16)
    call = context.Call(model.backend.shared, model.layers[0], 0)
    keys = torch.zeros(4, 16, KV_HEADS, 64, dtype=torch.float16)
    with pytest.raises(lessismore.ArgumentError, match="keys are"):
        call.run(
            q.view(1, HEADS, 32),
            keys,
            keys,
            torch.ones(1, dtype=torch.int32),
            torch.zeros(1, 4, dtype=torch.int32),
            q.view(1, HEADS, 32),
            None,
        )
    assert not model.library.rows and np.isfinite(model.runner.token_to_kv_pool.size)
