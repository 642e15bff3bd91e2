"""Find a model's selection layers by ablation, and keep them in a profile.

The model is walked through a text. At several places of it, and for each pair of layers, the next token's
probabilities are computed with one layer alone on the token set of the other, all layers else dense; how far they are
from those of the dense model (Kullback-Leibler divergence, in nats) is what that layer loses. It is the truth that the
library's own measurement, made on the way, is printed beside. With --quality whole choices of 1, 2, … layers are tried instead,
and the cheapest that loses no more is kept, for hosts that cannot do that themselves. A folder is a transformers model, a file a GGUF
model.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from typing import Any, Optional, Union

import numpy as np
import numpy.typing as npt

from .. import _files
from .._errors import Error
from . import _exit, _loss, _options, _show, _targets, _text

FIRST = 2  # the lowest layer that chooses, as the library has it
FEW = 2  # layers that may always choose, of which the first is no later for more
TOLERANCE = 0.01  # nats that a choice may lose more which reads less
REACH = 8  # in budgets: as far as the library would measure again by itself
Matrix = npt.NDArray[np.float64]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="GGUF file, or folder of a transformers model")
    parser.add_argument("-p", "--prompt", help="a text; without it, standard input is read")
    parser.add_argument("-n", "--tokens", type=_options.count, default=0, help="so many tokens of the model's own follow (default 0)")
    parser.add_argument("--positions", type=_options.positive, help="places that are tried (default 24; with --quality 96)")
    parser.add_argument("-o", "--output", metavar="FILE", help="the profile (default: the user's cache, for all hosts)")
    parser.add_argument("--threads", type=_options.positive, default=_options.cpus(), help="default: one per CPU")
    _options.settings(parser, without=("layers", "guard", "interval", "profile", "trace"))


def command(options: argparse.Namespace) -> int:
    """Measures, writes the profile, prints both choices. Returns the exit code."""
    if options.output is not None:
        _files.check(options.output, b'{"format":')
    text = sys.stdin.read() if options.prompt is None else options.prompt
    with tempfile.TemporaryDirectory(prefix="lessismore-") as folder:
        kept = os.path.join(folder, "profile.json")
        settings = {**_options.chosen(options), "profile": kept, "guard": 0, "interval": 1}
        target: Optional[float] = settings.pop("quality", None)
        if target is not None and not 0 < target <= 10:
            raise ValueError(f"--quality {target:g} is not above 0, up to 10 nats a token")
        walked = _text.walk(options.model, text, options.tokens, options.threads, settings)
        prompt = len(walked.tokens) if options.tokens else 0  # decoding begins behind it
        _text.greedy(walked, options.tokens)
        budget = walked.report()["config"]["budget"]
        if target is not None:
            return _aim(options, walked, kept, budget, prompt, target)
        profile, found = _walk(walked, kept, budget, prompt, options.positions or 24)
    selections = profile["settings"]["selections"]
    nats, error = found.mean(), found.error()
    choice = choose(nats, error, selections)
    measured = profile["choice"]
    profile["choice"] = choice
    profile["worst_loss"] = max(_under(choice, triangle(profile["loss"])).values(), default=0.0)
    profile["measured"]["reach"] = REACH
    profile["calibrated"] = {
        "measure": "Kullback-Leibler divergence of the next token's probabilities from the dense model's, in nats, "
        "with one layer alone on a token set; mean over positions",
        "positions": len(found.at),
        "tokens": found.at[-1],
        "nats": rows(nats),
        "nats_error": rows(error),
    }
    path = _write(options.output, profile)
    changed = _under(choice, found.changed)
    result = {
        "profile": path,
        "positions": found.at,
        "choice": choice,
        "nats": total(choice, nats),
        "measured_choice": measured,
        "measured_choice_nats": total(measured, nats),
        "agree": choice == measured,
        "tokens_changed": {str(j): int(n) for j, n in changed.items()},
        "calibrated": profile["calibrated"],
    }
    print(json.dumps(result) if options.json else _tell(result, profile, nats, error))
    return _exit.DONE


class Found:
    """What the ablations brought: per pair of layers (sparse, selecting), over the positions."""

    def __init__(self, layers: int) -> None:
        self.at: list[int] = []  # tokens visible at each position
        self.sum = np.zeros((layers, layers))
        self.square = np.zeros((layers, layers))
        self.changed = np.zeros((layers, layers))  # the likeliest token is another one

    def add(self, layer: int, select: int, nats: float, other: bool) -> None:
        self.sum[layer, select] += nats
        self.square[layer, select] += nats**2
        self.changed[layer, select] += other

    def mean(self) -> Matrix:
        out: Matrix = np.where(self._tried(), self.sum / len(self.at), -1)
        return out

    def error(self) -> Matrix:
        mean = self.sum / len(self.at)
        spread = np.maximum(self.square / len(self.at) - mean**2, 0)
        out: Matrix = np.where(self._tried(), np.sqrt(spread / len(self.at)), -1)
        return out

    def _tried(self) -> npt.NDArray[np.bool_]:
        n = len(self.sum)
        return np.tri(n, n, -1, dtype=bool) & (np.arange(n) >= FIRST)


def _walk(
    walked: Union[_text.GGUF, _text.Transformers], kept: str, budget: int, prompt: int, positions: int
) -> tuple[dict[str, Any], Found]:
    """Goes through the text: ablates layers at its positions, and has the library measure from the first of them on."""
    start, end = max(2 * budget, prompt), len(walked.tokens) - 1
    needed = start + _text.MEASURED
    if end < needed:
        raise ValueError(f"the text has {end + 1} tokens, a budget of {budget} needs {needed + 1} (--tokens makes more)")
    walked.back(min(walked.length, start))
    walked.advance(start)
    places = sorted({int(x) for x in np.linspace(start, end - 1, positions)})
    found: Optional[Found] = None
    with _show.progress(len(places)) as say:
        for i, place in enumerate(places):
            while walked.length < place:
                if os.path.exists(kept):
                    walked.advance(place)
                else:
                    walked.step()  # measured
            if found is None:
                found = Found(_layers(walked))
            say("ablating", i)
            _ablate(walked, found)
        while not os.path.exists(kept) and walked.length < end:
            walked.step()
    walked.engine.ablate(-1)
    assert found is not None
    if not os.path.exists(kept):
        raise Error("the library has not measured this model: it goes by rule, or the text is too short")
    with open(kept) as f:
        return json.load(f), found


def _aim(
    options: argparse.Namespace, walked: Union[_text.GGUF, _text.Transformers], kept: str, budget: int, prompt: int, target: float
) -> int:
    """Tries choices for a quality target, and keeps them."""
    profile = _targets.walk(walked, kept, budget, prompt, options.positions or _targets.POSITIONS, target)
    result = {"profile": _write(options.output, profile), "choice": profile["choice"], "target": target, "tried": profile["tried"]}
    print(json.dumps(result) if options.json else _targets.tell(result))
    return _exit.DONE


def _layers(walked: Union[_text.GGUF, _text.Transformers]) -> int:
    """How many layers of the model can take part: known once it has been shown a token."""
    place = walked.length
    walked.engine.ablate(0)
    walked.step()
    walked.back(place)
    layers: int = max(c["layers"] for c in walked.report()["contexts"])
    return layers


def _ablate(walked: Union[_text.GGUF, _text.Transformers], found: Found) -> None:
    place, layers = walked.length, len(found.sum)
    found.at.append(place + 1)

    def logits(select: int, sparse: int) -> _text.Logits:
        walked.engine.ablate(select, sparse)
        out = walked.step()
        walked.back(place)
        return out

    dense = logits(0, -1)
    for select in range(FIRST, layers - 1):
        for layer in range(select + 1, layers):
            sparse = logits(select, layer)
            found.add(layer, select, divergence(dense, sparse), bool(dense.argmax() != sparse.argmax()))
    walked.engine.ablate(-1)


def divergence(dense: _text.Logits, other: _text.Logits) -> float:
    """Kullback-Leibler, in nats: of softmax(other) from softmax(dense)."""
    return float(_loss.Reference(dense).nats(_loss.Said(other)))


def choose(nats: Matrix, error: Matrix, selections: int) -> list[int]:
    """The choice of at most so many selection layers that diverges least; within the tolerance of it, or its
    standard error, the one with the fewest layers that attend to everything. The library bounds it alike (docs/auto.md)."""
    layers = len(nats)
    most = max(layers // 3, FIRST + selections)
    latest = choose(nats, error, FEW)[0] if selections > FEW else layers - 2
    # cost[i][k]: layers i+1 .. k-1 on the set of layer i.
    cost = np.zeros((layers, layers + 1))
    for i in range(FIRST, layers):
        cost[i, i + 2 :] = np.cumsum(nats[i + 1 :, i])
    candidates: list[tuple[float, list[int]]] = []
    for first in range(FIRST, latest + 1):
        ways: dict[int, tuple[float, list[int]]] = {first: (0.0, [first])}
        for count in range(1, selections + 1):
            if first + count > most:
                break
            candidates += [(so_far + cost[i, layers], way) for i, (so_far, way) in ways.items()]
            longer: dict[int, tuple[float, list[int]]] = {}
            for i, (so_far, way) in ways.items():
                for k in range(i + 1, layers - 1):
                    now = so_far + cost[i, k]
                    if k not in longer or now < longer[k][0]:
                        longer[k] = (now, [*way, k])
            ways = longer
    least, best = min(candidates)
    slack = max(TOLERANCE, float(np.sqrt(sum(x**2 for x in _under(best, error).values()))))
    good = [(way[0] + len(way), loss, way) for loss, way in candidates if loss <= least + slack]
    return min(good)[2]


def _under(choice: list[int], of: Matrix) -> dict[int, float]:
    """What each sparse layer has under a choice."""
    out = {}
    for j in range(choice[0] + 1, len(of)):
        if j not in choice:
            out[j] = float(of[j, max(i for i in choice if i < j)])
    return out


def total(choice: list[int], nats: Matrix) -> float:
    return sum(_under(choice, nats).values())


def triangle(of: list[list[float]]) -> Matrix:
    """A profile's rows, as a matrix [layer, selecting layer]."""
    out = np.zeros((len(of) + 1, len(of) + 1))
    for j, row in enumerate(of):
        out[j + 1, : j + 1] = row
    return out


