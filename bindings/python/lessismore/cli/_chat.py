"""The process behind `lessismore run`: prompts in, tokens out, and a file that says how long it took."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Iterable, Iterator, Optional

from . import _llama


class Talk:
    """A model that answers, and the time that it took."""

    def __init__(self, job: dict[str, Any]) -> None:
        llama_cpp = _llama.host()
        _llama.quiet()
        if "enable" in job:
            from .. import llama_cpp as ours

            ours.enable(**job["enable"])
        n = job["threads"]
        self.llm = llama_cpp.Llama(job["model"], n_ctx=job["context"], n_threads=n, n_threads_batch=n, flash_attn=True, verbose=False)
        self.job = job
        self.text = ""
        self.tokens = self.prompt_tokens = 0
        self.seconds = self.prompt_seconds = 0.0

    def all(self) -> None:
        job = self.job
        sampling = {"max_tokens": job["tokens"], "temperature": job["temperature"], "stream": True}
        if not job["chat"]:
            prompt = sys.stdin.read() if job["prompt"] is None else job["prompt"]
            self.one(self.llm.create_completion(prompt, **sampling))
            return
        messages = [{"role": "system", "content": job["system"]}] if job["system"] else []
        for line in [job["prompt"]] if job["prompt"] is not None else lines():
            messages.append({"role": "user", "content": line})
            before = len(self.text)
            self.one(self.llm.create_chat_completion(messages, **sampling))
            messages.append({"role": "assistant", "content": self.text[before:]})

    def one(self, chunks: Iterable[Any]) -> None:
        """One answer, streamed."""
        start = time.perf_counter()
        first: Optional[float] = None
        known = 0
        try:
            for chunk in chunks:
                choice = chunk["choices"][0]
                text = choice.get("text") or choice.get("delta", {}).get("content") or ""
                if text and first is None:  # the first token comes right after the prompt
                    first, known = time.perf_counter(), self.llm.n_tokens
                self.text += text
                if not self.job["json"]:
                    print(text, end="", flush=True)
        finally:
            if not self.job["json"]:
                print(flush=True)
            if first is not None:
                self.prompt_tokens += known
                self.prompt_seconds += first - start
                self.tokens += self.llm.n_tokens - known
                self.seconds += time.perf_counter() - first

    def result(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "prompt_tokens": self.prompt_tokens,
            "prompt_seconds": self.prompt_seconds,
            "decoded_tokens": self.tokens,
            "decode_seconds": self.seconds,
            "context": self.job["context"],
            "threads": self.job["threads"],
        }


def lines() -> Iterator[str]:
    """A conversation's lines, until the end of standard input."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def main() -> None:
    job = json.loads(sys.argv[1])
    try:
        talk = Talk(job)
        try:
            talk.all()
        except KeyboardInterrupt:
            pass
        result = talk.result()
        talk.llm.close()
    except Exception as e:  # told in one line by the process that waits
        result = {"error": str(e).split("\n")[0] or type(e).__name__}
    with open(job["result"], "w") as f:
        json.dump(result, f)


if __name__ == "__main__":
    main()
