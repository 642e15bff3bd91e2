"""What `pip install` would leave of the package, for hosts that look for entry points, without installing anything."""

import os
import pathlib
import re
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
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
