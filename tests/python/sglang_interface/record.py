#!/usr/bin/env python3
"""Records what lessismore.sglang relies on in SGLang's wheels: classes, fields, methods and their parameters, read from the source.

pip download --no-deps --only-binary=:all: --python-version=3.12 --platform=manylinux_2_34_x86_64 -d DIR sglang==0.5.23
python3 record.py DIR/sglang-*.whl        writes VERSION.json beside this file for each
"""

import ast
import pathlib
import re
import sys
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "vllm_interface"))
sys.modules.pop("record", None)
import record as vllm  # noqa: E402

SRT = "sglang/srt/"
MODULES = {  # file of the wheel: the names that are recorded
    "layers/attention/attention_registry.py": ["ATTENTION_BACKENDS", "register_attention_backend"],
    "layers/attention/base_attn_backend.py": ["AttentionBackend"],
    "layers/attention/flashattention_backend.py": ["FlashAttentionMetadata", "FlashAttentionBackend"],
    "layers/radix_attention.py": ["RadixAttention", "AttentionType"],
    "mem_cache/memory_pool.py": ["KVCache", "MHATokenToKVPool", "ReqToTokenPool", "KVWriteLoc"],
    "model_executor/forward_batch_info.py": ["ForwardBatch"],
    "model_executor/model_runner.py": ["ModelRunner"],
    "configs/model_config.py": ["ModelConfig"],
    "plugins/__init__.py": ["GENERAL_PLUGINS_GROUP", "load_plugins"],
    "distributed/parallel_state_wrapper.py": ["ParallelState"],
    "runtime_context.py": ["get_parallel"],
}


def record(wheel):
    version = re.match(r"sglang-([\d.]+(?:post\d+)?)", wheel.name)[1]
    found = {"version": version, "modules": {}, "arguments": [], "names": []}
    with zipfile.ZipFile(wheel) as z:
        names = set(z.namelist())
        for path, wanted in MODULES.items():
            if SRT + path in names:  # the last two came and went
                found["modules"][path] = vllm.named(z.read(SRT + path), wanted)
        for path in sorted(names):  # ServerArgs, which later versions spread over files
            if path == SRT + "server_args.py" or re.fullmatch(SRT + r"arg_groups/fields/\w+\.py", path):
                for node in ast.parse(z.read(path)).body:
                    if isinstance(node, ast.ClassDef):
                        found["arguments"] += vllm.about(node)["fields"]
        text = z.read(SRT + "server_args.py").decode()
        found["names"] += [n for n in ("ATTENTION_BACKEND_CHOICES", "add_attention_backend_choices") if re.search(rf"\b{n}\b", text)]
        flash = ast.parse(z.read(SRT + "layers/attention/flashattention_backend.py"))
        found["imports"] = sorted(
            {a.name for n in ast.walk(flash) if isinstance(n, ast.ImportFrom) for a in n.names if a.name == "KVWriteLoc"}
        )
        found["for_layer"] = any("def for_layer" in z.read(p).decode() for p in names if p.startswith(SRT + "mem_cache/") and p.endswith(".py")
                                 and "class KVWriteLoc" in z.read(p).decode())  # fmt: skip
        decode = next(f for c in flash.body if isinstance(c, ast.ClassDef) and c.name == "FlashAttentionBackend" for f in c.body
                      if isinstance(f, ast.FunctionDef) and f.name == "forward_decode")  # fmt: skip
        found["reads"] = sorted(
            {
                ast.unparse(n)
                for n in ast.walk(decode)
                if isinstance(n, ast.Attribute) and re.match(r"(metadata|layer|forward_batch|self)\.\w+$", ast.unparse(n))
            }
        )
        found["page_table"] = "page_table = metadata.page_table" in ast.unparse(
            decode
        ) and "cache_seqlens = metadata.cache_seqlens_int32" in ast.unparse(decode)
        text = "".join(z.read(p).decode() for p in names if p.startswith(SRT + "model_executor/") and p.endswith(".py"))
        found["pools"] = [n for n in ("token_to_kv_pool", "req_to_token_pool") if f"self.{n} = " in text]  # in a mixin, at first
        runner, scheduler = z.read(SRT + "model_executor/model_runner.py").decode(), z.read(SRT + "managers/scheduler.py").decode()
        context = z.read(SRT + "runtime_context.py").decode() if SRT + "runtime_context.py" in names else ""
        found["ranks"] = {  # of a process: in the process's context, and in its title
            "context": "get_parallel().tp_rank" in runner and 'placement["dp_rank"] = ranks.dp_rank' in context,
            "title": 'prefix += f" DP{dp_rank}"' in scheduler and "f\"sglang::scheduler{prefix.replace(' ', '_')}\"" in scheduler,
        }
        found["launch"] = "load_plugins()" in z.read("sglang/launch_server.py").decode()
    found["arguments"] = sorted(set(found["arguments"]))
    return found


if __name__ == "__main__":
    vllm.main(record, HERE)
