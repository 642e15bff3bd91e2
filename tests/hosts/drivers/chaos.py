"""Sequences whose cells come, go and change places, while what they hold stays their text: whatever was done, the next token is the
solution's. What a server does is soak.py's; this is what the C interface can do besides.

Tokens are fed from the solutions, right or wrong, so that one wrong answer is not followed by others. Emits

    {"operation": what, "wrong": [[text, number of the token, the one that came]], "tokens": how many were looked at}
"""

from __future__ import annotations

import concurrent.futures
import ctypes as ct
import random

from engine import Context
from protocol import emit

SEQUENCES = 6
DRAFTED = 8  # tokens of a draft, at most
WEIGHTS = {
    "begin": 10, "decode": 40, "fork": 8, "end": 5, "rewind": 10, "patch": 10, "move": 6, "restore": 8, "junk": 6, "abort": 8, "both": 6, "draft": 12,
}  # fmt: skip
AbortCallback = ct.CFUNCTYPE(ct.c_bool, ct.c_void_p)


class Sequence:
    def __init__(self, number, prompt, solution, at=0, base=0):
        self.number, self.prompt, self.text = number, len(prompt), prompt + solution
        self.at, self.base = at, base  # tokens that are in the cache; the first one's position

    def rows(self, seqs, count, wanted):
        """The next tokens as rows, of the last `wanted` of which logits are wanted."""
        out = [(self.text[i], self.base + i, seqs, i >= self.at + count - wanted) for i in range(self.at, self.at + count)]
        self.at += count
        return out


