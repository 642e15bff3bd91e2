#!/usr/bin/env python3
"""Makes the virtual environment that the Python tests run in: torch, transformers, the server's packages.

    python3 tests/python/install.py

It lies beside the hosts (tests/hosts/install.py, whose rules hold here too: pinned, stamped, left alone
when it is there) and sees llama-cpp-python and xllamacpp as they were installed there.
"""

from __future__ import annotations

import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "hosts"))
sys.modules.pop("install", None)  # this file may be known under that name
import install as hosts  # noqa: E402

REQUIREMENTS = HERE / "requirements.txt"
SEEN = ("llama-cpp-python", "xllamacpp")


class Python(hosts.Part):
    """Everything that the package works with, in one place."""

    name = "python"
    needs = ("sdist", *SEEN)

    def recipe(self):
        return {"packages": REQUIREMENTS.read_text(), "seen": [hosts.PARTS[name].recipe() for name in SEEN]}

    def build(self, cache, tmp, log, opts):
        hosts.make_venv(tmp, log, ["-r", REQUIREMENTS])
        site = next((tmp / "lib").glob("python*")) / "site-packages"
        paths = [next((cache / name / "lib").glob("python*")) / "site-packages" for name in SEEN]
        (site / "hosts.pth").write_text("".join(f"{path}\n" for path in paths))
        found = {name: next(site.glob(f"{name}-*.dist-info")).stem for name in ("torch", "transformers")}
        return {name: stem.removeprefix(f"{name}-") for name, stem in found.items()}


hosts.PARTS[Python.name] = Python()

if __name__ == "__main__":
    sys.exit(hosts.main(sys.argv[1:] or [Python.name]))
