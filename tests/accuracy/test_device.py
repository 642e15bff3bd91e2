"""`compare --device cuda` without a GPU: arrays of a stand-in that, like CuPy's, never meet those of the host's memory by chance.

What CuPy itself computes is tests/gpu/test_compare.py's.
"""

import importlib
import sys
import types

import numpy as np
import pytest
from course import FOLDER, course

from lessismore.compare import device, text
from lessismore.compare.model import Model


class There(np.lib.mixins.NDArrayOperatorsMixin):
    """An array that is somewhere else: every meeting with a NumPy array, and every silent way back, raises TypeError."""

    def __init__(self, array):
        self._array = array

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        return _back(getattr(ufunc, method)(*map(_inner, inputs), **{k: _inner(v) for k, v in options.items()}))

    def __array_function__(self, function, types, args, options):
        return _back(function(*_inner(args, made=function in MAKING), **{k: _inner(v) for k, v in options.items()}))

    def __array__(self, *_, **__):
        raise TypeError("no silent way to the host")

    def __getitem__(self, at):
        return _back(self._array[_inner(at)])

    def __setitem__(self, at, value):
        self._array[_inner(at)] = _inner(value)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        of = getattr(self._array, name)
        if not callable(of):
            return _back(of)
        return lambda *args, **options: _back(of(*_inner(args), **{k: _inner(v) for k, v in options.items()}))

    def __len__(self):
        return len(self._array)

    def __bool__(self):
        return bool(self._array)

    def __float__(self):
        return float(self._array)

    def __int__(self):
        return int(self._array)

    def get(self):
        return self._array


MAKING = (np.asarray, np.zeros, np.arange, np.zeros_like)  # which take what they are given from the host


def _inner(of, made=False):
    if isinstance(of, There):
        return of._array
    if isinstance(of, (tuple, list)):
        return type(of)(_inner(x, made) for x in of)
    if isinstance(of, np.ndarray) and of.ndim and not made:
        raise TypeError("an array of the host's memory")
    return of


def _back(of):
    if isinstance(of, tuple):
        return tuple(map(_back, of))
    return There(np.asarray(of)) if isinstance(of, (np.ndarray, np.generic)) else of


@pytest.fixture
def cupy(monkeypatch):
    """The stand-in by the other one's name."""
    found = types.ModuleType("cupy")
    found.asarray = lambda array: There(np.array(array))
    found.cuda = types.SimpleNamespace(
        runtime=types.SimpleNamespace(getDeviceCount=lambda: 1, CUDARuntimeError=type("CUDARuntimeError", (RuntimeError,), {}))
    )
    monkeypatch.setitem(sys.modules, "cupy", found)
    return found


def test_another_device_computes_the_same(cupy, rng):
    """To the bit, since the stand-in is NumPy behind a wall; and nothing crosses the wall unsaid."""
    tokens = rng.integers(3, 60, 380).tolist()
    want, found = course("cpu", tokens), course("cuda", tokens)
    assert want.keys() == found.keys() and len(want) > 30
    for name in want:
        np.testing.assert_array_equal(found[name], want[name], name)


def test_a_text_on_another_device(cupy, rng):
    """All of it: layers found, anchors, sizes of equal bytes, facts."""
    from lessismore.cli._needles import Needle

    tokens = rng.integers(3, 60, 280 + text.SETTLE + 33).tolist()
    of = text.Course(tokens[:280], tokens[280:], 32, [Needle(0.5, tokens[140:144], tokens[:3], tokens[144:146])])
    wanted = [row.key for row in text.rows([2, 9]) if row.key != "stock"]
    want, found = (text.Stretch(Model(FOLDER, where), of, [64], wanted, [2, 9], lambda what: None) for where in ("cpu", "cuda"))
    assert want.reference() == found.reference()
    for key in wanted[1:]:
        for equal in ("tokens", "bytes"):
            one, other = (stretch.result(key, 64, equal) for stretch in (want, found))
            assert {**one, "seconds": 0} == {**other, "seconds": 0}, (key, equal)


def test_the_wall_stands():
    with pytest.raises(TypeError, match="host's memory"):
        There(np.ones(3)) + np.ones(3)
    with pytest.raises(TypeError, match="silent"):
        np.asarray(There(np.ones(3)))
    assert device.host(There(np.ones(3)) * 2).tolist() == [2, 2, 2]


def test_what_is_missing_is_said(cupy, monkeypatch):
    monkeypatch.setenv("CUPY_TF32", "1")
    with pytest.raises(ValueError, match="CUPY_TF32 is set"):
        device.module("cuda")
    monkeypatch.delenv("CUPY_TF32")

    def none():
        raise cupy.cuda.runtime.CUDARuntimeError("no CUDA-capable device")

    cupy.cuda.runtime.getDeviceCount = none
    with pytest.raises(ValueError, match="CuPy finds no GPU here"):
        device.module("cuda")
    monkeypatch.setitem(sys.modules, "cupy", None)
    importlib.invalidate_caches()
    with pytest.raises(ImportError, match="--device cuda needs CuPy"):
        device.module("cuda")
    assert device.module("cpu") is np
