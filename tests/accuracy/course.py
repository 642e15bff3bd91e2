"""All of the rules on one device: what each method says, attends to and reads, and what is learned from a dense pass."""

import pathlib

import numpy as np

from lessismore.compare import calibration, kascade, methods
from lessismore.compare.measure import Counts
from lessismore.compare.model import Model
from lessismore.compare.sets import Library

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "data" / "reasoner"
CONTEXT, BEHIND = 300, 80


def every(model, likeness):
    layers = model.layers
    anchors = kascade.anchor_layers(kascade.matched(likeness), 4)
    return [
        methods.Full(64), methods.Window(64), methods.Oracle(64), methods.TidalDecode(64, [2, 9]), methods.Quest(64),
        methods.QuestSpread(128), methods.Delta(64, [2, 6, 9]), methods.Twilight(64, 0.9), methods.Seer(192), methods.Rough(64, 2),
        methods.Kascade(64, kascade.plan(likeness, anchors)), Library(64, [2, 9], "union", layers),
    ]  # fmt: skip


def course(where, tokens):
    """What each method says and reads behind a dense context, and what is learned from one."""
    model = Model(FOLDER, where)
    cache = model.cache(CONTEXT + BEHIND)
    model.run(tokens[:CONTEXT], cache, methods.Full(0), 0)

    def behind(method):
        cache.length = CONTEXT
        return model.run(tokens[CONTEXT:], cache, method)

    learned = [calibration.Shift(model.layers), calibration.Shares(), kascade.Likeness(64, model.layers, model.kv_heads)]
    said = [behind(of) for of in learned]
    found = {"shift": learned[0].mean(), "p": np.array(learned[1].p(64)), "likeness": learned[2].mean()}
    for method in every(model, learned[2].mean()):
        name = type(method).__name__
        counts = Counts(model, method)
        try:
            found[name] = behind(method)
        finally:
            method.close()
        assert isinstance(found[name], np.ndarray), "results are in the host's memory"
        found[name + " counts"] = np.array([x if x is not None else -1 for k, x in counts.result().items() if k != "loss"])
        found[name + " loss"] = np.array(counts.result()["loss"])
    assert all((of == said[0]).all() for of in said)
    return found
