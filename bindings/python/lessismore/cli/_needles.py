"""Facts that are hidden in a text at several depths, and asked for behind it."""

from __future__ import annotations

import dataclasses
import random
from typing import TYPE_CHECKING, Sequence, Union

from . import _vocabulary

if TYPE_CHECKING:
    from ._crew import Member

NAMES = (
    "Amara Bruno Celia Dmitri Elif Farid Greta Hamid Ingrid Jorge Katya Liam Maren Nadia Oscar Priya Quentin Rosa "
    "Soren Tessa Umar Viola Wanda Xavier Yusuf Zelda"
).split()
FACT = "\n\nThe secret number of {} is {}.\n\n"
TWICE = "\n\nThe secret number of {0} is {1}. Again: the secret number of {0} is {1}.\n\n"  # for models that miss what is said once
QUESTION = "\n\nThe secret number of {} is"
LINE = 64  # tokens that a fact moves at most, to stand behind a line
MOST = len(NAMES)


@dataclasses.dataclass(frozen=True)
class Needle:
    depth: float  # share of the text that is before it
    fact: list[int]  # tokens
    question: list[int]
    answer: list[int]


def draw(vocabulary: Union[_vocabulary.GGUF, _vocabulary.Transformers], count: int, seed: int, said: str = FACT) -> list[Needle]:
    """So many of them, evenly deep; none where the vocabulary cannot write them."""
    chance = random.Random(seed)
    names = chance.sample(NAMES, count)
    found = []
    for i, name in enumerate(names):
        number = str(chance.randrange(100, 1000))
        fact = vocabulary.encode(said.format(name, number), False)
        if f"{name} is {number}." not in vocabulary.decode(fact):
            return []
        asked = vocabulary.encode(QUESTION.format(name), False)
        told = vocabulary.encode(f"{QUESTION.format(name)} {number}", False)
        same = next((k for k, (a, b) in enumerate(zip(asked, told)) if a != b), min(len(asked), len(told) - 1))
        found.append(Needle((i + 0.5) / count, fact, told[:same], told[same:]))
    return found


def weave(
    vocabulary: Union[_vocabulary.GGUF, _vocabulary.Transformers], tokens: Sequence[int], needles: Sequence[Needle], length: int
) -> tuple[list[int], int]:
    """So many tokens of a text with the needles in it, and how many of them are the text's."""
    own = length - sum(len(needle.fact) for needle in needles)
    if needles and own < length // 2:
        raise ValueError(f"{len(needles)} needles do not fit a context of {length} tokens: --needles takes fewer")
    out: list[int] = []
    done = 0
    for needle in needles:
        at = place = min(own, max(done, round(needle.depth * own)))
        while 0 < at < min(own, place + LINE) and not vocabulary.decode([tokens[at - 1]]).endswith("\n"):
            at += 1
        out += [*tokens[done:at], *needle.fact]
        done = at
    return [*out, *tokens[done:own]], own


def known(member: Member, needles: Sequence[Needle]) -> list[bool]:
    """Which facts it knows to the last token, each question behind the same text; in the order of their depths."""
    found = []
    for needle in needles:
        place = member.place()
        told = [*needle.question, *needle.answer]
        _, logits = member.walk(told[:-1])
        best = logits[len(needle.question) - 1 :].argmax(-1)
        found.append(best.tolist() == needle.answer)
        member.back(place)
    return found
