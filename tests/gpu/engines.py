"""What the suites of vLLM and SGLang share: the package as `pip install` would leave it, without installing anything; what is said and kept."""

import json
import os
import pathlib
import re
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BEGIN = time.time()
PACKAGE = pathlib.Path(os.environ.get("LESSISMORE_PACKAGE", ROOT / "bindings" / "python"))


def install(group, beside="", path=()):
    """The package on the path of this process and of those that it starts, with its entry points of a group.

    beside: further entry points, as pyproject.toml has them; path: folders with what they name.
    """
    text = (PACKAGE / "pyproject.toml").read_text()
    points = re.search(rf'\[project\.entry-points\."{re.escape(group)}"\]\n(.*?)(?:\n\[|\Z)', text, re.DOTALL).group(1)
    lines = [line.replace('"', "") for line in (points + "\n" + beside).splitlines() if "=" in line]
    folder = pathlib.Path(tempfile.mkdtemp(prefix="lessismore-site-"))
    about = folder / "lessismore-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: lessismore\nVersion: 0\n")
    (about / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
    found = [str(PACKAGE), str(folder), *map(str, path)]
    sys.path[:0] = found
    os.environ["PYTHONPATH"] = os.pathsep.join([*found, os.environ.get("PYTHONPATH", "")])
    os.environ.setdefault("LESSISMORE_LIBRARY", str(ROOT / "build" / "liblessismore.so"))


def say(*words):
    print("##", f"[{time.time() - BEGIN:6.1f}]", *words, flush=True)


def keep(part, **found):
    """What a part has found so far, as PART.json in the folder that RESULTS names: a part that is cut off leaves what it had."""
    folder = os.environ.get("RESULTS")
    if folder:
        import torch

        path = pathlib.Path(folder, f"{part}.json")
        new = path.with_suffix(".new")
        new.write_text(json.dumps({"gpu": torch.cuda.get_device_name(), **found}))
        new.replace(path)
