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

PACKAGES = [
    hosts.NUMPY,
    "torch==2.15.0",
    "transformers==5.23.0",
    "pytest==9.2.0",
    "hypothesis==6.170.15",
    "ml_dtypes==0.6.0",
    "rich==15.0.0",
    "matplotlib==3.11.2" if sys.version_info >= (3, 11) else "matplotlib==3.10.0",
    "openai==3.54.0",
    # llama-cpp-python's server
    "fastapi==0.165.0",
    "uvicorn==0.54.0",
    "sse-starlette==3.7.0",
    "starlette-context==0.3.6",
    "pydantic-settings==2.16.3",
    "PyYAML>=5.1",
]
SEEN = ("llama-cpp-python", "xllamacpp")


class Python(hosts.Part):
    """Everything that the package works with, in one place."""

    name = "python"
    needs = ("sdist", *SEEN)

    def recipe(self):
        return {"packages": PACKAGES, "seen": [hosts.PARTS[name].recipe() for name in SEEN]}

    def build(self, cache, tmp, log, opts):
        hosts.make_venv(tmp, log, PACKAGES)
        site = next((tmp / "lib").glob("python*")) / "site-packages"
        paths = [next((cache / name / "lib").glob("python*")) / "site-packages" for name in SEEN]
        (site / "hosts.pth").write_text("".join(f"{path}\n" for path in paths))
        return {p.split("==")[0]: p.split("==")[1] for p in PACKAGES[:3]}


hosts.PARTS[Python.name] = Python()

if __name__ == "__main__":
    sys.exit(hosts.main(sys.argv[1:] or [Python.name]))
