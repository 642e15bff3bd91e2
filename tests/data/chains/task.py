"""The problems as a task of `lessismore compare`, in the folder of merge.py: --steps are tokens of a problem, question and chain."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path

from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
SPARE = 40  # tokens of the chat's marks, and of what a problem may be longer than asked for


def _problems():
    found = importlib.util.spec_from_file_location("chains_problems", HERE / "problems.py")
    module = sys.modules[found.name] = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


problems = _problems()
tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))


def steps_for(tokens: int) -> int:
    return min(tokens, 7168)


def tokens(rng: random.Random, size: int) -> tuple[list[int], list[int], list[int]]:
    """A problem's prompt, its chain and of each of the chain's tokens the line."""
    problem = problems.draw(rng, size - SPARE)
    prompt = encode(problem.prompt)
    chain = tokenizer.encode(problem.chain, add_special_tokens=False)
    line = [problem.chain.count("\n", 0, start) for start, _ in chain.offsets]
    return prompt, [*chain.ids, problems.END_ID], [*line, line[-1]]


def encode(text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids
