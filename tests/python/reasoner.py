"""The reasoner (tests/data/reasoner): problems as torch batches."""

import dataclasses
import pathlib
import random
import sys

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "data" / "reasoner"
sys.path.insert(0, str(FOLDER))
import task  # noqa: E402
import to_gguf  # noqa: E402

GGUF = to_gguf.path()
STEPS = task.steps_for(2048)
BUDGET, LAYERS = 128, [2, 9]


@dataclasses.dataclass(frozen=True)
class Problem:
    prompt: str
    solution: str

    @property
    def tokens(self):
        return [task.BOS, *task.encode(self.prompt)]


def problems(count, steps=STEPS):
    return [Problem(*task.problem(random.Random(seed), steps)) for seed in range(1, count + 1)]


def batch(problems, padding=None):
    """Prompts padded on the left, some by more than they need: (input_ids, attention_mask)."""
    import torch

    rows = [p.tokens for p in problems]
    extra = padding or [0] * len(rows)
    width = max(len(row) + more for row, more in zip(rows, extra))
    ids = torch.tensor([[task.PAD] * (width - len(row)) + row for row in rows])
    return ids, (ids != task.PAD).long()


def texts(problems, ids, output):
    return [task.decode(row[ids.shape[1] :].tolist()) for row in output]
