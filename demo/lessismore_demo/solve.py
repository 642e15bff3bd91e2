"""The process behind the problems: a job as JSON on standard input, tokens as JSON lines on standard output.

{"model", "prompts": [[id, …], …], "lengths": [n, …], "enable": arguments or absent}; {"prompt": i, "token": id}
"""

import json
import os
import sys

from lessismore.cli import _llama


def main() -> None:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever the host prints goes elsewhere
    job = json.load(sys.stdin)
    llama_cpp = _llama.host()
    _llama.quiet()
    if "enable" in job:
        import lessismore.llama_cpp

        lessismore.llama_cpp.enable(**job["enable"])
    llm = llama_cpp.Llama(job["model"], n_ctx=2048, n_threads=1, n_threads_batch=1, flash_attn=True, verbose=False)
    for i, (prompt, length) in enumerate(zip(job["prompts"], job["lengths"])):
        llm.reset()
        for count, token in enumerate(llm.generate(prompt, temp=0.0), 1):
            print(json.dumps({"prompt": i, "token": int(token)}), file=out)
            if count == length:
                break
    llm.close()


if __name__ == "__main__":
    main()
