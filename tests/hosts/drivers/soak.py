"""Driver for llama-server: conversations come, go on, fork, end and come back, at random.

Job: {"server": path, "model", "seed", "operations" or "seconds", "kv": type of K and V, "threads",
      "slots": 0 for the server's own default, "unified", "workers", "adapters": {name: path}, "exchanges": {name: {token: token}},
      "pooling": "mean", "rank" or none, "arguments"}

Each operation is some requests at once; each request is a part of a problem's one solution. Emitted for each:

    {"turn": [worker, number], "what": operation, "exact": whether the answer is that part of the solution, "tokens": how many}

and of an answer that is not exact also "asked", the arguments of method.solves(), "wrong", the first wrong token, and
"error". What the server refuses (no room to restore a conversation into) is {"refused": operation, "error"}.

A worker's requests follow from the seed and its number alone, so runs with and without the library can be compared turn by turn.
Workers run side by side, so that slots are full; one alone waits for each operation's end.
"""

import json
import math
import os
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

import protocol
import server

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "data" / "reasoner"))
import task

WHOLE = 2048  # context of a server with its own number of slots, of all slots together; far more tokens than this are in play
PART = 768  # context of a slot otherwise
REUSED = 16  # tokens that a piece of an old prompt must have to be moved to its place in a new one
WEIGHTS = {
    "go on": 30,
    "begin": 10,
    "together": 25,
    "rush": 6,
    "rewind": 8,
    "fork": 12,
    "copies": 6,
    "cancel": 10,
    "erase": 8,
    "save": 8,
    "restore": 8,
    "shift": 4,
    "reuse": 4,
    "embed": 6,
}
SAMPLED = 2.0  # seconds from one look at the server's process to the next


class Conversation:
    def __init__(self, rng, steps, adapter=None):
        prompt, solution = task.problem(rng, steps)
        self.prompt = [task.BOS, *task.encode(prompt)]
        self.solution, self.done, self.adapter = task.encode(solution), 0, adapter

    def part(self, length):
        """The next request: text so far, and what has to come."""
        want = self.solution[self.done : self.done + length]
        return self.prompt + self.solution[: self.done], want

    def twin(self):
        other = object.__new__(Conversation)
        other.__dict__.update(self.__dict__)
        return other

    @property
    def left(self):
        return len(self.solution) - self.done


class Soak:
    def __init__(self, port, job, worker, slots, context):
        self.port, self.worker, self.slots, self.context = port, worker, slots, context
        self.rng = random.Random(f"{job['seed']} {worker}")
        self.adapters = list(job.get("adapters", {}))
        self.exchanges = {name: {int(a): b for a, b in pairs.items()} for name, pairs in job.get("exchanges", {}).items()}
        self.pooling, self.most = job.get("pooling"), (7 if job.get("workers", 1) == 1 else 3)
        self.anywhere = job.get("workers", 1) > 1
        self.weights = {name: weight for name, weight in WEIGHTS.items() if name not in job.get("without", [])}
        self.live, self.saved, self.turns, self.vectors = [], {}, 0, {}
        if slots > 4 and job.get("workers", 1) == 1:
            self.most = slots + 3  # more than the server has slots: the rest is in its host-memory cache

    def run(self, operations, until):
        names, weights = list(self.weights), list(self.weights.values())
        done = 0
        while done < operations and time.monotonic() < until:
            what = self.rng.choices(names, weights)[0]
            if len(self.live) < 3 and what not in ("erase", "embed"):
                what = "begin"
            requests = getattr(self, "op_" + what.replace(" ", "_"))()
            self.ask(what, requests)
            self.live = [c for c in self.live if c.left > 0]
            done += 1
        return done

    def post(self, path, body):
        response = server.request(self.port, "POST", path, body)
        return json.loads(response.read())

    def body(self, conversation, prompt, length, slot, options):
        if self.anywhere:
            slot = -1
        other = self.exchanges.get(conversation.adapter, {})
        body = {
            "prompt": [other.get(t, t) for t in prompt],
            "n_predict": length,
            "temperature": 0.0,
            "top_k": 1,
            "id_slot": slot,
            "return_tokens": True,
            "ignore_eos": True,
            **options,
        }
        if self.adapters:
            body["lora"] = [{"id": i, "scale": float(name == conversation.adapter)} for i, name in enumerate(self.adapters)]
        return body

    def tokens(self, conversation, answer):
        other = self.exchanges.get(conversation.adapter, {})  # pairs: it is its own inverse
        return [other.get(t, t) for t in answer.get("tokens", [])]

    def check(self, turn, what, conversation, prompt, want, options, answer):
        got = self.tokens(conversation, answer)
        told = {"turn": [self.worker, turn], "what": what, "exact": got == want, "tokens": len(want)}
        if got != want:
            asked = {"prompt": prompt, "want": want, "context": self.context}
            told["asked"] = asked | {"keep": options.get("n_keep", 0), "discard": options.get("n_discard", 0)}
            told |= {"wrong": next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), len(got)), "error": answer.get("error")}
        protocol.emit(**told)

    def ask(self, what, requests):
        """Sends requests (conversation, length, slot, options) at once and checks the answers."""

        def send(turn, conversation, prompt, want, slot, options):
            options = dict(options)
            stop = options.pop("stop after", None)
            body = self.body(conversation, prompt, len(want), slot, options)
            answers = self.post("/completion", body) if stop is None else cancelled(self.port, body, stop)
            if stop is not None and "error" not in answers:
                want = want[: len(answers["tokens"])]
            for answer in answers if isinstance(answers, list) else [answers]:
                self.check(turn, what, conversation, prompt, want, options, answer)
                conversation.slot = answer.get("id_slot", -1)

        threads = []
        for conversation, length, slot, options in requests:
            prompt, want = conversation.part(length)
            threads.append(threading.Thread(target=send, args=(self.turns, conversation, prompt, want, slot, options)))
            self.turns += 1
        for conversation, length, _, options in requests:
            if "stop after" not in options:
                conversation.done = min(conversation.done + length, len(conversation.solution))
        for t in threads:
            t.start()
        for t in threads:
            t.join()

    def some(self, count=1):
        return self.rng.sample(self.live, min(count, len(self.live)))

    def length(self):
        return self.rng.randint(4, 20)

    def new(self, steps):
        return Conversation(self.rng, steps, self.rng.choice([None, *self.adapters]))

    def op_begin(self):
        if len(self.live) >= self.most:
            self.live.remove(self.rng.choice(self.live))
        self.live.append(self.new(self.rng.randint(10, 14)))
        return [(self.live[-1], self.length(), -1, {})]

    def op_go_on(self):
        return [(c, self.length(), -1, {}) for c in self.some()]

    def op_together(self):
        return [(c, self.length(), -1, {}) for c in self.some(self.rng.randint(2, 4))]

    def op_rush(self):
        """As many conversations as there are slots, and some more: they wait."""
        return [(c, self.length(), -1, {}) for c in self.some(self.slots + 2)]

    def op_rewind(self):
        c = self.some()[0]
        c.done = self.rng.randint(0, c.done)
        return [(c, self.length(), -1, {})]

    def op_fork(self):
        """The same text goes on in two slots at once; one of them gets further."""
        c, length, more = self.some()[0], self.length(), self.rng.randint(0, 12)
        a, b = self.rng.sample(range(self.slots), 2) if self.slots > 1 else (0, 0)
        return [(c, length, a, {}), (c.twin(), length + more, b, {})]

    def op_copies(self):
        """One prompt, some answers: the server copies what it has computed to further slots."""
        return [(c, self.length(), -1, {"n_cmpl": self.rng.randint(1, min(4, self.slots))}) for c in self.some()]

    def op_cancel(self):
        """A client that has read some tokens, or none, and goes; others go on at the same time."""
        c, *others = self.some(self.rng.randint(1, 3))
        return [(c, 40, -1, {"stop after": self.rng.choice([0, 1, 3, 8, 15])})] + [(o, self.length(), -1, {}) for o in others]

    def op_erase(self):
        self.post(f"/slots/{self.rng.randrange(self.slots)}?action=erase", {})
        return []

    def op_save(self):
        c = self.some()[0]
        self.ask("save", [(c, self.length(), -1, {})])
        if c.left == 0:
            return []
        name = f"{self.worker}-{self.rng.randrange(4)}"
        answer = self.post(f"/slots/{max(c.slot, 0)}?action=save", {"filename": name})
        if "error" in answer:
            protocol.emit(refused="save", error=answer["error"])
        else:
            self.saved[name] = c.twin()
        return []

    def op_restore(self):
        """A conversation that may have gone on since, or ended, comes back as it was saved; into any slot."""
        if not self.saved:
            return self.op_go_on()
        name, slot = self.rng.choice(list(self.saved)), self.rng.randrange(self.slots)
        answer = self.post(f"/slots/{slot}?action=restore", {"filename": name})
        if "error" in answer:
            protocol.emit(refused="restore", error=answer["error"])
        return [(self.saved[name].twin(), self.length(), slot, {})]

    def long(self):
        """A text that comes to its slot's end, with definitions at its beginning that nothing needs, and how many tokens these are."""
        c = self.new(59 * self.context // WHOLE)
        names = self.rng.sample(task.NAMES, 60 * self.context // WHOLE)
        chaff = "".join(f";{x}:{self.rng.randrange(10)}" for x in names if x not in task.decode(c.prompt))
        c.prompt[1:1] = task.encode(chaff)
        return c, len(chaff)

    def op_shift(self):
        """A long text comes to the context's end: definitions that nothing needs are dropped."""
        c, chaff = self.long()
        c.done = self.context - self.rng.randint(4, 20) - len(c.prompt)
        return [(c, 50, -1, {"n_keep": 1, "n_discard": self.rng.randint(10, chaff // 5 - 2) * 5})]

    def op_reuse(self):
        """Definitions that nothing needs are taken out of a prompt: the server moves what it has computed behind them."""
        c, _ = self.long()
        c.done = self.rng.randint(0, 20)
        slot, cut = self.rng.randrange(self.slots), self.rng.randint(5, 10) * 5
        first = self.length()
        self.ask("reuse", [(c, first, slot, {})])
        moved = c.twin()
        moved.prompt = c.prompt[:1] + c.prompt[1 + cut :]
        prompt, want = moved.part(self.length())
        answer = self.post("/completion", self.body(moved, prompt, len(want), slot, {"n_cache_reuse": REUSED}))
        # To the method it is a shift that comes when the first answer's last token is due.
        start, end = c.done - first, moved.done + len(want)
        shifted = {"prompt": c.prompt + c.solution[:start], "want": c.solution[start:end]}
        told = {"keep": 1, "discard": cut, "context": len(c.prompt) + c.done}
        got = self.tokens(c, answer)
        line = {"turn": [self.worker, self.turns], "what": "reuse", "exact": got == want, "tokens": len(want)}
        line["reused"] = answer.get("timings", {}).get("cache_n", 0)
        if got != want:
            line |= {"asked": shifted | told, "error": answer.get("error")}
        self.turns += 1
        protocol.emit(**line)
        return []

    def op_embed(self):
        """Texts that are no conversation come between; the same one must give the same vector, as far as batches allow."""
        text = self.rng.randrange(5)
        tokens = [task.BOS, *task.encode(task.problem(random.Random(text), 8)[0])]
        if self.pooling == "rank":
            answer = self.post("/rerank", {"query": "?ab>cd;", "documents": [f"ab:{text};", "cd:1;ef:2;"]})
            vector = sorted((r["index"], r["relevance_score"]) for r in answer.get("results", []))
            vector = [score for _, score in vector]
        elif self.pooling:
            answer = self.post("/embedding", {"content": tokens})
            vector = answer[0]["embedding"][0] if isinstance(answer, list) else []
        else:
            return []
        first = self.vectors.setdefault(text, vector)
        same = len(vector) > 0 and len(vector) == len(first) and all(math.isfinite(x) for x in vector)
        scale = max([abs(x) for x in first] + [1.0] * (self.pooling == "rank"))  # a model without such a head has scores near 0
        same = same and max(abs(a - b) for a, b in zip(vector, first)) <= 2e-2 * scale
        protocol.emit(turn=[self.worker, self.turns], what="embed", exact=same, tokens=0, asked=None, error=None if same else answer)
        self.turns += 1
        return []


def cancelled(port, body, stop):
    """The tokens that the reader of an answer has seen, who goes away after so many pieces; 0: before there is any."""
    c = server.stream(port, body)
    out, slot = [], -1
    try:
        if stop == 0:
            time.sleep(0.02)
            return {"tokens": out, "id_slot": slot}
        response = c.getresponse()
        if response.status != 200:
            return json.loads(response.read())
        for raw in response:
            if raw.startswith(b"data: "):
                piece = json.loads(raw[6:])
                out += piece.get("tokens", [])
                slot = piece.get("id_slot", slot)
                stop -= 1
                if stop <= 0 or piece.get("stop"):
                    break
    finally:
        c.close()
    return {"tokens": out, "id_slot": slot}


def sample(process, stop):
    """What the server's process holds, every so often."""
    start = time.monotonic()
    while not stop.wait(SAMPLED):
        try:
            status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            fields = dict(line.split(":", 1) for line in status if ":" in line)
            files = len(os.listdir(f"/proc/{process.pid}/fd"))
        except OSError:
            return
        kib = {name: int(fields[name].split()[0]) for name in ("VmRSS", "RssAnon")}
        seconds = round(time.monotonic() - start, 1)
        protocol.emit(
            at=seconds, resident=kib["VmRSS"] * 1024, anonymous=kib["RssAnon"] * 1024, files=files, threads=int(fields["Threads"])
        )


def arguments(job, folder):
    slots, total = job.get("slots", 0), WHOLE
    out = ["-ctk", job["kv"], "-ctv", job["kv"], "-fa", "on", "--context-shift", "--slot-save-path", folder]
    if slots:
        context = WHOLE if slots == 1 else PART
        total = context * slots
        out += ["-np", str(slots), "-kvu" if job.get("unified", True) else "-no-kvu"]
        if job.get("unified", True) and slots > 1:
            out += ["--kv-unified-per-slot", str(context)]
    if adapters := job.get("adapters"):
        out += ["--lora", ",".join(adapters.values()), "--lora-init-without-apply"]
    if pooling := job.get("pooling"):
        out += ["--reranking"] if pooling == "rank" else ["--embeddings", "--pooling", pooling]
    return ["-c", str(total), *out, *job.get("arguments", [])]


def main():
    job = protocol.job()
    slots = job.get("slots", 0) or 4
    context = PART if job.get("slots", 0) > 1 else WHOLE
    with tempfile.TemporaryDirectory(prefix="lessismore-slots-") as folder:
        process, port = server.start({**job, "defaults": True, "arguments": arguments(job, folder)})
        done, errors, stop = [], [], threading.Event()
        watch = threading.Thread(target=sample, args=(process, stop))
        watch.start()
        start = time.monotonic()

        def work(number):
            try:
                until = start + job.get("seconds", math.inf)
                done.append(Soak(port, job, number, slots, context).run(job.get("operations", math.inf), until))
            except Exception as error:  # noqa: BLE001 (raised below, on the main thread)
                errors.append(error)

        try:
            workers = [threading.Thread(target=work, args=(i,)) for i in range(job.get("workers", 1))]
            for w in workers:
                w.start()
            for w in workers:
                w.join()
        finally:
            seconds = time.monotonic() - start
            stop.set()
            watch.join()
            code = server.stop(process)
    server.crash(code)
    if errors:
        raise errors[0]
    protocol.emit(exit=code, operations=done, seconds=seconds)


if __name__ == "__main__":
    main()
