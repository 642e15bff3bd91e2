"""Long problems in plain English with one right answer, and the one chain of thought that leads to it.

Five families. Each step of a chain needs a fact of the problem and, in all but one family, what an earlier step found out,
however far back that is; every step is written in full, so it needs no more than look-ups and one small sum.

    problem = draw(random.Random(seed), tokens=4096)
    problem.question, problem.chain, problem.answer     the chain's last line states the answer

Whoever is asked writes the chain, greedily: `first_wrong` tells the first step that is not as it should be.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import zip_longest
from typing import Callable

# One token each in SmolLM2's vocabulary, behind a space.
PEOPLE = (
    "Alice Anna Boris Carl Clara Daniel Diego Emma Eric Felix Grace Hannah Henry Hugo Ivan Jack Jane Julia "
    "Kate Kevin Laura Leo Lisa Lucy Maria Mark Martin Maya Nina Oliver Omar Oscar Paul Peter Rachel Robert Rosa Ruth "
    "Sam Sara Simon Sofia Thomas Tim Victor Walter"
).split()
TOWNS = (
    "Athens Berlin Boston Chicago Cuba Dallas Delhi Denver Dublin Egypt Florence Geneva Ghana Greece Havana Houston India Iran "
    "Italy Jamaica Japan Jordan Kenya London Madrid Malta Memphis Mexico Miami Milan Moscow Naples Nepal Norway Oxford Panama "
    "Paris Peru Poland Prague Rome Russia Seattle Spain Sudan Sweden Sydney Tokyo Toronto Turkey Venice Vienna Virginia Wales Warsaw"
).split()
COLOURS = "amber black blue brown golden gray green orange pink purple red silver white yellow".split()
THINGS = "apple ball bell book bottle brush candle card coin cup doll feather flower hammer hat key knife lamp letter map mirror pen ring rope shell shoe spoon stone".split()


@dataclass(frozen=True)
class Problem:
    family: str
    question: str
    chain: str  # its last line is the answer

    @property
    def answer(self) -> str:
        return self.chain.rsplit("\n", 1)[-1]


def ledger(rng: random.Random, steps: int) -> Problem:
    """Payments between people: each needs what two of them have by then."""
    people = rng.sample(PEOPLE, min(len(PEOPLE), max(4, steps // 4)))
    has = {p: rng.randrange(100, 1000) for p in people}
    question = ["Some people have coins."] + [f"{p} has {n}." for p, n in has.items()]
    question += ["Then they pay each other, in this order:"]
    chain = []
    for i in range(1, steps + 1):
        giver, taker = rng.sample(people, 2)
        while has[giver] < 10:
            giver, taker = rng.sample(people, 2)
        paid = rng.randrange(1, min(100, has[giver]))
        question.append(f"{i}. {giver} pays {taker} {paid}.")
        before = dict(has)
        has[giver] -= paid
        has[taker] += paid
        chain.append(
            f"{i}. {giver} pays {taker} {paid}. {giver}: {before[giver]} - {paid} = {has[giver]}. "
            f"{taker}: {before[taker]} + {paid} = {has[taker]}."
        )
    asked = rng.sample(people, 4)
    question.append(f"How many coins do {', '.join(asked[:3])} and {asked[3]} have in the end?")
    chain.append("Answer: " + ", ".join(f"{p} {has[p]}" for p in asked) + ".")
    return Problem("ledger", "\n".join(question), "\n".join(chain))


def boxes(rng: random.Random, steps: int) -> Problem:
    """Things that are exchanged between boxes: each exchange needs what two boxes hold by then."""
    names = rng.sample(COLOURS, min(len(COLOURS), max(4, steps // 6)))
    holds = dict(zip(names, rng.sample(THINGS, len(names))))
    question = ["There are boxes with one thing in each."] + [f"The {b} box holds the {t}." for b, t in holds.items()]
    question.append("Then the things in two boxes change places, in this order:")
    chain = []
    for i in range(1, steps + 1):
        one, other = rng.sample(names, 2)
        question.append(f"{i}. {one} and {other}.")
        said = f"{i}. {one} and {other}: the {one} box held the {holds[one]}, the {other} box the {holds[other]}."
        holds[one], holds[other] = holds[other], holds[one]
        chain.append(f"{said} Now {one} holds the {holds[one]}, {other} the {holds[other]}.")
    asked = rng.sample(names, 4)
    question.append(f"What do the {', '.join(asked[:3])} and {asked[3]} boxes hold in the end?")
    chain.append("Answer: " + ", ".join(f"{b} {holds[b]}" for b in asked) + ".")
    return Problem("boxes", "\n".join(question), "\n".join(chain))


def walk(rng: random.Random, steps: int) -> Problem:
    """A walk by a map and a list of turns: each step needs where the last one led, and the map's line for it."""
    towns = rng.sample(TOWNS, min(len(TOWNS), max(6, steps // 3)))
    exits = {t: dict(zip(("left", "right"), rng.sample([o for o in towns if o != t], 2))) for t in towns}
    lines = [f"From {t} left is {e['left']}, right is {e['right']}." for t, e in exits.items()]
    at = rng.choice(towns)
    question = ["Here is a map."] + lines + [f"Someone starts in {at} and turns, in this order:"]
    chain = []
    for i in range(1, steps + 1):
        turn = rng.choice(("left", "right"))
        question.append(f"{i}. {turn}")
        to = exits[at][turn]
        chain.append(f"{i}. {turn}: from {at} left is {exits[at]['left']}, right is {exits[at]['right']}. So to {to}.")
        at = to
    question.append("Where is that in the end?")
    chain.append(f"Answer: {at}.")
    return Problem("walk", "\n".join(question), "\n".join(chain))


def sums(rng: random.Random, steps: int) -> Problem:
    """A long sum, digit by digit: each step needs its number and the sum by then."""
    numbers = [rng.randrange(100, 1000) for _ in range(steps)]
    question = ["Add these numbers."] + [f"{i}. {n}" for i, n in enumerate(numbers, 1)] + ["What is the sum?"]
    chain, total = [], 0
    for i, number in enumerate(numbers, 1):
        carry, digits = 0, []
        for place in range(max(len(str(total)), 3)):
            a, b = total // 10**place % 10, number // 10**place % 10
            text = f"{a} + {b}" + (" + 1" if carry else "")
            carry, digit = divmod(a + b + carry, 10)
            digits.append(f"{text} = {10 * carry + digit}")
        total += number
        chain.append(f"{i}. {number}: {', '.join(digits)}. Sum {total}.")
    chain.append(f"Answer: {total}.")
    return Problem("sums", "\n".join(question), "\n".join(chain))


def ages(rng: random.Random, steps: int) -> Problem:
    """Numbers defined by others, in any order: each step needs the line that names the next, and a number found far back."""
    names = rng.sample([f"{p} {letter}" for p in PEOPLE for letter in "ABCDEFGH"], steps + 1)
    value = {names[0]: rng.randrange(100)}
    lines, chain = [], []
    for i, name in enumerate(names[1:], 1):
        # A third counts on from the last, the others from anyone before.
        of = names[i - 1] if rng.random() < 1 / 3 else rng.choice(names[:i])
        more = rng.randrange(1, 100)
        value[name] = (value[of] + more) % 100
        lines.append(f"{i}. {name} is {of} plus {more}.")
        chain.append(f"{i}. {name} is {of} plus {more}: {value[of]} + {more} = {value[of] + more}, so {name} is {value[name]}.")
    order = lines[:]
    rng.shuffle(order)
    asked = rng.sample(names, min(4, len(names)))
    question = ["These are numbers below 100; what is above counts from 0 again.", f"{names[0]} is {value[names[0]]}."] + order
    question.append(f"What are {', '.join(asked[:-1])} and {asked[-1]}?")
    chain.append("Answer: " + ", ".join(f"{p} {value[p]}" for p in asked) + ".")
    return Problem("ages", "\n".join(question), "\n".join(chain))


# Each with the tokens of a step in SmolLM2's vocabulary, question and chain, at some 100 steps.
FAMILIES: dict[str, tuple[Callable[[random.Random, int], Problem], int]] = {
    "ledger": (ledger, 57),
    "boxes": (boxes, 41),
    "walk": (walk, 29),
    "sums": (sums, 74),
    "ages": (ages, 49),
}


def draw(rng: random.Random, tokens: int, family: str | None = None) -> Problem:
    """A problem of about so many tokens, question and chain together."""
    make, each = FAMILIES[family or rng.choice(list(FAMILIES))]
    return make(rng, max(4, tokens // each))


def first_wrong(problem: Problem, written: str) -> int | None:
    """The first step, from 1, that was not written as it should be; None if all of it was, the answer too."""
    for i, (want, got) in enumerate(zip_longest(problem.chain.split("\n"), written.split("\n")), 1):
        if want != got:
            return i
    return None
