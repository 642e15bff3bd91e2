"""A plug-in of SGLang for these tests, for NO_DSL=1 where CUTLASS's Python DSL is not installed: SGLang's backend of two attentions imports a module of
kernels in it, for models with an indexer of their own. Here that module is empty: its names are there, and calling one is an error."""

import importlib.util
import os
import sys
import types

NAME = "sglang.jit_kernel.dsa.cutedsl_paged_mqa_logits"


def missing(*args, **kwargs):
    raise NotImplementedError(f"{NAME} needs nvidia-cutlass-dsl")


def register():
    if os.environ.get("NO_DSL") and importlib.util.find_spec("cutlass") is None and NAME not in sys.modules:
        module = types.ModuleType(NAME)
        module.CuteDSLPagedMQALogitsRunner = module.pick_dsl_expand = missing
        sys.modules[NAME] = module
