"""Decodes problems in llama-cpp-python: a JSON job on standard input, JSON lines out.

{"model", "problems": [[prompt, solution], ...], "cap", "enable": arguments or absent, "free"}. Each problem has a context
of its own and is answered by {"right": [1 or 0 for each token of the solution, written behind those before it]}, or,
where "free" is true, by {"length", "ended"}: what greedy decoding by itself comes to.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np

from ..cli._worker import BLOCK, Context


class Decoder:
    """One problem in a context."""

    def __init__(self, job: dict[str, Any], prompt: list[int]) -> None:
        total = len(prompt) + job["cap"]
        more = {"enable": job["enable"]} if "enable" in job else {}
        settings = {"context": max(1, total - 2 * BLOCK), "threads": 1, "kv": "f16", "flash": True}
        self.context = Context({"model": job["model"], **settings, **more})
        for start in range(0, len(prompt), BLOCK):
            self.context.decode(prompt[start : start + BLOCK], start, 0)
        self.position = len(prompt)

    def said(self) -> int:
        """The most likely next token."""
        logits = self.context.c.llama_get_logits_ith(self.context.ctx, -1)
        return int(np.ctypeslib.as_array(logits, (self.context.vocabulary,)).argmax())

    def write(self, token: int) -> None:
        self.context.decode([token], self.position, 0)
        self.position += 1


def forced(decoder: Decoder, solution: list[int]) -> dict[str, Any]:
    right = [int(decoder.said() == solution[0])]
    for token, following in zip(solution, solution[1:]):
        decoder.write(token)
        right.append(int(decoder.said() == following))
    return {"right": right}


def free(decoder: Decoder, end: int, cap: int) -> dict[str, Any]:
    length = 0
    while (token := decoder.said()) != end and length < cap:
        decoder.write(token)
        length += 1
    return {"length": length, "ended": token == end}


def main() -> None:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever the host prints goes elsewhere
    job = json.loads(sys.stdin.read())
    for prompt, solution in job["problems"]:
        decoder = Decoder(job, prompt)
        answer = free(decoder, solution[-1], job["cap"]) if job["free"] else forced(decoder, solution)
        decoder.context.free()
        print(json.dumps(answer), file=out)


if __name__ == "__main__":
    main()
