"""Long problems in plain English with one right answer, and the one chain of thought that leads to it.

Five families. The lines of a problem stand in any order; each names the next, and where the fact is that it needs: in the problem or
in what an earlier step found out, however far back. Every fact has a word of its own that appears with it once, so no step asks for
the latest of many; every step is written in full, so it needs no more than look-ups and one small sum.

    problem = draw(random.Random(seed), tokens=4096)
    problem.question, problem.chain, problem.answer     the chain's last line states the answer

Whoever is asked writes the chain, greedily: `first_wrong` tells the first step that is not as it should be.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import zip_longest
from typing import Callable, Iterator

# Every word is one token in SmolLM2's vocabulary, behind a space, and in one list only.
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
THINGS = (
    "apple ball bell book bottle brush candle card coin cup doll feather flower hammer hat key knife lamp letter map mirror pen ring "
    "rope shell shoe spoon stone"
).split()
WORDS = """
acid actor adult age agent air aircraft airport alarm album alcohol angel angle animal ankle arch area arm army art artist ash
atom aunt author autumn baby bacon bag bank bar barn basin basket bat bath battery battle bay beach bead beam bean bear beard beast bed bee
beef beer belt bench berry bike bill bird birth block blood board boat body bomb bone boot border boss bow bowl boy brain branch brass
bread breath brick bride bridge brother bubble bucket bud bug building bull bullet bus bush butter butterfly button cabin cable cake calcium
calf camera camp canal cancer candy canvas cap captain car carbon carpet cart castle cat cattle cave ceiling cell cent chain chair
chamber charcoal cheek cheese chest chicken chief child chin chip church circle circus city clay cliff climate clock cloth cloud club coach coal
coast coat cocoa coffee coil collar college color comet comic copper coral cord corn corner cotton couch country court cousin cow
crab cream creek crew crop cross crowd crown crystal cube curtain curve dad dance dawn deer dentist desert desk diamond dinner
dirt dish doctor dog dolphin donkey door dragon drama dream dress drink drum duck dust eagle ear earth east edge egg elbow elephant
engine enzyme evening eye fabric face factory family fan farm farmer father fence ferry fever fiber field film finger fire fish flag flame
flood floor flour fog food foot forest fork fossil fox frame frog fruit fuel fur galaxy game garage garden garlic gas gate gene giant
girl glass glove glue goat god gold grain grandmother grape grass gravel grave gravity guitar gum gun hair hall hand harbor hardware heart heat
hell helmet herb hero highway hill hip hole honey hood hook horn horse hospital hotel house husband ice image infant ink insect iron
island ivory jacket jar jaw jazz jet jewel joint judge juice jungle jury kernel kidney king kitchen knee lady lake lamb
land lane laptop laser lawn lawyer leaf leather leg lemon lens library lid lime limestone lion lip liquid liver lizard loan lobby lock
log lunch lung machine magnet mail marble market mask mat meadow meal meat medal medicine melody memory menu mercury metal meter microscope milk
mill mineral mist mole mom moon morning mosquito mother motor mountain mouse mouth mud muscle museum mushroom music nail neck needle
nest net newspaper night noon north nose novel nurse nut oak ocean office oil onion opera orbit orchard organ oven owl
oxygen page paint palace palm pan panel paper parade parent park passenger pasta path patient peak peanut pearl pencil people pepper photo
phone piano picture pie pig pigeon pilot pipe pizza planet plant plastic plate platform poem poet poison pole police pond pool
port potato powder prince prison prize pump pupil puzzle queen rabbit radar radio rail rain ranch rat razor restaurant
rice rifle river road robot rock rocket roof room root rose rubber rug ruler saint salad salmon salt sand satellite sauce scale
school scissors screen screw sea seed shadow shark sheep sheet shelf shield ship shirt shop shore shoulder shower silk silver singer
sister skin skirt skull sky sleep snake snow soap soil soldier song soup south spider spine spirit sponge sport spring square squirrel
stadium stage stairs star station statue steam steel stem stick stomach storm stove stream street student sugar suit summer sun sunset surgeon sword
table tail tank tape tea teacher team temple tennis tent theater thread throat throne thumb thunder tide tiger tile
tin tissue toe tomato tongue tool tooth torch tower town toy track tractor traffic trail train treasure tree triangle truck tube tunnel turtle
uncle valley van vapor vegetable vein vessel village vine violin virus voice volcano wagon wall war warrior watch water wave wax
weapon weather wedding weed west whale wheat wheel wife wind window wine wing winter wire witch wolf woman wood wool worker world worm
wound wrist yard year youth zebra zinc zone
""".split()


END, END_ID = "<|im_end|>", 2  # of a turn, in SmolLM2's vocabulary


@dataclass(frozen=True)
class Problem:
    family: str
    question: str
    chain: str  # its last line is the answer

    @property
    def answer(self) -> str:
        return self.chain.rsplit("\n", 1)[-1]

    @property
    def prompt(self) -> str:
        """The question as SmolLM2's chat has it, with its marks."""
        return f"<|im_start|>user\n{self.question}{END}\n<|im_start|>assistant\n"


