"""Engines and decoders, opened, used, closed and dropped in any order: an exception at most."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, rule

import lessismore

ROWS = np.ones((9, 1, 32), np.float32)


class Lifetimes(RuleBasedStateMachine):
    engines, decoders = Bundle("engines"), Bundle("decoders")

    @rule(target=engines, layers=st.integers(1, 4), budget=st.integers(1, 12))
    def engine(self, layers, budget):
        return [lessismore.Engine(layers, budget=budget, n_threads=1)]

    @rule(target=decoders, engine=engines)
    def decoder(self, engine):
        try:
            return [engine[0].decoder()] if engine else []
        except lessismore.HandleError:  # closed
            return []

    @rule(decoder=decoders, layer=st.integers(-1, 4), slots=st.integers(1, 9))
    def attend(self, decoder, layer, slots):
        for one in decoder:
            try:
                out = one.attend(layer, np.ones((2, 32), np.float32), ROWS[:slots], ROWS[:slots])
                assert np.allclose(out, 1)
            except (lessismore.HandleError, lessismore.ArgumentError):
                pass

    @rule(decoder=decoders, what=st.sampled_from(["reset", "token_set", "stats", "close", "__enter__"]))
    def use(self, decoder, what):
        for one in decoder:
            try:
                getattr(one, what)()
            except lessismore.HandleError:
                pass

    @rule(engine=engines, what=st.sampled_from(["stats", "report", "close", "__enter__"]))
    def ask(self, engine, what):
        for one in engine:
            try:
                getattr(one, what)()
            except (lessismore.HandleError, lessismore.BusyError):
                pass

    @rule(which=engines | decoders)
    def drop(self, which):
        which.clear()  # nothing else refers to it: it ends here


TestLifetimes = Lifetimes.TestCase
TestLifetimes.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
