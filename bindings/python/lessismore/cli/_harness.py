"""EleutherAI's lm-evaluation-harness around one model in transformers, with full attention and with the library."""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
import logging
import os
import time
from typing import Any, Optional

from . import _sequence


@dataclasses.dataclass
class Run:
    """One answer to each problem of a task."""

    metric: str
    right: dict[str, list[float]]  # by the way in which answers are read: of each problem
    generated: list[int]  # tokens of each answer
    seconds: float
    visible: int = 0
    attended: int = 0
    layers: Optional[list[int]] = None


class Harness:
    """Tasks, and a model's weights. Raises ImportError, and ValueError for tasks that are not there or generate nothing."""

    def __init__(self, model: str, tasks: list[str], include: Optional[str]) -> None:
        _sequence.transformers()
        try:
            import lm_eval
            from lm_eval.models import huggingface  # noqa: F401
            from lm_eval.tasks import TaskManager
        except ImportError as e:
            raise ImportError(f'EleutherAI\'s harness is needed for this: pip install "lm-eval[hf]" ({e})') from e
        if os.path.isfile(model):
            raise ValueError(f"{model} is a file: the harness reads folders of transformers models, and their names")
        if include is not None and not os.path.isdir(include):
            raise ValueError(f"--include {include}: there is no such folder")
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self._lm_eval, self._path = lm_eval, model
        self._manager = TaskManager(include_path=include)
        for task in tasks:
            if task not in self._manager.all_tasks:
                raise ValueError(f"--tasks {task}: the harness has no task of this name; --include names a folder with tasks of one's own")

    @staticmethod
    def versions() -> str:
        return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("lm-eval", "transformers", "torch"))

    def load(self, dtype: str, device: Optional[str], threads: int, batch: int) -> None:
        """Raises what transformers does."""
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.batch = batch
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(self._path)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(self._path, dtype=dtype, attn_implementation=_sequence.STOCK)
        self.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()

    def attention(self, budget: Optional[int], settings: dict[str, Any]) -> Attention:
        """The model, with transformers' own attention or with a budget. Raises what the library refuses."""
        from .. import transformers as ours

        # Modules of its own, since the library knows layers by them, around the same weights.
        shared = {id(tensor): tensor for tensor in [*self.model.parameters(), *self.model.buffers()]}
        model = copy.deepcopy(self.model, shared)
        if budget is not None:
            name = f"lessismore-eval-{budget}"
            ours.register(name, **{**settings, "budget": budget})
            model.set_attn_implementation(name)
            ours.check(model)
        return Attention(self, model, budget is not None)

    def evaluate(self, served: Any, task: str, **more: Any) -> dict[str, Any]:
        """What the harness says. Raises ValueError for a task whose problems cannot be had, or that generates nothing."""
        try:
            loaded = self._manager.load([task])["tasks"]
        except Exception as e:  # of a kind and a length that depend on the task's
            raise ValueError(f"--tasks {task}: its problems cannot be had: {str(e).strip().splitlines()[0]}") from None
        if idle := [name for name, of in loaded.items() if of.OUTPUT_TYPE != "generate_until"]:
            raise ValueError(f"--tasks {task}: {idle[0]} generates no text: there is nothing to decode")
        found: dict[str, Any] = self._lm_eval.simple_evaluate(
            model=served, tasks=[task], task_manager=self._manager, log_samples=True, bootstrap_iters=0, **more
        )
        return found


class Attention:
    """A model with one attention, as the harness sees it."""

    def __init__(self, harness: Harness, model: Any, ours: bool) -> None:
        from lm_eval.models.huggingface import HFLM

        self._harness, self._model, self._ours = harness, model, ours
        self._generated: list[int] = []
        self._ends = self._ending(harness.tokenizer, model)
        self._generate = model.generate
        model.generate = self._counted
        self._served = HFLM(pretrained=model, tokenizer=harness.tokenizer, batch_size=harness.batch)

    @staticmethod
    def _ending(tokenizer: Any, model: Any) -> set[int]:
        ends = model.generation_config.eos_token_id
        return {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}

    def _counted(self, input_ids: Any, **more: Any) -> Any:
        """What model.generate() is for the harness."""
        out = self._generate(input_ids=input_ids, **more)
        for row in out[:, input_ids.shape[1] :].tolist():
            end = next((i + 1 for i, token in enumerate(row) if token in self._ends), len(row))
            while end and row[end - 1] == more.get("pad_token_id") and row[end - 1] not in self._ends:
                end -= 1
            self._generated.append(end)
        return out

    def _counts(self) -> tuple[int, int, Optional[list[int]]]:
        from .. import transformers as ours
        from .._errors import Error

        try:
            found = ours.stats(self._model) if self._ours else {}
        except Error:  # it has not been called yet
            found = {}
        return found.get("tokens_visible", 0), found.get("tokens_attended", 0), found.get("selection_layers")

    def answers(self, task: str, limit: Optional[int], seed: int, generation: dict[str, Any], chat: bool) -> Run:
        """One answer to each problem."""
        self._generated, start = [], time.monotonic()
        visible, attended, _ = self._counts()
        seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), seed)
        more = {"limit": limit, "gen_kwargs": dict(generation), "apply_chat_template": chat, **seeds}
        found = self._harness.evaluate(self._served, task, **more)
        seconds = time.monotonic() - start
        right: dict[str, dict[tuple[str, int], float]] = {}
        metric = ""
        for name, samples in found["samples"].items():
            for sample in samples:
                metric = sample["metrics"][0]
                right.setdefault(sample["filter"], {})[name, sample["doc_id"]] = float(sample[metric])
        after = self._counts()
        return Run(
            metric,
            {name: [of[key] for key in sorted(of)] for name, of in right.items()},
            self._generated,
            seconds,
            after[0] - visible,
            after[1] - attended,
            after[2],
        )
