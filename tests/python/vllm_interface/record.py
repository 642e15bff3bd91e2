#!/usr/bin/env python3
"""Records what lessismore.vllm relies on in vLLM's wheels: classes, fields, methods and their parameters, read from the source.

    pip download --no-deps --only-binary=:all: --python-version=3.12 --platform=manylinux_2_28_x86_64 -d DIR vllm==0.26.0
    python3 record.py DIR/vllm-*.whl        writes VERSION.json beside this file for each

A wheel is 300 MB and needs torch and a hundred packages to be imported; what is recorded here is a few kilobytes, and test_vllm.py
holds the package to it.
"""

import ast
import json
import pathlib
import re
import sys
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
MODULES = {  # file of the wheel: the names that are recorded
    "vllm/v1/attention/backend.py": [
        "CommonAttentionMetadata",
        "AttentionCGSupport",
        "AttentionMetadataBuilder",
        "AttentionImplBase",
        "AttentionImpl",
        "AttentionBackend",
        "AttentionLayer",
        "AttentionType",
    ],
    "vllm/v1/attention/backends/flash_attn.py": [
        "FlashAttentionBackend",
        "FlashAttentionMetadata",
        "FlashAttentionMetadataBuilder",
        "FlashAttentionImpl",
    ],
    "vllm/v1/attention/backends/registry.py": ["AttentionBackendEnum", "register_backend"],
    "vllm/model_executor/layers/attention/attention.py": ["Attention"],
    "vllm/config/vllm.py": ["VllmConfig", "get_current_vllm_config"],
    "vllm/config/parallel.py": ["ParallelConfig"],
    "vllm/config/cache.py": ["CacheConfig"],
    "vllm/config/scheduler.py": ["SchedulerConfig"],
    "vllm/config/model.py": ["ModelConfig"],
    "vllm/config/speculative.py": ["SpeculativeConfig"],
    "vllm/config/compilation.py": ["CompilationConfig", "CUDAGraphMode"],
    "vllm/v1/metrics/prometheus.py": ["get_prometheus_registry"],
    "vllm/plugins/__init__.py": ["DEFAULT_PLUGINS_GROUP", "load_general_plugins"],
}


def parameters(function):
    a = function.args
    names = [x.arg for x in a.posonlyargs + a.args]
    return names + ([f"*{a.vararg.arg}"] if a.vararg else []) + [x.arg for x in a.kwonlyargs] + ([f"**{a.kwarg.arg}"] if a.kwarg else [])


def about(node):
    """A class: fields, methods with their parameters, what methods set on self. A function: its parameters."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return {"parameters": parameters(node)}
    if not isinstance(node, ast.ClassDef):
        return {}
    found = {"bases": [ast.unparse(b) for b in node.bases], "fields": [], "methods": {}, "sets": []}
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            found["fields"].append(item.target.id)
        elif isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name):
            found["fields"].append(item.targets[0].id)
            if isinstance(item.value, ast.Constant) and isinstance(item.value.value, str):
                found.setdefault("texts", {})[item.targets[0].id] = item.value.value
        elif isinstance(item, ast.FunctionDef):
            found["methods"][item.name] = parameters(item)
            for part in ast.walk(item):
                targets = part.targets if isinstance(part, ast.Assign) else [part.target] if isinstance(part, ast.AnnAssign) else []
                found["sets"] += [
                    t.attr for t in targets if isinstance(t, ast.Attribute) and isinstance(t.value, ast.Name) and t.value.id == "self"
                ]
    found["sets"] = sorted(set(found["sets"]))
    return found


def named(source, names):
    """What about() tells of those classes, functions and constants of a module, by name."""
    found = {}
    for node in ast.parse(source).body:
        name = getattr(node, "name", None) or (
            node.targets[0].id if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) else None
        )
        if name in names:
            found[name] = about(node)
    return found


def record(wheel):
    version = re.match(r"vllm-([\d.]+(?:post\d+)?)", wheel.name)[1]
    found = {"version": version, "modules": {}}
    with zipfile.ZipFile(wheel) as z:
        for path, names in MODULES.items():
            found["modules"][path] = named(z.read(path), names)
    return found


def main(record, folder):
    """Writes VERSION.json into the folder for each wheel that the command line names."""
    for argument in sys.argv[1:]:
        recorded = record(pathlib.Path(argument))
        path = folder / f"{recorded['version']}.json"
        path.write_text(json.dumps(recorded, sort_keys=True) + "\n")
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main(record, HERE)