def write(
    family: str, rng: random.Random, told: str, facts: list[str], steps: list[tuple[str, str]], start: str, asked: str, answer: str
) -> Problem:
    """A problem of facts and of steps: each a line of the question, and what the chain adds behind the same line."""
    lines = [line for line, _ in steps]
    rng.shuffle(facts)
    rng.shuffle(lines)
    question = [told] + facts + lines + [f"{asked} {start}"]
    chain = [start] + [f"{line} {found}" for line, found in steps] + [f"Answer: {answer}."]
    return Problem(family, "\n".join(question), "\n".join(chain))


def accounts(steps: int) -> int:
    """How many things go on side by side: a fact is needed again some so many steps later."""
    return max(3, steps // 6)


def followed(words: list[str]) -> Iterator[tuple[str, str]]:
    """Each of the words, and the one after it."""
    return zip(words, words[1:] + ["none"])


def rises(rng: random.Random, value: int, by: int) -> bool:
    """Whether a number of two digits goes up, or down, so that it keeps them."""
    return rng.random() < 0.5 if 10 <= value - by and value + by < 100 else value < 50


def ledger(rng: random.Random, steps: int) -> Problem:
    """What people have: each entry changes what an earlier entry left to the same person."""
    people = rng.sample(PEOPLE, min(len(PEOPLE), accounts(steps)))
    words = rng.sample(WORDS, len(people) + steps)
    last = {p: words.pop() for p in people}
    has = {w: rng.randrange(10, 100) for w in last.values()}
    facts = [f"First entry {last[p]}: {p}, {last[p]} has {has[last[p]]}." for p in people]
    lines, names = [], words[:]
    for word, after in followed(names):
        person = rng.choice(people)
        before, more = last[person], rng.randrange(1, 10)
        gets = rises(rng, has[before], more)
        has[word] = has[before] + more if gets else has[before] - more
        found = f"{before} has {has[before]}, {has[before]}{'+' if gets else '-'}{more}={has[word]}, {word} has {has[word]}."
        line = f"Entry {word}: {person} {'gets' if gets else 'pays'} {more} after {before}, next {after}."
        lines.append((line, found))
        last[person] = word
    asked = rng.choice(list(has))
    told = "This is a book of who has how many coins. Follow the entries."
    start = f"Start, next {names[0]}."
    return write("ledger", rng, told, facts, lines, start, f"What has {asked}?", f"{asked} has {has[asked]}")


def boxes(rng: random.Random, steps: int) -> Problem:
    """Things that go from two boxes to two others, straight or crossed."""
    full = accounts(steps)
    words = rng.sample(WORDS, full + 2 * steps)
    holds = {w: rng.choice(THINGS) for w in words[:full]}
    facts = [f"Box {w} holds {t}." for w, t in holds.items()]
    pairs = [tuple(words[i : i + 2]) for i in range(full, len(words), 2)]
    now, lines = words[:full], []
    for (one, other), (_, after) in zip(pairs, followed([one for one, _ in pairs])):
        a, b = (now.pop(rng.randrange(len(now))) for _ in range(2))
        crossed = rng.random() < 0.5
        holds[one], holds[other] = (holds[b], holds[a]) if crossed else (holds[a], holds[b])
        now += [one, other]
        line = f"Move {one} and {other}: {'crossed' if crossed else 'straight'} from {a} and {b}, next {after}."
        lines.append((line, f"{a} holds {holds[a]}, {b} holds {holds[b]}, {one} holds {holds[one]}, {other} holds {holds[other]}."))
    asked = rng.choice(list(holds))
    told = "Things move from two boxes to two new ones, straight or crossed. Follow the moves."
    start = f"Start, next {pairs[0][0]}."
    return write("boxes", rng, told, facts, lines, start, f"What holds {asked}?", f"{asked} holds {holds[asked]}")


def walk(rng: random.Random, steps: int) -> Problem:
    """A walk by a map and by turns: each step needs where the last one led, and the map's line for it."""
    towns = rng.sample(TOWNS, min(len(TOWNS), max(6, steps // 3)))
    exits = {t: dict(zip(("left", "right"), rng.sample([o for o in towns if o != t], 2))) for t in towns}
    facts = [f"From {t} left {e['left']}, right {e['right']}." for t, e in exits.items()]
    names = rng.sample(WORDS, steps)
    at = rng.choice(towns)
    start = f"Start in {at}, next {names[0]}."
    lines = []
    for word, after in followed(names):
        turn = rng.choice(("left", "right"))
        to = exits[at][turn]
        found = f"From {at} left {exits[at]['left']}, right {exits[at]['right']}, so in {to}."
        lines.append((f"Turn {word}: {turn}, next {after}.", found))
        at = to
    told = "This is a map, and the turns of a walk. Follow the turns."
    return write("walk", rng, told, facts, lines, start, "Where does it end?", f"in {at}")


def sums(rng: random.Random, steps: int) -> Problem:
    """Numbers of three digits, each the sum of two others, digit by digit from the last; a fourth digit is left out."""
    given = accounts(steps)
    words = rng.sample(WORDS, given + steps)
    value = {w: f"{rng.randrange(1000):03}" for w in words[:given]}
    facts = [f"Number {w} is {v}." for w, v in value.items()]
    names, lines = words[given:], []
    for word, after in followed(names):
        a, b = rng.sample(list(value), 2)
        carry, digits, parts = 0, "", []
        for x, y in zip(reversed(value[a]), reversed(value[b])):
            total = int(x) + int(y) + carry
            parts.append(f"{x}+{y}{'+1' if carry else ''}={total}")
            carry, digits = total // 10, str(total % 10) + digits
        value[word] = digits
        line = f"Number {word}: {a} plus {b}, next {after}."
        lines.append((line, f"{a} is {value[a]}, {b} is {value[b]}, {', '.join(parts)}, {word} is {digits}."))
    asked = rng.choice(list(value))
    told = "These are numbers of three digits, and sums of two without what is above three digits. Follow the sums."
    start = f"Start, next {names[0]}."
    return write("sums", rng, told, facts, lines, start, f"What is {asked}?", f"{asked} is {value[asked]}")


def ages(rng: random.Random, steps: int) -> Problem:
    """Ages told by other ages, of anyone before: one fact may be needed many times."""
    words = rng.sample(WORDS, 3 + steps)
    age = {w: rng.randrange(30, 80) for w in words[:3]}
    facts = [f"Age of {w}: {w} is {n}." for w, n in age.items()]
    names, lines = words[3:], []
    for word, after in followed(names):
        of, more = rng.choice(list(age)), rng.randrange(1, 10)
        older = rises(rng, age[of], more)
        age[word] = age[of] + more if older else age[of] - more
        line = f"Age of {word}: {more} {'older' if older else 'younger'} than {of}, next {after}."
        lines.append((line, f"{of} is {age[of]}, {age[of]}{'+' if older else '-'}{more}={age[word]}, {word} is {age[word]}."))
    asked = rng.choice(list(age))
    told = "These are ages, one told by another. Follow them."
    start = f"Start, next {names[0]}."
    return write("ages", rng, told, facts, lines, start, f"What is {asked}?", f"{asked} is {age[asked]}")


# Each with the tokens of a step in SmolLM2's vocabulary, question and chain, and those of the rest.
FAMILIES: dict[str, tuple[Callable[[random.Random, int], Problem], float, int]] = {
    "ledger": (ledger, 51, 75),
    "boxes": (boxes, 47, 70),
    "walk": (walk, 33, 85),
    "sums": (sums, 69, 85),
    "ages": (ages, 49, 90),
}


def draw(rng: random.Random, tokens: int, family: str | None = None) -> Problem:
    """A problem of about so many tokens, question and chain together."""
    make, each, rest = FAMILIES[family or rng.choice(list(FAMILIES))]
    return make(rng, max(3, int((tokens - rest) / each)))


def first_wrong(problem: Problem, written: str) -> int | None:
    """The first step, from 1, that was not written as it should be; None if all of it was, the answer too."""
    for i, (want, got) in enumerate(zip_longest(problem.chain.split("\n"), written.split("\n")), 1):
        if want != got:
            return i
    return None
