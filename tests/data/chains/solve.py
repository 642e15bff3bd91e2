#!/usr/bin/env python3
"""Problems of problems.py in llama-cpp-python, with the adapter: a JSON line for each.

python3 solve.py model.gguf adapter.gguf --tokens 4096 --problems 40                        the host's own attention
python3 solve.py model.gguf adapter.gguf --tokens 4096 --problems 40 --budget 1024          LessIsMore, its layers found or --layers

Families take turns. Problem i of seed s is the same one whatever else is asked for.
"""

from __future__ import annotations

import argparse
import json
import random
import time

import llama_cpp
from problems import END_ID, FAMILIES, Problem, draw, first_wrong


def problem_of(seed: int, i: int, tokens: int) -> Problem:
    return draw(random.Random(f"{seed} {tokens} {i}"), tokens, list(FAMILIES)[i % len(FAMILIES)])


def solve(llm: llama_cpp.Llama, problem: Problem, stop: bool) -> dict:
    """What greedy decoding writes; stop: no further than the first wrong token, which a control has early."""
    prompt = llm.tokenize(problem.prompt.encode(), add_bos=False, special=True)
    chain = [*llm.tokenize(problem.chain.encode(), add_bos=False, special=False), END_ID]
    start, written = time.monotonic(), []
    llm.reset()
    for token in llm.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0):
        written.append(token)
        # A chain that went astray may go on for a while.
        if token == END_ID or len(written) >= len(chain) + len(chain) // 8 or stop and written != chain[: len(written)]:
            break
    text = llm.detokenize(written[:-1] if written[-1] == END_ID else written, special=True).decode(errors="replace")
    return {
        "family": problem.family,
        "exact": written == chain,
        "first_wrong": first_wrong(problem, text),
        "answer": text.rsplit("\n", 1)[-1] == problem.answer,
        "prompt": len(prompt),
        "wanted": len(chain),
        "written": len(written),
        "seconds": round(time.monotonic() - start, 1),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("adapter")
    parser.add_argument("--tokens", type=int, default=1024, help="of a problem, question and chain")
    parser.add_argument("--problems", type=int, default=5)
    parser.add_argument("--begin", type=int, default=0, help="the first problem's number")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--budget", type=int, help="without it, and without --quality, the host is alone")
    parser.add_argument(
        "--quality", type=float, help="nats a token that may be lost: it chooses the layers, and the budget where none is given"
    )
    parser.add_argument("--layers", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--stats", help="the library's counters")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--stop", action="store_true", help="at the first wrong token")
    args = parser.parse_args()
    if args.budget or args.quality:
        import lessismore.llama_cpp

        lessismore.llama_cpp.enable(budget=args.budget, layers=args.layers, quality=args.quality, stats=args.stats)
    threads = {"n_threads": args.threads, "n_threads_batch": args.threads}
    llm = llama_cpp.Llama(args.model, lora_path=args.adapter, n_ctx=args.tokens * 5 // 4 + 256, flash_attn=True, verbose=False, **threads)
    for i in range(args.begin, args.begin + args.problems):
        print(json.dumps({"problem": i, **solve(llm, problem_of(args.seed, i, args.tokens), args.stop)}), flush=True)
    llm.close()


if __name__ == "__main__":
    main()
