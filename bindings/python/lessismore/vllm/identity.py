"""What tells a served model from others: its weights, by samples of their files, and its configuration.

One line of text, "served KIND WEIGHTS CONFIGURATION", which profiles carry. vLLM and SGLang have the same for the same model. KIND says what
the second part was made of, so that two texts are compared only where they say the same thing.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from typing import Any, Optional

PASSING = ("transformers_version", "dtype", "torch_dtype", "use_cache", "architectures")  # say nothing about the weights
SERVED = "served"
LEAST_FILE = 1 << 20  # bytes; smaller ones are not weights, nor are
NO_WEIGHTS = (".json", ".jsonl", ".txt", ".md", ".model", ".tiktoken", ".jinja", ".py", ".png", ".jpg", ".jpeg", ".gif", ".pdf")
PIECES, LEAST_PIECES, PIECE = 256, 4, 256  # of all files together, of one, and bytes of each


def about(config: Any) -> str:
    """The text of an engine's model. config: vLLM's VllmConfig, or what has the same fields."""
    model = config.model_config
    text = {k: v for k, v in model.hf_config.to_dict().items() if not k.startswith("_") and k not in PASSING}
    configuration = digest(json.dumps([text, str(model.quantization)], sort_keys=True, default=str).encode())
    name = getattr(model, "model_weights", "") or model.model  # of a model in an object store, vLLM keeps the first
    kind, weights = _weights(os.fspath(name))
    if kind == "name":
        commit = getattr(model.hf_config, "_commit_hash", None)
        weights = f"{digest(str(name).encode())}.{digest(json.dumps([str(model.revision), str(commit)]).encode())}"
    return f"{SERVED} {kind} {weights} {configuration}"


def of_ranks(model: str, ranks: int) -> str:
    """The text for what one of several ranks measures: its own heads only."""
    return f"{model} one-of-{ranks}"


def another(made: str, model: str) -> bool:
    """Whether two texts are of different weights for certain: another commit of the same name may have changed a document only."""
    one, two = _parts(made), _parts(model)
    return one is not None and two is not None and one[1] == two[1] and _name(one) != _name(two)


def difference(made: Optional[str], model: str) -> str:
    """What a log says of a profile that is not this model's own; "": it is."""
    if made == model:
        return ""
    one, two = _parts(made or ""), _parts(model)
    if one is None or two is None or one[1] != two[1] or _name(one) != _name(two):
        return "of another host"
    if one[2] != two[2]:
        return "of another revision of the model"
    if one[3] != two[3]:
        return "of another configuration of the model"
    return "measured by the heads of one rank"


def _parts(text: str) -> Optional[list[str]]:
    parts = text.split(" ")
    return parts if len(parts) >= 4 and parts[0] == SERVED else None


def _name(parts: list[str]) -> str:
    return parts[2].split(".")[0]


def digest(content: bytes) -> str:
    """Of what is to be told from others, 16 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()[:16]


def _weights(path: str) -> tuple[str, str]:
    """How the weights are told, and what tells them: "files", by names, sizes and samples; "name", where they cannot be read here, and the
    name has to do; "none" of a folder without any, as of a model whose weights are drawn."""
    try:
        if os.path.isdir(path):
            files = sorted(os.path.join(path, name) for name in os.listdir(path) if not name.lower().endswith(NO_WEIGHTS))
        else:
            files = [path] if os.path.exists(path) else []
            if not files:
                return "name", ""
        sizes = {file: os.stat(file) for file in files}
        files = [file for file in files if stat.S_ISREG(sizes[file].st_mode) and sizes[file].st_size >= LEAST_FILE]
        if not files:
            return "none", "-"
        samples, pieces = hashlib.sha256(), max(LEAST_PIECES, PIECES // len(files))
        for file in files:
            size = sizes[file].st_size
            samples.update(f"{os.path.basename(file)} {size}\n".encode())
            with open(file, "rb", buffering=0) as f:
                for i in range(pieces):
                    samples.update(os.pread(f.fileno(), PIECE, (size - PIECE) * i // (pieces - 1)))
        return "files", samples.hexdigest()[:16]
    except OSError:
        return "name", ""