def rows(of: Matrix) -> list[list[float]]:
    return [[float(f"{x:.6g}") for x in of[j, :j]] for j in range(1, len(of))]


def _write(given: Optional[str], profile: dict[str, Any]) -> str:
    """Whole or not at all, under its own name in the user's cache where no file is given."""
    output = given
    if output is None:
        from .._profiles import profile_dir

        folder = profile_dir()
        if folder is None:
            raise ValueError("there is no cache folder (XDG_CACHE_HOME, HOME): --output has to name a file")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        output = os.path.join(folder, profile["fingerprint"] + ".json")
    _files.write(output, json.dumps(profile).encode() + b"\n", mine=given is None)
    return os.path.abspath(output)


def _tell(result: dict[str, Any], profile: dict[str, Any], nats: Matrix, error: Matrix) -> str:
    choice, positions = result["choice"], len(result["positions"])
    loss = triangle(profile["loss"])
    alone = min(FIRST, choice[0])
    table = []
    for j in sorted(_under([alone], nats)):
        under = max((i for i in choice if i < j), default=-1)
        chosen = j in choice
        table.append([
            str(j),
            f"{nats[j, alone]:.4f}",
            f"{loss[j, alone]:.2f}",
            "chooses" if chosen else f"{nats[j, under]:.4f} ± {error[j, under]:.4f}" if under >= 0 else "dense",
            "" if chosen or under < 0 else f"{loss[j, under]:.2f}",
        ])  # fmt: skip
    head = ["layer", f"nats on the set of {alone}", "loss", f"nats with {choice}", "loss "]
    lines = [
        _show.table(head, table),
        "",
        f"by ablation: layers {choice}, {result['nats']:.4f} nats over all sparse layers, "
        f"{positions} positions up to {result['positions'][-1]} tokens",
        f"by measuring:    layers {result['measured_choice']}, {result['measured_choice_nats']:.4f} nats"
        + (": they agree" if result["agree"] else ""),
        f"profile: {result['profile']}",
    ]
    return "\n".join(lines)