class Chaos:
    def __init__(self, ctx, prompts, solutions, seed, without):
        self.weights = {name: weight for name, weight in WEIGHTS.items() if name not in without}
        self.ctx, self.rng, self.texts = ctx, random.Random(seed), list(zip(prompts, solutions))
        self.live: dict[int, Sequence] = {}
        self.aborts, self.wrong, self.looked_at = -1, [], 0
        self._abort = AbortCallback(self._aborted)  # kept
        set_abort = ctx.api.function("llama_set_abort_callback", None, [ct.c_void_p, AbortCallback, ct.c_void_p])
        set_abort(ctx.ptr, self._abort, None)

    def _aborted(self, _):
        self.aborts -= self.aborts >= 0
        return self.aborts == 0

    def run(self, operations):
        for _ in range(operations):
            what = self.rng.choices(list(self.weights), list(self.weights.values()))[0]
            if not self.live:
                what = "begin"
            self.wrong, self.looked_at = [], 0
            getattr(self, f"op_{what}")()
            for s in [s for s, q in self.live.items() if q.at >= len(q.text) - DRAFTED]:
                self.op_end(s)
            emit(operation=what, wrong=self.wrong, tokens=self.looked_at)

    def free(self):
        return [s for s in range(SEQUENCES) if s not in self.live]

    def decoding(self, ahead=1):
        """Sequences behind their prompt, with so many tokens to come."""
        return [s for s, q in self.live.items() if q.prompt <= q.at < len(q.text) - ahead]

    def decode(self, rows, sees):
        """rows: those of one batch; sees: for each whose logits are wanted its text, and the number of its token in that; None: it is of none."""
        for seen, best in zip(sees, self.ctx.decode(rows)):
            self.look(seen, best)

    def look(self, seen, best):
        if seen is None:
            return
        q, i = seen
        self.looked_at += 1
        if best != q.text[i + 1]:
            self.wrong.append([q.number, i + 1 - q.prompt, best])

    def step(self, seqs, more=()):
        """A token of each sequence, in any order, with rows beside that no logits are wanted of."""
        self.rng.shuffle(seqs)
        sees = [(self.live[s], self.live[s].at) for s in seqs]
        rows = [row for s in seqs for row in self.live[s].rows([s], 1, 1)]
        self.decode(rows + list(more) if self.rng.random() < 0.5 else list(more) + rows, sees)

    def feed(self, s, until):
        """A sequence's tokens up to a number, in pieces, some of them beside the others' next tokens."""
        q = self.live[s]
        while q.at < until:
            count = min(until - q.at, self.rng.choice([1, 3, 40, 200, 400]))
            last = q.at + count == until
            if self.rng.random() < 0.4 and not last and (others := [o for o in self.decoding() if o != s]):
                self.step(others, q.rows([s], count, 0))
            else:
                self.decode(q.rows([s], count, int(last)), [(q, q.at - 1)] if last and q.at >= q.prompt else [])

    def op_begin(self):
        if free := self.free():
            number = self.rng.randrange(len(self.texts))
            q = self.live[free[0]] = Sequence(number, *self.texts[number], base=self.rng.choice([0, 0, 7, 300]))
            self.feed(free[0], q.prompt)

    def op_decode(self):
        for _ in range(self.rng.choice([1, 5, 20])):
            if seqs := [s for s in self.decoding() if self.rng.random() < 0.7]:
                self.step(seqs)

    def op_fork(self):
        if free := self.free():
            s, to = self.rng.choice(list(self.live)), self.rng.choice(free)
            self.ctx.copy(s, to)
            q = self.live[s]
            self.live[to] = Sequence(q.number, q.text[: q.prompt], q.text[q.prompt :], q.at, q.base)

    def op_end(self, s=None):
        s = self.rng.choice(list(self.live)) if s is None else s
        self.ctx.remove(s)
        del self.live[s]

    def op_rewind(self):
        """The last tokens are taken back, and decoded again."""
        s = self.rng.choice(list(self.live))
        q = self.live[s]
        until, q.at = q.at, max(1, q.at - self.rng.choice([1, 2, 5, 30]))
        self.ctx.remove(s, q.base + q.at)
        self.feed(s, until)

    def op_patch(self):
        """A part of a sequence is taken away, and comes back from another one of the same text."""
        pairs = [(a, b) for a, x in self.live.items() for b, y in self.live.items() if a != b and (x.number, x.base) == (y.number, y.base)]
        if not pairs:
            return self.op_fork()
        a, b = self.rng.choice(pairs)
        q, most = self.live[a], min(self.live[a].at, self.live[b].at)
        start = self.rng.randrange(most)
        end = min(most, start + self.rng.choice([1, 1, 4, 50]))
        self.ctx.remove(a, q.base + start, q.base + end)
        self.ctx.copy(b, a, q.base + start, q.base + end)
        if self.rng.random() < 0.5:
            self.op_end(b)
        if a in self.decoding():
            self.step([a])

    def op_move(self):
        """All of a sequence's positions are others. Not where cells are another one's, too."""
        alone = [
            s
            for s in self.decoding()
            for q in [self.live[s]]
            if all(o is q or (o.number, o.base) != (q.number, q.base) for o in self.live.values())
        ]
        if alone:
            s = self.rng.choice(alone)
            delta = self.rng.choice([1, 40, 200, -7])
            if self.live[s].base + delta >= 0:
                self.ctx.add(s, delta)
                self.live[s].base += delta
                self.step([s])  # where the host rotates the keys: whatever comes before takes them for rotated ones

    def op_restore(self):
        """A sequence is saved and ends, others go on, and it comes back, under some number."""
        s = self.rng.choice(list(self.live))
        q, state = self.live[s], self.ctx.save(s)
        self.op_end(s)
        if self.rng.random() < 0.7:
            self.op_decode()
        to = self.rng.choice(self.free())
        self.ctx.restore(state, to)
        self.live[to] = q

    def op_junk(self):
        """Tokens of no text take cells, and leave them."""
        if free := self.free():
            rows = [(self.rng.randrange(3, 30), i, [free[-1]], False) for i in range(self.rng.choice([1, 10, 100, 400]))]
            self.step(others, rows) if (others := self.decoding()) and self.rng.random() < 0.5 else self.ctx.decode(rows)
            if self.rng.random() < 0.5:
                self.op_decode()
            self.ctx.remove(free[-1])

    def op_abort(self):
        """A step is given up half way; its tokens are taken back, and decoded again."""
        if not (seqs := self.decoding()):
            return
        before = {s: self.live[s].at for s in seqs}
        self.aborts = self.rng.randrange(1, 400)  # times that the host asks
        try:
            self.step(list(seqs))
        except RuntimeError as error:
            assert "returned 2" in str(error), error
        self.aborts = -1
        for s in seqs:
            self.live[s].at = before[s]
            self.ctx.remove(s, self.live[s].base + before[s])
        self.step(list(seqs))

    def op_draft(self):
        """Several tokens of each sequence at once, as drafts are looked at, with wrong ones behind, which are taken back."""
        seqs, rows, sees = [s for s in self.decoding(DRAFTED) if self.rng.random() < 0.7], [], []
        for s in seqs:
            q, right = self.live[s], self.rng.randrange(1, DRAFTED)
            sees += [(q, i) for i in range(q.at, q.at + right)]
            rows += q.rows([s], right, right)
            wrong = self.rng.randrange(DRAFTED - right + 1)
            rows += [(self.rng.randrange(3, 30), q.base + q.at + i, [s], True) for i in range(wrong)]
            sees += wrong * [None]
        if rows:
            self.decode(rows, sees)
            for s in seqs:
                self.ctx.remove(s, self.live[s].base + self.live[s].at)

    def op_both(self):
        """Tokens of two sequences of one text at once."""
        pairs = [
            (a, b) for a, x in self.live.items() for b, y in self.live.items()
            if a < b and (x.number, x.base, x.at) == (y.number, y.base, y.at) and a in self.decoding(DRAFTED)
        ]  # fmt: skip
        if not pairs:
            return self.op_fork()
        a, b = self.rng.choice(pairs)
        for _ in range(self.rng.choice([1, 6])):
            q = self.live[a]
            self.live[b].at += 1
            self.decode(q.rows([a, b], 1, 1), [(q, q.at - 1)])


def chaos(model, prompts, solutions, seed, operations, contexts=1, context=6144, unified=True, **options):
    """In several contexts of one model at once, if that is wanted, each on a thread of its own. Streams are copied whole, and have no
    token together."""

    def work(number):
        ctx = Context(model, context, n_seq=SEQUENCES, unified=unified, **options)
        Chaos(ctx, prompts, solutions, f"{seed} {number}", () if unified else ("patch", "both")).run(operations)
        ctx.free()

    with concurrent.futures.ThreadPoolExecutor(contexts) as pool:
        list(pool.map(work, range(contexts)))
