"""Driver for llama-server with its default options: conversations come, go on, fork, end and come back, at random.

Job: {"server": path, "model", "seed", "operations", "kv": type of K, "threads"}
Each operation is some requests at once; each request is a part of a problem's one solution. Emitted for each:

    {"turn": number, "what": operation, "exact": whether the answer is that part of the solution, "tokens": how many}

and of an answer that is not exact also "asked", the arguments of method.solves(), "wrong", the first wrong token, and
"error".

The requests follow from the seed alone, so runs with and without the library can be compared turn by turn.
"""

import json
import random
import sys
import tempfile
import threading
from pathlib import Path

import protocol
import server

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "data" / "reasoner"))
import task  # noqa: E402

CONTEXT = 2048  # of all slots together; far more tokens than this are in play
CONVERSATIONS = 7  # more than the server has slots: the rest is in its host-memory cache
WEIGHTS = {"go on": 30, "begin": 10, "together": 25, "rewind": 8, "fork": 12, "erase": 8, "shift": 4}


class Conversation:
    def __init__(self, rng, steps):
        prompt, solution = task.problem(rng, steps)
        self.prompt = [task.BOS, *task.encode(prompt)]
        self.solution, self.done = task.encode(solution), 0

    def part(self, length):
        """The next request: text so far, and what has to come."""
        want = self.solution[self.done : self.done + length]
        return self.prompt + self.solution[: self.done], want

    @property
    def left(self):
        return len(self.solution) - self.done


class Soak:
    def __init__(self, port, seed, operations):
        self.port, self.rng, self.operations = port, random.Random(seed), operations
        self.live, self.turns = [], 0

    def run(self):
        names, weights = list(WEIGHTS), list(WEIGHTS.values())
        for _ in range(self.operations):
            what = self.rng.choices(names, weights)[0]
            if len(self.live) < 3 and what != "erase":
                what = "begin"
            requests = getattr(self, "op_" + what.replace(" ", "_"))()
            self.ask(what, requests)
            self.live = [c for c in self.live if c.left > 0]

    def ask(self, what, requests):
        """Sends requests (conversation, length, slot, options) at once and checks the answers."""

        def send(turn, prompt, want, slot, options):
            body = {
                "prompt": prompt,
                "n_predict": len(want),
                "temperature": 0.0,
                "top_k": 1,
                "id_slot": slot,
                "return_tokens": True,
                "ignore_eos": True,
                **options,
            }
            response = server.request(self.port, "POST", "/completion", body)
            answer = json.loads(response.read())
            got = answer.get("tokens", [])
            told = {"turn": turn, "what": what, "exact": got == want, "tokens": len(want)}
            if got != want:
                asked = {"prompt": prompt, "want": want, "context": CONTEXT}
                told["asked"] = asked | {"keep": options.get("n_keep", 0), "discard": options.get("n_discard", 0)}
                told |= {"wrong": next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), len(got)), "error": answer.get("error")}
            protocol.emit(**told)

        threads = []
        for conversation, length, slot, options in requests:
            prompt, want = conversation.part(length)
            threads.append(threading.Thread(target=send, args=(self.turns, prompt, want, slot, options)))
            self.turns += 1
        for conversation, length, _, _ in requests:
            conversation.done = min(conversation.done + length, len(conversation.solution))
        for t in threads:
            t.start()
        for t in threads:
            t.join()

    def some(self, count=1):
        return self.rng.sample(self.live, min(count, len(self.live)))

    def length(self):
        return self.rng.randint(4, 20)

    def op_begin(self):
        if len(self.live) >= CONVERSATIONS:
            self.live.remove(self.rng.choice(self.live))
        self.live.append(Conversation(self.rng, self.rng.randint(10, 14)))
        return [(self.live[-1], self.length(), -1, {})]

    def op_go_on(self):
        return [(c, self.length(), -1, {}) for c in self.some()]

    def op_together(self):
        return [(c, self.length(), -1, {}) for c in self.some(self.rng.randint(2, 4))]

    def op_rewind(self):
        c = self.some()[0]
        c.done = self.rng.randint(0, c.done)
        return [(c, self.length(), -1, {})]

    def op_fork(self):
        """The same text goes on in two slots at once; one of them gets further."""
        c, (a, b), length = self.some()[0], self.rng.sample(range(4), 2), self.length()
        twin = object.__new__(Conversation)
        twin.__dict__.update(c.__dict__)
        return [(c, length, a, {}), (twin, length + self.rng.randint(0, 12), b, {})]

    def op_erase(self):
        server.request(self.port, "POST", f"/slots/{self.rng.randrange(4)}?action=erase", {}).read()
        return []

    def op_shift(self):
        """A long text comes to the context's end: definitions at its beginning that nothing needs are dropped."""
        c = Conversation(self.rng, 59)
        names = self.rng.sample(task.NAMES, 60)
        chaff = "".join(f";{x}:{self.rng.randrange(10)}" for x in names if x not in task.decode(c.prompt))
        c.prompt[1:1] = task.encode(chaff)
        c.done = CONTEXT - self.rng.randint(4, 20) - len(c.prompt)
        return [(c, 50, -1, {"n_keep": 1, "n_discard": self.rng.randint(10, len(chaff) // 5 - 2) * 5})]


def main():
    job = protocol.job()
    with tempfile.TemporaryDirectory(prefix="lessismore-slots-") as slots:
        arguments = ["-c", str(CONTEXT), "-ctk", job["kv"], "-fa", "on", "--context-shift", "--slot-save-path", slots]
        process, port = server.start({**job, "defaults": True, "arguments": arguments})
        try:
            Soak(port, job["seed"], job["operations"]).run()
        finally:
            code = server.stop(process)
    protocol.emit(exit=code)


if __name__ == "__main__":
    main()
