"""Selection layers by a profile: one that was measured here before, or that `lessismore calibrate` made."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
from typing import Any, Optional

from .._errors import ArgumentError
from .._profiles import profile_dir
from . import identity
from .settings import Settings

FORMAT = 1
TOLD = "model "  # what the library writes before the text that a caller tells it of a model
Shape = Optional[tuple[int, int]]
MOST_BYTES = 8 << 20
HOW = (
    'name them ("layers": [2, 12]), give a profile ("profile": FILE, which `lessismore calibrate` makes), or start once without '
    "pipeline parallelism or speculation and with cudagraph_mode FULL_AND_PIECEWISE (vLLM's default) or PIECEWISE, which measures them and keeps them for "
    "the next start"
)


TARGETED = (
    "it needs a profile that was measured in nats for a target of at most that: `lessismore calibrate --quality` makes one of the model's folder "
    '("profile": FILE), since a server\'s steps are not computed twice'
)


@dataclasses.dataclass(frozen=True)
class Choice:
    """What an engine's layers do. With neither layers nor measuring, nothing is sparse, for that reason."""

    layers: Optional[tuple[int, ...]] = None
    measure: bool = False
    profile: Optional[str] = None  # the library's, when it measures
    model: Optional[str] = None
    source: str = ""
    reason: Optional[str] = None


def choose(settings: Settings, in_force: dict[str, Any], n_layers: int, model: str, may_measure: bool, shape: Shape = None) -> Choice:
    """Given layers, else a profile's, else measured ones.

    Args:
        in_force: budget, recency, sink_tokens, policy, and selections or that there is a quality target.
        model: what identity.about() says of it.
        shape: query heads of a layer, on all ranks, and their size. None: a profile's are not compared with them.
        may_measure: attention may run outside of graphs, on one rank. Then the library reads the profile itself, audits and goes on
            measuring; else a profile's layers are taken as if they were given, since graphs would keep them anyway.

    Raises ArgumentError for a profile that was named and cannot be used.
    """
    if settings.layers is not None:
        if settings.quality:
            raise ArgumentError(f"quality = {settings.quality} chooses the selection layers, but layers = {list(settings.layers)}")
        return Choice(layers=tuple(settings.layers), source="given")
    named = settings.file is not None
    path = os.fspath(settings.file) if settings.file is not None else None if settings.profile else _default(in_force, n_layers, model)
    found, problem = _read(path, in_force, n_layers, model, shape) if path is not None else (None, None)
    if named and problem is not None:
        raise ArgumentError(f"profile {path}: {problem}")
    if settings.quality:
        if found is None:
            return Choice(reason=f"quality = {settings.quality}: {TARGETED}")
        target = found["tried"]["target"]
        if not target <= settings.quality or not found["choice"]:
            return Choice(reason=f"quality = {settings.quality}: the choice of profile {path} is for {target}; {TARGETED}")
    made = None if found is None else _made(found)
    if found is not None and not (may_measure and made == model):
        from_where = identity.difference(made, model)
        return Choice(layers=tuple(found["choice"]), source=f"profile {path}" + (f", {from_where}" if from_where else ""))
    if may_measure:
        if path is not None and not named:
            try:
                os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            except OSError:
                path = None
        return Choice(measure=True, profile=path, model=model, source=f"profile {path}" if found is not None else "measured")
    return Choice(reason=f"the selection layers are not known: {HOW}")


def _default(in_force: dict[str, Any], n_layers: int, model: str) -> Optional[str]:
    folder = profile_dir()
    text = json.dumps([model, n_layers, in_force], sort_keys=True)
    return None if folder is None else os.path.join(folder, f"vllm-{identity.digest(text.encode())}.json")


def _made(found: dict[str, Any]) -> str:
    """The model that a profile is of, as who measured it told the library; "": that was a ggml host, which tells it otherwise."""
    weights = str(found["model"].get("weights"))
    return weights[len(TOLD) :] if weights.startswith(TOLD) else ""


def _read(path: str, in_force: dict[str, Any], n_layers: int, model: str, shape: Shape) -> tuple[Optional[dict[str, Any]], Optional[str]]:
    """A profile, and why it is none that fits; neither where there is no file."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as f:
            status = os.fstat(f.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
                return None, f"it is no regular file of at most {MOST_BYTES} bytes"
            found = json.loads(f.read(MOST_BYTES))
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError) as e:
        return None, str(e)
    try:
        problem = _problem(found, in_force, n_layers) or _another(found, model, shape)
    except (AttributeError, KeyError, TypeError) as e:
        problem = f"it is no profile: {e!r}"
    return (found, None) if problem is None else (None, problem)


def _problem(found: Any, in_force: dict[str, Any], n_layers: int) -> Optional[str]:
    if found["format"] != FORMAT:
        return f"its format is {found['format']!r}, not {FORMAT}"
    if found["model"]["layers"] != n_layers:
        return f"it was made for {found['model']['layers']} layers, here there are {n_layers}"
    for name, value in in_force.items():
        if found["settings"].get(name, False) != value:
            return f"it was made for {name} {found['settings'].get(name)}, here it is {value}"
    if in_force.get("quality") and type(found["tried"]["target"]) not in (int, float):
        return f"tried is for a target of {found['tried']['target']!r}"
    choice = found["choice"]
    ascending = choice and all(type(x) is int for x in choice) and list(choice) == sorted(set(choice))
    if not ascending or choice[0] < 0 or choice[-1] >= n_layers:
        return f"choice = {choice!r} is not ascending layers in 0 .. {n_layers - 1}"
    return None


def _another(found: Any, model: str, shape: Shape) -> Optional[str]:
    """Why a profile is of another model, where that can be told."""
    if identity.another(_made(found), model):
        return "it was measured while another model was served"
    for name, here in zip(("heads", "key_dim"), shape or ()):
        there = found["model"].get(name, 0)  # 0: of one that was not measured in a ggml host
        if there and there != here:
            return f"it was made for {name} {there}, here it is {here}"
    return None
